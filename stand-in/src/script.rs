//! What a test lets Ollama do: a list of steps, and the gates between them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::wire;

/// One answer to `POST /api/chat`, step by step. It ends cleanly unless its last step says
/// otherwise.
///
/// Like Ollama, it sends no head before there is something of the body to send with it, unless a
/// step asks for one.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Head {
        status: u16,
        content_type: String,
    },
    Whole {
        status: u16,
        content_type: String,
        body: Bytes,
    },
    Chunk(Bytes),
    Raw(Bytes),
    Gate(Gate),
    Delay(Duration),
    Endless(Bytes),
    Hang,
    BreakOff,
    Reset,
}

impl Script {
    /// An answer without a step: an empty stream that ends cleanly.
    pub fn new() -> Self {
        Self::default()
    }

    /// A whole reply: a line a token, and the last line.
    pub fn reply<T: AsRef<str>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::new().tokens(tokens).done()
    }

    /// A refusal before the first line, in Ollama's form: a status and `{"error": words}`.
    pub fn refuse(status: u16, words: &str) -> Self {
        Self::body(
            status,
            "application/json; charset=utf-8",
            wire::error(words),
        )
    }

    /// One body in one piece, with its status and length: what `"stream": false` gives, or anything.
    pub fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::new().step(Step::Whole {
            status,
            content_type: content_type.to_owned(),
            body: body.into(),
        })
    }

    /// No answer at all, for as long as the client stays.
    pub fn silence() -> Self {
        Self::new().hang()
    }

    /// Sends the head now, before there is any body.
    pub fn head(self, status: u16, content_type: &str) -> Self {
        self.step(Step::Head {
            status,
            content_type: content_type.to_owned(),
        })
    }

    /// One line of a reply.
    pub fn token(self, content: &str) -> Self {
        self.line(wire::token(content))
    }

    /// A line each.
    pub fn tokens<T: AsRef<str>>(self, contents: impl IntoIterator<Item = T>) -> Self {
        contents
            .into_iter()
            .fold(self, |script, content| script.token(content.as_ref()))
    }

    /// The last line of a complete reply.
    pub fn done(self) -> Self {
        self.line(wire::done())
    }

    /// Any line; its newline is added.
    pub fn line(self, line: impl AsRef<[u8]>) -> Self {
        self.bytes([line.as_ref(), b"\n"].concat())
    }

    /// A JSON value as a line.
    pub fn json(self, value: &Value) -> Self {
        self.line(value.to_string())
    }

    /// These bytes, as one chunk of the body and one write to the socket.
    pub fn bytes(self, chunk: impl Into<Bytes>) -> Self {
        self.step(Step::Chunk(chunk.into()))
    }

    /// These bytes on the socket as they are: no head, no framing of chunks.
    pub fn raw(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Raw(bytes.into()))
    }

    /// Waits until the test opens the gate.
    pub fn gate(self, gate: &Gate) -> Self {
        self.step(Step::Gate(gate.clone()))
    }

    /// Waits for a time. For what is about time itself; for order, use a gate.
    pub fn delay(self, duration: Duration) -> Self {
        self.step(Step::Delay(duration))
    }

    /// Sends this line again and again until the client leaves.
    pub fn endless(self, line: impl AsRef<[u8]>) -> Self {
        self.step(Step::Endless([line.as_ref(), b"\n"].concat().into()))
    }

    /// Sends nothing more and ends nothing, until the client leaves.
    pub fn hang(self) -> Self {
        self.step(Step::Hang)
    }

    /// Closes the connection in the middle of the body (a FIN without the last chunk).
    pub fn break_off(self) -> Self {
        self.step(Step::BreakOff)
    }

    /// Cuts the connection (an RST).
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Puts another script's steps after these.
    pub fn then(mut self, other: Self) -> Self {
        self.steps.extend(other.steps);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// Where a script waits for the test. Clones are one gate; once open it stays open.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            waiting: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Lets everybody through, from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Returns once a script has come to the gate: all its steps before it are done.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Returns once this many answers have come to the gate.
    pub async fn reached_by(&self, scripts: usize) {
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = self.waiting.subscribe().wait_for(|n| *n >= scripts).await;
    }

    pub(crate) async fn pass(&self) {
        self.waiting.send_modify(|n| *n += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
