//! The server's log.

use std::fmt;
use std::io::Write as _;

/// Writes a line to stderr, where both hosts expect a component's log.
///
/// Not `eprintln!`: that panics where stderr cannot be written to (a full disk, say), and a panic ends
/// every stream of the instance. Line ends in the text, which may be Ollama's, are escaped, so that nobody
/// can forge a line.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let text = text.to_string().replace('\r', "\\r").replace('\n', "\\n");
    let _ = writeln!(std::io::stderr(), "llmchat: {text}");
}
