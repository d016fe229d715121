//! The pure path of one reply: chunks of bytes from Ollama become framed events for the client, and
//! the text to be stored.
//!
//! ```text
//! chunks ─ ndjson ─▶ lines ─ wire ─▶ ChatChunk ─ transcode ─▶ events ─ sse ─▶ bytes
//!                                                    └──────▶ completion: the reply so far
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
use crate::secret::Secret;

pub mod catch_up;
mod completion;
mod halves;
pub mod kept;
pub mod ndjson;
pub mod position;
pub mod sse;
pub mod transcode;
pub mod wire;

pub use completion::{Growth, Mark, Reply, Whitespace};
pub use transcode::{End, Last, Outcome, State};

use ndjson::{Line, LineSplitter};
use position::{EventId, Short};
use sse::{ErrorData, Event};
use transcode::Transcoder;

/// The most bytes of a reply.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// A line from Ollama.
    pub line: usize,
    /// The completion: its content, thinking and tool calls.
    pub completion: usize,
    /// All events to the client; the one that reaches it is still sent.
    pub stream: usize,
}

/// The path of one reply, from chunks to events.
#[derive(Debug)]
pub struct Pipeline {
    lines: LineSplitter,
    transcoder: Transcoder,
    attempt: Option<Short>,
}

impl Pipeline {
    /// A pipeline for a reply within `caps`. Where the attempt has a name, its events have ids.
    pub fn new(caps: Caps, whitespace: Whitespace, attempt: Option<Short>) -> Self {
        Self {
            lines: LineSplitter::new(caps.line),
            transcoder: Transcoder::new(whitespace, caps.completion, caps.stream),
            attempt,
        }
    }

    /// The client was told to drop what it has: the next event of data carries its type.
    pub fn after_restart(&mut self) {
        self.transcoder.after_restart();
    }

    /// Ollama's errors are told without it.
    pub fn hide(&mut self, secret: Option<Secret>) {
        self.transcoder.hide(secret);
    }

    /// Takes the next chunk and appends the events that it completes to `events`. Breaks once the
    /// reply is over.
    pub fn feed(&mut self, chunk: &[u8], events: &mut Vec<u8>) -> ControlFlow<()> {
        let (transcoder, attempt) = (&mut self.transcoder, self.attempt);
        self.lines
            .feed(chunk, |line| accept(transcoder, line, attempt, events))
    }

    /// Takes what is left of a stream that has ended as its last line.
    pub fn finish(&mut self, events: &mut Vec<u8>) {
        let (transcoder, attempt) = (&mut self.transcoder, self.attempt);
        self.lines
            .finish(|line| accept(transcoder, line, attempt, events));
    }

    /// What has come of the reply since `mark`, which is [`Mark::default`] at first and then the growth's own.
    pub fn since(&self, mark: &Mark) -> Growth<'_> {
        self.transcoder.since(mark)
    }

    /// Whether the reply has ended, so that no further line is needed.
    pub fn is_over(&self) -> bool {
        self.transcoder.is_over()
    }

    /// What the reply comes to.
    pub fn end(self, end: End) -> Outcome {
        self.transcoder.end(end)
    }
}

fn accept(
    transcoder: &mut Transcoder,
    line: Line<'_>,
    attempt: Option<Short>,
    events: &mut Vec<u8>,
) -> ControlFlow<()> {
    let before = events.len();
    if let Some(error) = transcoder.release(&line) {
        error.write_to(events);
    }
    if let Some(event) = transcoder.accept(line) {
        if let (Some(attempt), false) = (attempt, event.is_error()) {
            EventId::Token(attempt, transcoder.position()).write_to(events);
        }
        event.write_to(events);
    }
    transcoder.sent(events.len() - before);
    match transcoder.is_over() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Appends the last events of a reply. A reply that could not be stored gets no final event, since that
/// is a receipt: the error carries the `message` of the final event instead. What tells the outcome that is
/// stored with the turn has its id, if `attempt` is given.
pub fn write_last(
    last: &Last,
    not_stored: Option<&RelayError>,
    attempt: Option<Short>,
    events: &mut Vec<u8>,
) {
    let told = match last {
        Last::Done { line, after_error } if not_stored.is_none() => {
            Some(Event::data(line, *after_error))
        }
        Last::Error(error) => Some(error_event(error, None)),
        Last::Done { .. } | Last::Nothing => None,
    };
    if let Some(event) = told {
        if let (Some(attempt), None) = (attempt, not_stored) {
            EventId::End(attempt).write_to(events);
        }
        event.write_to(events);
    }
    if let Some(error) = not_stored {
        let withheld = match last {
            Last::Done { line, .. } => wire::message_of(line),
            Last::Error(_) | Last::Nothing => None,
        };
        error_event(error, withheld).write_to(events);
    }
}

/// Appends an error that is not stored with the turn, which has no id.
pub fn write_error(error: &RelayError, events: &mut Vec<u8>) {
    error_event(error, None).write_to(events);
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
        write_last(&last, Some(&error), None, &mut events);
        assert_eq!(
            String::from_utf8(events).unwrap(),
            "event: error\ndata: {\"error\":\"no\",\"code\":\"database_failed\",\"message\":{\"content\":\"!\"}}\n\n"
        );
    }

    #[test]
    fn only_what_tells_the_stored_outcome_has_the_id_of_the_end() {
        let attempt = Some(position::Attempt::new(0).short());
        let error = || RelayError::new(Code::TurnTimeout, "slow");
        let not_stored = RelayError::new(Code::DatabaseFailed, "no");
        let done = Last::Done {
            line: "{}".into(),
            after_error: false,
        };
        for (last, not_stored, ids) in [
            (&done, None, 1),
            (&Last::Error(error()), None, 1),
            (&Last::Nothing, None, 0),
            (&done, Some(&not_stored), 0),
            (&Last::Error(error()), Some(&not_stored), 0),
        ] {
            let mut events = Vec::new();
            write_last(last, not_stored, attempt, &mut events);
            let events = String::from_utf8(events).unwrap();
            assert_eq!(events.matches("id: ").count(), ids, "{events}");
            assert_eq!(events.starts_with("id: 00000000.end\n"), ids == 1);
        }
    }
}
