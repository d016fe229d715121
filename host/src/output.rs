//! Where the component's stdout and stderr go, and the host's own messages about it.
//!
//! What is written may be a stranger's words. So a line has no control characters, is cut at
//! [`MAX_LINE`], and leaves in one write: it fakes no other line, and none tears it. A stdout or
//! stderr that is closed is no error: a server outlives the terminal that it was started from.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of the longest line; the rest of it is counted.
const MAX_LINE: usize = 2048;

/// The stdout and stderr of this process by default; clones write to the same place.
#[derive(Clone, Debug, Default)]
pub struct Output(Option<Arc<Mutex<String>>>);

#[derive(Clone, Copy)]
enum To {
    Stdout,
    Stderr,
}

impl Output {
    /// Keeps all that is written in memory, for tests.
    pub fn capture() -> Self {
        Self(Some(Arc::default()))
    }

    /// What was captured so far.
    pub fn text(&self) -> String {
        let captured = self.0.as_ref().map(|captured| captured.lock().clone());
        captured.unwrap_or_default()
    }

    /// Writes a message of the host's own, of one line or several.
    pub fn line(&self, message: impl std::fmt::Display) {
        let message = message.to_string();
        let lines = message.lines().map(|line| Line::of(line.as_bytes()).text());
        self.write(To::Stderr, &lines.collect::<String>());
    }

    fn write(&self, to: To, lines: &str) {
        // Nothing sensible can be done about an output that is closed.
        let _ = match (&self.0, to) {
            (Some(captured), _) => {
                captured.lock().push_str(lines);
                Ok(())
            }
            (None, To::Stdout) => io::stdout().write_all(lines.as_bytes()),
            (None, To::Stderr) => io::stderr().write_all(lines.as_bytes()),
        };
    }

    pub(crate) fn attach(&self, wasi: &mut WasiCtxBuilder) {
        wasi.stdout(Stream::to(self, To::Stdout))
            .stderr(Stream::to(self, To::Stderr));
    }
}

/// A line in the making: its beginning, and how long it is.
#[derive(Default)]
struct Line {
    start: Vec<u8>,
    length: usize,
}

impl Line {
    fn of(text: &[u8]) -> Self {
        let mut line = Self::default();
        line.push(text);
        line
    }

    fn push(&mut self, text: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.start.len());
        self.start.extend(text.iter().take(room));
        self.length += text.len();
    }

    /// As it is written, with its end.
    fn text(&self) -> String {
        let start = self.start.strip_suffix(b"\r").unwrap_or(&self.start);
        let mut text = String::with_capacity(start.len() + 1);
        for c in String::from_utf8_lossy(start).chars() {
            if must_be_escaped(c) {
                let _ = write!(text, "{}", c.escape_unicode());
            } else {
                text.push(c);
            }
        }
        let left_out = self.length - self.start.len();
        if left_out > 0 {
            let _ = write!(text, "… ({left_out} bytes more)");
        }
        text.push('\n');
        text
    }
}

/// What steers a terminal, ends a line for some reader, or reorders text.
fn must_be_escaped(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
        || (c.is_control() && c != '\t')
}

/// A component's stdout or stderr. Its writes come in pieces; a line is written when it ends, or
/// with the instance.
#[derive(Clone)]
struct Stream(Arc<Mutex<Unfinished>>);

struct Unfinished {
    output: Output,
    to: To,
    line: Line,
}

impl Stream {
    fn to(output: &Output, to: To) -> Self {
        Self(Arc::new(Mutex::new(Unfinished {
            output: output.clone(),
            to,
            line: Line::default(),
        })))
    }

    fn push(&self, text: &[u8]) {
        let mut unfinished = self.0.lock();
        for piece in text.split_inclusive(|&byte| byte == b'\n') {
            let ended = piece.strip_suffix(b"\n");
            unfinished.line.push(ended.unwrap_or(piece));
            if ended.is_some() {
                unfinished.flush();
            }
        }
    }
}

impl Unfinished {
    fn flush(&mut self) {
        let line = std::mem::take(&mut self.line).text();
        self.output.write(self.to, &line);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.line.length > 0 {
            self.flush();
        }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 * 1024)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        text: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.push(text);
        Poll::Ready(Ok(text.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_in_pieces_is_written_whole_and_the_last_one_at_the_end() {
        let output = Output::capture();
        let (one, other) = (
            Stream::to(&output, To::Stdout),
            Stream::to(&output, To::Stderr),
        );
        one.push(b"a ");
        other.push(b"x\ny");
        one.push(b"line\r\n\n");
        assert_eq!(output.text(), "x\na line\n\n");
        drop((one, other));
        assert_eq!(output.text(), "x\na line\n\ny\n");
    }

    #[test]
    fn a_strangers_words_steer_no_terminal_and_begin_no_line() {
        let output = Output::capture();
        output.line("\u{1b}[2J\r\u{85}\u{9b}\u{2028}\u{202e}\u{7f}\0 ä\t🦀");
        let escaped = "\\u{1b}[2J\\u{d}\\u{85}\\u{9b}\\u{2028}\\u{202e}\\u{7f}\\u{0} ä\t🦀\n";
        assert_eq!(output.text(), escaped);
    }

    #[test]
    fn a_long_line_is_cut_and_says_how_much_is_missing() {
        let output = Output::capture();
        let stream = Stream::to(&output, To::Stderr);
        for _ in 0..100 {
            stream.push(&[b'a'; 100]);
        }
        stream.push(b"\nb\n");
        let cut = format!("{}… (7952 bytes more)\nb\n", "a".repeat(MAX_LINE));
        assert_eq!(output.text(), cut);
    }
}
