//! The calls of Ollama's API: sends a request, and hands out the bytes of the answer.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::clock::nanoseconds;
use crate::config::Config;
use crate::error::{Code, RelayError};
use crate::http::fields;
use crate::ollama::body::Body;
use crate::ollama::refusal::Head;
use crate::permit::Room;
use crate::spin::wasip3::http::client;
use crate::spin::wasip3::http::types::{
    ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme,
};
use crate::spin::wasip3::{spawn, wit_future, wit_stream};
use crate::spin::wit_bindgen::{FutureReader, StreamReader, StreamResult};

/// Ollama's answer, its body still to be read: WASI's in the component, a scripted one in unit tests.
/// Dropping it closes the connection, which makes Ollama stop generating.
pub(crate) trait Answer {
    fn head(&self) -> &Head;
    /// Reads what has arrived into `buffer`, or waits for it.
    async fn read(&mut self, buffer: Vec<u8>) -> Piece;
    /// After the last piece: whether the body ended cleanly or broke off.
    async fn end(self) -> Result<(), RelayError>;
}

struct Received {
    head: Head,
    body: StreamReader<u8>,
    end: FutureReader<Result<Option<Fields>, ErrorCode>>,
}

/// A piece of an answer's body, in the buffer that was given.
pub(crate) enum Piece {
    /// More may follow.
    Bytes(Vec<u8>),
    /// The body has ended; there may be no bytes.
    Last(Vec<u8>),
}

impl Answer for Received {
    fn head(&self) -> &Head {
        &self.head
    }

    async fn read(&mut self, buffer: Vec<u8>) -> Piece {
        match self.body.read(buffer).await {
            (StreamResult::Complete(_), bytes) => Piece::Bytes(bytes),
            (_, bytes) => Piece::Last(bytes),
        }
    }

    async fn end(self) -> Result<(), RelayError> {
        self.end.await.map(drop).map_err(|error| match error {
            ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => idle(),
            error => RelayError::new(
                Code::OllamaBrokeOff,
                format!(
                    "the connection to Ollama broke in mid-reply ({}); what came of it is kept",
                    name(&error)
                ),
            ),
        })
    }
}

/// Bytes of one write of a body.
const WRITE_MAX: usize = 64 * 1024;

/// Sends a chat request. `room` is given back once the body is sent.
pub(crate) async fn chat(
    config: &Config,
    body: Body,
    room: Option<Room>,
) -> Result<impl Answer + use<>, RelayError> {
    let body = body.into_pieces();
    let length: usize = body.iter().map(Vec::len).sum();
    let length = length.to_string();
    let headers = [
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
    ];
    let (mut writer, reader) = wit_stream::new();
    let request = request(config, &Method::Post, "/api/chat", &headers, Some(reader));
    // In a task of its own, since Ollama may answer before it has read everything.
    spawn(async move {
        'body: for piece in body {
            // A host takes a write whole, and a large one would wait there for Ollama, with nobody counting it.
            for part in piece.chunks(WRITE_MAX) {
                if !writer.write_all(part.to_vec()).await.is_empty() {
                    break 'body;
                }
            }
        }
        drop(room);
    });
    send(request).await
}

/// Asks for something that Ollama has.
pub(crate) async fn get(config: &Config, path: &str) -> Result<impl Answer + use<>, RelayError> {
    send(request(config, &Method::Get, path, &[], None)).await
}

async fn send(request: Request) -> Result<Received, RelayError> {
    let response = client::send(request).await.map_err(failed)?;
    let status = StatusCode::from_u16(response.get_status_code());
    let headers = response.get_headers();
    let header = |name| {
        let value = headers.get(name).into_iter().next()?;
        Some(String::from_utf8_lossy(&value).into_owned())
    };
    let head = Head {
        // A number that is no status is no answer that could be used.
        status: status.unwrap_or(StatusCode::BAD_GATEWAY),
        content_type: header("content-type"),
        content_encoding: header("content-encoding"),
    };
    drop(headers);
    let (_, no_error) = wit_future::new(|| Ok(()));
    let (body, end) = Response::consume_body(response, no_error);
    Ok(Received { head, body, end })
}

