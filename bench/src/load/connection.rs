//! One connection of the client's: a turn at a time, timed at the arrival of each piece.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::events::{Event, EventReader};
use super::target::Target;

/// A connection to one server.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
    host: String,
}

/// What one turn was like.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// When its first token came.
    pub first_token: Instant,
    /// How many came.
    pub tokens: usize,
    /// Whether it ended by saying so.
    pub is_done: bool,
}

impl Connection {
    /// Connects.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its errors come out with the answer.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            sender,
            task,
            host: target.address.to_string(),
        })
    }

    /// Waits until it can take a request; an error if the server has closed it.
    pub async fn ready(&mut self) -> Result<()> {
        Ok(self.sender.ready().await?)
    }

    /// Sends a prompt and reads the reply to its end. `on_token` sees each token as it comes.
    pub async fn turn(
        &mut self,
        path: &str,
        body: Bytes,
        on_token: &mut impl FnMut(&[u8]),
    ) -> Result<Turn> {
        let response = self.sender.send_request(self.post(path, body)?).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let words = body.collect().await?.to_bytes();
            bail!("status {status}: {}", String::from_utf8_lossy(&words));
        }
        let mut reader = EventReader::default();
        let (mut first_token, mut tokens) = (None, 0);
        let (mut is_done, mut failure) = (false, None);
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the reply broke off")?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            reader.feed(data, &mut |event| match event {
                Event::Token(token) => {
                    if first_token.is_none() {
                        first_token = Some(Instant::now());
                    }
                    tokens += 1;
                    on_token(token);
                }
                Event::Done => is_done = true,
                Event::Failed(words) => {
                    failure = Some(String::from_utf8_lossy(words).into_owned());
                }
            });
        }
        if let Some(words) = failure {
            bail!("an error in the stream: {words}");
        }
        Ok(Turn {
            first_token: first_token.context("the reply had no token")?,
            tokens,
            is_done,
        })
    }

    /// Sends a request for its status alone.
    pub async fn status(&mut self, path: &str) -> Result<StatusCode> {
        let request = self.post(path, Bytes::new())?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    fn post(&self, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        Ok(Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .body(Full::new(body))?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
