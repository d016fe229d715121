//! What is stored of an attempt, and how it is cut: at a position that a client has, and before the final line.
//!
//! The texts are the reply as it was generated, so that positions count their bytes. They only ever grow: what
//! was stored of a running attempt is the beginning of what is stored in the end. Knows no database.

use super::position::{Attempt, EventId, LastEventId, Position};
use super::wire::{ChatChunk, Fragment, Piece};

/// An attempt, as far as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The attempt.
    pub attempt: Attempt,
    /// The model, as the client named it.
    pub model: &'a str,
    /// When the turn began, as Ollama writes a time (RFC 3339).
    pub created_at: &'a str,
    /// The reply, or the end of it.
    pub text: Text<'a>,
    /// Whether the attempt has ended, and how.
    pub ending: Ending<'a>,
}

/// A reply from a position on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Text<'a> {
    /// What precedes it.
    pub from: Position,
    /// The content.
    pub content: &'a str,
    /// The thinking.
    pub thinking: &'a str,
    /// The tool calls: JSON objects with nothing but commas in between.
    pub calls: &'a str,
}

/// The first halves of characters, as units of UTF-16, that the texts before a final line end with: their second
/// halves are in that line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) content: Option<u16>,
    pub(super) thinking: Option<u16>,
}

/// How an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending<'a> {
    /// It is running. What is stored may lag behind what its clients have, and has no part of the final line, which
    /// would be sent twice.
    Running,
    /// With Ollama's final line, whose own content and calls are part of the text.
    Line(&'a str),
    /// Without one: it was stopped, or an older release did not keep it.
    Receipt {
        /// The `done_reason`.
        reason: &'a str,
    },
    /// By an error that is stored with the turn.
    Error {
        /// What happened and what to do, for a person.
        text: &'a str,
        /// The kind, for a program.
        code: &'a str,
    },
    /// By an error that is not stored: nobody knows what becomes of the attempt.
    Unknown {
        /// What happened and what to do, for a person.
        text: &'a str,
        /// The kind, for a program.
        code: &'a str,
    },
}

impl Kept<'_> {
    /// Whether a client has all of it and its outcome too, so that there is nothing to send it.
    pub fn is_known_to(&self, last: LastEventId) -> bool {
        self.ending.is_stored() && last == LastEventId::Id(EventId::End(self.attempt.short()))
    }
}

impl Ending<'_> {
    pub(super) fn is_stored(&self) -> bool {
        !matches!(self, Self::Running | Self::Unknown { .. })
    }
}

impl<'a> Text<'a> {
    /// The position at its end.
    pub fn end(&self) -> Position {
        Position {
            content: self.from.content + self.content.len(),
            thinking: self.from.thinking + self.thinking.len(),
            calls: self.from.calls + ends(self.calls).count(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }

    /// What comes after a position, unless the text cannot be cut there: beyond its end, before its beginning, or
    /// inside a character.
    pub(super) fn after(&self, position: Position) -> Option<Self> {
        let calls = position.calls.checked_sub(self.from.calls)?;
        Some(Self {
            from: position,
            content: rest(self.content, self.from.content, position.content)?,
            thinking: rest(self.thinking, self.from.thinking, position.thinking)?,
            calls: after(self.calls, calls)?,
        })
    }

    /// What precedes the final line, unless the text does not end as the line does.
    pub(super) fn before(&self, line: &str) -> Option<(Self, Halves)> {
        let own = match ChatChunk::parse(line.as_bytes()) {
            Ok((_, ChatChunk::Done(own))) => own,
            _ => Piece::default(),
        };
        let mut own_calls = String::new();
        own.calls.append_to(&mut own_calls);
        let (content, content_half) = before(self.content, &own.content)?;
        let (thinking, thinking_half) = before(self.thinking, &own.thinking)?;
        let calls = self.calls.strip_suffix(&own_calls)?;
        let text = Self {
            content,
            thinking,
            calls: calls.strip_suffix(',').unwrap_or(calls),
            ..*self
        };
        let halves = Halves {
            content: content_half,
            thinking: thinking_half,
        };
        Some((text, halves))
    }
}

/// What a text that begins at `from` has after `position`.
fn rest(text: &str, from: usize, position: usize) -> Option<&str> {
    text.get(position.checked_sub(from)?..)
}

/// What a text has before its last piece. Where the two halves of a character came in two lines, the first of them is
/// what it ends with then.
fn before<'a>(text: &'a str, last: &Fragment<'_>) -> Option<(&'a str, Option<u16>)> {
    let mut text = text;
    for c in last.text.chars().rev() {
        let stored = if c == '\0' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        };
        text = match text.strip_suffix(stored) {
            Some(before) => before,
            None => {
                let joined = text.chars().next_back()?;
                return match joined.encode_utf16(&mut [0; 2]) {
                    [high, low] if c == char::REPLACEMENT_CHARACTER && last.low == Some(*low) => {
                        Some((text.strip_suffix(joined)?, Some(*high)))
                    }
                    _ => None,
                };
            }
        };
    }
    Some((text, None))
}

