//! Parses a client's request: JSON text becomes a [`ChatRequest`], or a refusal that names the field.
//!
//! Everything that a later step could fail on is refused here, before anything is stored. All limits on
//! a request are here too:
//!
//! | limit | value | refusal |
//! | --- | --- | --- |
//! | bytes of the body | [`Limits::body_bytes`], and what an instance has ([`crate::permit`]) | [`InvalidRequest::TooLarge`] |
//! | bytes of what the model is sent | [`Limits::history_bytes`] | [`InvalidRequest::ContextTooLarge`] |
//! | number of messages | [`Limits::messages`] | names `messages` |
//! | characters of `appID` | 1 to [`APP_ID_MAX_CHARS`](crate::conversation::APP_ID_MAX_CHARS), not `.` or `..` | names `appID` |
//! | characters of a role | 1 to [`ROLE_MAX_CHARS`](crate::conversation::ROLE_MAX_CHARS) | names `messages[i].role` |
//! | nesting of any other field | that of serde_json, 128 | names the field |
//!
//! The time that a body may take is [`crate::http::RequestBody`]'s. Knows no database, no Ollama, no WASI.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::conversation::{AppId, Content, Message, Role};

/// The operator's limits on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the body (`max_body_bytes`).
    pub body_bytes: usize,
    /// Messages in `messages` (`max_messages`).
    pub messages: usize,
    /// Bytes of contents and tools that a model is sent (`max_history_bytes`).
    pub history_bytes: usize,
}

/// Fields for Ollama, byte for byte, in the order in which they came.
pub type Fields = Vec<(String, Box<RawValue>)>;

/// A valid request.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub app_id: AppId,
    /// The model, as Ollama names it.
    pub model: String,
    /// The prompt: what this turn adds. May be empty where the conversation is not.
    pub messages: Vec<Message>,
    /// Whether the reply is streamed token by token.
    pub stream: bool,
    /// Every other field (`options`, `format`, `tools`…), for Ollama, byte for byte.
    pub fields: Fields,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum InvalidRequest {
    /// The body has more bytes than [`Limits::body_bytes`].
    #[error(
        "The body is larger than {limit} bytes, the operator's limit (max_body_bytes, 64 MiB at most)."
    )]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// What may not be left out has more bytes than [`Limits::history_bytes`].
    #[error(
        "The prompt, with the tools and with what it answers, is larger than the {limit} bytes that a model is sent (max_history_bytes)."
    )]
    ContextTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The body is not what it must be: names the field and says what it must be.
    #[error("Deserializing request: {0}")]
    Malformed(String),
    /// A part of the path or a header is not what it must be: names it, likewise.
    #[error("Invalid request: {0}")]
    Head(String),
}

impl InvalidRequest {
    /// A refusal of `field`.
    pub fn of(field: &str, why: impl fmt::Display) -> Self {
        Self::Malformed(format!("{field}: {why}"))
    }

    /// A refusal of a part of the path or a header.
    pub fn of_head(part: &str, why: impl fmt::Display) -> Self {
        Self::Head(format!("{part}: {why}"))
    }
}

impl ChatRequest {
    /// Parses the body of a request.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, InvalidRequest> {
        let Some(json) = text_of(body, limits)? else {
            return Err(InvalidRequest::Malformed(
                "the body is empty: send a JSON object with `appID`, `model` and `messages`".into(),
            ));
        };
        let request = Members::parse(json)?;
        let missing = |name: &str| InvalidRequest::Malformed(format!("missing field `{name}`"));
        let request = Self {
            app_id: request.app_id.ok_or_else(|| missing("appID"))?,
            model: request.model.ok_or_else(|| missing("model"))?,
            messages: request.messages.ok_or_else(|| missing("messages"))?,
            stream: request.stream.unwrap_or(true),
            fields: request.fields,
        };
        let (count, limit) = (request.messages.len(), limits.messages);
        if count > limit {
            return Err(InvalidRequest::of(
                "messages",
                format_args!("{count} of them, the operator's limit is {limit} (max_messages)"),
            ));
        }
        let limit = limits.history_bytes;
        if request.bytes() > limit {
            return Err(InvalidRequest::ContextTooLarge { limit });
        }
        Ok(request)
    }

    /// The bytes of its contents and tools.
    pub fn bytes(&self) -> usize {
        let contents = self.messages.iter().map(|it| it.content.as_str().len());
        contents.sum::<usize>() + tools_bytes(&self.fields)
    }

    /// Whether the past may be left out: where the prompt begins with a reply or a tool's result, or is empty, it
    /// belongs to what precedes it.
    pub fn stands_alone(&self) -> bool {
        let first = self.messages.first();
        first.is_some_and(|message| message.role.may_begin_a_context())
    }
}

