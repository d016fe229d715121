//! What makes a repeated POST the same request: the key in its header `Idempotency-Key`, and the hash of its body.
//!
//! Takes header values and a parsed request. Knows no HTTP and no database.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::conversation::Message;
use crate::request::ChatRequest;

/// Characters in the longest key.
const KEY_MAX_CHARS: usize = 255;

/// A SHA-256, shown in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key that a client gave its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

/// Why the header is refused, and what to send.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum InvalidKey {
    /// Nothing in it.
    #[error("must not be empty: send a new UUID with each new prompt, or leave the header out")]
    Empty,
    /// More characters than fit.
    #[error("must be 1 to {KEY_MAX_CHARS} characters long, has {0}")]
    TooLong(usize),
    /// Neither form of a key.
    #[error(
        "must be one key of visible ASCII characters other than `\"`, `,`, `;` and `\\`, such as a UUID, or a quoted string of RFC 8941"
    )]
    Malformed,
    /// Several header fields.
    #[error("is there more than once: send one key")]
    Twice,
}

impl Key {
    /// Reads every value of the header: none or one.
    pub fn read(values: &[impl AsRef<[u8]>]) -> Result<Option<Self>, InvalidKey> {
        let value = match values {
            [] => return Ok(None),
            [value] => value.as_ref().trim_ascii(),
            _ => return Err(InvalidKey::Twice),
        };
        let key = match value {
            [b'"', quoted @ ..] => unquoted(quoted),
            bare => Some(bare)
                .filter(|bare| bare.iter().all(is_bare))
                .map(<[u8]>::to_vec),
        };
        let key = key.and_then(|key| String::from_utf8(key).ok());
        let key = key.ok_or(InvalidKey::Malformed)?;
        match key.len() {
            0 => Err(InvalidKey::Empty),
            1..=KEY_MAX_CHARS => Ok(Some(Self(key))),
            length => Err(InvalidKey::TooLong(length)),
        }
    }

    /// What is stored of it.
    pub fn hash(&self) -> Hash {
        Hash(Sha256::digest(&self.0).into())
    }
}

fn is_bare(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !b"\",;\\".contains(byte)
}

/// The inside of a string of RFC 8941 (section 3.3.3), which begins after its first quotation mark.
fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut rest = quoted;
    loop {
        rest = match rest {
            [b'"'] => return Some(text),
            [b'\\', byte @ (b'"' | b'\\'), rest @ ..]
            | [byte @ (b' '..=b'!' | b'#'..=b'[' | b']'..=b'~'), rest @ ..] => {
                text.push(*byte);
                rest
            }
            _ => return None,
        };
    }
}

/// The hash of a request's body: of its JSON with the members of the body and of its messages sorted by name, without
/// those that are null or empty, and without white space between them. `stream` is always there. Values below are as
/// they were sent, except that the texts that llmchat reads itself are the same however they were escaped.
///
/// It is compared with what earlier releases stored: whatever a request gains must not change it where that is absent.
pub fn body_hash(request: &ChatRequest) -> Hash {
    let stream = if request.stream { "true" } else { "false" };
    let mut members = vec![
        ("appID", Value::Text(request.app_id.as_str())),
        ("model", Value::Text(&request.model)),
        ("messages", Value::Messages(&request.messages)),
        ("stream", Value::Json(stream)),
    ];
    let others = request.fields.iter();
    members.extend(others.map(|(name, value)| (name.as_str(), Value::Json(value.get()))));
    let mut hasher = Sha256::new();
    hash_object(members, &mut hasher);
    Hash(hasher.finalize().into())
}

