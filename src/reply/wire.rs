//! Parses one NDJSON line of Ollama's reply into a [`ChatChunk`]: borrowed, and only the fields that
//! the relay acts on.
//!
//! The format is that of `/api/chat` as Ollama v0.33 writes it; older versions differ only in that a
//! final line may lack its `message`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::halves;

/// A line of a chat response, as far as the relay needs to understand it.
#[derive(Debug)]
pub enum ChatChunk<'a> {
    /// `{"message": {…}, "done": false}`: a piece of the reply, which can be empty.
    Token(Piece<'a>),
    /// `{…, "done": true}`: the last line, which can carry a piece and may lack `message`.
    Done(Piece<'a>),
    /// `{"error": …}`: Ollama failed in mid-stream, after its status was sent.
    Error {
        /// Ollama's own message.
        text: String,
    },
}

/// What a line adds to the reply, to be appended to what came before without a separator.
#[derive(Debug, Default)]
pub struct Piece<'a> {
    /// Of the text.
    pub content: Fragment<'a>,
    /// Of what the model thinks before it speaks.
    pub thinking: Fragment<'a>,
    /// Calls of tools.
    pub calls: Calls<'a>,
}

/// A piece of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The text, with U+FFFD for half a surrogate pair.
    pub text: Cow<'a, str>,
    /// The half that the text begins with, if it does.
    pub low: Option<u16>,
    /// The half that the text ends with, if it does.
    pub high: Option<u16>,
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Fragment<'a> {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            low: None,
            high: None,
        }
    }
}

/// The elements of a JSON array, read when they are stored; `null` counts as none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls<'a>(Option<&'a RawValue>);

impl Calls<'_> {
    /// The most bytes that [`append_to`](Self::append_to) appends.
    pub fn len_max(&self) -> usize {
        // The brackets are not appended, but perhaps one comma more.
        self.0.map_or(0, |array| array.get().len())
    }

    /// Appends the elements to those before, each as it was written, with commas in between. Returns their number.
    pub fn append_to(&self, calls: &mut String) -> usize {
        struct Append<'s>(&'s mut String);

        impl<'de> Visitor<'de> for Append<'_> {
            type Value = usize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of tool calls")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut calls: A) -> Result<usize, A::Error> {
                let mut count = 0;
                while let Some(call) = calls.next_element::<&RawValue>()? {
                    if !self.0.is_empty() {
                        self.0.push(',');
                    }
                    self.0.push_str(call.get());
                    count += 1;
                }
                Ok(count)
            }
        }

        let Some(array) = self.0 else { return 0 };
        let mut array = serde_json::Deserializer::from_str(array.get());
        // It was seen to be an array when the line was parsed.
        array.deserialize_seq(Append(calls)).unwrap_or_default()
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
        let chunk = match serde_json::from_str::<Fields<'_>>(line) {
            Ok(Fields {
                message,
                done,
                error,
            }) => {
                let piece = Piece {
                    content: message.content.0.into(),
                    thinking: message.thinking.0.into(),
                    calls: message.calls,
                };
                Self::new(line, piece, done, error)
            }
            Err(error) if error.is_data() && !line.trim_start().starts_with('{') => {
                Err(NotAChunk::OtherShape)
            }
            // Half a surrogate pair in a string is refused too.
            Err(_) => Self::with_halves(line).unwrap_or(Err(NotAChunk::NotJson)),
        };
        Ok((line, chunk?))
    }

    fn new(
        line: &str,
        piece: Piece<'a>,
        done: Option<bool>,
        error: Option<&RawValue>,
    ) -> Result<Self, NotAChunk> {
        match (error, done) {
            (Some(_), _) => Ok(Self::Error {
                // The whole line, since a `signin_url` stands beside the error.
                text: serde_json::from_str(halves::replaced(line).as_deref().unwrap_or(line))
                    .ok()
                    .and_then(|line| error_text(&line))
                    .unwrap_or_else(|| "Ollama reported an error and gave no reason".to_owned()),
            }),
            (None, Some(true)) => Ok(Self::Done(piece)),
            (None, Some(false)) => Ok(Self::Token(piece)),
            (None, None) => Err(NotAChunk::OtherShape),
        }
    }

    #[cold]
    fn with_halves(line: &'a str) -> Option<Result<Self, NotAChunk>> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            message: Option<Texts<'a>>,
            done: Option<bool>,
            error: Option<&'a RawValue>,
        }
        #[derive(Default, Deserialize)]
        struct Texts<'a> {
            #[serde(borrow)]
            content: Option<&'a RawValue>,
            thinking: Option<&'a RawValue>,
            #[serde(borrow, default)]
            tool_calls: Calls<'a>,
        }
        let fields: Line<'a> = serde_json::from_str(line).ok()?;
        let message = fields.message.unwrap_or_default();
        let piece = Piece {
            content: halves::read(message.content)?,
            thinking: halves::read(message.thinking)?,
            calls: message.tool_calls,
        };
        Some(Self::new(line, piece, fields.done, fields.error))
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

