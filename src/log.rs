//! One line of the server's log.

use std::fmt;
use std::io::Write as _;

/// Writes a line to stderr, which is where both hosts look for a component's log.
///
/// Not `eprintln!`: that panics where stderr cannot be written to (a full disk, say), and a panic
/// takes down every stream of the instance. Line ends in the text, which may be Ollama's, are
/// escaped, so that nobody forges a line.
pub fn line(text: fmt::Arguments<'_>) {
    let text = text.to_string().replace('\r', "\\r").replace('\n', "\\n");
    let _ = writeln!(std::io::stderr(), "llmchat: {text}");
}
