//! What a test sees of one request and its answer.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

/// A request as it was received.
#[derive(Debug)]
pub struct Request {
    /// The method, such as `POST`.
    pub method: String,
    /// The request target, such as `/api/chat`.
    pub path: String,
    /// The whole body, its transfer coding removed.
    pub body: Bytes,
    /// With names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    /// The first header with this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the request's body is no JSON")
    }

    /// The conversation: the role and content of each message.
    pub fn messages(&self) -> anyhow::Result<Vec<(String, String)>> {
        let text = |message: &Value, field| Some(message.get(field)?.as_str()?.to_owned());
        let pair = |message| Some((text(message, "role")?, text(message, "content")?));
        let body = self.json()?;
        let messages = body.get("messages").and_then(Value::as_array);
        let pairs = messages.and_then(|messages| messages.iter().map(pair).collect());
        pairs.context("a request without messages, or one of them without role or content")
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All of it was sent.
    Complete,
    /// The client closed or reset the connection first: [`Exchange::was_reset`] says which.
    ClientLeft,
    /// The script closed or reset the connection.
    BrokenOff,
    /// The stand-in was stopped.
    Stopped,
}

/// A request and the progress of its answer.
#[derive(Debug)]
pub struct Exchange {
    request: Request,
    bytes_sent: AtomicU64,
    was_reset: AtomicBool,
    ending: watch::Sender<Option<Ending>>,
}

impl Exchange {
    pub(crate) fn new(request: Request) -> Self {
        Self {
            request,
            bytes_sent: AtomicU64::new(0),
            was_reset: AtomicBool::new(false),
            ending: watch::Sender::default(),
        }
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Bytes of the answer that the socket has accepted.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Waits for the end of the answer.
    pub async fn ended(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = ending.wait_for(Option::is_some).await;
        self.ending().unwrap_or(Ending::Stopped)
    }

    /// How the answer ended, `None` while it is in progress.
    pub fn ending(&self) -> Option<Ending> {
        *self.ending.borrow()
    }

    /// Whether the client left with a reset (an RST), as a socket does that is closed before all that had
    /// come was read.
    pub fn was_reset(&self) -> bool {
        self.was_reset.load(Ordering::Relaxed)
    }

    /// Waits until something was sent and the socket then accepted nothing for `quiet`, as happens
    /// when the client stops reading. Returns the bytes sent.
    pub async fn stalled(&self, quiet: Duration) -> u64 {
        loop {
            let before = self.bytes_sent();
            tokio::time::sleep(quiet).await;
            if before > 0 && self.bytes_sent() == before {
                return before;
            }
        }
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What the socket's error says of the client that left.
    pub(crate) fn failed(&self, error: &io::Error) {
        let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
        self.was_reset.fetch_or(is_reset, Ordering::Relaxed);
    }

    /// Sets the ending, unless there is one.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(ending);
            first
        });
    }
}

/// A line for a log: the request, and how its answer ended.
impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { method, path, .. } = &self.request;
        let ending = match self.ending() {
            None => "in progress",
            Some(Ending::Complete) => "complete",
            Some(Ending::ClientLeft) if self.was_reset() => "reset by the client",
            Some(Ending::ClientLeft) => "closed by the client",
            Some(Ending::BrokenOff) => "broken off",
            Some(Ending::Stopped) => "cut off by the stop",
        };
        write!(
            f,
            "{method} {path}: {ending}, {} bytes sent",
            self.bytes_sent()
        )
    }
}
