//! The client's request: JSON text -> [`ChatRequest`], or a refusal that names the field.
//!
//! Everything that a later step could choke on is refused here, before anything is stored. Knows
//! no database, no Ollama, no WASI; [`crate::http`] reads the bytes.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::conversation::{AppId, Content, Message, Role};

/// A valid request.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub app_id: AppId,
    /// The model, as Ollama names it.
    pub model: String,
    /// The prompt: what is new in this turn. May be empty where the conversation is not.
    pub messages: Vec<Message>,
    /// Whether the reply is wanted token by token.
    pub stream: bool,
    /// Every other field (`options`, `format`, `tools`…), for Ollama, byte for byte.
    pub fields: Vec<(String, Box<RawValue>)>,
}

/// Why a request is refused; names the field and says what it must be.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidRequest(String);

impl InvalidRequest {
    /// A refusal of `field`.
    pub fn of(field: &str, why: impl fmt::Display) -> Self {
        Self(format!("{field}: {why}"))
    }
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deserializing request: {}", self.0)
    }
}

impl std::error::Error for InvalidRequest {}

impl ChatRequest {
    /// Reads the body of a request.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        if body.trim_ascii().is_empty() {
            return Err(InvalidRequest(
                "the body is empty: send a JSON object with `appID`, `model` and `messages`".into(),
            ));
        }
        let json = std::str::from_utf8(body)
            .map_err(|error| InvalidRequest(format!("the body is not UTF-8: {error}")))?;
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let request: Self =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
                let path = error.path().to_string();
                let why = error.into_inner();
                match path.as_str() {
                    "." => InvalidRequest(why.to_string()),
                    path => InvalidRequest::of(path, why),
                }
            })?;
        deserializer
            .end()
            .map_err(|error| InvalidRequest(error.to_string()))?;
        Ok(request)
    }
}

/// The fields that are ours. Ollama reads names without regard to case, so other spellings of them
/// must not get through to it.
const OUR_FIELDS: [&str; 4] = ["appID", "model", "messages", "stream"];

/// Whether two names are one to Go's `encoding/json`: case is folded by Unicode's simple rules, by
/// which two letters beyond ASCII are an `s` and a `k`.
fn is_same_to_ollama(name: &str, ours: &str) -> bool {
    let folded = name.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(ours.chars().map(|c| c.to_ascii_lowercase()))
}

impl<'de> Deserialize<'de> for ChatRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RequestVisitor;

        impl<'de> Visitor<'de> for RequestVisitor {
            type Value = ChatRequest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object with `appID`, `model` and `messages`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut app_id, mut model, mut messages, mut stream) = (None, None, None, None);
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "appID" => once(&mut app_id, "appID", map.next_value()?)?,
                        "model" => once(&mut model, "model", map.next_value::<Model>()?)?,
                        "messages" => {
                            once(
                                &mut messages,
                                "messages",
                                map.next_value::<Vec<PromptMessage>>()?,
                            )?;
                        }
                        "stream" => once(&mut stream, "stream", map.next_value()?)?,
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
                            fields.push((name, value));
                        }
                    }
                }
                Ok(ChatRequest {
                    app_id: app_id.ok_or_else(|| de::Error::missing_field("appID"))?,
                    model: model.ok_or_else(|| de::Error::missing_field("model"))?.0,
                    messages: messages
                        .ok_or_else(|| de::Error::missing_field("messages"))?
                        .into_iter()
                        .map(|message| message.0)
                        .collect(),
                    stream: stream.unwrap_or(true),
                    fields,
                })
            }
        }

        deserializer.deserialize_map(RequestVisitor)
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

/// A field for Ollama. Its text goes on as it came, so it is read in full first: skipping it
/// would let lone surrogates and bottomless nesting through.
struct Passed(Box<RawValue>);

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        serde_json::from_str::<serde_json::Value>(raw.get()).map_err(de::Error::custom)?;
        Ok(Self(raw))
    }
}

/// A message of the prompt: an object with `role` and `content` and nothing else, since nothing
/// else is kept yet.
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

    fn refusal(body: &str) -> String {
        ChatRequest::parse(body.as_bytes())
            .expect_err(body)
            .to_string()
    }

    const PROMPT: &str =
        r#"{"appID":"a","model":"m","messages":[{"role":"user","content":" hi\n"}]"#;

    #[test]
    fn a_prompt_is_read_with_its_formatting() {
        let request = ChatRequest::parse(format!("{PROMPT}}}").as_bytes()).unwrap();
        assert_eq!(request.app_id.as_str(), "a");
        assert_eq!(request.model, "m");
        assert_eq!(request.messages[0].content.as_str(), " hi\n");
        assert!(request.stream);
    }

    #[test]
    fn other_fields_are_kept_byte_for_byte() {
        let body =
            format!(r#"{PROMPT},"stream":false,"options":{{ "seed" : 1e2 }},"think":"low"}}"#);
        let request = ChatRequest::parse(body.as_bytes()).unwrap();
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
            ("[]".into(), "expected a JSON object with `appID`"),
            (format!("{PROMPT}}} x"), "trailing characters"),
            (r#"{"model":"m","messages":[]}"#.into(), "missing field `appID`"),
            (r#"{"appID":null,"model":"m","messages":[]}"#.into(), "appID: invalid type: null"),
            (r#"{"appID":7,"model":"m","messages":[]}"#.into(), "appID: invalid type: integer `7`"),
            (r#"{"appID":"","model":"m","messages":[]}"#.into(), "appID: must not be empty"),
            (format!(r#"{{"appID":"{long}","model":"m","messages":[]}}"#), "appID: must be 1 to 155 characters long, has 156"),
            (r#"{"appID":"a\u0000","model":"m","messages":[]}"#.into(), "appID: must not contain a NUL"),
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
            (r#"{"appID":"a","model":"m","messages":[{"role":"user","content":"x","images":[]}]}"#.into(), "messages[0]: field `images`"),
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
    fn an_app_id_is_measured_in_characters() {
        let body = |length| {
            format!(
                r#"{{"appID":"{}","model":"m","messages":[]}}"#,
                "é".repeat(length)
            )
        };
        assert!(ChatRequest::parse(body(155).as_bytes()).is_ok());
        assert!(refusal(&body(156)).contains("has 156"));
    }
}
