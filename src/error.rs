//! What can go wrong, and who learns what.
//!
//! - **Before the stream starts** a failure is a [`Rejection`]: a [`RefusalCode`], which knows its status,
//!   and `{"error": …, "code": …}`. A `4xx` is the client's to fix and names the field or header; a `5xx`
//!   is the operator's, so the client learns which part failed and what to try, and the log the rest.
//!   Which failure becomes which rejection is decided in [`crate::service`].
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
    /// The kind, from which the status follows.
    pub code: RefusalCode,
    /// What the client can do about it.
    pub error: String,
    /// For the log: what the client must not learn. Empty where there is nothing more.
    pub detail: String,
    /// Headers besides those that every refusal has.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
}

impl Rejection {
    /// A rejection whose message says everything.
    pub fn new(code: RefusalCode, error: impl Into<String>) -> Self {
        let headers = match code.retry_after() {
            Some(seconds) => vec![("retry-after", seconds.into())],
            None => Vec::new(),
        };
        Self {
            code,
            error: error.into(),
            detail: String::new(),
            headers,
        }
    }

    /// The same with a detail for the log.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The same with a header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The body of the answer.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
            code: &'static str,
        }
        let body = Body {
            error: &self.error,
            code: self.code.as_str(),
        };
        // Serialising strings into memory cannot fail.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

/// The kind of a refusal, for the client's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum RefusalCode {
    /// The body is not what it must be.
    InvalidRequest,
    /// The body broke off.
    #[strum(serialize = "invalid_request")]
    BodyBrokeOff,
    /// No route has this path.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body is over the operator's limit.
    TooLarge,
    /// The prompt alone is more than the model is sent.
    ContextTooLarge,
    /// The body is compressed.
    UnsupportedEncoding,
    /// A turn of the conversation is running.
    Busy,
    /// Its owner has begun as many turns as the operator allows.
    RateLimited,
    /// The server has no room for another turn.
    Overloaded,
    /// The key of the request came with another body before.
    IdempotencyKeyReused,
    /// The turn of the request's key was deleted.
    TurnDeleted,
    /// The message is gone that a page was to end before.
    CursorGone,
    /// A browser sent it for a page of another origin.
    OriginRefused,
    /// It does not tell whose it is.
    Unauthorized,
    /// The body did not arrive in time.
    Timeout,
    /// The database failed before the stream began.
    DatabaseFailed,
    /// The operator's configuration is wrong.
    Misconfigured,
    /// No connection to Ollama could be established.
    OllamaUnreachable,
    /// Ollama, or what stands before it, answered with something else.
    OllamaRefused,
    /// The connection to Ollama broke in mid-answer.
    OllamaBrokeOff,
    /// Ollama did not answer in time.
    OllamaTimeout,
}

impl RefusalCode {
    /// The code as it is sent; a body that broke off is an invalid request with a status of its own.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::IdempotencyKeyReused | Self::CursorGone => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::TurnDeleted => StatusCode::GONE,
            Self::BodyBrokeOff => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge | Self::ContextTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy => StatusCode::CONFLICT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::OriginRefused => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::DatabaseFailed | Self::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
            Self::OllamaUnreachable | Self::OllamaRefused | Self::OllamaBrokeOff => {
                StatusCode::BAD_GATEWAY
            }
            Self::OllamaTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The seconds after which another try is worth it, where time alone can help.
    fn retry_after(self) -> Option<&'static str> {
        matches!(self, Self::Busy | Self::Overloaded).then_some("1")
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
    /// Another attempt has taken the turn over.
    TurnSuperseded,
    /// The turn was deleted while it ran.
    TurnDeleted,
    /// The host of the attempt that is followed has not been heard of for too long.
    TurnOrphaned,
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
