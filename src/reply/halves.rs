//! Halves of UTF-16 surrogate pairs in JSON escapes: a server that cuts text by UTF-16 units sends one
//! character in two lines, `"\ud83d"` and `"\ude00"`. JSON allows that, Rust's strings do not.

use serde_json::value::RawValue;

use super::wire::Fragment;

/// The JSON with U+FFFD in place of each half without its other half; `None` if there is none.
pub(super) fn replaced(json: &str) -> Option<String> {
    let mut whole = String::new();
    let mut rest = json;
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
    (whole != json).then_some(whole)
}

/// Reads a JSON string in which there may be halves, and notes those that it begins and ends with.
pub(super) fn read<'a>(json: Option<&RawValue>) -> Option<Fragment<'a>> {
    let Some(json) = json.map(RawValue::get) else {
        return Some(Fragment::default());
    };
    let whole = replaced(json);
    let text: String = serde_json::from_str(whole.as_deref().unwrap_or(json)).ok()?;
    let mut fragment = Fragment::from(text);
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    // That the text has U+FFFD there tells an escape from an escaped backslash, and a half from a pair.
    if fragment.text.starts_with(char::REPLACEMENT_CHARACTER) {
        fragment.low = unit(inside).filter(|unit| is_low(*unit));
    }
    if fragment.text.ends_with(char::REPLACEMENT_CHARACTER) {
        let last = inside.len().checked_sub(6).and_then(|at| inside.get(at..));
        fragment.high = last.and_then(unit).filter(|unit| is_high(*unit));
    }
    Some(fragment)
}

/// The character of a pair.
pub(super) fn joined(high: u16, low: u16) -> Option<char> {
    char::decode_utf16([high, low]).next()?.ok()
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
