//! What came in and what became of it: the test's view of one request and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

/// A request as it was received.
#[derive(Debug)]
pub struct Request {
    /// `POST`
    pub method: String,
    /// `/api/chat`
    pub path: String,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The body, whole, its transfer coding undone.
    pub body: Bytes,
}

impl Request {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the request's body is no JSON")
    }

    /// The conversation that was sent: `(role, content)` a message.
    pub fn messages(&self) -> anyhow::Result<Vec<(String, String)>> {
        let body = self.json()?;
        let messages = body.get("messages").and_then(Value::as_array);
        let text = |message: &Value, field| {
            let value = message.get(field).and_then(Value::as_str);
            value
                .map(str::to_owned)
                .with_context(|| format!("a message without {field}"))
        };
        messages
            .context("no messages in the request")?
            .iter()
            .map(|message| Ok((text(message, "role")?, text(message, "content")?)))
            .collect()
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every step was done.
    Complete,
    /// The client closed the connection before that.
    ClientLeft,
    /// The script closed or cut the connection.
    BrokenOff,
    /// The stand-in was stopped.
    Stopped,
}

/// A request and the progress of its answer. Clones are views of one exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    request: Request,
    connection: u64,
    bytes: AtomicU64,
    chunks: AtomicU64,
    ending: watch::Sender<Option<Ending>>,
}

impl Exchange {
    pub(crate) fn new(request: Request, connection: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                request,
                connection,
                bytes: AtomicU64::new(0),
                chunks: AtomicU64::new(0),
                ending: watch::Sender::new(None),
            }),
        }
    }

    /// What was asked.
    pub fn request(&self) -> &Request {
        &self.inner.request
    }

    /// The number of the connection that it came by, counted from 1.
    pub fn connection(&self) -> u64 {
        self.inner.connection
    }

    /// Bytes of the answer that the socket has accepted.
    pub fn bytes_sent(&self) -> u64 {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    /// Chunks (a scripted line is one) that the socket has accepted whole.
    pub fn chunks_sent(&self) -> u64 {
        self.inner.chunks.load(Ordering::Relaxed)
    }

    /// How it ended, once it has.
    pub async fn ended(&self) -> Ending {
        let mut ending = self.inner.ending.subscribe();
        let ended = ending.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|ending| *ending)
            .unwrap_or(Ending::Stopped)
    }

    /// How it ended, `None` while it is going on.
    pub fn ending(&self) -> Option<Ending> {
        *self.inner.ending.borrow()
    }

    /// Returns once something was sent and then, for this long, the socket took nothing more; the
    /// number of bytes that it had taken. Who reads slowly makes it stand still.
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
        self.inner.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent_chunks(&self, chunks: usize) {
        self.inner
            .chunks
            .fetch_add(chunks as u64, Ordering::Relaxed);
    }

    /// The first ending counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.inner.ending.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(ending);
            first
        });
    }
}
