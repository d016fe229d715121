//! Frames server-sent events so that no payload can break out of its frame.
//!
//! Follows the WHATWG HTML standard, section 9.2 "Server-sent events": a line ends with `\n`,
//! `\r` or `\r\n`, an event with an empty line. Appends to a buffer that the caller reuses, and
//! knows nothing of chat.

use std::borrow::Cow;

use memchr::memchr3_iter;
use serde::Serialize;
use serde_json::value::RawValue;

/// A comment line, which clients ignore. It keeps proxies and clients from closing a silent connection, and
/// the write of it fails if the client has left. No blank line follows: careless clients would take that for
/// an empty event.
pub const COMMENT: &[u8] = b": waiting\n";

/// An event for the client.
#[derive(Debug)]
pub enum Event<'a> {
    /// One JSON text without `\n`. A `\r` can only stand between its tokens (RFC 8259, section 7:
    /// control characters in strings are escaped) and is sent as a space. U+0085, U+2028 and U+2029 can only
    /// stand in strings, and are sent escaped: many clients' line readers break there.
    Data(&'a str),
    /// The same after an error, with its type spelled out: a client that does not see blank lines keeps the
    /// last one it read.
    DataAfterError(&'a str),
    /// A failure, as `event: error`.
    Error(ErrorData<'a>),
}

/// The payload of an `event: error`.
#[derive(Debug, Serialize)]
pub struct ErrorData<'a> {
    /// What went wrong and what to do, for a person.
    pub error: Cow<'a, str>,
    /// The kind, in snake case, for a program.
    pub code: &'a str,
    /// The `message` of a final event that had to be withheld, so that its content is not lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// An event of one JSON text, which may be the first since an error.
    pub fn data(json: &'a str, after_error: bool) -> Self {
        match after_error {
            true => Self::DataAfterError(json),
            false => Self::Data(json),
        }
    }

    /// Whether it tells a failure.
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// Appends the framed event to `out`.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(json) => write_data(json, out),
            Self::DataAfterError(json) => {
                out.extend_from_slice(b"event: message\n");
                write_data(json, out);
            }
            Self::Error(data) => {
                out.extend_from_slice(b"event: error\n");
                // Serialising strings into memory cannot fail.
                let json = serde_json::to_string(data).unwrap_or_default();
                write_data(&json, out);
            }
        }
    }
}

fn write_data(json: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    let mut rest = json.as_bytes();
    let mut start = 0;
    // The first bytes of what is replaced: one scan, which stops nowhere in ASCII.
    for at in memchr3_iter(b'\r', 0xc2, 0xe2, json.as_bytes()) {
        let (before, found) = rest.split_at(at - start);
        let (replaced, replacement): (&[u8], &[u8]) = match found {
            [b'\r', ..] => (b"\r", b" "),
            [0xc2, 0x85, ..] => ("\u{85}".as_bytes(), br"\u0085"),
            [0xe2, 0x80, 0xa8, ..] => ("\u{2028}".as_bytes(), br"\u2028"),
            [0xe2, 0x80, 0xa9, ..] => ("\u{2029}".as_bytes(), br"\u2029"),
            _ => continue,
        };
        out.extend_from_slice(before);
        out.extend_from_slice(replacement);
        rest = found.get(replaced.len()..).unwrap_or_default();
        start = at + replaced.len();
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(event: &Event<'_>) -> String {
        let mut out = Vec::new();
        event.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_becomes_one_data_field() {
        assert_eq!(framed(&Event::Data(r#"{"a":1}"#)), "data: {\"a\":1}\n\n");
    }

    #[test]
    fn after_an_error_the_type_is_spelled_out() {
        assert_eq!(
            framed(&Event::data("{}", true)),
            "event: message\ndata: {}\n\n"
        );
        assert_eq!(framed(&Event::data("{}", false)), "data: {}\n\n");
    }

    #[test]
    fn a_bare_carriage_return_becomes_a_space() {
        assert_eq!(framed(&Event::Data("{\r}\r")), "data: { } \n\n");
    }

    #[test]
    fn what_line_readers_break_at_is_escaped_and_the_rest_is_as_it_was() {
        let line = "{\"a\":\"\u{85}x\u{2028}\u{2029}é\u{a0}\u{2027}“\u{205f}\"}";
        let escaped = "{\"a\":\"\\u0085x\\u2028\\u2029é\u{a0}\u{2027}“\u{205f}\"}";
        assert_eq!(framed(&Event::Data(line)), format!("data: {escaped}\n\n"));
        let message: Box<RawValue> = serde_json::from_str(line).unwrap();
        let error = Event::Error(ErrorData {
            error: "\u{2028}".into(),
            code: "database_failed",
            message: Some(&message),
        });
        assert_eq!(
            framed(&error),
            format!(
                "event: error\ndata: {{\"error\":\"\\u2028\",\"code\":\"database_failed\",\"message\":{escaped}}}\n\n"
            )
        );
    }

    #[test]
    fn an_error_cannot_break_out_of_its_frame() {
        let event = Event::Error(ErrorData {
            error: "one\n\nevent: done\r\ndata: \"x\"".into(),
            code: "invalid_line",
            message: None,
        });
        assert_eq!(
            framed(&event),
            "event: error\ndata: {\"error\":\"one\\n\\nevent: done\\r\\ndata: \\\"x\\\"\",\"code\":\"invalid_line\"}\n\n"
        );
    }
}
