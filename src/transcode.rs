//! A turn's reply as a state machine: lines of Ollama's go in, events for the client come out,
//! and the text to be stored grows. It ends in one [`Outcome`].
//!
//! The final event is held back: it is a receipt, and leaves only when the reply is stored.
//! Knows no bytes, no sockets, no clock.

use std::borrow::Cow;

use crate::conversation::ReplyStatus;
use crate::error::{Code, RelayError};
use crate::ndjson::Line;
use crate::ollama::wire::ChatChunk;
use crate::sse::{ErrorData, Event};

/// What becomes of the white space in a stored completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whitespace {
    /// Every run of white space (Unicode's property) is stored as one space.
    Collapse,
    /// The completion is stored as it was generated.
    Preserve,
}

/// The completion so far, as it will be stored.
#[derive(Debug)]
struct Completion {
    text: String,
    whitespace: Whitespace,
    /// Bytes that it may have.
    cap: usize,
}

impl Completion {
    /// Appends a token, or nothing of it where it would not fit as it came.
    fn push(&mut self, token: &str) -> Result<(), RelayError> {
        // A token can only shrink, but for NUL: one byte becomes the three of U+FFFD.
        let nuls = memchr::memchr_iter(0, token.as_bytes()).count();
        if self.text.len() + token.len() + 2 * nuls > self.cap {
            return Err(RelayError::new(
                Code::CompletionTooLong,
                format!(
                    "the completion grew over {} bytes, the operator's limit (max_completion_bytes); it ends here",
                    self.cap
                ),
            ));
        }
        for c in token.chars() {
            if c == '\0' {
                // PostgreSQL's text cannot hold it.
                self.text.push(char::REPLACEMENT_CHARACTER);
            } else if self.whitespace == Whitespace::Preserve || !c.is_whitespace() {
                self.text.push(c);
            } else if !self.text.ends_with(' ') {
                self.text.push(' ');
            }
        }
        Ok(())
    }
}

/// The state machine.
#[derive(Debug)]
pub struct Transcoder {
    completion: Completion,
    /// The final line, once it has come.
    held: Option<String>,
    /// The client was told that Ollama failed: the end of the stream is no news.
    told: bool,
    /// What ended the reply from our side.
    broken: Option<RelayError>,
}

/// How the bytes from Ollama came to their end.
#[derive(Debug)]
pub enum End {
    /// The stream ended, or was not read further since it [is over](Transcoder::is_over).
    Closed,
    /// It broke, was silent for too long, or never began.
    Failed(RelayError),
    /// Nobody is there to read it, and nobody asked to have it finished.
    ClientLeft,
}

/// What a turn comes to.
#[derive(Debug)]
pub struct Outcome {
    /// The text to be stored, if anything was generated.
    pub reply: Option<(String, ReplyStatus)>,
    /// What the client is told last, once the reply is stored.
    pub last: Last,
}

/// The end of the client's stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Last {
    /// The final event that was held back: the line as it came.
    Done(String),
    /// A failure.
    Error(RelayError),
    /// Everything was said.
    Nothing,
}

impl Transcoder {
    /// A reply of at most `cap` bytes in which nothing was said yet.
    pub fn new(whitespace: Whitespace, cap: usize) -> Self {
        Self {
            completion: Completion {
                text: String::new(),
                whitespace,
                cap,
            },
            held: None,
            told: false,
            broken: None,
        }
    }

    /// Takes the next line and says what the client is told at once.
    pub fn accept<'a>(&mut self, line: Line<'a>) -> Option<Event<'a>> {
        let line = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return None,
            Line::Whole(line) => line,
            Line::TooLong => {
                return Some(error(
                    Code::LineTooLong,
                    "Ollama sent a line over the operator's limit (max_line_bytes); it was left out",
                ));
            }
        };
        match ChatChunk::parse(line) {
            Ok((line, ChatChunk::Token { content })) => match self.completion.push(&content) {
                Ok(()) => Some(Event::Data(line)),
                Err(too_long) => self.break_off(too_long),
            },
            Ok((line, ChatChunk::Done { content })) => match self.completion.push(&content) {
                Ok(()) => {
                    self.held = Some(line.to_owned());
                    None
                }
                Err(too_long) => self.break_off(too_long),
            },
            Ok((_, ChatChunk::Error { text })) => {
                self.told = true;
                Some(error(Code::OllamaError, text))
            }
            Err(not_a_chunk) => Some(error(Code::InvalidLine, not_a_chunk.text())),
        }
    }

    /// Whether the reply has come to its end, so that no further line is of interest.
    pub fn is_over(&self) -> bool {
        self.held.is_some() || self.broken.is_some()
    }

    /// The end of the bytes: what to store, and what to say last.
    pub fn end(self, end: End) -> Outcome {
        let (status, last) = match (self.held, self.broken, end) {
            (Some(line), _, _) => (ReplyStatus::Complete, Last::Done(line)),
            (None, Some(broken), _) => (ReplyStatus::Partial, Last::Error(broken)),
            (None, None, _) if self.told => (ReplyStatus::Partial, Last::Nothing),
            (None, None, End::Failed(error)) => (ReplyStatus::Partial, Last::Error(error)),
            (None, None, End::ClientLeft) => (ReplyStatus::Partial, Last::Nothing),
            (None, None, End::Closed) => (
                ReplyStatus::Partial,
                Last::Error(RelayError::new(
                    Code::OllamaEndedEarly,
                    "Ollama ended its reply without saying that it is done; what came of it is kept",
                )),
            ),
        };
        let text = self.completion.text;
        Outcome {
            reply: (!text.is_empty()).then_some((text, status)),
            last,
        }
    }

    fn break_off(&mut self, why: RelayError) -> Option<Event<'static>> {
        self.broken = Some(why);
        None
    }
}