/// What a turn that is asked again is asked with; what is absent is as it was.
#[derive(Debug, Default)]
pub struct Changes {
    /// The model.
    pub model: Option<String>,
    /// Whether the reply is streamed token by token.
    pub stream: Option<bool>,
    /// Other fields, for Ollama, byte for byte.
    pub fields: Fields,
}

impl Changes {
    /// Parses the body of a request, which may be empty.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, InvalidRequest> {
        let Some(json) = text_of(body, limits)? else {
            return Ok(Self::default());
        };
        let changes = Members::parse(json)?;
        let is_there = [
            ("appID", changes.app_id.is_some()),
            ("messages", changes.messages.is_some()),
        ];
        if let Some((name, _)) = is_there.into_iter().find(|(_, is_there)| *is_there) {
            let why = "is what it was when a turn is asked again: leave it out";
            return Err(InvalidRequest::of(name, why));
        }
        Ok(Self {
            model: changes.model,
            stream: changes.stream,
            fields: changes.fields,
        })
    }

    /// The fields of a turn, a JSON object, with these instead of those of the same names.
    pub fn apply_to(self, fields: &str) -> Result<Fields, InvalidRequest> {
        let mut fields = fields_of(fields)?;
        for (name, value) in self.fields {
            match fields.iter_mut().find(|(other, _)| *other == name) {
                Some((_, before)) => *before = value,
                None => fields.push((name, value)),
            }
        }
        Ok(fields)
    }
}

/// The fields for Ollama as they are stored: a JSON object.
pub fn fields_json(fields: &[(String, Box<RawValue>)]) -> String {
    let mut json = String::from("{");
    for (name, value) in fields {
        if json.len() > 1 {
            json.push(',');
        }
        // Serialising a string into memory cannot fail.
        json.push_str(&serde_json::to_string(name).unwrap_or_default());
        json.push(':');
        json.push_str(value.get());
    }
    json.push('}');
    json
}

/// The fields that were stored so.
pub fn fields_of(json: &str) -> Result<Fields, InvalidRequest> {
    Ok(Members::parse(json)?.fields)
}

/// The bytes of the tools among fields for Ollama, which count as what the model is sent.
pub fn tools_bytes(fields: &[(String, Box<RawValue>)]) -> usize {
    let tools = fields.iter().filter(|(name, _)| name == "tools");
    tools.map(|(_, tools)| tools.get().len()).sum()
}

/// The JSON text of a body; `None` where there is none.
fn text_of<'a>(body: &'a [u8], limits: &Limits) -> Result<Option<&'a str>, InvalidRequest> {
    if body.len() > limits.body_bytes {
        let limit = limits.body_bytes;
        return Err(InvalidRequest::TooLarge { limit });
    }
    // One byte-order mark, as Windows' tools write it.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(body);
    text.map(Some)
        .map_err(|error| InvalidRequest::Malformed(format!("the body is not UTF-8: {error}")))
}

/// The members of a request, as far as they are there.
#[derive(Default)]
struct Members {
    app_id: Option<AppId>,
    model: Option<String>,
    messages: Option<Vec<Message>>,
    stream: Option<bool>,
    fields: Fields,
}

impl Members {
    fn parse(json: &str) -> Result<Self, InvalidRequest> {
        let malformed = InvalidRequest::Malformed;
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let members = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let why = error.into_inner();
            // It ends in `?` where the name of a field broke off.
            let path = path.strip_suffix('?').unwrap_or(&path);
            match path.trim_end_matches('.') {
                "" => malformed(why.to_string()),
                path => InvalidRequest::of(path, why),
            }
        })?;
        deserializer
            .end()
            .map_err(|error| malformed(error.to_string()))?;
        Ok(members)
    }
}

/// The fields that llmchat reads itself. Ollama matches names regardless of case, so other spellings of
/// these must not reach it.
const OUR_FIELDS: [&str; 4] = ["appID", "model", "messages", "stream"];

