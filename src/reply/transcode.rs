//! The state of one reply: takes Ollama's lines, yields events for the client, and accumulates the
//! text to be stored. It ends in one [`Outcome`].
//!
//! The final event is held back: it is a receipt, to be sent only when the reply is stored. So is an error of
//! Ollama's until another line comes, since it ends most replies. Knows no sockets and no clock.

use std::borrow::Cow;

use strum::IntoStaticStr;

use super::completion::{Completion, Growth, Mark, Reply, TooLong, Whitespace};
use super::ndjson::Line;
use super::position::Position;
use super::sse::{ErrorData, Event};
use super::wire::{self, ChatChunk};
use crate::conversation::ReplyStatus;
use crate::error::{Code, RelayError};
use crate::secret::Secret;

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
    /// How the attempt ended.
    pub state: State,
    /// What is stored, if anything was generated.
    pub reply: Option<Reply>,
    /// How much of it the final line itself has: what a client was sent before does not end with that.
    pub share: Position,
    /// What the client is sent last, once the reply is stored.
    pub last: Last,
    /// The errors that the client was sent in mid-stream: the first of each kind, and how many there were.
    pub told: Vec<(RelayError, usize)>,
}

impl Outcome {
    /// The final line, as it is stored.
    pub fn final_line(&self) -> Option<Cow<'_, str>> {
        match &self.last {
            Last::Done { line, .. } => Some(wire::kept(line)),
            Last::Error(_) | Last::Nothing => None,
        }
    }

    /// Why the reply broke off, unless the client left.
    pub fn error(&self) -> Option<&RelayError> {
        match &self.last {
            Last::Error(error) => Some(error),
            Last::Done { .. } | Last::Nothing => None,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum State {
    /// With its final line, although lines may have been left out before, and nothing may have been generated.
    Complete,
    /// It broke off, and there is something to store.
    Partial,
    /// It broke off, and there is nothing to store.
    Failed,
}

impl State {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
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
    whitespace: Whitespace,
    /// The most bytes of the completion.
    cap: usize,
    /// No line has come yet.
    is_first: bool,
    /// The final line, once it has arrived.
    final_line: Option<String>,
    /// How much of the completion is the final line's.
    share: Position,
    /// Ollama's last words, unless another line comes.
    held: Option<String>,
    /// The errors that the client was sent: the first of each kind, and how many there were. The reply is
    /// not whole then, even if its final line came.
    told: Vec<(RelayError, usize)>,
    /// The client's last event was an error, or `restart`.
    after_error: bool,
    /// The most bytes of events, and how many were sent.
    stream_cap: usize,
    sent: usize,
    /// A limit of ours that ended the reply.
    over_limit: Option<RelayError>,
    /// What Ollama's errors must not tell.
    secret: Option<Secret>,
}

impl Transcoder {
    /// The start of a reply of at most `cap` bytes, in events of at most `stream_cap`.
    pub fn new(whitespace: Whitespace, cap: usize, stream_cap: usize) -> Self {
        Self {
            completion: Completion::new(cap),
            whitespace,
            cap,
            is_first: true,
            final_line: None,
            share: Position::default(),
            held: None,
            told: Vec::new(),
            after_error: false,
            stream_cap,
            sent: 0,
            over_limit: None,
            secret: None,
        }
    }

    /// Ollama's errors are told without it.
    pub fn hide(&mut self, secret: Option<Secret>) {
        self.secret = secret;
    }

    /// The client was told to drop what it has: the next event of data carries its type.
    pub fn after_restart(&mut self) {
        self.after_error = true;
    }

    /// The error that was held back, which the client is sent before the next line: it was not the end.
    pub fn release(&mut self, next: &Line<'_>) -> Option<Event<'static>> {
        let text = self.held.take_if(|_| !is_blank(next))?;
        self.after_error = true;
        Some(self.tell(Code::OllamaError, text))
    }

    /// Takes the next line, after [`release`](Self::release), and returns the event that the client is sent at
    /// once, if any.
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
                    "the events of the reply grew over {} bytes, the operator's limit (max_stream_bytes); it ends here",
                    self.stream_cap
                ),
            ));
        }
    }

    /// How much of the reply the client has with the events so far.
    pub fn position(&self) -> Position {
        self.completion.seen()
    }

    /// What came after `mark`.
    pub fn since(&self, mark: &Mark) -> Growth<'_> {
        self.completion.since(mark)
    }

    fn event<'a>(&mut self, line: Line<'a>) -> Option<Event<'a>> {
        let is_first = std::mem::take(&mut self.is_first);
        let line = match line {
            // What stands before Ollama may put one before the body.
            Line::Whole(line) if is_first => {
                Line::Whole(line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line))
            }
            other => other,
        };
        let line = match line {
            blank if is_blank(&blank) => return None,
            Line::Whole(line) => line,
            Line::TooLong => {
                return Some(self.tell(
                    Code::LineTooLong,
                    "Ollama sent a line over the operator's limit (max_line_bytes, or with \"stream\": false four times max_completion_bytes); it was left out",
                ));
            }
        };
        match ChatChunk::parse(line) {
            Ok((line, ChatChunk::Token(piece))) => match self.completion.push(&piece) {
                Ok(()) => Some(Event::data(line, self.after_error)),
                Err(TooLong) => self.end_at_cap(),
            },
            Ok((line, ChatChunk::Done(piece))) => match self.completion.push_last(&piece) {
                Ok(before) => {
                    self.share = self.completion.position().since(before);
                    self.final_line = Some(line.to_owned());
                    None
                }
                Err(TooLong) => self.end_at_cap(),
            },
            Ok((_, ChatChunk::Error { mut text })) => {
                if let Some(secret) = &self.secret {
                    secret.hide(&mut text);
                }
                self.held = Some(text);
                None
            }
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
        let after_error = self.after_error;
        let done = |line| Last::Done { line, after_error };
        // After an error of Ollama's, the end of the stream is not another one.
        let held = self
            .held
            .map(|text| RelayError::new(Code::OllamaError, text));
        let (status, last) = match (self.final_line, self.over_limit.or(held), end) {
            (Some(line), _, _) if is_whole => (ReplyStatus::Complete, done(line)),
            (Some(line), _, _) => (ReplyStatus::Partial, done(line)),
            (None, Some(error), _) | (None, None, End::Failed(error)) => {
                (ReplyStatus::Partial, Last::Error(error))
            }
            (None, None, End::ClientLeft) => (ReplyStatus::Partial, Last::Nothing),
            (None, None, End::Closed) => (
                ReplyStatus::Partial,
                Last::Error(RelayError::new(
                    Code::OllamaEndedEarly,
                    "Ollama ended its reply without saying that it is done; what came of it is kept",
                )),
            ),
        };
        let reply = self.completion.into_reply(self.whitespace, status);
        let state = match (&last, &reply) {
            (Last::Done { .. }, _) => State::Complete,
            (_, Some(_)) => State::Partial,
            (_, None) => State::Failed,
        };
        Outcome {
            state,
            reply,
            share: self.share,
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

    /// Ends the reply before a line that does not fit.
    fn end_at_cap<'a>(&mut self) -> Option<Event<'a>> {
        self.over_limit = Some(RelayError::new(
            Code::CompletionTooLong,
            format!(
                "the completion, with its thinking and tool calls, grew over {} bytes, the operator's limit (max_completion_bytes); it ends here",
                self.cap
            ),
        ));
        None
    }
}

fn is_blank(line: &Line<'_>) -> bool {
    matches!(line, Line::Whole(line) if line.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is stored of a content.
    fn content(outcome: &Outcome) -> Option<(&str, ReplyStatus)> {
        let reply = outcome.reply.as_ref()?;
        Some((&reply.message, reply.status))
    }

    fn transcoder() -> Transcoder {
        Transcoder::new(Whitespace::Collapse, 100, usize::MAX)
    }

    const TOKEN: &[u8] = br#"{"message":{"content":"hi"},"done":false}"#;
    const DONE: &[u8] = br#"{"message":{"content":""},"done":true}"#;

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
        assert_eq!(content(&outcome), Some(("hihi", ReplyStatus::Partial)));
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
        assert_eq!(content(&outcome), Some(("hi", ReplyStatus::Complete)));
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
            (TOKEN, true),
            (br#"{"error":"boom"}"#, false),
        ] {
            let line = Line::Whole(line);
            reply.release(&line);
            let event = reply.accept(line);
            assert_eq!(matches!(event, Some(Event::DataAfterError(_))), is_named);
        }
        reply.release(&Line::Whole(DONE));
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
            for line in [
                Line::Whole(b"<html>"),
                Line::Whole(br#"{"error":"boom"}"#),
                Line::TooLong,
                Line::Whole(br#"{"error":"again"}"#),
            ] {
                reply.release(&line);
                reply.accept(line);
            }
        }
        reply.release(&Line::TooLong);
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
        assert_eq!(content(&outcome), Some(("hi", ReplyStatus::Partial)));
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
            reply.release(&Line::Whole(DONE));
            reply.accept(Line::Whole(DONE));
            let outcome = reply.end(End::Closed);
            assert_eq!(content(&outcome), Some(("hi", ReplyStatus::Partial)));
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
    fn an_error_line_at_the_end_is_the_last_event_whatever_ends_the_stream() {
        let broken = || End::Failed(RelayError::new(Code::OllamaBrokeOff, "broken"));
        for end in [End::Closed, broken(), End::ClientLeft] {
            let mut reply = transcoder();
            for line in [br#"{"error":"boom"}"#.as_slice(), b" "] {
                let line = Line::Whole(line);
                assert!(reply.release(&line).is_none() && reply.accept(line).is_none());
            }
            assert!(!reply.is_over());
            let outcome = reply.end(end);
            let boom = Last::Error(RelayError::new(Code::OllamaError, "boom"));
            assert_eq!((outcome.reply, outcome.last), (None, boom));
            assert_eq!(outcome.told, []);
        }
    }

    #[test]
    fn an_error_line_before_another_line_is_told_before_that() {
        let mut reply = transcoder();
        reply.accept(Line::Whole(br#"{"error":"boom"}"#));
        let Some(Event::Error(error)) = reply.release(&Line::Whole(TOKEN)) else {
            panic!("no error")
        };
        assert_eq!((&*error.error, error.code), ("boom", "ollama_error"));
        assert!(reply.release(&Line::Whole(TOKEN)).is_none());
        let outcome = reply.end(End::Closed);
        assert_eq!(outcome.error().unwrap().code, Code::OllamaEndedEarly);
        assert_eq!(outcome.told.len(), 1);
    }

    #[test]
    fn a_token_that_does_not_fit_is_neither_shown_nor_stored() {
        let mut reply = Transcoder::new(Whitespace::Preserve, 3, usize::MAX);
        assert!(reply.accept(Line::Whole(TOKEN)).is_some());
        assert!(reply.accept(Line::Whole(TOKEN)).is_none());
        assert!(reply.is_over());
        let outcome = reply.end(End::Closed);
        assert_eq!(content(&outcome), Some(("hi", ReplyStatus::Partial)));
        assert!(matches!(
            outcome.last,
            Last::Error(RelayError {
                code: Code::CompletionTooLong,
                ..
            })
        ));
    }

    #[test]
    fn the_outcome_says_how_the_attempt_ended_and_what_its_final_line_has() {
        const THOUGHT: &[u8] = br#"{"message":{"content":"","thinking":"hm"},"done":false}"#;
        const CALL: &[u8] = br#"{"message":{"content":"!","tool_calls":[{}]},"done":true}"#;
        let boom: &[u8] = br#"{"error":"boom"}"#;
        let ended_early = Some(Code::OllamaEndedEarly);
        for (lines, state, has_reply, error, share) in [
            (&[DONE][..], State::Complete, false, None, (0, 0)),
            (
                &[TOKEN, b"<html>", DONE],
                State::Complete,
                true,
                None,
                (0, 0),
            ),
            (&[THOUGHT, CALL], State::Complete, true, None, (1, 1)),
            (&[THOUGHT], State::Partial, true, ended_early, (0, 0)),
            (
                &[TOKEN, boom],
                State::Partial,
                true,
                Some(Code::OllamaError),
                (0, 0),
            ),
            (
                &[boom],
                State::Failed,
                false,
                Some(Code::OllamaError),
                (0, 0),
            ),
            (&[], State::Failed, false, ended_early, (0, 0)),
        ] {
            let mut reply = transcoder();
            for line in lines {
                reply.accept(Line::Whole(line));
            }
            let outcome = reply.end(End::Closed);
            assert_eq!(outcome.state, state);
            assert_eq!(outcome.reply.is_some(), has_reply);
            assert_eq!(outcome.error().map(|it| it.code), error);
            assert_eq!(outcome.final_line().is_some(), state == State::Complete);
            assert_eq!((outcome.share.content, outcome.share.calls), share);
        }
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
            assert_eq!(content(&outcome), Some((whole, ReplyStatus::Complete)));
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
            prop_assert_eq!(content(&outcome), Some((&*text, ReplyStatus::Complete)));
        }
    }
}