/// The metrics of a final line, a JSON object; `None` where it has none.
pub(crate) fn usage(line: &str) -> Option<String> {
    #[derive(Default, Deserialize, Serialize)]
    #[serde(default)]
    struct Usage {
        #[serde(skip_serializing_if = "Option::is_none")]
        total_duration: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        load_duration: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_eval_count: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_eval_duration: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_count: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_duration: Option<u64>,
    }
    let usage: Usage = serde_json::from_str(line).ok()?;
    let json = serde_json::to_string(&usage).ok()?;
    (json.len() > 2).then_some(json)
}

/// The most bytes of a final line that is kept whole.
const KEPT_WHOLE: usize = 64 * 1024;

/// A final line as it is stored: a long one without its `logprobs`, of which each token has some.
pub(super) fn kept(line: &str) -> Cow<'_, str> {
    match line.len() > KEPT_WHOLE {
        true => without_logprobs(line).map_or(line.into(), Cow::Owned),
        false => line.into(),
    }
}

fn without_logprobs(line: &str) -> Option<String> {
    struct Without;

    impl<'de> Visitor<'de> for Without {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a chat response")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
            let mut json = String::from("{");
            while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                if name == "logprobs" {
                    continue;
                }
                if json.len() > 1 {
                    json.push(',');
                }
                json.push_str(&serde_json::to_string(&name).map_err(de::Error::custom)?);
                json.push(':');
                json.push_str(value.get());
            }
            json.push('}');
            Ok(json)
        }
    }

    serde_json::Deserializer::from_str(line)
        .deserialize_map(Without)
        .ok()
}

/// The fields that the relay acts on. The visitors are written by hand since derived ones accept a JSON array for a
/// struct and copy every `Option<Cow>`.
struct Fields<'a> {
    message: Message<'a>,
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
                    message: Message::default(),
                    done: None,
                    error: None,
                };
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        "message" => map.next_value_seed(&mut fields.message)?,
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

/// `message`, as far as it is stored; `null` counts as absent.
#[derive(Default)]
struct Message<'a> {
    content: Text<'a>,
    thinking: Text<'a>,
    calls: Calls<'a>,
}

