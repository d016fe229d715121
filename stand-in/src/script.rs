//! What a test makes the stand-in answer: a list of steps, and gates at which it waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::exchange::Ending;
use crate::{http, wire};

/// One answer to `POST /api/chat`, step by step. The body ends cleanly unless the last step says
/// otherwise.
///
/// Like Ollama's, its head leaves together with the first bytes of the body, unless a step sends
/// one before.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Chunk(Bytes),
    /// Bytes as they are, instead of the usual head or between the chunks.
    Raw(Bytes),
    Gate(Gate),
    Delay(Duration),
    /// One chunk, repeated.
    Endless(Bytes),
    /// Ends the answer without a last chunk.
    End(Ending),
    Reset,
}

impl Script {
    /// An answer without a step: an empty stream that ends cleanly.
    pub fn new() -> Self {
        Self::default()
    }

    /// A complete reply: one line per token, and the last line.
    pub fn reply<T: AsRef<str>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::new().tokens(tokens).done()
    }

    /// A refusal in Ollama's form: a status and `{"error": message}`.
    pub fn refuse(status: u16, message: &str) -> Self {
        Self::body(status, wire::JSON, wire::error(message))
    }

    /// A status and a body with its length, such as the answer to `"stream": false`.
    pub fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let answer = http::whole(status, Some(content_type), &body.into());
        Self::new().raw(answer).step(Step::End(Ending::Complete))
    }

    /// No answer for as long as the client stays.
    pub fn silence() -> Self {
        Self::new().hang()
    }

    /// Sends the head now, before any of the body.
    pub fn head(self, status: u16, content_type: &str) -> Self {
        self.raw(http::head(status, Some(content_type), None))
    }

    /// One line of a reply.
    pub fn token(self, content: &str) -> Self {
        self.line(wire::token(content))
    }

    /// One line per token.
    pub fn tokens<T: AsRef<str>>(self, contents: impl IntoIterator<Item = T>) -> Self {
        contents
            .into_iter()
            .fold(self, |script, content| script.token(content.as_ref()))
    }

    /// The last line of a complete reply.
    pub fn done(self) -> Self {
        self.line(wire::done())
    }

    /// Any line, without its newline.
    pub fn line(self, line: impl AsRef<[u8]>) -> Self {
        self.bytes([line.as_ref(), b"\n"].concat())
    }

    /// Any bytes, as one chunk of the body and one write to the socket.
    pub fn bytes(self, chunk: impl Into<Bytes>) -> Self {
        self.step(Step::Chunk(chunk.into()))
    }

    /// Any bytes, written to the socket as they are: no head, no chunk.
    pub fn raw(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Raw(bytes.into()))
    }

    /// Waits until the test opens the gate.
    pub fn gate(self, gate: &Gate) -> Self {
        self.step(Step::Gate(gate.clone()))
    }

    /// Waits for a time. Only for tests of timing: for order, use a gate.
    pub fn delay(self, duration: Duration) -> Self {
        self.step(Step::Delay(duration))
    }

    /// Repeats a line until the client leaves.
    pub fn endless(self, line: impl AsRef<[u8]>) -> Self {
        self.step(Step::Endless([line.as_ref(), b"\n"].concat().into()))
    }

    /// Sends nothing more and keeps the connection open until the client leaves.
    pub fn hang(self) -> Self {
        self.gate(&Gate::new())
    }

    /// Closes the connection within the body (a FIN without the last chunk).
    pub fn break_off(self) -> Self {
        self.step(Step::End(Ending::BrokenOff))
    }

    /// Resets the connection (an RST).
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// Where scripts wait for the test. Clones are the same gate; once open it stays open.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets every script pass from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until a script is at the gate: all its steps before it are done.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until this many scripts have come to the gate.
    pub async fn reached_by(&self, scripts: usize) {
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = self.waiting.subscribe().wait_for(|n| *n >= scripts).await;
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        self.waiting.send_modify(|n| *n += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
