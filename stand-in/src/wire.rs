//! The bytes of Ollama's lines, with the field order and the escapes of its JSON library (Go's): a
//! relay that passes lines on unchanged is tested against them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// The model's name in scripted lines.
pub const MODEL: &str = "stand-in";

/// The time in scripted lines: fixed, so that a test knows their bytes.
pub const CREATED_AT: &str = "2026-08-01T12:00:00.123456789Z";

pub(crate) const NDJSON: &str = "application/x-ndjson";
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// A scripted line of a reply in progress, without its newline.
pub fn token(content: &str) -> String {
    line(MODEL, CREATED_AT, &escape(content), "false}").concat()
}

/// The scripted last line of a complete reply, without its newline.
pub fn done() -> String {
    let done = finish("stop", Duration::from_millis(20), 7, 2);
    line(MODEL, CREATED_AT, "", &done).concat()
}

/// The line (or body) with which Ollama reports an error.
pub fn error(message: &str) -> String {
    format!(r#"{{"error":"{}"}}"#, escape(message))
}

/// One line, as pieces to be concatenated: a stream copies them and renders nothing anew. The model
/// and the content are escaped; `done` is the value of the field `done` and all that follows it.
pub(crate) fn line<'a>(
    model: &'a str,
    created_at: &'a str,
    content: &'a str,
    done: &'a str,
) -> [&'a str; 8] {
    [
        r#"{"model":""#,
        model,
        r#"","created_at":""#,
        created_at,
        r#"","message":{"role":"assistant","content":""#,
        content,
        r#""},"done":"#,
        done,
    ]
}

/// The tokens that the built-in reply's metrics count in a text of so many bytes: one for every 4 bytes begun,
/// about what a model's tokens have, so that whoever knows the text can tell the count.
pub fn tokens_in(bytes: usize) -> usize {
    bytes.div_ceil(4)
}

/// The field `done` of a last line, and what follows it: why the reply ended, and what it took.
/// A metric that is zero is left out.
pub(crate) fn finish(reason: &str, took: Duration, prompt: usize, tokens: usize) -> String {
    let total = took.as_nanos();
    let (quarter, half) = (total / 4, total / 2);
    let metrics = [
        ("total_duration", total),
        ("load_duration", quarter),
        ("prompt_eval_count", prompt as u128),
        ("prompt_eval_duration", quarter),
        ("eval_count", tokens as u128),
        ("eval_duration", half),
    ];
    let mut done = format!("true,\"done_reason\":\"{reason}\"");
    for (name, value) in metrics.into_iter().filter(|(_, value)| *value > 0) {
        let _ = write!(done, ",\"{name}\":{value}");
    }
    done.push('}');
    done
}

/// The inside of a JSON string as Go writes it: `<`, `>`, `&` and two line separators are escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut json = Value::from(text).to_string();
    json.pop();
    json.remove(0);
    for character in ['<', '>', '&', '\u{2028}', '\u{2029}'] {
        if json.contains(character) {
            json = json.replace(character, &format!("\\u{:04x}", u32::from(character)));
        }
    }
    json
}

/// The time for `created_at`.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_ollamas_byte_for_byte() {
        assert_eq!(
            token("a \"b\" <c>\n"),
            "{\"model\":\"stand-in\",\"created_at\":\"2026-08-01T12:00:00.123456789Z\",\
             \"message\":{\"role\":\"assistant\",\"content\":\"a \\\"b\\\" \\u003cc\\u003e\\n\"},\
             \"done\":false}"
        );
        assert_eq!(
            done(),
            "{\"model\":\"stand-in\",\"created_at\":\"2026-08-01T12:00:00.123456789Z\",\
             \"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\
             \"done_reason\":\"stop\",\"total_duration\":20000000,\"load_duration\":5000000,\
             \"prompt_eval_count\":7,\"prompt_eval_duration\":5000000,\"eval_count\":2,\
             \"eval_duration\":10000000}"
        );
    }

    #[test]
    fn a_timestamp_is_rfc_3339_in_nanoseconds() {
        assert_eq!(now().len(), CREATED_AT.len());
        assert!(humantime::parse_rfc3339(&now()).is_ok());
    }
}
