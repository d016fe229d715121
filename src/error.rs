//! What can go wrong, and who is told what.
//!
//! - **Before the stream starts** a failure is a [`Rejection`]: a status and `{"error": …}`.
//!   `4xx` is the client's to mend and names the field or header; `500` is the operator's, so the
//!   client learns which part failed and what to try, and the log learns the rest.
//! - **Once the stream has started** the status is gone: a failure is a [`RelayError`], an
//!   `event: error` in the same stream with a [`Code`] for programs and a sentence for people.
//!   Ollama's own words are passed on; they are about the client's request.
//! - SQL text, addresses and credentials go to the log alone, and passwords not even there. An
//!   error is logged once, where it is turned into an answer.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use crate::request::InvalidRequest;
use crate::store::StoreError;

/// An answer instead of a stream.
#[derive(Debug)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// What to do about it, for the client.
    pub error: String,
    /// For the log: what the client is not told. Empty where there is nothing more.
    pub detail: String,
}

impl Rejection {
    /// A rejection whose text says everything.
    pub fn new(status: u16, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            detail: String::new(),
        }
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

impl From<InvalidRequest> for Rejection {
    fn from(invalid: InvalidRequest) -> Self {
        Self::new(422, invalid.to_string())
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        if let StoreError::Refused { why } = &error {
            return InvalidRequest::of(
                "appID or messages",
                format_args!("too long for a column of this database's older table: {why}"),
            )
            .into();
        }
        Self {
            status: 500,
            error: format!("{} Nothing was sent to Ollama.", error.for_client()),
            detail: error.to_string(),
        }
    }
}

/// The kind of a failure in mid-stream, as the client's program sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No connection to Ollama came about.
    OllamaUnreachable,
    /// Ollama answered with another status than 200.
    OllamaRefused,
    /// Ollama was silent for longer than the operator allows.
    OllamaTimeout,
    /// The connection to Ollama broke in mid-reply.
    OllamaBrokeOff,
    /// Ollama ended its reply without a final line.
    OllamaEndedEarly,
    /// Ollama reported an error in mid-reply.
    OllamaError,
    /// A line that is no chat response; the relay went on.
    InvalidLine,
    /// A line over the cap; the relay went on.
    LineTooLong,
    /// The reply grew over the cap.
    CompletionTooLong,
    /// The reply could not be stored.
    DatabaseFailed,
    /// The turn took longer than the operator allows.
    TurnTimeout,
}

impl Code {
    /// The word in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OllamaUnreachable => "ollama_unreachable",
            Self::OllamaRefused => "ollama_refused",
            Self::OllamaTimeout => "ollama_timeout",
            Self::OllamaBrokeOff => "ollama_broke_off",
            Self::OllamaEndedEarly => "ollama_ended_early",
            Self::OllamaError => "ollama_error",
            Self::InvalidLine => "invalid_line",
            Self::LineTooLong => "line_too_long",
            Self::CompletionTooLong => "completion_too_long",
            Self::DatabaseFailed => "database_failed",
            Self::TurnTimeout => "turn_timeout",
        }
    }
}

/// A failure told in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.text)
    }
}

impl std::error::Error for RelayError {}