/// Parsed in its place: to move it, with larger strings, made a token 7 % slower (measured).
impl<'de> DeserializeSeed<'de> for &mut Message<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Message<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        *self = Message::default();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        *self = Message::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key.0 {
                "content" => self.content = map.next_value()?,
                "thinking" => self.thinking = map.next_value()?,
                "tool_calls" => self.calls = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A string, borrowed unless it holds escapes; `null` counts as empty.
#[derive(Default)]
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
                Ok(Text::default())
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Calls<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<&RawValue>::deserialize(deserializer)? {
            Some(json) if !json.get().starts_with('[') => {
                Err(de::Error::custom("`tool_calls` is not an array"))
            }
            array => Ok(Self(array)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a line is, and its content, thinking, tool calls and their number.
    #[derive(Debug, PartialEq)]
    enum Parsed {
        Token(String, String, String, usize),
        Done(String, String, String, usize),
        Error(String),
    }

    fn parsed(line: &str) -> Result<Parsed, NotAChunk> {
        let (_, chunk) = ChatChunk::parse(line.as_bytes())?;
        let read = |kind: fn(String, String, String, usize) -> Parsed, piece: Piece<'_>| {
            let (content, thinking) = (piece.content.text.into(), piece.thinking.text.into());
            let mut calls = String::new();
            let count = piece.calls.append_to(&mut calls);
            assert!(calls.len() <= piece.calls.len_max());
            kind(content, thinking, calls, count)
        };
        Ok(match chunk {
            ChatChunk::Token(piece) => read(Parsed::Token, piece),
            ChatChunk::Done(piece) => read(Parsed::Done, piece),
            ChatChunk::Error { text } => Parsed::Error(text),
        })
    }

    fn token(content: &str) -> Result<Parsed, NotAChunk> {
        Ok(Parsed::Token(content.into(), "".into(), "".into(), 0))
    }

    fn done(content: &str) -> Result<Parsed, NotAChunk> {
        Ok(Parsed::Done(content.into(), "".into(), "".into(), 0))
    }

    #[test]
    fn a_token_without_escapes_is_borrowed() {
        let line = br#"{"message":{"content":" you","thinking":"hm"},"done":false}"#;
        let (_, chunk) = ChatChunk::parse(line).unwrap();
        let ChatChunk::Token(piece) = chunk else {
            panic!("{chunk:?}")
        };
        assert!(matches!(piece.content.text, Cow::Borrowed(" you")));
        assert!(matches!(piece.thinking.text, Cow::Borrowed("hm")));
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
    fn any_line_can_have_thinking_and_tool_calls() {
        assert_eq!(
            parsed(r#"{"message":{"content":"","thinking":"h\nm"},"done":false}"#),
            Ok(Parsed::Token("".into(), "h\nm".into(), "".into(), 0))
        );
        assert_eq!(
            parsed(
                r#"{"message":{"content":null,"thinking":null,"tool_calls":[{"a" : [1, "\u0000"]} , {}]},"done":true}"#
            ),
            Ok(Parsed::Done(
                "".into(),
                "".into(),
                r#"{"a" : [1, "\u0000"]},{}"#.into(),
                2
            ))
        );
        for none in ["null", "[]", "[ ]"] {
            let line =
                format!(r#"{{"message":{{"content":"x","tool_calls":{none}}},"done":true}}"#);
            assert_eq!(parsed(&line), done("x"));
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_in_texts_and_left_in_tool_calls() {
        assert_eq!(
            parsed(
                r#"{"message":{"thinking":"\ude00","content":"a\ud83d","tool_calls":["\ud83d"]},"done":false}"#
            ),
            Ok(Parsed::Token(
                "a\u{fffd}".into(),
                "\u{fffd}".into(),
                r#""\ud83d""#.into(),
                1
            ))
        );
    }

    #[test]
    fn an_error_line_is_recognised_though_it_is_valid_json() {
        for (line, text) in [
            (r#"{"error":"out of memory"}"#, "out of memory"),
            (r#"{"error":{"code":1},"done":true}"#, r#"{"code":1}"#),
            (r#"{"error":"cut \ud83d","done":true}"#, "cut \u{fffd}"),
        ] {
            assert_eq!(parsed(line), Ok(Parsed::Error(text.into())));
        }
        assert_eq!(parsed(r#"{"error":null,"done":true}"#), done(""));
    }

    #[test]
    fn a_long_final_line_is_kept_without_its_log_probabilities() {
        let line = |logprobs: &str| {
            format!(
                r#"{{"a" : [1.0, "\ud83d"],{logprobs}"message":{{"logprobs":7}}, "done":true}}"#
            )
        };
        let short = line(r#""logprobs":[],"#);
        assert_eq!(kept(&short), short);
        let logprobs = format!(r#""logprobs" : [{}1],"#, "1,".repeat(KEPT_WHOLE));
        let without = line("").replace(" : ", ":").replace(", \"done", ",\"done");
        assert_eq!(kept(&line(&logprobs)), without);
        let long = line(&format!(r#""logits":"{}","#, "x".repeat(KEPT_WHOLE)));
        assert!(kept(&long).len() > KEPT_WHOLE);
        let no_object = "[".repeat(KEPT_WHOLE + 1);
        assert_eq!(kept(&no_object), no_object);
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
            (
                r#"{"message":{"thinking":7},"done":false}"#,
                NotAChunk::NotJson,
            ),
            (
                r#"{"message":{"tool_calls":{}},"done":false}"#,
                NotAChunk::NotJson,
            ),
            (r#"{"done":true} {"done":true}"#, NotAChunk::NotJson),
            ("<html>", NotAChunk::NotJson),
        ] {
            assert_eq!(parsed(line), Err(why), "{line}");
        }
        assert_eq!(
            ChatChunk::parse(b"{\"x\":\"\xff\",\"done\":true}").err(),
            Some(NotAChunk::NotUtf8)
        );
    }
}
