//! A client of llmchat: one connection a request, so that a test says when it leaves.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use eventsource_stream::{EventStream, Eventsource};
use futures_util::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::within;

/// The body of a prompt of one message.
pub fn prompt(app_id: &str, content: &str) -> Value {
    json!({
        "appID": app_id,
        "model": "stand-in",
        "messages": [{"role": "user", "content": content}],
    })
}

/// Sends requests to one address.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
}

type Body = BoxBody<Bytes, Infallible>;

impl Client {
    /// A client of the server at `address`.
    pub fn of(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Where it sends them.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a prompt; returns with the head of the answer.
    pub async fn prompt(&self, body: &Value) -> Result<Answer> {
        self.post(body.to_string()).await
    }

    /// Sends any body, with its `content-length`.
    pub async fn post(&self, body: impl Into<Bytes>) -> Result<Answer> {
        self.request("POST", "/llmchat/", body).await
    }

    /// Sends a body in chunks, without announcing its length.
    pub async fn post_chunked(&self, body: &str, chunk: usize) -> Result<Answer> {
        let chunks: Vec<_> = body
            .as_bytes()
            .chunks(chunk)
            .map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk))))
            .collect();
        let body = StreamBody::new(futures_util::stream::iter(chunks));
        let body = BodyExt::boxed(body);
        self.send("POST", "/llmchat/", &[], body).await
    }

    /// Sends a prompt with more headers.
    pub async fn prompt_with(&self, headers: &[(&str, &str)], body: &Value) -> Result<Answer> {
        self.request_with("POST", "/llmchat/", headers, body.to_string())
            .await
    }

    /// Sends a request without a body.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.request_with("GET", path, headers, "").await
    }

    /// Sends a `DELETE`; an error unless the answer is a `204`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        let answer = self.request("DELETE", path, "").await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 204 && text.is_empty(), "{path}: {status} {text}");
        Ok(())
    }

    /// Sends any request.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        self.request_with(method, path, &[], body).await
    }

    /// Sends any request, with more headers.
    pub async fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        self.send(method, path, headers, Full::new(body.into()).boxed())
            .await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Answer> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = AbortOnDrop(tokio::spawn(async move {
            // Its errors come out with the body.
            let _ = connection.await;
        }));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body)?;
        let response = within("the head of an answer", sender.send_request(request)).await??;
        Ok(Answer {
            response,
            _connection: connection,
        })
    }
}

/// The connection's task; the connection closes when this is dropped.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The head of an answer, and its body to come. The client leaves when this is dropped.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    _connection: AbortOnDrop,
}

impl Answer {
    /// The status code.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header, if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The path of the turn that answers.
    pub fn turn(&self) -> Result<String> {
        let path = self.header("location");
        Ok(path.context("an answer without a turn")?.to_owned())
    }

    /// The whole body; an error if it was cut.
    pub async fn bytes(self) -> Result<Bytes> {
        let body = within("the end of a body", self.response.into_body().collect()).await?;
        Ok(body?.to_bytes())
    }

