//! Steps 4 to 6 in one: chunks from Ollama -> framed events for the client, and the reply.
//!
//! The whole of what runs once a token, without I/O: this is what is replayed at every split
//! point, fuzzed and measured.

use serde_json::value::RawValue;

use crate::error::RelayError;
use crate::ndjson::{Line, LineSplitter, More};
use crate::ollama::wire;
use crate::sse::{ErrorData, Event};
use crate::transcode::{End, Last, Outcome, Transcoder, Whitespace};

/// The pure path of one reply.
#[derive(Debug)]
pub struct Pipeline {
    lines: LineSplitter,
    transcoder: Transcoder,
}

impl Pipeline {
    /// A pipeline for lines of at most `line_cap` bytes, and a reply of at most `reply_cap`.
    pub fn new(line_cap: usize, reply_cap: usize, whitespace: Whitespace) -> Self {
        Self {
            lines: LineSplitter::new(line_cap),
            transcoder: Transcoder::new(whitespace, reply_cap),
        }
    }

    /// Takes the next chunk and appends the events that it completes to `events`.
    pub fn feed(&mut self, chunk: &[u8], events: &mut Vec<u8>) -> More {
        let transcoder = &mut self.transcoder;
        self.lines
            .feed(chunk, |line| accept(transcoder, line, events))
    }

    /// The stream has ended: what is left is a line too.
    pub fn finish(&mut self, events: &mut Vec<u8>) {
        let transcoder = &mut self.transcoder;
        self.lines.finish(|line| accept(transcoder, line, events));
    }

    /// What the reply comes to.
    pub fn end(self, end: End) -> Outcome {
        self.transcoder.end(end)
    }
}

fn accept(transcoder: &mut Transcoder, line: Line<'_>, events: &mut Vec<u8>) -> More {
    if let Some(event) = transcoder.accept(line) {
        event.write_to(events);
    }
    if transcoder.is_over() {
        More::No
    } else {
        More::Yes
    }
}

/// Appends what the client is told last. A reply that could not be stored has no final event, since
/// that is a receipt: what it said of the reply goes with the error instead.
pub fn last_words(last: &Last, not_stored: Option<&RelayError>, events: &mut Vec<u8>) {
    match last {
        Last::Done(line) if not_stored.is_none() => Event::Data(line).write_to(events),
        Last::Error(error) => error_event(error, None).write_to(events),
        Last::Done(_) | Last::Nothing => {}
    }
    if let Some(error) = not_stored {
        let withheld = match last {
            Last::Done(line) => wire::message_of(line),
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
        let last = Last::Done(r#"{"message": {"content":"!"},"done":true}"#.into());
        let error = RelayError::new(Code::DatabaseFailed, "no");
        let mut events = Vec::new();
        last_words(&last, Some(&error), &mut events);
        assert_eq!(
            String::from_utf8(events).unwrap(),
            "event: error\ndata: {\"error\":\"no\",\"code\":\"database_failed\",\"message\":{\"content\":\"!\"}}\n\n"
        );
    }
}
