//! The pure path of one reply: chunks of bytes from Ollama become framed events for the client, and
//! the text to be stored.
//!
//! ```text
//! chunks ─ ndjson ─▶ lines ─ wire ─▶ ChatChunk ─ transcode ─▶ events ─ sse ─▶ bytes
//!                                                    └──────▶ the reply so far
//! ```
//!
//! This is all that runs once a token, without I/O, sockets or a clock: what the tests replay at every
//! split point, the fuzzer feeds and the benchmark measures.
//!
//! Each event has an id, which says how much of the reply its client has then. A client that comes back with it,
//! or that watches a turn of another connection, is sent what is stored:
//!
//! ```text
//! Last-Event-ID ─ position ─▶ LastEventId ─┐
//! an attempt in the store ── kept ─▶ Kept ─┴─ catch_up ─▶ what it missed, the outcome ─ sse ─▶ bytes
//! ```

use std::ops::ControlFlow;

use serde_json::value::RawValue;

use crate::error::RelayError;

pub mod catch_up;
mod halves;
pub mod kept;
pub mod ndjson;
pub mod position;
pub mod sse;
pub mod transcode;
pub mod wire;

pub use transcode::{End, Last, Outcome, Whitespace};

use ndjson::{Line, LineSplitter};
use sse::{ErrorData, Event};
use transcode::Transcoder;

/// The most bytes of a reply.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// A line from Ollama.
    pub line: usize,
    /// The completion.
    pub completion: usize,
    /// All events to the client; the one that reaches it is still sent.
    pub stream: usize,
}

/// The path of one reply, from chunks to events.
#[derive(Debug)]
pub struct Pipeline {
    lines: LineSplitter,
    transcoder: Transcoder,
}

impl Pipeline {
    /// A pipeline for a reply within `caps`.
    pub fn new(caps: Caps, whitespace: Whitespace) -> Self {
        Self {
            lines: LineSplitter::new(caps.line),
            transcoder: Transcoder::new(whitespace, caps.completion, caps.stream),
        }
    }

    /// Takes the next chunk and appends the events that it completes to `events`. Breaks once the
    /// reply is over.
    pub fn feed(&mut self, chunk: &[u8], events: &mut Vec<u8>) -> ControlFlow<()> {
        let transcoder = &mut self.transcoder;
        self.lines
            .feed(chunk, |line| accept(transcoder, line, events))
    }

    /// Takes what is left of a stream that has ended as its last line.
    pub fn finish(&mut self, events: &mut Vec<u8>) {
        let transcoder = &mut self.transcoder;
        self.lines.finish(|line| accept(transcoder, line, events));
    }

    /// What the reply comes to.
    pub fn end(self, end: End) -> Outcome {
        self.transcoder.end(end)
    }
}

fn accept(transcoder: &mut Transcoder, line: Line<'_>, events: &mut Vec<u8>) -> ControlFlow<()> {
    if let Some(event) = transcoder.accept(line) {
        let before = events.len();
        event.write_to(events);
        transcoder.sent(events.len() - before);
    }
    match transcoder.is_over() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Appends the last events of a reply. A reply that could not be stored gets no final event, since that
/// is a receipt: the error carries the `message` of the final event instead.
pub fn write_last(last: &Last, not_stored: Option<&RelayError>, events: &mut Vec<u8>) {
    match last {
        Last::Done { line, after_error } if not_stored.is_none() => {
            Event::data(line, *after_error).write_to(events);
        }
        Last::Error(error) => error_event(error, None).write_to(events),
        Last::Done { .. } | Last::Nothing => {}
    }
    if let Some(error) = not_stored {
        let withheld = match last {
            Last::Done { line, .. } => wire::message_of(line),
            Last::Error(_) | Last::Nothing => None,
        };
        error_event(error, withheld).write_to(events);
    }
}

fn error_event<'a>(error: &'a RelayError, message: Option<&'a RawValue>) -> Event<'a> {
    Event::Error(ErrorData {
        error: error.text.as_ref().into(),
        code: error.code.as_str(),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_reply_that_was_not_stored_has_no_receipt_but_its_last_message() {
        let last = Last::Done {
            line: r#"{"message": {"content":"!"},"done":true}"#.into(),
            after_error: true,
        };
        let error = RelayError::new(Code::DatabaseFailed, "no");
        let mut events = Vec::new();
        write_last(&last, Some(&error), &mut events);
        assert_eq!(
            String::from_utf8(events).unwrap(),
            "event: error\ndata: {\"error\":\"no\",\"code\":\"database_failed\",\"message\":{\"content\":\"!\"}}\n\n"
        );
    }
}