/// Whether Go's `encoding/json` takes two names for the same: it folds case by Unicode's simple rules,
/// by which two letters beyond ASCII equal `s` and `k`.
fn is_same_to_ollama(name: &str, ours: &str) -> bool {
    let folded = name.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(ours.chars().map(|c| c.to_ascii_lowercase()))
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "appID" => once(&mut all.app_id, "appID", map.next_value()?)?,
                        "model" => once(&mut all.model, "model", map.next_value::<Model>()?.0)?,
                        "messages" => {
                            let messages = map.next_value::<Vec<PromptMessage>>()?;
                            let messages = messages.into_iter().map(|message| message.0).collect();
                            once(&mut all.messages, "messages", messages)?;
                        }
                        "stream" => once(&mut all.stream, "stream", map.next_value()?)?,
                        other => {
                            let ours = OUR_FIELDS
                                .iter()
                                .find(|ours| is_same_to_ollama(other, ours));
                            if let Some(ours) = ours {
                                return Err(de::Error::custom(format_args!(
                                    "unknown field `{other}`: write it as `{ours}`"
                                )));
                            }
                            let value = map.next_value::<Passed>()?.0;
                            all.fields.push((name, value));
                        }
                    }
                }
                Ok(all)
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

fn once<T, E: de::Error>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), E> {
    if slot.replace(value).is_some() {
        return Err(E::duplicate_field(name));
    }
    Ok(())
}

/// The name of a model: any text but an empty one.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Model(String);

impl TryFrom<String> for Model {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name.is_empty() {
            return Err("must not be empty");
        }
        Ok(Self(name))
    }
}

/// A field for Ollama. Its text is passed on unchanged, so it is parsed in full first: skipping it would
/// let lone surrogates and unbounded nesting through.
struct Passed(Box<RawValue>);

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        serde_json::from_str::<serde_json::Value>(raw.get()).map_err(de::Error::custom)?;
        Ok(Self(raw))
    }
}

/// Whether a field says nothing: many clients write every field of a message, those that it lacks as well.
fn is_absent(value: &RawValue) -> bool {
    let is_empty_array = |json: &str| {
        let inner = json.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        inner.is_some_and(|inner| inner.trim_ascii().is_empty())
    };
    matches!(value.get(), "null" | "\"\"") || is_empty_array(value.get())
}

/// A message of the prompt: an object with `role` and `content`. Nothing else is stored yet, so any other
/// field must say nothing.
struct PromptMessage(Message);

