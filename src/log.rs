//! The server's log.

use std::fmt::{self, Write as _};
use std::io::Write as _;

/// The most bytes of a line, before what says that it was cut.
const MAX: usize = 2048;

/// Writes a line to stderr, where both hosts expect a component's log.
///
/// Not `eprintln!`: that panics where stderr cannot be written to (a full disk, say), and a panic ends
/// every stream of the instance. One write a line, so that two writers do not tear each other's lines.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let line = format!("llmchat: {}\n", printable(&text.to_string()));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The text with what could forge a line or steer a terminal escaped, cut at [`MAX`] bytes: it may be
/// Ollama's.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX));
    for (at, c) in text.char_indices() {
        let start = out.len();
        // Writing into a string cannot fail.
        let _ = match c {
            c if c.is_control() || is_unsafe(c) => write!(out, "{}", c.escape_default()),
            c => out.write_char(c),
        };
        if out.len() > MAX {
            out.truncate(start);
            let _ = write!(out, "… ({} bytes more)", text.len() - at);
            break;
        }
    }
    out
}

/// Characters that end a line or reorder it, though Unicode does not call them control characters.
fn is_unsafe(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_a_line_or_steer_a_terminal_is_escaped() {
        for (text, shown) in [
            ("plain é 😀 \"'\\", "plain é 😀 \"'\\"),
            ("a\r\nllmchat: b", "a\\r\\nllmchat: b"),
            (
                "\u{1b}[31m\u{7f}\u{9b}\0",
                "\\u{1b}[31m\\u{7f}\\u{9b}\\u{0}",
            ),
            ("\u{85}\u{2028}\u{2029}", "\\u{85}\\u{2028}\\u{2029}"),
            ("\u{202e}\u{2066}", "\\u{202e}\\u{2066}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn a_long_line_is_cut_between_characters_and_says_so() {
        assert_eq!(printable(&"x".repeat(MAX)).len(), MAX);
        let cut = printable(&format!("x{}", "é".repeat(40_000)));
        assert!(
            cut.len() < MAX + 40 && cut.ends_with("é… (77954 bytes more)"),
            "{cut}"
        );
        assert!(printable(&"\u{1b}".repeat(MAX)).len() < MAX + 40);
    }
}
