//! One of Ollama's JSON objects, asked for and read whole, within bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::IgnoredAny;

use super::call::{self, Answer as _, Piece};
use super::refusal::{self, Head};
use crate::clock::{SHORTEST_TICK, Ticker};
use crate::config::Config;
use crate::error::{Code, RelayError};

/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Bytes read of what is no such object.
const REFUSAL_MAX: usize = 64 * 1024;

/// Why there is no object.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing came, or not all.
    NoAnswer(RelayError),
    /// Something else came, of which this much was read.
    Refused(Head, Vec<u8>),
}

impl Failure {
    /// In Ollama's own words, where it has any.
    pub(crate) fn into_error(self, config: &Config) -> RelayError {
        match self {
            Self::NoAnswer(error) => error,
            Self::Refused(head, body) => {
                refusal::refused(&head, &body, config.ollama_api_key.as_ref())
            }
        }
    }

    /// In words of ours alone.
    pub(crate) fn briefly(&self) -> String {
        match self {
            Self::NoAnswer(error) => error.text.to_string(),
            Self::Refused(head, _) => refusal::briefly(head),
        }
    }
}

/// What Ollama answers to a GET of `path`: an object of at most `max` bytes, within `limit`.
pub(crate) async fn get(
    config: &Config,
    path: &str,
    max: usize,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut ticker = Ticker::new((limit / 20).max(SHORTEST_TICK));
    let deadline = ticker.deadline(limit);
    let read = ticker.timeout_at(deadline, read(config, path, max));
    read.await.unwrap_or_else(|| {
        let error = format!("Ollama did not answer within {limit:?}");
        Err(Failure::NoAnswer(RelayError::new(
            Code::OllamaTimeout,
            error,
        )))
    })
}

async fn read(config: &Config, path: &str, max: usize) -> Result<Vec<u8>, Failure> {
    let answer = call::get(config, path).await;
    let mut answer = answer.map_err(Failure::NoAnswer)?;
    let head = answer.head().clone();
    let mut body = Vec::new();
    loop {
        let (bytes, is_last) = match answer.read(Vec::with_capacity(PIECE)).await {
            Piece::Bytes(bytes) => (bytes, false),
            Piece::Last(bytes) => (bytes, true),
        };
        body.extend_from_slice(&bytes);
        if head.is_refusal() && (is_last || body.len() > REFUSAL_MAX) {
            return Err(Failure::Refused(head, body));
        }
        if body.len() > max {
            let error =
                format!("What answers at `ollama_url` sent more than {max} bytes, and no end");
            return Err(Failure::NoAnswer(RelayError::new(
                Code::OllamaRefused,
                error,
            )));
        }
        if is_last {
            break;
        }
    }
    if answer.end().await.is_err() {
        let error = "the connection to Ollama broke in mid-answer";
        return Err(Failure::NoAnswer(RelayError::new(
            Code::OllamaBrokeOff,
            error,
        )));
    }
    match is_object(&body) {
        true => Ok(body),
        false => Err(Failure::Refused(head, body)),
    }
}

/// Whether it is a JSON object, and nothing more.
fn is_object(body: &[u8]) -> bool {
    // The whole text first: serde_json does not validate the strings that it skips.
    let object =
        std::str::from_utf8(body).map(serde_json::from_str::<BTreeMap<String, IgnoredAny>>);
    matches!(object, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_json_object_is_one() {
        for body in [
            "{}",
            " {\"models\":[{\"a\":1e400}]} \r\n",
            "{\"a\":1,\"a\":2}",
        ] {
            assert!(is_object(body.as_bytes()), "{body}");
        }
        for body in [
            "", "[]", "null", "\"{}\"", "{", "{}{}", "{} x", "<html>", "{1:2}", "{'a':1}",
        ] {
            assert!(!is_object(body.as_bytes()), "{body}");
        }
        assert!(!is_object(b"{\"a\":\"\xff\"}"));
    }
}
