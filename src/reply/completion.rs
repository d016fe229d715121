//! The reply as it grows, as it was generated, and the form in which it is stored.
//!
//! It only ever grows, by whole characters, so that a [`Position`] in it stays what it was: of a character whose
//! halves come in two lines, nothing counts before the second half is there, or does not come.

use strum::{EnumString, VariantNames};

use super::halves;
use super::position::Position;
use super::wire::{Fragment, Piece};
use crate::conversation::ReplyStatus;

/// How white space in a completion is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Whitespace {
    /// Every run of white space (Unicode's property) is stored as one space.
    Collapse,
    /// The completion is stored as it was generated.
    Preserve,
}

/// A reply as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The content as the model is sent it again: empty where it is white space alone. A model is sent no reply
    /// that has neither this nor `calls`.
    pub message: String,
    /// The content as it was generated, where that differs.
    pub raw: Option<String>,
    /// The thinking, if there is any.
    pub thinking: Option<String>,
    /// The tool calls, if there are any: JSON texts with commas in between.
    pub calls: Option<String>,
    /// Whether it is whole.
    pub status: ReplyStatus,
}

impl Reply {
    /// The content as it was generated, which people are shown and positions count.
    pub fn content(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.message)
    }
}

/// The reply so far.
#[derive(Debug)]
pub(super) struct Completion {
    content: Text,
    thinking: Text,
    /// As they were written, with commas in between.
    calls: String,
    call_count: usize,
    /// The most bytes of all three.
    cap: usize,
}

/// Nothing of a piece was appended: with it, the reply would be over its cap.
#[derive(Debug)]
pub(super) struct TooLong;

/// How much of a reply was taken by [`Completion::since`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// As clients count it.
    pub position: Position,
    call_bytes: usize,
}

/// What a reply has grown by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth<'a> {
    /// The content.
    pub content: &'a str,
    /// The thinking.
    pub thinking: &'a str,
    /// The tool calls: JSON texts with commas in between.
    pub calls: &'a str,
    /// The end of it.
    pub mark: Mark,
}

impl Completion {
    pub(super) fn new(cap: usize) -> Self {
        Self {
            content: Text::default(),
            thinking: Text::default(),
            calls: String::new(),
            call_count: 0,
            cap,
        }
    }

    /// Appends a piece.
    pub(super) fn push(&mut self, piece: &Piece<'_>) -> Result<(), TooLong> {
        let call_bytes = piece.calls.len_max();
        let len = self.content.len_with(&piece.content)
            + self.thinking.len_with(&piece.thinking)
            + self.calls.len()
            + call_bytes;
        if len > self.cap {
            return Err(TooLong);
        }
        self.content.push(&piece.content);
        self.thinking.push(&piece.thinking);
        if call_bytes > 0 {
            self.call_count += piece.calls.append_to(&mut self.calls);
        }
        Ok(())
    }

    /// Appends the last piece. Returns the position before it.
    pub(super) fn push_last(&mut self, piece: &Piece<'_>) -> Result<Position, TooLong> {
        self.content.settle(&piece.content);
        self.thinking.settle(&piece.thinking);
        let before = self.position();
        self.push(piece)?;
        self.close();
        Ok(before)
    }

    /// No other piece follows.
    fn close(&mut self) {
        self.content.settle(&Fragment::default());
        self.thinking.settle(&Fragment::default());
    }

    /// How much there is.
    pub(super) fn position(&self) -> Position {
        Position {
            content: self.content.text.len(),
            thinking: self.thinking.text.len(),
            calls: self.call_count,
        }
    }

    /// How much a client has seen. With half a character it is inside of that character, where nobody can go on.
    pub(super) fn seen(&self) -> Position {
        let Position {
            content,
            thinking,
            calls,
        } = self.position();
        Position {
            content: content + usize::from(self.content.half.is_some()),
            thinking: thinking + usize::from(self.thinking.half.is_some()),
            calls,
        }
    }

    /// What came after `mark`.
    pub(super) fn since(&self, mark: &Mark) -> Growth<'_> {
        let Position {
            content, thinking, ..
        } = mark.position;
        let calls = self.calls.get(mark.call_bytes..).unwrap_or_default();
        Growth {
            content: self.content.text.get(content..).unwrap_or_default(),
            thinking: self.thinking.text.get(thinking..).unwrap_or_default(),
            calls: calls.strip_prefix(',').unwrap_or(calls),
            mark: Mark {
                position: self.position(),
                call_bytes: self.calls.len(),
            },
        }
    }

    /// The reply to be stored, unless there is none: white space alone says nothing, and a model that is shown it
    /// again tends to repeat it.
    pub(super) fn into_reply(
        mut self,
        whitespace: Whitespace,
        status: ReplyStatus,
    ) -> Option<Reply> {
        self.close();
        let (content, thinking) = (self.content.text, self.thinking.text);
        let is_blank = content.trim().is_empty();
        if is_blank && thinking.trim().is_empty() && self.call_count == 0 {
            return None;
        }
        let message = match whitespace {
            _ if is_blank && !content.is_empty() => Some(String::new()),
            Whitespace::Collapse => collapsed(&content),
            Whitespace::Preserve => None,
        };
        let (message, raw) = match message {
            Some(message) => (message, Some(content)),
            None => (content, None),
        };
        Some(Reply {
            message,
            raw,
            thinking: Some(thinking).filter(|it| !it.is_empty()),
            calls: Some(self.calls).filter(|it| !it.is_empty()),
            status,
        })
    }
}

