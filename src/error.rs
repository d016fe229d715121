//! What can go wrong, and who learns what.
//!
//! - **Before the stream starts** a failure is a [`Rejection`]: a status and `{"error": …}`. A `4xx`
//!   is the client's to fix and names the field or header; a `500` is the operator's, so the client
//!   learns which part failed and what to try, and the log the rest. Which failure becomes which
//!   rejection is decided in [`crate::service`].
//! - **Once the stream has started** the status has been sent: a failure is a [`RelayError`], an
//!   `event: error` in the same stream with a [`Code`] for programs and a sentence for people.
//!   Ollama's own messages are passed on, since they are about the client's request.
//! - SQL, addresses and credentials go to the log alone, and passwords not even there. An error is
//!   logged once, where it becomes an answer.

use std::borrow::Cow;

use http::StatusCode;
use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};
use thiserror::Error;

/// An answer instead of a stream.
#[derive(Debug)]
pub struct Rejection {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the client can do about it.
    pub error: String,
    /// For the log: what the client must not learn. Empty where there is nothing more.
    pub detail: String,
    /// Headers besides `content-type`.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Rejection {
    /// A rejection whose message says everything.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            detail: String::new(),
            headers: Vec::new(),
        }
    }

    /// The same with a detail for the log.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The same with a header.
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The body of the answer.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
        }
        // Serialising a string into memory cannot fail.
        serde_json::to_vec(&Body { error: &self.error }).unwrap_or_default()
    }
}

/// The kind of a failure in mid-stream, for the client's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Code {
    /// No connection to Ollama could be established.
    OllamaUnreachable,
    /// Ollama answered with a status other than 200.
    OllamaRefused,
    /// Ollama was silent for longer than the operator allows.
    OllamaTimeout,
    /// The connection to Ollama broke in mid-reply.
    OllamaBrokeOff,
    /// Ollama ended its reply without a final line.
    OllamaEndedEarly,
    /// Ollama reported an error in mid-reply.
    OllamaError,
    /// A line that is not a chat response was left out; the relay went on.
    InvalidLine,
    /// A line over the cap was left out; the relay went on.
    LineTooLong,
    /// The reply grew over the cap.
    CompletionTooLong,
    /// The reply could not be stored.
    DatabaseFailed,
    /// The turn took longer than the operator allows.
    TurnTimeout,
}

impl Code {
    /// The code as it is sent.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A failure that is sent in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {text}", code.as_str())]
pub struct RelayError {
    /// The kind.
    pub code: Code,
    /// What happened and what to do, for a person.
    pub text: Cow<'static, str>,
}

impl RelayError {
    /// A failure of kind `code`.
    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}