impl<'de> Deserialize<'de> for PromptMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessageVisitor;

        impl<'de> Visitor<'de> for MessageVisitor {
            type Value = PromptMessage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `role` and `content`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut role, mut content) = (None::<Role>, None::<Content>);
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "role" => once(&mut role, "role", map.next_value()?)?,
                        "content" => once(&mut content, "content", map.next_value()?)?,
                        other => {
                            if is_absent(map.next_value()?) {
                                continue;
                            }
                            return Err(de::Error::custom(format_args!(
                                "field `{other}` is not kept in a conversation yet: send `role` and `content` alone"
                            )));
                        }
                    }
                }
                Ok(PromptMessage(Message {
                    role: role.ok_or_else(|| de::Error::missing_field("role"))?,
                    content: content.ok_or_else(|| de::Error::missing_field("content"))?,
                }))
            }
        }

        deserializer.deserialize_map(MessageVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        body_bytes: 1 << 20,
        messages: 3,
        history_bytes: 1000,
    };

    fn parse(body: &str) -> Result<ChatRequest, InvalidRequest> {
        ChatRequest::parse(body.as_bytes(), &LIMITS)
    }

    fn refusal(body: &str) -> String {
        parse(body).expect_err(body).to_string()
    }

    const PROMPT: &str =
        r#"{"appID":"a","model":"m","messages":[{"role":"user","content":" hi\n"}]"#;

    #[test]
    fn a_turn_is_asked_again_with_what_changes() {
        let changes = |body: &str| Changes::parse(body.as_bytes(), &LIMITS);
        for nothing in ["", " \n", "{}"] {
            let changes = changes(nothing).unwrap();
            assert!(
                changes.model.is_none() && changes.stream.is_none() && changes.fields.is_empty()
            );
        }
        let changed = changes(r#"{"model":"m","options":{"seed":2},"format":"json"}"#).unwrap();
        assert_eq!(
            (changed.model.as_deref(), changed.stream),
            (Some("m"), None)
        );
        let fields = changed
            .apply_to(r#"{"think":true,"options":{"seed" :1}}"#)
            .unwrap();
        let fields = fields_json(&fields);
        assert_eq!(
            fields,
            r#"{"think":true,"options":{"seed":2},"format":"json"}"#
        );
        for (body, field) in [
            (r#"{"appID":"a"}"#, "appID"),
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"model":""}"#, "model"),
            (r#"{"Model":"m"}"#, "`Model`"),
            (r#"[]"#, "a JSON object"),
            (r#"{"model":"m"}{}"#, "trailing"),
        ] {
            let refused = changes(body).expect_err(body).to_string();
            assert!(refused.contains(field), "{refused}");
        }
    }

    #[test]
    fn half_a_request_is_told_without_a_field_that_is_not_there() {
        let whole = r#"{"appID":"a","options":{"seed":1},"messages":[{"role":"user","content":"Hi"}],"model":"m"}"#;
        for end in 1..whole.len() {
            let half = &whole[..end];
            let error = ChatRequest::parse(half.as_bytes(), &LIMITS)
                .unwrap_err()
                .to_string();
            assert!(!error.contains('?'), "{half}: {error}");
        }
        let error = |half: &str| {
            ChatRequest::parse(half.as_bytes(), &LIMITS)
                .unwrap_err()
                .to_string()
        };
        let broken = "EOF while parsing a string at line 1 column";
        assert_eq!(
            error(r#"{"appID":"h","mod"#),
            format!("Deserializing request: {broken} 17")
        );
        let half = r#"{"messages":[{"ro"#;
        assert_eq!(
            error(half),
            format!("Deserializing request: messages[0]: {broken} 17")
        );
    }

    #[test]
    fn a_prompt_is_read_with_its_formatting() {
        let request = parse(&format!("{PROMPT}}}")).unwrap();
        assert_eq!(request.app_id.as_str(), "a");
        assert_eq!(request.model, "m");
        assert_eq!(request.messages[0].content.as_str(), " hi\n");
        assert!(request.stream);
    }

    #[test]
    fn one_byte_order_mark_is_skipped() {
        assert!(parse(&format!("\u{feff}{PROMPT}}}")).is_ok());
        assert!(parse(&format!("\u{feff}\u{feff}{PROMPT}}}")).is_err());
    }

    #[test]
    fn other_fields_are_kept_byte_for_byte() {
        let body =
            format!(r#"{PROMPT},"stream":false,"options":{{ "seed" : 1e2 }},"think":"low"}}"#);
        let request = parse(&body).unwrap();
        let fields: Vec<_> = request
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.get()))
            .collect();
        assert_eq!(
            fields,
            [("options", r#"{ "seed" : 1e2 }"#), ("think", r#""low""#)]
        );
        assert!(!request.stream);
    }

    #[test]
    fn every_refusal_names_its_field() {
        let long = "x".repeat(156);
        let nested = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
        for (body, named) in [
            (String::new(), "the body is empty"),
            ("hello".into(), "expected value"),
            ("{".into(), "EOF"),
            ("[]".into(), "expected a JSON object"),
            (format!("{PROMPT}}} x"), "trailing characters"),
            (r#"{"model":"m","messages":[]}"#.into(), "missing field `appID`"),
            (r#"{"appID":null,"model":"m","messages":[]}"#.into(), "appID: invalid type: null"),
            (r#"{"appID":7,"model":"m","messages":[]}"#.into(), "appID: invalid type: integer `7`"),
            (r#"{"appID":"","model":"m","messages":[]}"#.into(), "appID: must not be empty"),
            (format!(r#"{{"appID":"{long}","model":"m","messages":[]}}"#), "appID: must be 1 to 155 characters long, has 156"),
            (r#"{"appID":"a\u0000","model":"m","messages":[]}"#.into(), "appID: must not contain a NUL"),
            (r#"{"appID":"..","model":"m","messages":[]}"#.into(), "appID: must not be `.` or `..`"),
            (r#"{"appID":"\ud800","model":"m","messages":[]}"#.into(), "appID: "),
            (r#"{"appid":"a","model":"m","messages":[]}"#.into(), "`appid`: write it as `appID`"),
            (r#"{"appID":"a","messages":[]}"#.into(), "missing field `model`"),
            (r#"{"appID":"a","model":null,"messages":[]}"#.into(), "model: invalid type: null"),
            (r#"{"appID":"a","model":"","messages":[]}"#.into(), "model: must not be empty"),
            (r#"{"appID":"a","model":"m"}"#.into(), "missing field `messages`"),
            (r#"{"appID":"a","model":"m","messages":"hi"}"#.into(), "messages: invalid type: string"),
            (r#"{"appID":"a","model":"m","messages":[["user","hi"]]}"#.into(), "messages[0]: invalid type: sequence"),
            (r#"{"appID":"a","model":"m","messages":[{"content":"hi"}]}"#.into(), "messages[0]: missing field `role`"),
            (r#"{"appID":"a","model":"m","messages":[{"role":"user"}]}"#.into(), "messages[0]: missing field `content`"),
            (r#"{"appID":"a","model":"m","messages":[{"role":"","content":"hi"}]}"#.into(), "messages[0].role: must not be empty"),
            (r#"{"appID":"a","model":"m","messages":[{"role":"user","content":"\u0000"}]}"#.into(), "messages[0].content: must not contain a NUL"),
            (r#"{"appID":"a","model":"m","messages":[{"role":"user","content":"x","images":[7]}]}"#.into(), "messages[0]: field `images`"),
            (format!(r#"{PROMPT},"stream":"no"}}"#), "stream: invalid type: string"),
            (format!(r#"{PROMPT},"stream":null}}"#), "stream: invalid type: null"),
            (format!(r#"{PROMPT},"model":"n"}}"#), "duplicate field `model`"),
            (format!(r#"{PROMPT},"Messages":[]}}"#), "`Messages`: write it as `messages`"),
            (format!(r#"{PROMPT},"me\u017f\u017fages":[]}}"#), "write it as `messages`"),
            (format!(r#"{PROMPT},"options":"\udc00"}}"#), "options: "),
            (format!(r#"{PROMPT},"options":{nested}}}"#), "options: recursion limit exceeded"),
            ("[".repeat(200_000), "expected a JSON object"),
        ] {
            let refusal = refusal(&body);
            assert!(refusal.starts_with("Deserializing request: "), "{refusal}");
            assert!(refusal.contains(named), "{refusal:?} does not name {named:?}");
        }
    }

    #[test]
    fn a_field_of_a_message_that_is_not_kept_must_say_nothing() {
        let body = |field: &str| {
            format!(
                r#"{{"appID":"a","model":"m","messages":[{{{field},"role":"user","content":"hi"}}]}}"#
            )
        };
        for name in [
            "images",
            "tool_calls",
            "tool_name",
            "tool_call_id",
            "thinking",
            "name",
        ] {
            for nothing in ["null", "[]", "[ \n\t]", r#""""#, r#"[],"Images":null"#] {
                let body = body(&format!(r#""{name}": {nothing} "#));
                assert_eq!(parse(&body).unwrap().messages[0].content.as_str(), "hi");
            }
            for something in [
                r#"["aGk="]"#,
                "[[]]",
                "[null]",
                "{}",
                r#"" ""#,
                "0",
                "false",
            ] {
                let refusal = refusal(&body(&format!(r#""{name}": {something}"#)));
                let named = format!("messages[0]: field `{name}` is not kept");
                assert!(refusal.contains(&named), "{something}: {refusal}");
            }
        }
        for role_or_content in [r#""content":null"#, r#""content":[]"#, r#""role":null"#] {
            let (name, _) = role_or_content.split_once(':').unwrap();
            let refusal = refusal(&body(role_or_content));
            assert!(refusal.contains(name.trim_matches('"')), "{refusal}");
        }
    }

    #[test]
    fn an_app_id_is_measured_in_characters() {
        let body = |length| {
            format!(
                r#"{{"appID":"{}","model":"m","messages":[]}}"#,
                "é".repeat(length)
            )
        };
        assert!(parse(&body(155)).is_ok());
        assert!(refusal(&body(156)).contains("has 156"));
    }

    #[test]
    fn a_body_and_its_messages_are_limited() {
        let body = |messages: usize| {
            let messages = vec![r#"{"role":"user","content":"hi"}"#; messages].join(",");
            format!(r#"{{"appID":"a","model":"m","messages":[{messages}]}}"#)
        };
        assert_eq!(parse(&body(3)).unwrap().messages.len(), 3);
        let refusal = refusal(&body(4));
        assert!(
            refusal.contains("messages: 4 of them, the operator's limit is 3 (max_messages)"),
            "{refusal}"
        );

        let body = body(1);
        let limits = |body_bytes| Limits {
            body_bytes,
            ..LIMITS
        };
        assert!(ChatRequest::parse(body.as_bytes(), &limits(body.len())).is_ok());
        let limit = body.len() - 1;
        assert_eq!(
            ChatRequest::parse(body.as_bytes(), &limits(limit)).unwrap_err(),
            InvalidRequest::TooLarge { limit }
        );
    }
}
