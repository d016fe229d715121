//! Bytes as they arrive -> the events of a reply, in NDJSON or as server-sent events.
//!
//! One pass, and no JSON is parsed: the client shares the machine with what it measures.

use memchr::{memchr, memmem};

/// What a line means to a client that waits for a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Token(&'a [u8]),
    Done,
    /// An error reported in the stream.
    Failed(&'a [u8]),
}

/// Reads lines wherever the network split them.
#[derive(Debug, Default)]
pub struct EventReader {
    partial: Vec<u8>,
    /// The current event is named `error`.
    is_error: bool,
}

impl EventReader {
    /// Takes the next bytes and reports the events that end in them.
    pub fn feed(&mut self, mut bytes: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                self.line(line, on_event);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, on_event);
                whole.clear();
                self.partial = whole;
            }
        }
        self.partial.extend_from_slice(bytes);
    }

    fn line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            self.is_error = false;
        } else if line.starts_with(b"{") {
            on_event(classify(line));
        } else if let Some(name) = line.strip_prefix(b"event:") {
            self.is_error = name.trim_ascii() == b"error";
        } else if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            on_event(match self.is_error {
                true => Event::Failed(data),
                false => classify(data),
            });
        }
    }
}

fn classify(data: &[u8]) -> Event<'_> {
    if data.starts_with(br#"{"error""#) {
        Event::Failed(data)
    } else if data == b"[DONE]"
        // Each of Ollama's lines has `done`; in those before the last it is the final field.
        || !data.ends_with(br#""done":false}"#) && memmem::find(data, br#""done":true"#).is_some()
    {
        Event::Done
    } else {
        Event::Token(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], cut: usize) -> Vec<String> {
        let mut events = Vec::new();
        let mut reader = EventReader::default();
        let mut keep = |event: Event<'_>| {
            events.push(match event {
                Event::Token(data) => format!("token {}", data.len()),
                Event::Done => "done".to_owned(),
                Event::Failed(data) => format!("failed {}", data.len()),
            });
        };
        reader.feed(&input[..cut], &mut keep);
        reader.feed(&input[cut..], &mut keep);
        events
    }

    #[test]
    fn both_formats_are_read_wherever_they_are_split() {
        let ndjson = b"{\"a\":1,\"done\":false}\n{\"done\":true}\n".as_slice();
        let events = b"data: {\"a\":1,\"done\":false}\n\n: waiting\ndata: {\"done\":true}\n\n";
        for input in [ndjson, events] {
            for cut in 0..input.len() {
                assert_eq!(read(input, cut), ["token 20", "done"]);
            }
        }
    }

    #[test]
    fn failures_are_seen() {
        assert_eq!(
            read(b"event: error\ndata: {\"code\":1}\n\ndata: x\n\n", 3),
            ["failed 10", "token 1"]
        );
        assert_eq!(read(b"{\"error\":\"no\"}\n", 0), ["failed 14"]);
    }
}