/// A text so far, without its last character where only the first half of that has come.
#[derive(Debug, Default)]
struct Text {
    text: String,
    half: Option<u16>,
}

impl Text {
    /// The length with a fragment more, or a few bytes less than that.
    fn len_with(&self, fragment: &Fragment<'_>) -> usize {
        let half = self
            .half
            .map_or(0, |_| char::REPLACEMENT_CHARACTER.len_utf8());
        self.text.len() + half + fragment.text.len() + 2 * nuls(&fragment.text)
    }

    fn push(&mut self, fragment: &Fragment<'_>) {
        let mut text = &*fragment.text;
        if text.is_empty() {
            return;
        }
        self.settle(fragment);
        if let Some(joined) = self.joined(fragment) {
            self.text.push(joined);
            self.half = None;
            text = text
                .strip_prefix(char::REPLACEMENT_CHARACTER)
                .unwrap_or(text);
        }
        if fragment.high.is_some() {
            self.half = fragment.high;
            text = text
                .strip_suffix(char::REPLACEMENT_CHARACTER)
                .unwrap_or(text);
        }
        if nuls(text) == 0 {
            self.text.push_str(text);
        } else {
            self.text.push_str(&text.replace('\0', NUL_STORED));
        }
    }

    /// Ends the half that waits for its other half, unless the next fragment has that.
    fn settle(&mut self, next: &Fragment<'_>) {
        if self.half.is_some() && self.joined(next).is_none() {
            self.half = None;
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn joined(&self, next: &Fragment<'_>) -> Option<char> {
        halves::joined(self.half?, next.low?)
    }
}

/// What is stored for NUL, which PostgreSQL's text cannot hold.
const NUL_STORED: &str = "\u{fffd}";

fn nuls(text: &str) -> usize {
    match text.is_empty() {
        true => 0,
        false => memchr::memchr_iter(0, text.as_bytes()).count(),
    }
}

/// The text with every run of white space as one space, where that is another text.
fn collapsed(text: &str) -> Option<String> {
    let mut after_space = false;
    let differs = text.char_indices().find(|(_, c)| {
        let differs = c.is_whitespace() && (after_space || *c != ' ');
        after_space = *c == ' ';
        differs
    });
    let (kept, rest) = text.split_at_checked(differs?.0)?;
    let mut collapsed = String::with_capacity(text.len());
    collapsed.push_str(kept);
    for c in rest.chars() {
        if !c.is_whitespace() {
            collapsed.push(c);
        } else if !collapsed.ends_with(' ') {
            collapsed.push(' ');
        }
    }
    Some(collapsed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(tokens: &[&str], whitespace: Whitespace) -> Option<Reply> {
        let mut completion = Completion::new(usize::MAX);
        for token in tokens {
            completion.push(&content(token)).unwrap();
        }
        completion.into_reply(whitespace, ReplyStatus::Complete)
    }

    fn content(text: &str) -> Piece<'_> {
        Piece {
            content: text.into(),
            ..Piece::default()
        }
    }

    fn thinking(text: &str) -> Piece<'_> {
        Piece {
            thinking: text.into(),
            ..Piece::default()
        }
    }

    fn calls(json: &str) -> Piece<'_> {
        Piece {
            calls: serde_json::from_str(json).unwrap(),
            ..Piece::default()
        }
    }

