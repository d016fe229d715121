//! One HTTP/1.1 connection of the client: a prompt out, the events of its reply in.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::events::{Event, EventReader};

pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Sent with each request.
    pub authorization: Option<String>,
}

/// A reply that was read to its end.
#[derive(Default)]
pub struct Reply {
    pub first_token: Option<Instant>,
    pub tokens: usize,
    pub is_done: bool,
    /// Of its tokens, if they are timed: from the sending of each to its arrival, in milliseconds.
    pub delays: Vec<f64>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the request.
        tokio::spawn(connection);
        let host = address.to_string();
        Ok(Self {
            sender,
            host,
            authorization: None,
        })
    }

    /// Waits until it can take a request; fails if the server has closed it.
    pub async fn ready(&mut self) -> Result<()> {
        Ok(self.sender.ready().await?)
    }

    /// Sends a prompt and reads its reply.
    pub async fn chat(&mut self, path: &str, prompt: Bytes, time_tokens: bool) -> Result<Reply> {
        let response = self.post(path, prompt).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let message = body.collect().await?.to_bytes();
            bail!("status {status}: {}", String::from_utf8_lossy(&message));
        }
        let (mut reader, mut reply) = (EventReader::default(), Reply::default());
        let mut failure = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the reply broke off")?;
            let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
            reader.feed(data, &mut |event| match event {
                Event::Token(token) => {
                    reply.first_token.get_or_insert_with(Instant::now);
                    reply.tokens += 1;
                    if time_tokens {
                        reply.delays.extend(delay(token));
                    }
                }
                Event::Done => reply.is_done = true,
                Event::Failed(message) => {
                    failure = Some(String::from_utf8_lossy(message).into_owned());
                }
            });
        }
        match failure {
            Some(message) => bail!("an error in the stream: {message}"),
            None => Ok(reply),
        }
    }

    /// Sends an empty request for its status alone.
    pub async fn status(&mut self, path: &str) -> Result<StatusCode> {
        let response = self.post(path, Bytes::new()).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    async fn post(&mut self, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::post(path)
            .header("host", &self.host)
            .header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Full::new(body))?;
        Ok(self.sender.send_request(request).await?)
    }
}

/// Milliseconds since the stand-in sent a token: it writes that time into each line, and every
/// server passes lines on as they are.
fn delay(token: &[u8]) -> Option<f64> {
    const FIELD: &[u8] = br#""created_at":""#;
    let now = SystemTime::now();
    let start = memchr::memmem::find(token, FIELD)? + FIELD.len();
    let time = token.get(start..)?;
    let end = memchr::memchr(b'"', time)?;
    let sent = humantime::parse_rfc3339(std::str::from_utf8(time.get(..end)?).ok()?).ok()?;
    let delay = match now.duration_since(sent) {
        Ok(delay) => delay.as_secs_f64(),
        Err(ahead) => -ahead.duration().as_secs_f64(),
    };
    Some(delay * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_read_from_the_line() {
        let sent = SystemTime::now() - std::time::Duration::from_secs(3);
        let sent = humantime::format_rfc3339_nanos(sent);
        let delay = delay(format!("{{\"created_at\":\"{sent}\"}}").as_bytes());
        assert!((delay.expect("a delay") - 3_000.0).abs() < 100.0);
    }
}
