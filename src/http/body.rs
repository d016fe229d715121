//! Reads a request's body, bounded in bytes and in time; what is refused of it is read and forgotten.

use std::time::Duration;

use crate::clock::Ticker;
use crate::spin::wasip3::http::types::{ErrorCode, Fields, Request};
use crate::spin::wasip3::wit_future;
use crate::spin::wit_bindgen::{FutureReader, StreamReader, StreamResult};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Bytes reserved for a body before it comes, whatever length it declares.
const RESERVED: usize = 64 * 1024;

/// A client has this many times as long for its whole body as for one piece of it.
const PIECES: u32 = 4;

/// Bytes of a refused body that are read after its refusal was sent, and how long.
const DISCARDED: usize = 64 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Why there is no body.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// It has more bytes than the limit.
    TooLarge,
    /// The client was too slow.
    TimedOut,
    /// The connection broke before its end.
    BrokeOff,
    /// There is no room for it at present.
    NoRoom,
}

/// The body of a request, as far as it has not been read.
pub(crate) struct RequestBody {
    declared: Option<usize>,
    unread: Option<(StreamReader<u8>, Trailers)>,
}

type Trailers = FutureReader<Result<Option<Fields>, ErrorCode>>;

impl RequestBody {
    pub(crate) fn of(request: Request) -> Self {
        let declared = content_length(&request);
        let (_, no_error) = wit_future::new(|| Ok(()));
        Self {
            declared,
            unread: Some(Request::consume_body(request, no_error)),
        }
    }

    /// The whole body, of at most `limit` bytes; `stall` bounds the wait for each piece of it. `has_room` is
    /// told how many bytes it is going to occupy.
    pub(crate) async fn read(
        &mut self,
        limit: usize,
        ticker: &mut Ticker,
        stall: Duration,
        has_room: impl Fn(usize) -> bool,
    ) -> Result<Vec<u8>, BodyError> {
        if self.declared.is_some_and(|length| length > limit) {
            return Err(BodyError::TooLarge);
        }
        let Some((stream, _)) = &mut self.unread else {
            return Err(BodyError::BrokeOff);
        };
        let mut body = Vec::new();
        let end = ticker.deadline(stall.saturating_mul(PIECES));
        loop {
            if body.len() == body.capacity() {
                let capacity = next_capacity(body.len(), self.declared, limit);
                if !has_room(capacity) {
                    return Err(BodyError::NoRoom);
                }
                body.reserve_exact(capacity - body.len());
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
        let Some((_, trailers)) = self.unread.take() else {
            return Err(BodyError::BrokeOff);
        };
        let deadline = ticker.deadline(stall).min(end);
        match ticker.timeout_at(deadline, trailers.into_future()).await {
            Some(Ok(_)) => Ok(body),
            Some(Err(_)) => Err(BodyError::BrokeOff),
            None => Err(BodyError::TimedOut),
        }
    }

    /// Reads what is left of it, and keeps nothing: a client that still sends would otherwise find its
    /// connection reset before it has read the answer. What is not read by then is cut off.
    pub(super) async fn discard(self) {
        let Some((mut stream, _trailers)) = self.unread else {
            return;
        };
        let mut ticker = Ticker::new(DISCARD_TIME / 10);
        let deadline = ticker.deadline(DISCARD_TIME);
        let mut piece = Vec::with_capacity(CHUNK);
        let mut length = 0;
        // A client that sends without a pause is never waited for.
        while length < DISCARDED && !ticker.is_past(deadline) {
            let reading = ticker.timeout_at(deadline, stream.read(piece));
            let Some((StreamResult::Complete(_), read)) = reading.await else {
                break;
            };
            piece = read;
            length += piece.len();
            piece.clear();
        }
    }
}

/// The capacity for a body of which `length` bytes, all that fitted, have come: one more than it can have, so
/// that its end is found without another one.
fn next_capacity(length: usize, declared: Option<usize>, limit: usize) -> usize {
    let wanted = match (length, declared) {
        (0, Some(_)) => RESERVED,
        (0, None) => CHUNK,
        (length, _) => length.saturating_mul(2),
    };
    let most = declared.filter(|declared| *declared >= length);
    wanted.min(most.unwrap_or(limit).saturating_add(1))
}

/// The length that it declares; one beyond what can be counted is beyond every limit.
fn content_length(request: &Request) -> Option<usize> {
    let values = request.get_headers().get("content-length");
    let length: u64 = std::str::from_utf8(values.first()?).ok()?.parse().ok()?;
    Some(usize::try_from(length).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_as_a_body_comes_and_not_for_what_it_declares() {
        const LIMIT: usize = 1_000_000;
        assert_eq!(next_capacity(0, None, LIMIT), CHUNK);
        assert_eq!(next_capacity(0, Some(LIMIT), LIMIT), RESERVED);
        assert_eq!(next_capacity(RESERVED, Some(LIMIT), LIMIT), 2 * RESERVED);
        // With its last byte, the end of it is yet to be read.
        assert_eq!(next_capacity(0, Some(100), LIMIT), 101);
        assert_eq!(next_capacity(0, Some(0), LIMIT), 1);
        assert_eq!(next_capacity(900_000, None, LIMIT), LIMIT + 1);
        for length in [1, CHUNK, 600_000, LIMIT] {
            for declared in [None, Some(0), Some(length), Some(LIMIT)] {
                let capacity = next_capacity(length, declared, LIMIT);
                assert!(capacity > length && capacity <= LIMIT + 1);
            }
        }
    }
}