    /// The whole body as text.
    pub async fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.bytes().await?.to_vec())?)
    }

    /// The JSON of an answer with this status; an error if the answer is another.
    pub async fn json(self, status: u16) -> Result<Value> {
        let came = self.status();
        let text = self.text().await?;
        ensure!(came == status, "status {came} instead of {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// The code of a refusal with this status; an error if the answer is another.
    pub async fn refusal(self, status: u16) -> Result<String> {
        Ok(self.refused(status).await?.0)
    }

    /// The message of a refusal with this status; an error if the answer is another.
    pub async fn error(self, status: u16) -> Result<String> {
        Ok(self.refused(status).await?.1)
    }

    /// The code and the message of a refusal with this status; an error if the answer is another, or lacks what
    /// every refusal has.
    pub async fn refused(self, status: u16) -> Result<(String, String)> {
        let header = |name| self.header(name).map(str::to_owned);
        let [kind, caching, length] =
            ["content-type", "cache-control", "content-length"].map(header);
        let came = self.status();
        let text = self.text().await?;
        ensure!(came == status, "status {came} instead of {status}: {text}");
        let length = length.and_then(|length| length.parse::<usize>().ok());
        ensure!(length == Some(text.len()), "length {length:?}: {text}");
        ensure!(
            kind.as_deref() == Some("application/json"),
            "sent as {kind:?}: {text}"
        );
        ensure!(
            caching.as_deref() == Some("no-store"),
            "caching {caching:?}: {text}"
        );
        let body: Value = serde_json::from_str(&text)?;
        let field = |name| {
            body.get(name)
                .and_then(Value::as_str)
                .filter(|it| !it.is_empty())
        };
        let field = |name| field(name).with_context(|| format!("no `{name}` in {text}"));
        Ok((field("code")?.to_owned(), field("error")?.to_owned()))
    }

    /// The events, read by a library that is not ours; an error if the answer is no stream.
    pub async fn events(self) -> Result<Events> {
        let is_stream = self.header("content-type") == Some("text/event-stream; charset=utf-8");
        if self.status() != StatusCode::OK || !is_stream {
            let status = self.status();
            bail!("no stream of events: {status} {}", self.text().await?);
        }
        Ok(Events {
            turn: self.turn().unwrap_or_default(),
            stream: self.response.into_body().into_data_stream().eventsource(),
            last_id: String::new(),
            _connection: self._connection,
        })
    }

    /// All events, to the clean end of the stream.
    pub async fn read(self) -> Result<Vec<Event>> {
        self.events().await?.rest().await
    }

    /// The body as it comes, chunk by chunk.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let frame = within("a chunk", self.response.body_mut().frame()).await?;
        let frame = frame.transpose()?;
        Ok(frame.and_then(|frame| frame.into_data().ok()))
    }
}

/// An event as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `data:`: one of Ollama's lines.
    Data(String),
    /// `event: restart`: the client is to drop what it has of the turn.
    Restart {
        /// The turn.
        turn: String,
        /// The attempt whose reply follows.
        attempt: String,
    },
    /// `event: error`
    Error {
        /// The field `code`.
        code: String,
        /// The field `error`: the message.
        error: String,
        /// The whole payload.
        data: String,
    },
}

impl Event {
    /// The code, if this is an error.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Error { code, .. } => Some(code),
            Self::Data(_) | Self::Restart { .. } => None,
        }
    }
}

/// A stream of events. The client leaves when this is dropped.
pub struct Events {
    turn: String,
    stream: EventStream<BodyDataStream<Incoming>>,
    last_id: String,
    _connection: AbortOnDrop,
}

impl Events {
    /// The next event; `None` at the clean end of the stream.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let Some(event) = within("an event", self.stream.next()).await? else {
            return Ok(None);
        };
        let event = event?;
        self.last_id = event.id;
        let body = || serde_json::from_str::<Value>(&event.data);
        Ok(Some(match event.event.as_str() {
            "message" => Event::Data(event.data),
            "restart" => {
                let body = body()?;
                let field = |name| body.get(name).and_then(Value::as_str).map(str::to_owned);
                Event::Restart {
                    turn: field("turn").with_context(|| format!("no turn: {}", event.data))?,
                    attempt: field("attempt")
                        .with_context(|| format!("no attempt: {}", event.data))?,
                }
            }
            "error" => {
                let body = body()?;
                let field = |name| body.get(name).and_then(Value::as_str).map(str::to_owned);
                Event::Error {
                    code: field("code").with_context(|| format!("no code: {}", event.data))?,
                    error: field("error").with_context(|| format!("no error: {}", event.data))?,
                    data: event.data,
                }
            }
            other => bail!("an event of type {other}: {}", event.data),
        }))
    }

    /// The path of the turn.
    pub fn turn(&self) -> &str {
        &self.turn
    }

    /// The last id that came, as a browser keeps it.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The rest of them, to the clean end of the stream.
    pub async fn rest(mut self) -> Result<Vec<Event>> {
        within("the end of a stream of events", async {
            let mut events = Vec::new();
            while let Some(event) = self.next().await? {
                events.push(event);
            }
            Ok(events)
        })
        .await?
    }
}
