//! The state of one reply: takes Ollama's lines, yields events for the client, and accumulates the
//! text to be stored. It ends in one [`Outcome`].
//!
//! The final event is held back: it is a receipt, to be sent only when the reply is stored. Knows no
//! sockets and no clock.

use std::borrow::Cow;

use strum::{EnumString, VariantNames};

use super::ndjson::Line;
use super::sse::{ErrorData, Event};
use super::wire::{ChatChunk, Content};
use crate::conversation::ReplyStatus;
use crate::error::{Code, RelayError};

/// How white space in a completion is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
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
    /// The half of a surrogate pair that U+FFFD at the end of `text` stands for, unless the other half comes.
    half: Option<u16>,
    whitespace: Whitespace,
    /// The most bytes that `text` may have.
    cap: usize,
}

impl Completion {
    /// Appends a token, or nothing of it where the token as generated would not fit.
    fn push(&mut self, content: &Content<'_>) -> Result<(), RelayError> {
        let mut token = &*content.text;
        if token.is_empty() {
            return Ok(());
        }
        // Storing only shortens a token, except for NUL: one byte becomes the three of U+FFFD.
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
        let joined = self
            .half
            .zip(content.low)
            .and_then(|pair| char::decode_utf16(<[u16; 2]>::from(pair)).next()?.ok());
        if let Some(joined) = joined {
            self.text.pop();
            self.text.push(joined);
            token = token
                .strip_prefix(char::REPLACEMENT_CHARACTER)
                .unwrap_or(token);
        }
        self.half = content.high;
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

/// How the bytes from Ollama ended.
#[derive(Debug)]
pub enum End {
    /// The stream ended, or was not read further because the reply [is over](Transcoder::is_over).
    Closed,
    /// The stream broke, was silent for too long, or never began.
    Failed(RelayError),
    /// The client has left, and the operator wants no reply finished without one.
    ClientLeft,
}

/// What a reply comes to.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The text to be stored, if anything was generated.
    pub reply: Option<(String, ReplyStatus)>,
    /// What the client is sent last, once the reply is stored.
    pub last: Last,
    /// The errors that the client was sent in mid-stream: the first of each kind, and how many there were.
    pub told: Vec<(RelayError, usize)>,
}

/// The end of the client's stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Last {
    /// The final line, held back until now.
    Done {
        /// As Ollama wrote it.
        line: String,
        /// The client's last event was an error.
        after_error: bool,
    },
    /// A failure that the client has not been sent yet.
    Error(RelayError),
    /// The client has everything.
    Nothing,
}

/// The state machine.
#[derive(Debug)]
pub struct Transcoder {
    completion: Completion,
    /// No line has come yet.
    is_first: bool,
    /// The final line, once it has arrived.
    final_line: Option<String>,
    /// The errors that the client was sent: the first of each kind, and how many there were. The reply is
    /// not whole then, even if its final line came.
    told: Vec<(RelayError, usize)>,
    /// The client's last event was an error.
    after_error: bool,
    /// The most bytes of events, and how many were sent.
    stream_cap: usize,
    sent: usize,
    /// A limit of ours that ended the reply.
    over_limit: Option<RelayError>,
}

impl Transcoder {
    /// The start of a reply of at most `cap` bytes, in events of at most `stream_cap`.
    pub fn new(whitespace: Whitespace, cap: usize, stream_cap: usize) -> Self {
        Self {
            completion: Completion {
                text: String::new(),
                half: None,
                whitespace,
                cap,
            },
            is_first: true,
            final_line: None,
            told: Vec::new(),
            after_error: false,
            stream_cap,
            sent: 0,
            over_limit: None,
        }
    }

