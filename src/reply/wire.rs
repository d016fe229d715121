//! Parses one NDJSON line of Ollama's reply into a [`ChatChunk`]: borrowed, and only the fields that
//! the relay acts on.
//!
//! The format is that of `/api/chat` as Ollama v0.33 writes it; older versions differ only in that a
//! final line may lack its `message`.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::halves;

/// A line of a chat response, as far as the relay needs to understand it.
#[derive(Debug, PartialEq, Eq)]
pub enum ChatChunk<'a> {
    /// `{"message": {"content": …}, "done": false}`: a piece of the completion, empty while the model
    /// thinks or calls tools.
    Token {
        /// To be appended to the previous pieces without a separator.
        content: Content<'a>,
    },
    /// `{…, "done": true}`: the last line, which can carry content and may lack `message`.
    Done {
        /// The last piece.
        content: Content<'a>,
    },
    /// `{"error": …}`: Ollama failed in mid-stream, after its status was sent.
    Error {
        /// Ollama's own message.
        text: String,
    },
}

/// A piece of the completion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content<'a> {
    /// The text, with U+FFFD for half a surrogate pair.
    pub text: Cow<'a, str>,
    /// The half that the text begins with, if it does.
    pub low: Option<u16>,
    /// The half that the text ends with, if it does.
    pub high: Option<u16>,
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Content<'a> {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            low: None,
            high: None,
        }
    }
}

/// Why a line is not a chat response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAChunk {
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Not JSON, or JSON with wrong types in the fields that matter.
    NotJson,
    /// Valid JSON that is not a chat response: not an object, or without `done` and `error`.
    OtherShape,
}

impl NotAChunk {
    /// The message for the client.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotUtf8 => "Ollama sent a line that is not valid UTF-8; it was left out",
            Self::NotJson => {
                "Ollama sent a line that is not a chat response in JSON; it was left out"
            }
            Self::OtherShape => "Ollama sent JSON that is not a chat response; it was left out",
        }
    }
}

impl<'a> ChatChunk<'a> {
    /// Parses one line, surrounding white space allowed. Also returns the line as text, to be relayed.
    pub fn parse(line: &'a [u8]) -> Result<(&'a str, Self), NotAChunk> {
        // The whole line first: serde_json does not validate the strings that it skips.
        let line = std::str::from_utf8(line).map_err(|_| NotAChunk::NotUtf8)?;
        let chunk = Self::from_line(line).or_else(|error| {
            // Half a surrogate pair in a string is refused too.
            let whole = halves::replaced(line).ok_or(error)?;
            let mut chunk = ChatChunk::from_line(&whole)?.into_owned();
            if let Self::Token { content } | Self::Done { content } = &mut chunk {
                halves::note(content, line);
            }
            Ok(chunk)
        })?;
        Ok((line, chunk))
    }

    fn from_line(line: &'a str) -> Result<Self, NotAChunk> {
        let Fields {
            content,
            done,
            error,
        } = match serde_json::from_str(line) {
            Ok(fields) => fields,
            Err(error) if error.is_data() && !line.trim_start().starts_with('{') => {
                return Err(NotAChunk::OtherShape);
            }
            Err(_) => return Err(NotAChunk::NotJson),
        };
        let content = Content::from(content);
        Ok(match (error, done) {
            (Some(_), _) => Self::Error {
                // The whole line, since a `signin_url` stands beside the error.
                text: serde_json::from_str(halves::replaced(line).as_deref().unwrap_or(line))
                    .ok()
                    .and_then(|line| error_text(&line))
                    .unwrap_or_else(|| "Ollama reported an error and gave no reason".to_owned()),
            },
            (None, Some(true)) => Self::Done { content },
            (None, Some(false)) => Self::Token { content },
            (None, None) => return Err(NotAChunk::OtherShape),
        })
    }

    fn into_owned<'b>(self) -> ChatChunk<'b> {
        let owned = |content: Content<'_>| Content::from(content.text.into_owned());
        match self {
            Self::Token { content } => ChatChunk::Token {
                content: owned(content),
            },
            Self::Done { content } => ChatChunk::Done {
                content: owned(content),
            },
            Self::Error { text } => ChatChunk::Error { text },
        }
    }
}

/// The most bytes of an error of Ollama's that are passed on.
const ERROR_MAX: usize = 2048;

/// What an error in JSON says: its `error`, `message` or `detail`, however deep; its JSON where it is of
/// another shape; nothing where it is empty.
pub(crate) fn error_text(error: &Value) -> Option<String> {
    fn said(value: &Value, depth: u8) -> Option<String> {
        match value {
            Value::Null => None,
            Value::String(text) => match serde_json::from_str(text) {
                Ok(inner @ Value::Object(_)) if depth > 0 => said(&inner, depth - 1),
                _ => Some(text.clone()),
            },
            Value::Object(fields) if depth > 0 => {
                let found = ["error", "message", "detail"]
                    .iter()
                    .find_map(|name| fields.get(*name));
                let text = match found {
                    Some(value) => said(value, depth - 1),
                    None => Some(value.to_string()),
                };
                match (text, fields.get("signin_url").and_then(Value::as_str)) {
                    (Some(text), Some(url)) => Some(format!("{text} ({url})")),
                    (text, _) => text,
                }
            }
            other => Some(other.to_string()),
        }
    }
    let mut text = said(error, 4)?;
    cut(&mut text, ERROR_MAX);
    (!text.trim().is_empty()).then_some(text)
}

fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}

/// A text without control characters, every run of white space as one space, cut at `max` bytes.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    let mut out = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > max {
            break;
        }
    }
    cut(&mut out, max);
    out
}

/// The `message` of a line, for when the line itself cannot be sent.
pub(super) fn message_of(line: &str) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct WithMessage<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
    }
    serde_json::from_str::<WithMessage<'_>>(line)
        .ok()
        .map(|line| line.message)
}

/// The fields that the relay acts on. The visitors are written by hand since derived ones accept a
/// JSON array for a struct and copy every `Option<Cow>`.
struct Fields<'a> {
    content: Cow<'a, str>,
    done: Option<bool>,
    error: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a chat response")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields {
                    content: Cow::Borrowed(""),
                    done: None,
                    error: None,
                };
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        "message" => fields.content = map.next_value::<Message<'de>>()?.content,
                        "done" => fields.done = Some(map.next_value()?),
                        "error" => fields.error = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// `message`, of which the relay needs the `content`; `null` counts as absent.
struct Message<'a> {
    content: Cow<'a, str>,
}

impl<'de> Deserialize<'de> for Message<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessageVisitor;

        impl<'de> Visitor<'de> for MessageVisitor {
            type Value = Message<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Message {
                    content: Cow::Borrowed(""),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut content = Cow::Borrowed("");
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.0 == "content" {
                        content = map.next_value::<Text<'de>>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Message { content })
            }
        }

        deserializer.deserialize_any(MessageVisitor)
    }
}

/// A string, borrowed unless it holds escapes; `null` counts as empty.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed("")))
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<ChatChunk<'_>, NotAChunk> {
        ChatChunk::parse(line.as_bytes()).map(|(_, chunk)| chunk)
    }

    fn token(content: &str) -> Result<ChatChunk<'_>, NotAChunk> {
        Ok(ChatChunk::Token {
            content: content.into(),
        })
    }

    fn done(content: &str) -> Result<ChatChunk<'_>, NotAChunk> {
        Ok(ChatChunk::Done {
            content: content.into(),
        })
    }

    #[test]
    fn a_token_without_escapes_is_borrowed() {
        let line = br#"{"model":"m","message":{"role":"assistant","content":" you"},"done":false}"#;
        let (_, chunk) = ChatChunk::parse(line).unwrap();
        assert!(matches!(
            chunk,
            ChatChunk::Token {
                content: Content {
                    text: Cow::Borrowed(" you"),
                    ..
                }
            }
        ));
    }

    #[test]
    fn escapes_in_a_token_are_decoded() {
        assert_eq!(
            parsed(r#"{"message":{"content":"a\n\"\u00e9\ud83d\ude00"},"done":false}"#),
            token("a\n\"é😀")
        );
    }

    #[test]
    fn the_last_line_may_lack_its_message_or_carry_content() {
        assert_eq!(parsed(r#"{"done":true}"#), done(""));
        assert_eq!(parsed(r#"{"message":null,"done":true}"#), done(""));
        assert_eq!(
            parsed(r#"{"message":{"content":"!"},"done":true}"#),
            done("!")
        );
    }

    #[test]
    fn a_thinking_or_tool_line_is_an_empty_token() {
        assert_eq!(
            parsed(r#"{"message":{"content":"","thinking":"hm"},"done":false}"#),
            token("")
        );
        assert_eq!(
            parsed(r#"{"message":{"content":null,"tool_calls":[{}]},"done":false}"#),
            token("")
        );
    }

    #[test]
    fn an_error_line_is_recognised_though_it_is_valid_json() {
        for (line, text) in [
            (r#"{"error":"out of memory"}"#, "out of memory"),
            (r#"{"error":{"code":1},"done":true}"#, r#"{"code":1}"#),
            (r#"{"error":"cut \ud83d","done":true}"#, "cut \u{fffd}"),
        ] {
            assert_eq!(parsed(line), Ok(ChatChunk::Error { text: text.into() }));
        }
        assert_eq!(parsed(r#"{"error":null,"done":true}"#), done(""));
    }

    #[test]
    fn anything_else_is_not_a_chat_response() {
        for (line, why) in [
            ("[null,true]", NotAChunk::OtherShape),
            ("7", NotAChunk::OtherShape),
            ("\"text\"", NotAChunk::OtherShape),
            ("{}", NotAChunk::OtherShape),
            (r#"{"message":{"content":"x"}}"#, NotAChunk::OtherShape),
            (r#"{"done":"yes"}"#, NotAChunk::NotJson),
            (r#"{"message":["x"],"done":false}"#, NotAChunk::NotJson),
            (
                r#"{"message":{"content":7},"done":false}"#,
                NotAChunk::NotJson,
            ),
            (r#"{"done":true} {"done":true}"#, NotAChunk::NotJson),
            ("<html>", NotAChunk::NotJson),
        ] {
            assert_eq!(parsed(line), Err(why), "{line}");
        }
        assert_eq!(
            ChatChunk::parse(b"{\"x\":\"\xff\",\"done\":true}"),
            Err(NotAChunk::NotUtf8)
        );
    }
}
