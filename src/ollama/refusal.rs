//! Ollama's message in an answer that is not a stream.

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Code, RelayError};
use crate::reply::wire::error_text;

/// What the client is told of an answer with a status other than 200.
pub(crate) fn refused(status: StatusCode, body: &[u8]) -> RelayError {
    let text = match message(body) {
        Some(message) => format!(
            "Ollama refused the request with status {}: {message}",
            status.as_u16()
        ),
        None => format!(
            "Ollama refused the request with status {} and gave no reason",
            status.as_u16()
        ),
    };
    RelayError::new(Code::OllamaRefused, text)
}

/// The message in `{"error": "…"}`, if the body is that.
fn message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    let body = std::str::from_utf8(body).ok()?;
    let refusal: Refusal<'_> = serde_json::from_str(body).ok()?;
    Some(error_text(refusal.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_a_reason_only_where_ollama_wrote_one() {
        for (body, reason) in [
            (
                &br#"{"error":"model 'x' not found"}"#[..],
                Some("model 'x' not found"),
            ),
            (br#"{"error":{"code":1}}"#, Some(r#"{"code":1}"#)),
            (b"", None),
            (b"404 page not found", None),
            (b"{\"error\":\"\xff\"}", None),
        ] {
            let text = refused(StatusCode::NOT_FOUND, body).text;
            match reason {
                Some(reason) => assert!(text.ends_with(&format!(" 404: {reason}")), "{text}"),
                None => assert!(text.ends_with("gave no reason"), "{text}"),
            }
        }
    }
}
