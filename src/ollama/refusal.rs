//! What the client is told of an answer that is not a stream of a reply: Ollama's own words, or those of
//! whatever stands before it, which may be a proxy with a page of its own.

use http::StatusCode;
use serde_json::Value;

use crate::error::{Code, RelayError};
use crate::reply::wire::{error_text, shortened};
use crate::secret::Secret;

/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// The most bytes of a text or page that is no JSON.
const WORDS_MAX: usize = 200;

/// The head of an answer, as far as it decides what the answer is.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
}

impl Head {
    /// Whether no reply can follow, whatever the body is.
    pub(crate) fn is_refusal(&self) -> bool {
        self.status != StatusCode::OK || self.encoding().is_some()
    }

    /// Whether a body that begins with `start` is no reply: a page, or a text that does not even claim to be
    /// JSON. `None` where only white space has come, or a byte order mark. A line that does not parse in the
    /// midst of others is left out alone, and so is the first one of what claims to be NDJSON.
    pub(crate) fn is_no_reply(&self, start: &[u8]) -> Option<bool> {
        // Byte by byte, since the mark may come in pieces.
        let is_blank = |byte: &u8| byte.is_ascii_whitespace() || BOM.contains(byte);
        let first = *start.iter().find(|byte| !is_blank(byte))?;
        let content_type = self.content_type.as_deref().unwrap_or_default();
        let content_type = content_type.to_ascii_lowercase();
        Some(match first {
            b'{' => false,
            b'<' => !content_type.contains("ndjson"),
            _ => !content_type.contains("json"),
        })
    }

    fn encoding(&self) -> Option<&str> {
        let encoding = self.content_encoding.as_deref()?;
        (!encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
    }
}

/// What the client is told of an answer that is no reply, of whose body this much was read: without the key, which
/// whoever refused it may repeat.
pub(crate) fn refused(head: &Head, body: &[u8], key: Option<&Secret>) -> RelayError {
    let status = head.status.as_u16();
    let mut told = match (head.encoding(), reason(body)) {
        (Some(encoding), _) => format!(
            "what stands before Ollama compressed its answer ({}), though none was asked for: turn that off there",
            shortened(encoding, WORDS_MAX)
        ),
        (None, Some(Reason::Json(text))) => text,
        (None, Some(Reason::Words(words))) => {
            let content_type = head.content_type.as_deref().unwrap_or("no content type");
            format!("{} ({})", words, shortened(content_type, WORDS_MAX))
        }
        (None, None) => "it gave no reason".to_owned(),
    };
    if let Some(key) = key {
        key.hide(&mut told);
    }
    let text = match head.status {
        StatusCode::OK => {
            format!(
                "What answers at `ollama_url` sent nothing of Ollama's, with status 200: {told}"
            )
        }
        _ => format!("Ollama refused the request with status {status}: {told}"),
    };
    RelayError::new(Code::OllamaRefused, text + advice(head.status))
}

/// The same without the words of whoever refused it.
pub(crate) fn briefly(head: &Head) -> String {
    match head.status {
        StatusCode::OK => "What answers at `ollama_url` is no Ollama".to_owned(),
        status => format!(
            "Ollama refused the request with status {}{}",
            status.as_u16(),
            advice(status)
        ),
    }
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            ". Whatever guards Ollama wants a key: `ollama_api_key` may be wrong or missing"
        }
        StatusCode::FORBIDDEN => {
            ". Ollama, or what stands before it, does not admit this server: `ollama_api_key` may be wrong or missing, or see Ollama's own OLLAMA_HOST"
        }
        status if status.is_redirection() => {
            ". A redirect is not followed: set `ollama_url` to where Ollama itself is"
        }
        _ => "",
    }
}

/// Why it was refused.
enum Reason {
    /// In JSON, as Ollama and most servers write it.
    Json(String),
    /// The first words of any other text.
    Words(String),
}

fn reason(body: &[u8]) -> Option<Reason> {
    let body = body.strip_prefix(BOM).unwrap_or(body);
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        return error_text(&value).map(Reason::Json);
    }
    let text = String::from_utf8_lossy(body);
    let words = match text.trim_start().starts_with('<') {
        true => shortened(&visible(&text), WORDS_MAX),
        false => shortened(&text, WORDS_MAX),
    };
    (!words.is_empty()).then_some(Reason::Words(words))
}