    /// Takes the next line and returns the event that the client is sent at once, if any.
    pub fn accept<'a>(&mut self, line: Line<'a>) -> Option<Event<'a>> {
        let event = self.event(line)?;
        self.after_error = matches!(event, Event::Error(_));
        Some(event)
    }

    /// An event of so many bytes is on its way.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes);
        if self.sent >= self.stream_cap && !self.is_over() {
            self.over_limit = Some(RelayError::new(
                Code::CompletionTooLong,
                format!(
                    "the events of the reply reached {} bytes, the operator's limit (max_stream_bytes); it ends here",
                    self.stream_cap
                ),
            ));
        }
    }

    fn event<'a>(&mut self, line: Line<'a>) -> Option<Event<'a>> {
        // What stands before Ollama may put one before the body.
        let bom: &[u8] = match std::mem::take(&mut self.is_first) {
            true => "\u{feff}".as_bytes(),
            false => b"",
        };
        let line = match line {
            Line::Whole(line) => Line::Whole(line.strip_prefix(bom).unwrap_or(line)),
            Line::TooLong => Line::TooLong,
        };
        let line = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return None,
            Line::Whole(line) => line,
            Line::TooLong => {
                return Some(self.tell(
                    Code::LineTooLong,
                    "Ollama sent a line over the operator's limit (max_line_bytes, or with \"stream\": false four times max_completion_bytes); it was left out",
                ));
            }
        };
        match ChatChunk::parse(line) {
            Ok((line, ChatChunk::Token { content })) => {
                let event = Event::data(line, self.after_error);
                self.push(&content).then_some(event)
            }
            Ok((line, ChatChunk::Done { content })) => {
                if self.push(&content) {
                    self.final_line = Some(line.to_owned());
                }
                None
            }
            Ok((_, ChatChunk::Error { text })) => Some(self.tell(Code::OllamaError, text)),
            Err(not_a_chunk) => Some(self.tell(Code::InvalidLine, not_a_chunk.text())),
        }
    }

    /// Whether the reply has ended, so that no further line is needed.
    pub fn is_over(&self) -> bool {
        self.final_line.is_some() || self.over_limit.is_some()
    }

    /// Ends the reply: what to store, and what to send last.
    pub fn end(self, end: End) -> Outcome {
        let is_whole = self.told.is_empty();
        // The end of the stream is not another error then.
        let has_failed = self
            .told
            .iter()
            .any(|(error, _)| error.code == Code::OllamaError);
        let after_error = self.after_error;
        let done = |line| Last::Done { line, after_error };
        let (status, last) = match (self.final_line, self.over_limit, end) {
            (Some(line), _, _) if is_whole => (ReplyStatus::Complete, done(line)),
            (Some(line), _, _) => (ReplyStatus::Partial, done(line)),
            (None, Some(error), _) => (ReplyStatus::Partial, Last::Error(error)),
            (None, None, _) if has_failed => (ReplyStatus::Partial, Last::Nothing),
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
            // White space alone says nothing, and a model that is shown it again tends to repeat it.
            reply: (!text.trim().is_empty()).then_some((text, status)),
            last,
            told: self.told,
        }
    }

    /// The event of an error in mid-stream, which is counted.
    fn tell<'a>(&mut self, code: Code, text: impl Into<Cow<'static, str>>) -> Event<'a> {
        let error = RelayError::new(code, text);
        let event = Event::Error(ErrorData {
            error: error.text.clone(),
            code: code.as_str(),
            message: None,
        });
        match self.told.iter_mut().find(|(told, _)| told.code == code) {
            Some((_, count)) => *count += 1,
            None => self.told.push((error, 1)),
        }
        event
    }

    /// Appends to the completion, or ends the reply where it does not fit; whether it did.
    fn push(&mut self, content: &Content<'_>) -> bool {
        match self.completion.push(content) {
            Ok(()) => true,
            Err(over_limit) => {
                self.over_limit = Some(over_limit);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(tokens: &[&str], whitespace: Whitespace) -> String {
        let mut completion = Completion {
            text: String::new(),
            half: None,
            whitespace,
            cap: usize::MAX,
        };
        for token in tokens {
            completion.push(&Content::from(*token)).unwrap();
        }
        completion.text
    }

    fn transcoder() -> Transcoder {
        Transcoder::new(Whitespace::Collapse, 100, usize::MAX)
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
    fn a_stream_over_its_cap_ends_after_the_event_that_reached_it() {
        let mut reply = Transcoder::new(Whitespace::Preserve, 100, 10);
        for bytes in [9, 1] {
            assert!(!reply.is_over());
            assert!(reply.accept(Line::Whole(TOKEN)).is_some());
            reply.sent(bytes);
        }
        assert!(reply.is_over());
        let outcome = reply.end(End::Closed);
        assert_eq!(
            outcome.reply,
            Some(("hihi".to_owned(), ReplyStatus::Partial))
        );
        let Last::Error(error) = outcome.last else {
            panic!("no error")
        };
        assert_eq!(error.code, Code::CompletionTooLong);
        assert!(error.text.contains("max_stream_bytes"));
    }

    #[test]
    fn the_final_event_is_held_back() {
        let mut reply = transcoder();
        assert!(matches!(
            reply.accept(Line::Whole(TOKEN)),
            Some(Event::Data(_))
        ));
        assert!(reply.accept(Line::Whole(DONE)).is_none());
        assert!(reply.is_over());
        let outcome = reply.end(End::Closed);
        assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Complete)));
        assert_eq!(
            outcome.last,
            Last::Done {
                line: String::from_utf8(DONE.to_vec()).unwrap(),
                after_error: false,
            }
        );
    }

    #[test]
    fn the_first_event_after_an_error_has_its_type_and_no_other() {
        let mut reply = transcoder();
        for (line, is_named) in [
            (TOKEN, false),
            (b"<html>", false),
            (b"\xff", false),
            (TOKEN, true),
            (TOKEN, false),
            (br#"{"error":"boom"}"#, false),
            (b"", false),
        ] {
            let event = reply.accept(Line::Whole(line));
            assert_eq!(matches!(event, Some(Event::DataAfterError(_))), is_named);
        }
        reply.accept(Line::Whole(DONE));
        let last = reply.end(End::Closed).last;
        assert!(matches!(
            last,
            Last::Done {
                after_error: true,
                ..
            }
        ));
    }

    #[test]
    fn one_byte_order_mark_is_skipped_and_only_at_the_start() {
        let marked = ["\u{feff}".as_bytes(), DONE].concat();
        for (lines, is_done) in [
            (vec![marked.as_slice()], true),
            (vec!["\u{feff}".as_bytes(), DONE], true),
            (vec![b"", marked.as_slice()], false),
            (vec![TOKEN, marked.as_slice()], false),
        ] {
            let mut reply = transcoder();
            for line in lines {
                reply.accept(Line::Whole(line));
            }
            assert_eq!(reply.is_over(), is_done);
        }
    }

    #[test]
    fn of_many_errors_in_mid_stream_the_first_of_each_kind_is_kept_and_their_number() {
        let mut reply = transcoder();
        for _ in 0..1000 {
            reply.accept(Line::Whole(b"<html>"));
            reply.accept(Line::Whole(br#"{"error":"boom"}"#));
            reply.accept(Line::TooLong);
            reply.accept(Line::Whole(br#"{"error":"again"}"#));
        }
        let told = reply.end(End::Closed).told;
        let told: Vec<_> = told.iter().map(|(error, n)| (error.code, *n)).collect();
        let expected = [
            (Code::InvalidLine, 1000),
            (Code::OllamaError, 2000),
            (Code::LineTooLong, 1000),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_end_without_done_is_a_partial_reply_and_an_error() {
        let mut reply = transcoder();
        reply.accept(Line::Whole(TOKEN));
        let outcome = reply.end(End::Closed);
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
    fn a_reply_of_which_a_line_was_left_out_is_partial_though_its_end_came() {
        for left_out in [
            Line::TooLong,
            Line::Whole(b"<html>"),
            Line::Whole(b"\xff"),
            Line::Whole(br#"{"message":{"content":7},"done":false}"#),
            Line::Whole(br#"{"error":"boom"}"#),
        ] {
            let mut reply = transcoder();
            reply.accept(Line::Whole(TOKEN));
            reply.accept(left_out);
            reply.accept(Line::Whole(DONE));
            let outcome = reply.end(End::Closed);
            assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Partial)));
            assert!(matches!(outcome.last, Last::Done { .. }));
        }
    }

    #[test]
    fn a_reply_of_white_space_is_not_stored_and_its_end_passes() {
        for whitespace in [Whitespace::Collapse, Whitespace::Preserve] {
            let mut reply = Transcoder::new(whitespace, 100, usize::MAX);
            let line = br#"{"message":{"content":" \n\u3000"},"done":false}"#;
            assert!(reply.accept(Line::Whole(line)).is_some());
            reply.accept(Line::Whole(DONE));
            let outcome = reply.end(End::Closed);
            assert_eq!(outcome.reply, None);
            assert!(matches!(outcome.last, Last::Done { .. }));
        }
    }

    #[test]
    fn after_an_error_line_the_end_is_no_second_error() {
        let mut reply = transcoder();
        reply.accept(Line::Whole(br#"{"error":"boom"}"#));
        assert!(!reply.is_over());
        let outcome = reply.end(End::Closed);
        assert_eq!((outcome.reply, outcome.last), (None, Last::Nothing));
    }

    #[test]
    fn a_token_that_does_not_fit_is_neither_shown_nor_stored() {
        let mut reply = Transcoder::new(Whitespace::Preserve, 3, usize::MAX);
        assert!(reply.accept(Line::Whole(TOKEN)).is_some());
        assert!(reply.accept(Line::Whole(TOKEN)).is_none());
        assert!(reply.is_over());
        let outcome = reply.end(End::Closed);
        assert_eq!(outcome.reply, Some(("hi".into(), ReplyStatus::Partial)));
        assert!(matches!(
            outcome.last,
            Last::Error(RelayError {
                code: Code::CompletionTooLong,
                ..
            })
        ));
    }

    #[test]
    fn of_half_a_surrogate_pair_without_its_other_half_nothing_else_is_lost() {
        for (contents, whole) in [
            (&[r"a\ud83d", r"\ude00b"][..], "a😀b"),
            (&[r"\ud83d", "", r"\ude00"], "😀"),
            (&[r"a\ud83d", "b"], "a\u{fffd}b"),
            (&[r"\ude00a", r"\ud83d"], "\u{fffd}a\u{fffd}"),
            (&[r"\ud83d", r"\ud83d\ude00"], "\u{fffd}😀"),
            (&[r"\ufffd", r"\ude00"], "\u{fffd}\u{fffd}"),
            (&[r"a\ud83db"], "a\u{fffd}b"),
        ] {
            let mut reply = transcoder();
            for content in contents {
                let line = format!(r#"{{"message":{{"content":"{content}"}},"done":false}}"#);
                match reply.accept(Line::Whole(line.as_bytes())) {
                    Some(Event::Data(relayed)) => assert_eq!(relayed, line),
                    other => panic!("{other:?}"),
                }
            }
            reply.accept(Line::Whole(DONE));
            let outcome = reply.end(End::Closed);
            assert_eq!(outcome.reply, Some((whole.into(), ReplyStatus::Complete)));
        }
    }

    proptest! {
        #[test]
        fn a_text_that_is_cut_between_any_utf_16_units_is_stored_whole(
            text in "[a\\\\ud83é\u{fffd}😀𝄞\u{10ffff}]{1,20}",
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let mut escaped = vec![String::new()];
            for (i, unit) in text.encode_utf16().enumerate() {
                if cuts.contains(&i) {
                    escaped.push(String::new());
                }
                let token = format!("\\u{unit:04x}");
                escaped.last_mut().unwrap().push_str(&token);
            }
            let mut reply = Transcoder::new(Whitespace::Preserve, 1000, usize::MAX);
            for content in escaped {
                let line = format!(r#"{{"message":{{"content":"{content}"}},"done":false}}"#);
                prop_assert!(reply.accept(Line::Whole(line.as_bytes())).is_some());
            }
            reply.accept(Line::Whole(DONE));
            let outcome = reply.end(End::Closed);
            prop_assert_eq!(outcome.reply, Some((text, ReplyStatus::Complete)));
        }

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