fn error<'a>(code: Code, text: impl Into<Cow<'a, str>>) -> Event<'a> {
    Event::Error(ErrorData {
        error: text.into(),
        code: code.as_str(),
        message: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(tokens: &[&str], whitespace: Whitespace) -> String {
        let mut completion = Completion {
            text: String::new(),
            whitespace,
            cap: usize::MAX,
        };
        for token in tokens {
            completion.push(token).unwrap();
        }
        completion.text
    }

    fn transcoder() -> Transcoder {
        Transcoder::new(Whitespace::Collapse, 100)
    }

    const TOKEN: &[u8] = br#"{"message":{"content":"hi"},"done":false}"#;
    const DONE: &[u8] = br#"{"message":{"content":""},"done":true}"#;

    #[test]
    fn white_space_collapses_across_tokens() {
        let tokens = ["a \n", "\t b", "\u{3000}", "c\n"];
        assert_eq!(stored(&tokens, Whitespace::Collapse), "a b c ");
        assert_eq!(stored(&tokens, Whitespace::Preserve), "a \n\t b\u{3000}c\n");
    }

    #[test]
    fn a_nul_is_stored_as_the_replacement_character() {
        assert_eq!(stored(&["a\0b"], Whitespace::Collapse), "a\u{fffd}b");
        assert_eq!(stored(&["a\0b"], Whitespace::Preserve), "a\u{fffd}b");
    }

    #[test]
    fn the_final_event_is_held_back() {
        let mut turn = transcoder();
        assert!(matches!(
            turn.accept(Line::Whole(TOKEN)),
            Some(Event::Data(_))
        ));
        assert!(turn.accept(Line::Whole(DONE)).is_none());
        assert!(turn.is_over());
        let outcome = turn.end(End::Closed);
        assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Complete)));
        assert_eq!(
            outcome.last,
            Last::Done(String::from_utf8(DONE.to_vec()).unwrap())
        );
    }

    #[test]
    fn an_end_without_done_is_a_partial_reply_and_an_error() {
        let mut turn = transcoder();
        turn.accept(Line::Whole(TOKEN));
        let outcome = turn.end(End::Closed);
        assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Partial)));
        assert!(matches!(
            outcome.last,
            Last::Error(RelayError {
                code: Code::OllamaEndedEarly,
                ..
            })
        ));
    }

    #[test]
    fn after_an_error_line_the_end_is_no_second_error() {
        let mut turn = transcoder();
        turn.accept(Line::Whole(br#"{"error":"boom"}"#));
        assert!(!turn.is_over());
        let outcome = turn.end(End::Closed);
        assert_eq!((outcome.reply, outcome.last), (None, Last::Nothing));
    }

    #[test]
    fn a_token_that_does_not_fit_is_neither_shown_nor_stored() {
        let mut turn = Transcoder::new(Whitespace::Preserve, 3);
        assert!(turn.accept(Line::Whole(TOKEN)).is_some());
        assert!(turn.accept(Line::Whole(TOKEN)).is_none());
        assert!(turn.is_over());
        let outcome = turn.end(End::Closed);
        assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Partial)));
        assert!(matches!(
            outcome.last,
            Last::Error(RelayError {
                code: Code::CompletionTooLong,
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn the_stored_text_does_not_depend_on_the_tokens(
            text in "[a \\n\u{a0}\u{fffd}é\\x00]{0,40}",
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let mut tokens = Vec::new();
            let mut rest = text.as_str();
            for cut in cuts {
                let cut = (0..=cut.min(rest.len())).rev().find(|&at| rest.is_char_boundary(at)).unwrap();
                let (token, after) = rest.split_at(cut);
                tokens.push(token);
                rest = after;
            }
            tokens.push(rest);
            for whitespace in [Whitespace::Collapse, Whitespace::Preserve] {
                prop_assert_eq!(stored(&tokens, whitespace), stored(&[&text], whitespace));
            }
        }
    }
}