/// Where each of the calls ends: at a comma outside of them, the last at the end. They were JSON when they were stored.
fn ends(calls: &str) -> impl Iterator<Item = usize> {
    let (mut depth, mut is_in_string, mut is_escaped) = (0_i32, false, false);
    let bytes = calls.bytes().chain([b',']).enumerate();
    let ends = bytes.filter(move |(_, byte)| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_in_string = !is_in_string,
            _ if is_in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b',' => return depth == 0,
            _ => {}
        }
        false
    });
    ends.map(|(at, _)| at).filter(|at| *at > 0)
}

/// What follows the first so many calls.
fn after(calls: &str, count: usize) -> Option<&str> {
    let Some(before) = count.checked_sub(1) else {
        return Some(calls);
    };
    let rest = calls.get(ends(calls).nth(before)?..)?;
    Some(rest.strip_prefix(',').unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn position(content: usize, thinking: usize, calls: usize) -> Position {
        Position {
            content,
            thinking,
            calls,
        }
    }

    const TEXT: Text<'_> = Text {
        from: position(0, 0, 0),
        content: "aé😀",
        thinking: "hm",
        calls: r#"{"a":"},{"},{"b":[{}]},{}"#,
    };

    #[test]
    fn a_text_is_cut_after_bytes_and_calls() {
        assert_eq!(TEXT.end(), position(7, 2, 3));
        assert_eq!(TEXT.after(position(0, 0, 0)), Some(TEXT));
        let cut = TEXT.after(position(3, 1, 1)).unwrap();
        assert_eq!(
            (cut.content, cut.thinking, cut.calls),
            ("😀", "m", r#"{"b":[{}]},{}"#)
        );
        assert_eq!(cut.end(), TEXT.end());
        assert_eq!(cut.after(position(3, 2, 2)), TEXT.after(position(3, 2, 2)));
        assert!(TEXT.after(TEXT.end()).unwrap().is_empty());
    }

    #[test]
    fn it_is_not_cut_inside_a_character_or_where_it_is_not() {
        for (content, thinking, calls) in [
            (2, 0, 0),
            (4, 0, 0),
            (6, 0, 0),
            (8, 0, 0),
            (0, 3, 0),
            (0, 0, 4),
            (usize::MAX, usize::MAX, usize::MAX),
        ] {
            assert_eq!(TEXT.after(position(content, thinking, calls)), None);
        }
        let later = TEXT.after(position(3, 1, 1)).unwrap();
        for (content, thinking, calls) in [(1, 1, 1), (3, 0, 1), (3, 1, 0)] {
            assert_eq!(later.after(position(content, thinking, calls)), None);
        }
    }

    #[test]
    fn what_the_final_line_adds_is_cut_off() {
        for (line, left) in [
            (r#"{"done":true}"#, TEXT.end()),
            (r#"{"message":null,"done":true}"#, TEXT.end()),
            (
                r#"{"message":{"content":null,"thinking":null,"tool_calls":null},"done":true}"#,
                TEXT.end(),
            ),
            (
                r#"{"message":{"content":"\u00e9😀"},"done":true}"#,
                position(1, 2, 3),
            ),
            (
                r#"{"message":{"content":"","thinking":"m","tool_calls":[{}]},"done":true}"#,
                position(7, 1, 2),
            ),
            (
                r#"{"message":{"content":"aé😀","thinking":"hm","tool_calls":[{"a":"},{"},{"b":[{}]},{}]},"done":true}"#,
                position(0, 0, 0),
            ),
        ] {
            let (text, halves) = TEXT.before(line).unwrap();
            assert_eq!((text.end(), halves), (left, Halves::default()), "{line}");
        }
    }

    #[test]
    fn a_line_that_the_text_does_not_end_with_is_noticed() {
        for line in [
            r#"{"message":{"content":"é"},"done":true}"#,
            r#"{"message":{"content":"\ude01"},"done":true}"#,
            r#"{"message":{"thinking":"h"},"done":true}"#,
            r#"{"message":{"tool_calls":[{},{},{},{}]},"done":true}"#,
        ] {
            assert_eq!(TEXT.before(line), None, "{line}");
        }
    }

    #[test]
    fn a_character_in_two_lines_is_cut_into_its_halves() {
        let line = r#"{"message":{"content":"\ude00"},"done":true}"#;
        let (text, halves) = TEXT.before(line).unwrap();
        assert_eq!((text.content, halves.content), ("aé", Some(0xd83d)));
    }

    #[test]
    fn a_nul_counts_as_what_is_stored_for_it() {
        let text = Text {
            content: "a\u{fffd}",
            ..Text::default()
        };
        let line = r#"{"message":{"content":"\u0000"},"done":true}"#;
        assert_eq!(text.before(line).unwrap().0.content, "a");
    }

    #[test]
    fn calls_end_at_commas_outside_of_them() {
        assert_eq!(ends(TEXT.calls).collect::<Vec<_>>(), [11, 22, 25]);
        assert_eq!(ends(r#""\\\"",1,[2,3]"#).collect::<Vec<_>>(), [6, 8, 14]);
        assert_eq!(ends("").next(), None);
        assert_eq!(after("{},{}", 2), Some(""));
        assert_eq!(after("{},{}", 3), None);
        assert_eq!(after("", 1), None);
    }
}