    fn half(text: &str) -> Piece<'_> {
        Piece {
            content: halves::read(serde_json::from_str(text).unwrap()).unwrap(),
            ..Piece::default()
        }
    }

    fn position(content: usize, thinking: usize, calls: usize) -> Position {
        Position {
            content,
            thinking,
            calls,
        }
    }

    #[test]
    fn white_space_collapses_across_tokens_and_what_was_generated_is_kept() {
        let tokens = ["a \n", "\t b", "\u{3000}", "c\n"];
        let generated = "a \n\t b\u{3000}c\n";
        let reply = stored(&tokens, Whitespace::Collapse).unwrap();
        assert_eq!((&*reply.message, reply.content()), ("a b c ", generated));
        let reply = stored(&tokens, Whitespace::Preserve).unwrap();
        assert_eq!((&*reply.message, reply.raw), (generated, None));
        let reply = stored(&["a b", " c "], Whitespace::Collapse).unwrap();
        assert_eq!((&*reply.message, reply.raw), ("a b c ", None));
    }

    #[test]
    fn a_nul_is_stored_as_the_replacement_character_and_counts_as_that() {
        for whitespace in [Whitespace::Collapse, Whitespace::Preserve] {
            let reply = stored(&["a\0b", "\0"], whitespace).unwrap();
            assert_eq!(reply.content(), "a\u{fffd}b\u{fffd}");
        }
        let mut completion = Completion::new(8);
        completion.push(&content("a\0b\0")).unwrap();
        assert_eq!(completion.position(), position(8, 0, 0));
        completion.push(&thinking("\0")).unwrap_err();
    }

    #[test]
    fn a_reply_needs_a_text_or_thinking_or_a_call() {
        let reply = |piece: Piece<'_>| {
            let mut completion = Completion::new(usize::MAX);
            completion.push(&content(" \n")).unwrap();
            completion.push(&piece).unwrap();
            completion.into_reply(Whitespace::Preserve, ReplyStatus::Partial)
        };
        for nothing in [
            content(""),
            content("\u{3000}"),
            thinking("\n"),
            calls("[]"),
        ] {
            assert_eq!(reply(nothing), None);
        }
        for (piece, thinking, calls) in [
            (thinking("hm"), Some("hm"), None),
            (calls("[{}, {}]"), None, Some("{},{}")),
        ] {
            let reply = reply(piece).unwrap();
            // The model is not shown white space again.
            assert_eq!((&*reply.message, reply.content()), ("", " \n"));
            assert_eq!(reply.thinking.as_deref(), thinking);
            assert_eq!(reply.calls.as_deref(), calls);
        }
    }

    #[test]
    fn all_that_is_stored_is_under_one_cap() {
        let mut completion = Completion::new(7);
        completion.push(&content("ab")).unwrap();
        completion.push(&thinking("c")).unwrap();
        completion.push(&calls("[{}]")).unwrap();
        completion.push(&calls("[{}]")).unwrap_err();
        completion.push(&content("abc")).unwrap_err();
        completion.push(&thinking("de")).unwrap();
        assert_eq!(completion.position(), position(2, 3, 1));
    }

    #[test]
    fn a_character_counts_once_its_second_half_is_there_or_does_not_come() {
        let mut completion = Completion::new(usize::MAX);
        for (piece, so_far) in [
            (half(r#""a\ud83d""#), 1),
            (thinking(""), 1),
            (half(r#""\ude00\ud83d""#), 5),
            (content("b"), 9),
            (half(r#""\ud83d""#), 9),
        ] {
            completion.push(&piece).unwrap();
            assert_eq!(completion.position(), position(so_far, 0, 0));
        }
        let reply = completion.into_reply(Whitespace::Preserve, ReplyStatus::Partial);
        assert_eq!(reply.unwrap().message, "a😀\u{fffd}b\u{fffd}");
    }

    #[test]
    fn the_last_piece_begins_with_the_character_that_it_completes() {
        for (last, before, after) in [
            (r#""\ude00!\ud83d""#, 1, 9),
            (r#""!""#, 4, 5),
            (r#""""#, 4, 4),
        ] {
            let mut completion = Completion::new(usize::MAX);
            completion.push(&half(r#""a\ud83d""#)).unwrap();
            let began = completion.push_last(&half(last)).unwrap();
            assert_eq!(began, position(before, 0, 0));
            assert_eq!(completion.position(), position(after, 0, 0));
        }
    }

    #[test]
    fn growth_is_what_came_since_a_mark() {
        let mut completion = Completion::new(usize::MAX);
        completion.push(&content("a")).unwrap();
        completion.push(&calls(r#"[{"a":","}]"#)).unwrap();
        let first = completion.since(&Mark::default());
        assert_eq!(
            (first.content, first.thinking, first.calls),
            ("a", "", r#"{"a":","}"#)
        );
        let mark = first.mark;
        assert_eq!(mark.position, position(1, 0, 1));
        completion.push(&thinking("é")).unwrap();
        completion.push(&calls("[{}, 7]")).unwrap();
        let then = completion.since(&mark);
        assert_eq!((then.content, then.thinking, then.calls), ("", "é", "{},7"));
        let last = completion.since(&then.mark);
        assert_eq!((last.content, last.thinking, last.calls), ("", "", ""));
    }

    /// As the text was collapsed while it came, token by token.
    fn collapsed_as_it_comes(text: &str) -> String {
        let mut collapsed = String::new();
        for c in text.chars() {
            if !c.is_whitespace() {
                collapsed.push(c);
            } else if !collapsed.ends_with(' ') {
                collapsed.push(' ');
            }
        }
        collapsed
    }

    proptest! {
        #[test]
        fn a_text_collapses_in_the_end_as_it_would_as_it_comes(text in "[ab \\n\u{a0}\u{3000}é]{0,20}") {
            let expected = collapsed_as_it_comes(&text);
            let differs = expected != text;
            prop_assert_eq!(collapsed(&text), differs.then_some(expected));
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