/// Has only the headers that the call needs: a loopback-bound Ollama refuses a foreign `Host` or `Origin`.
fn request(
    config: &Config,
    method: &Method,
    path: &str,
    more: &[(&str, &str)],
    body: Option<StreamReader<u8>>,
) -> Request {
    let (url, timeouts) = (&config.ollama_url, &config.timeouts);
    let mut headers = vec![("accept-encoding", "identity")];
    headers.extend_from_slice(more);
    let bearer = config.ollama_api_key.as_ref();
    let bearer = bearer.map(|key| format!("Bearer {}", key.reveal()));
    if let Some(bearer) = &bearer {
        headers.push(("authorization", bearer));
    }

    let options = RequestOptions::new();
    let in_nanoseconds = |duration: Duration| Some(nanoseconds(duration));
    // Where a host does not support an option, the turn's own clock bounds the wait.
    let _ = options.set_connect_timeout(in_nanoseconds(timeouts.ollama_connect));
    let _ = options.set_first_byte_timeout(in_nanoseconds(timeouts.ollama_first_byte));
    let _ = options.set_between_bytes_timeout(in_nanoseconds(timeouts.ollama_idle));

    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(fields(headers), body, trailers, Some(options));
    // What a host refuses here, it refuses again when the request is sent, and that is reported.
    let _ = request.set_method(method);
    let _ = request.set_scheme(Some(match url.is_https {
        true => &Scheme::Https,
        false => &Scheme::Http,
    }));
    let _ = request.set_authority(Some(&url.authority));
    let _ = request.set_path_with_query(Some(&url.path(path)));
    request
}

/// Ollama was silent for too long in mid-reply.
pub(crate) fn idle() -> RelayError {
    RelayError::new(
        Code::OllamaTimeout,
        "Ollama sent nothing for longer than the operator allows (ollama_idle_timeout); what came of the reply is kept",
    )
}

/// Ollama did not begin to answer in time.
pub(crate) fn no_first_byte() -> RelayError {
    RelayError::new(
        Code::OllamaTimeout,
        "Ollama did not begin its reply within the time that the operator allows (ollama_first_byte_timeout)",
    )
}

/// Why there is no answer.
fn failed(error: ErrorCode) -> RelayError {
    match error {
        ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => no_first_byte(),
        ErrorCode::ConnectionTimeout => RelayError::new(
            Code::OllamaUnreachable,
            "Ollama did not take the connection in time (ollama_connect_timeout): is it running?",
        ),
        ErrorCode::HttpRequestDenied => RelayError::new(
            Code::OllamaUnreachable,
            "the server may not call Ollama at its address: the operator must set `ollama_host` to scheme, host and port of `ollama_url`",
        ),
        ErrorCode::HttpResponseIncomplete
        | ErrorCode::ConnectionTerminated
        | ErrorCode::HttpProtocolError => RelayError::new(
            Code::OllamaBrokeOff,
            format!(
                "Ollama took the request and broke off without an answer ({})",
                name(&error)
            ),
        ),
        error => RelayError::new(
            Code::OllamaUnreachable,
            format!(
                "Ollama cannot be reached ({}): is it running, and is `ollama_url` its address?",
                name(&error)
            ),
        ),
    }
}

/// A short name for the failure, since the host's own text may hold addresses.
fn name(error: &ErrorCode) -> Cow<'static, str> {
    match error {
        ErrorCode::ConnectionRefused => "connection refused".into(),
        ErrorCode::DnsError(_) | ErrorCode::DnsTimeout | ErrorCode::DestinationNotFound => {
            "its host name is not known".into()
        }
        ErrorCode::ConnectionTerminated => "connection closed".into(),
        ErrorCode::TlsCertificateError => {
            "its TLS certificate is not trusted: install its issuer's on llmchat's machine".into()
        }
        ErrorCode::TlsProtocolError | ErrorCode::TlsAlertReceived(_) => {
            "no TLS connection comes about".into()
        }
        ErrorCode::InternalError(_) => "connection failed".into(),
        error => format!("{error:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_fails_says_whether_ollama_was_reached() {
        for (error, code, text) in [
            (
                ErrorCode::ConnectionRefused,
                Code::OllamaUnreachable,
                "(connection refused): is it running",
            ),
            (
                ErrorCode::DestinationNotFound,
                Code::OllamaUnreachable,
                "(its host name is not known)",
            ),
            (
                ErrorCode::TlsCertificateError,
                Code::OllamaUnreachable,
                "(its TLS certificate is not trusted: install",
            ),
            (
                ErrorCode::ConnectionTimeout,
                Code::OllamaUnreachable,
                "ollama_connect_timeout",
            ),
            (
                ErrorCode::HttpRequestDenied,
                Code::OllamaUnreachable,
                "set `ollama_host` to scheme, host and port of `ollama_url`",
            ),
            (
                ErrorCode::InternalError(Some("at 10.0.0.1".into())),
                Code::OllamaUnreachable,
                "(connection failed)",
            ),
            (
                ErrorCode::HttpResponseIncomplete,
                Code::OllamaBrokeOff,
                "broke off without an answer",
            ),
            (
                ErrorCode::ConnectionTerminated,
                Code::OllamaBrokeOff,
                "(connection closed)",
            ),
            (
                ErrorCode::HttpResponseTimeout,
                Code::OllamaTimeout,
                "ollama_first_byte_timeout",
            ),
        ] {
            let failed = failed(error);
            assert_eq!(failed.code, code, "{failed}");
            assert!(failed.text.contains(text), "{failed}");
            assert!(!failed.text.contains("10.0.0.1"));
        }
    }
}
