//! Halves of UTF-16 surrogate pairs in JSON escapes: a server that cuts text by UTF-16 units sends one
//! character in two lines, `"\ud83d"` and `"\ude00"`. JSON allows that, Rust's strings do not.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::Content;

/// The line with U+FFFD in place of each half without its other half; `None` if there is none.
pub(super) fn replaced(line: &str) -> Option<String> {
    let mut whole = String::new();
    let mut rest = line;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        let (before, escape) = rest.split_at_checked(at)?;
        let (length, replacement) = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(high), Some(low)) if is_high(high) && is_low(low) => (12, None),
            (Some(half), _) if is_high(half) || is_low(half) => (6, Some(r"\ufffd")),
            // The escaped character may be a backslash itself.
            _ => (2, None),
        };
        let (escape, after) = escape.split_at_checked(length)?;
        whole.push_str(before);
        whole.push_str(replacement.unwrap_or(escape));
        rest = after;
    }
    whole.push_str(rest);
    (whole != line).then_some(whole)
}

/// Notes which halves the content of `line` begins and ends with; its text has U+FFFD in their places.
pub(super) fn note(content: &mut Content<'_>, line: &str) {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        message: Option<Message<'a>>,
    }
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        content: Option<&'a RawValue>,
    }
    let raw = serde_json::from_str::<Line<'_>>(line)
        .ok()
        .and_then(|line| line.message?.content);
    let Some(raw) = raw.and_then(|raw| raw.get().strip_prefix('"')?.strip_suffix('"')) else {
        return;
    };
    // That the text has U+FFFD there tells an escape from an escaped backslash, and a half from a pair.
    if content.text.starts_with(char::REPLACEMENT_CHARACTER) {
        content.low = unit(raw).filter(|unit| is_low(*unit));
    }
    if content.text.ends_with(char::REPLACEMENT_CHARACTER) {
        let last = raw.len().checked_sub(6).and_then(|at| raw.get(at..));
        content.high = last.and_then(unit).filter(|unit| is_high(*unit));
    }
}

/// The UTF-16 unit that the text begins with an escape of.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

fn is_high(unit: u16) -> bool {
    (0xd800..0xdc00).contains(&unit)
}

fn is_low(unit: u16) -> bool {
    (0xdc00..0xe000).contains(&unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_half_without_its_other_half_is_replaced() {
        for (line, whole) in [
            (r"a\ud83dz", Some(r"a\ufffdz")),
            (r"\uDE00\uD83D", Some(r"\ufffd\ufffd")),
            (r"\ud83d\ud83d\ude00", Some(r"\ufffd\ud83d\ude00")),
            (r"\\\ud83d", Some(r"\\\ufffd")),
            (r"\\ud83d", None),
            (r"\ud83d\ude00", None),
            (r"\u00e9\n", None),
            ("é", None),
            (r"\ud8é", None),
            ("\\", None),
            ("\\é", None),
        ] {
            assert_eq!(replaced(line).as_deref(), whole, "{line}");
        }
    }
}
