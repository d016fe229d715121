//! Ollama's lines: from a piece of text to the bytes that `/api/chat` would send for it.
//!
//! Field order and escapes are those of Ollama's JSON library (Go's), since a relay that passes
//! lines on byte for byte is tested against them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// The model's name in every scripted line.
pub const MODEL: &str = "stand-in";

/// The time in every scripted line, so that a test knows the bytes.
pub const CREATED_AT: &str = "2026-08-01T12:00:00.123456789Z";

/// One line of a reply in progress, without its newline.
pub fn token(content: &str) -> String {
    line(MODEL, CREATED_AT, content)
}

/// The last line of a reply that is complete, without its newline.
pub fn done() -> String {
    Metrics::default().last_line(MODEL, CREATED_AT, "", "stop")
}

/// The line (or body) with which Ollama reports an error.
pub fn error(words: &str) -> String {
    format!("{{\"error\":{}}}", json_string(words))
}

/// One line of `model`'s reply, made at `created_at`.
pub(crate) fn line(model: &str, created_at: &str, content: &str) -> String {
    let mut line = Vec::new();
    LineStart::new(model).write(&mut line, created_at.as_bytes(), &json_string(content));
    String::from_utf8_lossy(&line).into_owned()
}

const MIDDLE: &[u8] = b"\",\"message\":{\"role\":\"assistant\",\"content\":";
const END: &[u8] = b"},\"done\":false}";

/// What the lines of one reply have in common, rendered once.
pub(crate) struct LineStart(Vec<u8>);

impl LineStart {
    pub(crate) fn new(model: &str) -> Self {
        Self(format!("{{\"model\":{},\"created_at\":\"", json_string(model)).into_bytes())
    }

    /// Appends one line; `content` is a JSON string already, quotes included.
    pub(crate) fn write(&self, out: &mut Vec<u8>, created_at: &[u8], content: &str) {
        out.extend_from_slice(&self.0);
        out.extend_from_slice(created_at);
        out.extend_from_slice(MIDDLE);
        out.extend_from_slice(content.as_bytes());
        out.extend_from_slice(END);
    }

    /// The length of a line whose content has `content` bytes as a JSON string.
    pub(crate) fn line_len(&self, content: usize) -> usize {
        self.0.len() + CREATED_AT.len() + MIDDLE.len() + content + END.len()
    }
}

/// What the last line counts.
#[derive(Clone, Copy)]
pub(crate) struct Metrics {
    pub(crate) total: Duration,
    pub(crate) prompt_tokens: usize,
    pub(crate) tokens: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            total: Duration::from_millis(20),
            prompt_tokens: 7,
            tokens: 2,
        }
    }
}

impl Metrics {
    /// The last line: of a stream (`content` is empty) or a whole reply of `"stream": false`.
    pub(crate) fn last_line(
        &self,
        model: &str,
        created_at: &str,
        content: &str,
        reason: &str,
    ) -> String {
        let (model, content) = (json_string(model), json_string(content));
        let total = self.total.as_nanos().max(4);
        format!(
            "{{\"model\":{model},\"created_at\":\"{created_at}\",\
             \"message\":{{\"role\":\"assistant\",\"content\":{content}}},\
             \"done\":true,\"done_reason\":\"{reason}\",\"total_duration\":{total},\
             \"load_duration\":{},\"prompt_eval_count\":{},\"prompt_eval_duration\":{},\
             \"eval_count\":{},\"eval_duration\":{}}}",
            total / 4,
            self.prompt_tokens.max(1),
            total / 4,
            self.tokens.max(1),
            total / 2,
        )
    }
}

/// A JSON string as Go writes it: `<`, `>`, `&` and the two Unicode line ends are escaped too.
pub(crate) fn json_string(text: &str) -> String {
    let plain = Value::from(text).to_string();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    plain
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Now, as `created_at` has it: RFC 3339 in UTC with nanoseconds, always 30 bytes.
pub(crate) fn now() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    timestamp(since)
}

fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since_epoch.subsec_nanos()
    )
}

/// Days since 1970 to a date: Howard Hinnant's `civil_from_days`, for days that are not negative.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ollamas_byte_for_byte() {
        assert_eq!(
            token("a \"b\" <c>\n"),
            "{\"model\":\"stand-in\",\"created_at\":\"2026-08-01T12:00:00.123456789Z\",\
             \"message\":{\"role\":\"assistant\",\"content\":\"a \\\"b\\\" \\u003cc\\u003e\\n\"},\
             \"done\":false}"
        );
        assert_eq!(
            token("é").len(),
            LineStart::new(MODEL).line_len("\"é\"".len())
        );
    }

    #[test]
    fn the_last_line_has_its_fields_in_ollamas_order() {
        let line = done();
        let names = [
            "\"model\"",
            "\"created_at\"",
            "\"message\"",
            "\"role\"",
            "\"content\"",
            "\"done\"",
            "\"done_reason\"",
            "\"total_duration\"",
            "\"load_duration\"",
            "\"prompt_eval_count\"",
            "\"prompt_eval_duration\"",
            "\"eval_count\"",
            "\"eval_duration\"",
        ];
        let places: Vec<_> = names.iter().map(|name| line.find(name)).collect();
        assert!(
            places.is_sorted() && places.iter().all(Option::is_some),
            "{line}"
        );
    }

    #[test]
    fn a_timestamp_is_rfc_3339() {
        let at = |seconds| timestamp(Duration::new(seconds, 1));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(at(1_785_585_600), "2026-08-01T12:00:00.000000001Z");
        assert_eq!(now().len(), CREATED_AT.len());
    }
}