/// The text of a page without its tags, styles and scripts.
fn visible(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        // A tag without an end, or with content that is not shown, hides what follows.
        rest = tag.split_once('>').map_or("", |(_, after)| after);
        for hidden in ["style", "script"] {
            let is_hidden = tag
                .get(..hidden.len())
                .is_some_and(|name| name.eq_ignore_ascii_case(hidden));
            if is_hidden {
                rest = rest.split_once("</").map_or("", |(_, after)| after);
                rest = rest.split_once('>').map_or("", |(_, after)| after);
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, content_type: &str, content_encoding: &str) -> Head {
        let present = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        Head {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: present(content_type),
            content_encoding: present(content_encoding),
        }
    }

    fn told(status: u16, content_type: &str, body: &[u8]) -> String {
        let error = refused(&head(status, content_type, ""), body, None);
        assert_eq!(error.code, Code::OllamaRefused);
        error.text.into_owned()
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_who_refused() {
        for (body, reason) in [
            (
                &br#"{"error":"model 'x' not found"}"#[..],
                "model 'x' not found",
            ),
            (b"\xef\xbb\xbf{\"error\":\"no\"}", "no"),
            (br#"{"error":{"code":1}}"#, r#"{"code":1}"#),
            (
                br#"{"error":{"message":"too long","type":"x"}}"#,
                "too long",
            ),
            (
                br#"{"error":"{\"error\":{\"message\":\"inner\"}}"}"#,
                "inner",
            ),
            (br#"{"detail":"Not Found"}"#, "Not Found"),
            (br#"{"message":"no Route"}"#, "no Route"),
            (
                br#"{"error":"unauthorized","signin_url":"https://ollama.com/connect?a=b"}"#,
                "unauthorized (https://ollama.com/connect?a=b)",
            ),
            (br#"{"error":"its  own\nwords"}"#, "its  own\nwords"),
            (b"\x1b[31mred\r\n", "[31mred (text/plain)"),
            (br#"{"error":""}"#, "it gave no reason"),
            (br#"{"error":null}"#, "it gave no reason"),
            (b"", "it gave no reason"),
            (b" \r\n", "it gave no reason"),
            (b"404 page not found\n", "404 page not found (text/plain)"),
            (b"\xff\xfe", "\u{fffd}\u{fffd} (text/plain)"),
        ] {
            let text = told(404, "text/plain", body);
            assert_eq!(
                text,
                format!("Ollama refused the request with status 404: {reason}")
            );
        }
    }

    #[test]
    fn of_a_page_the_visible_words_are_told() {
        let page =
            b"<!doctype html><html><head><STYLE>p{}</STYLE><script>if (a<b) {}</script></head>\
            <body><h1>502 Bad Gateway</h1>\n<hr>nginx</body></html>";
        assert_eq!(
            told(502, "text/html", page),
            "Ollama refused the request with status 502: 502 Bad Gateway nginx (text/html)"
        );
        let text = told(200, "text/html; charset=utf-8", b"<p>Please sign in</p>");
        assert!(
            text.contains("status 200: Please sign in (text/html; charset=utf-8)"),
            "{text}"
        );
        for page in [&b"<"[..], b"<a", b"<script>", b"<style", "<é>é".as_bytes()] {
            told(502, "", page);
        }
    }

    #[test]
    fn what_to_do_is_said_where_the_status_tells() {
        for (status, advice) in [
            (401, "`ollama_api_key`"),
            (403, "`ollama_api_key`"),
            (403, "OLLAMA_HOST"),
            (302, "`ollama_url`"),
        ] {
            let text = told(status, "", b"");
            assert!(text.contains(advice), "{text}");
        }
        let gzip = refused(
            &head(200, "application/x-ndjson", "gzip"),
            b"\x1f\x8b",
            None,
        );
        assert!(gzip.text.contains("compressed its answer (gzip)"), "{gzip}");
    }

    #[test]
    fn the_key_is_not_told_however_it_is_repeated() {
        let key = Secret::new("ollama_api_key", "s3cret/key").unwrap();
        let filler = "x".repeat(190);
        let cut = format!("{filler} s3cret/key");
        let cut_json = format!("{{\"error\":\"{} s3cret/key\"}}", "x".repeat(2040));
        for (content_type, body) in [
            ("text/plain", "s3cret/key is wrong"),
            ("text/html", "<p>s3cret/key</p>"),
            ("", r#"{"error":"no s3cret\/key"}"#),
            ("", r#"{"error":{"key":"s3cret/key"}}"#),
            ("", r#"{"error":"{\"message\":\"s3cret/k\\u0065y\"}"}"#),
            ("s3cret/key", "?"),
            ("", &cut),
            ("", &cut_json),
        ] {
            let head = head(401, content_type, "");
            let text = refused(&head, body.as_bytes(), Some(&key)).text;
            assert!(!text.contains("s3cr"), "{text}");
        }
        let told = refused(&head(200, "", "s3cret/key"), b"", Some(&key)).text;
        assert!(told.contains("([ollama_api_key])"), "{told}");
    }

    #[test]
    fn what_is_told_is_bounded() {
        let long = "x".repeat(60_000);
        assert!(told(500, &long, long.as_bytes()).len() < 1000);
        let json = format!("{{\"error\":\"{long}\"}}");
        assert!(told(500, "", json.as_bytes()).len() < 2300);
    }

    #[test]
    fn a_reply_is_known_by_its_first_byte_or_its_type() {
        for (content_type, start, is_no_reply) in [
            ("application/x-ndjson", "{", false),
            ("application/x-ndjson", " x", false),
            ("application/x-ndjson", "\r\n<", false),
            ("application/json", "\r\n<", true),
            ("text/html", "{", false),
            ("text/html", "<", true),
            ("text/plain", "o", true),
            ("", "{", false),
            ("", "o", true),
            ("text/plain", "\u{feff}{", false),
            ("text/html", "\u{feff}\n<", true),
            ("application/json", "\u{feff}<", true),
            ("", "\u{feff}o", true),
        ] {
            let head = head(200, content_type, "identity");
            assert!(!head.is_refusal());
            assert_eq!(
                head.is_no_reply(start.as_bytes()),
                Some(is_no_reply),
                "{content_type} {start}"
            );
            assert_eq!(head.is_no_reply(b"\xef"), None);
            assert_eq!(head.is_no_reply(b"\xbb\xbf \n"), None);
        }
    }
}
