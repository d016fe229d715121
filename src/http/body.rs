//! Reads a request's body, bounded in bytes and in time.

use std::time::Duration;

use spin_sdk::wasip3::http::types::Request;
use spin_sdk::wasip3::wit_future;
use spin_sdk::wit_bindgen::StreamResult;

use crate::clock::Ticker;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Bytes reserved for a body before it comes, whatever length it declares.
const RESERVED: usize = 64 * 1024;

/// A client has this many times as long for its whole body as for one piece of it.
const PIECES: u32 = 4;

/// Why there is no body.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// It has more bytes than the limit.
    TooLarge,
    /// The client was too slow.
    TimedOut,
    /// The connection broke before its end.
    BrokeOff,
}

/// The whole body, of at most `limit` bytes; `stall` bounds the wait for each piece of it.
pub(crate) async fn read_body(
    request: Request,
    limit: usize,
    ticker: &mut Ticker,
    stall: Duration,
) -> Result<Vec<u8>, BodyError> {
    let declared = content_length(&request);
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge);
    }
    let (_, no_error) = wit_future::new(|| Ok(()));
    let (mut stream, trailers) = Request::consume_body(request, no_error);
    let expected = declared.and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(expected.unwrap_or(CHUNK).min(RESERVED));
    let end = ticker.deadline(stall.saturating_mul(PIECES));
    loop {
        if body.len() == body.capacity() {
            body.reserve(CHUNK);
        }
        let deadline = ticker.deadline(stall).min(end);
        let status;
        (status, body) = ticker
            .timeout_at(deadline, stream.read(body))
            .await
            .ok_or(BodyError::TimedOut)?;
        if body.len() > limit {
            return Err(BodyError::TooLarge);
        }
        if status == StreamResult::Dropped {
            break;
        }
    }
    let deadline = ticker.deadline(stall).min(end);
    match ticker.timeout_at(deadline, trailers.into_future()).await {
        Some(Ok(_)) => Ok(body),
        Some(Err(_)) => Err(BodyError::BrokeOff),
        None => Err(BodyError::TimedOut),
    }
}

fn content_length(request: &Request) -> Option<u64> {
    let values = request.get_headers().get("content-length");
    std::str::from_utf8(values.first()?).ok()?.parse().ok()
}