enum Value<'a> {
    Text(&'a str),
    Json(&'a str),
    Messages(&'a [Message]),
}

impl Value<'_> {
    /// Whether it says nothing.
    fn is_absent(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Messages(messages) => messages.is_empty(),
            Self::Json("null" | "\"\"") => true,
            Self::Json(json) => {
                let inner = |open, close| json.strip_prefix(open)?.strip_suffix(close);
                let inner = inner('[', ']').or_else(|| inner('{', '}'));
                inner.is_some_and(|inner| inner.trim_ascii().is_empty())
            }
        }
    }

    fn hash(&self, hasher: &mut Sha256) {
        match self {
            Self::Text(text) => hash_text(text, hasher),
            Self::Json(json) => hasher.update(json),
            Self::Messages(messages) => {
                hasher.update("[");
                for (i, message) in messages.iter().enumerate() {
                    if i > 0 {
                        hasher.update(",");
                    }
                    let members = vec![
                        ("role", Value::Text(message.role.as_str())),
                        ("content", Value::Text(message.content.as_str())),
                    ];
                    hash_object(members, hasher);
                }
                hasher.update("]");
            }
        }
    }
}

fn hash_object(members: Vec<(&str, Value<'_>)>, hasher: &mut Sha256) {
    let said = members.into_iter().filter(|(_, value)| !value.is_absent());
    let (names, values): (Vec<_>, Vec<_>) = said.unzip();
    // The members of one name stay in their order. `sort` would be 6 KiB of the component (measured).
    let names = names.into_iter().enumerate();
    let mut names: BinaryHeap<_> = names.map(|(i, name)| Reverse((name, i))).collect();
    hasher.update("{");
    for nth in 0.. {
        let Some(Reverse((name, i))) = names.pop() else {
            break;
        };
        if nth > 0 {
            hasher.update(",");
        }
        hash_text(name, hasher);
        hasher.update(":");
        if let Some(value) = values.get(i) {
            value.hash(hasher);
        }
    }
    hasher.update("}");
}

fn hash_text(text: &str, hasher: &mut Sha256) {
    // Serialising into memory cannot fail.
    hasher.update(serde_json::to_string(text).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::Limits;

    fn read(value: impl AsRef<[u8]>) -> Result<Option<Key>, InvalidKey> {
        Key::read(&[value])
    }

    fn key(value: &str) -> Key {
        read(value).unwrap().unwrap()
    }

    #[test]
    fn without_the_header_there_is_no_key() {
        assert_eq!(Key::read(&[] as &[&str]), Ok(None));
    }

    #[test]
    fn a_key_is_the_same_bare_or_quoted() {
        let hash = "e4b22fa1b84b7a004ea99f3e212f60406fc947bcbbf6167afe273b123aefb80c";
        for value in ["3f8a", " 3f8a\t", "\"3f8a\"", " \"3f8a\" "] {
            assert_eq!(key(value).hash().to_string(), hash, "{value}");
        }
        assert_eq!(key(r#""a \"b\", c;\\d""#), Key(r#"a "b", c;\d"#.into()));
        assert_ne!(key("3F8A").hash(), key("3f8a").hash());
    }

    #[test]
    fn its_characters_are_counted_inside_of_the_quotes() {
        let long = "k".repeat(255);
        assert_eq!(key(&long), key(&format!("\"{long}\"")));
        assert_eq!(key(&format!("\"{}\"", "\\\"".repeat(255))).0.len(), 255);
        assert_eq!(read(long.clone() + "k"), Err(InvalidKey::TooLong(256)));
        assert_eq!(read(format!("\"{long}k\"")), Err(InvalidKey::TooLong(256)));
        for empty in ["", " \t", "\"\""] {
            assert_eq!(read(empty), Err(InvalidKey::Empty));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for value in [
            "a b",
            "a,b",
            "a, b",
            "a;b=1",
            "a\\b",
            "a\"b",
            "a\"",
            "\"a",
            "\"",
            "\"a\\",
            "\"a\\\"",
            "\"a\\b\"",
            "\"a\"b",
            "\"a\";b=1",
            "\"a\", \"a\"",
            "\"a\tb\"",
            "\"\u{7f}\"",
            "\u{7f}",
            "é",
            "\"é\"",
        ] {
            assert_eq!(read(value), Err(InvalidKey::Malformed), "{value}");
        }
        assert_eq!(read(b"a\xff"), Err(InvalidKey::Malformed));
        assert_eq!(read(b"a\0"), Err(InvalidKey::Malformed));
        assert_eq!(Key::read(&["a", "a"]), Err(InvalidKey::Twice));
    }

    proptest! {
        #[test]
        fn every_text_in_printable_ascii_can_be_quoted(text in "[ -~]{1,255}") {
            let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(key(&quoted), Key(text.clone()));
            match read(&text) {
                Ok(bare) if !text.starts_with('"') => prop_assert_eq!(bare, Some(Key(text.trim().to_owned()))),
                _ => {}
            }
        }
    }

    fn hash(body: &str) -> String {
        const LIMITS: Limits = Limits {
            body_bytes: 1 << 20,
            messages: 10,
            history_bytes: 1 << 20,
        };
        let request = ChatRequest::parse(body.as_bytes(), &LIMITS).expect(body);
        body_hash(&request).to_string()
    }

    const BODY: &str = r#"{"appID":"a","model":"m","messages":[{"role":"user","content":"hi \"é\"\n"}],"options":{ "seed" : 1 }}"#;

    #[test]
    fn the_hash_is_that_of_the_sorted_body_in_every_release() {
        // printf %s '{"appID":"a","messages":[{"content":"hi \"é\"\n","role":"user"}],"model":"m","options":{ "seed" : 1 },"stream":true}' | sha256sum
        assert_eq!(
            hash(BODY),
            "298a7a9863e94c5b1fd81a4cf41082086f858c26deb31ad78e068e1e3857cbce"
        );
    }

    #[test]
    fn order_white_space_and_what_says_nothing_do_not_matter() {
        for same in [
            r#"{"options":{ "seed" : 1 },"messages":[{"content":"hi \"é\"\n","role":"user"}],"model":"m","appID":"a"}"#,
            "\u{feff} {\n\"appID\" : \"a\",\t\"model\":\"m\" , \"messages\": [ { \"role\" :\"user\",\r\n\"content\":\"hi \\\"é\\\"\\n\" } ] ,\"options\":  { \"seed\" : 1 } } ",
            r#"{"stream":true,"tools":[ ],"format":"","think":null,"keep_alive":{ },"appID":"a","model":"m","messages":[{"images":null,"tool_calls":[],"name":"","role":"user","content":"hi \"é\"\n"}],"options":{ "seed" : 1 }}"#,
            r#"{"app\u0049D":"a","model":"m","messages":[{"role":"us\u0065r","content":"hi \u0022\u00e9\"\u000a"}],"options":{ "seed" : 1 }}"#,
        ] {
            assert_eq!(hash(same), hash(BODY), "{same}");
        }
        assert_eq!(
            hash(r#"{"appID":"a","model":"m","messages":[]}"#),
            hash(r#"{"messages":[ ],"model":"m","appID":"a","stream":true}"#)
        );
    }

    #[test]
    fn another_body_has_another_hash() {
        let with = |from: &str, to: &str| {
            assert!(BODY.contains(from));
            BODY.replacen(from, to, 1)
        };
        let mut hashes = vec![hash(BODY)];
        for other in [
            with(r#""a""#, r#""b""#),
            with(r#""m""#, r#""n""#),
            with("user", "User"),
            with("hi", "hi "),
            with("}]", r#"},{"role":"user","content":"hi"}]"#),
            with(r#"{ "seed" : 1 }"#, r#"{"seed":1}"#),
            with(r#"{ "seed" : 1 }"#, "0"),
            with(r#"{ "seed" : 1 }"#, "false"),
            with(r#"{ "seed" : 1 }"#, r#"" ""#),
            with(r#"{ "seed" : 1 }"#, "[[]]"),
            with(r#","options":{ "seed" : 1 }"#, ""),
            with("options", "Options"),
            with(r#""options""#, r#""stream":false,"options""#),
            with(r#""options""#, r#""options":{},"think":true,"options""#),
            with(r#""options""#, r#""options":1,"options""#),
            with(
                r#""options":{ "seed" : 1 }"#,
                r#""options":{ "seed" : 1 },"options":1"#,
            ),
        ] {
            let hash = hash(&other);
            assert!(!hashes.contains(&hash), "{other}");
            hashes.push(hash);
        }
    }
}
