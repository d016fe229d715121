//! The vocabulary of a conversation, shared by all other modules: whose it is, who speaks, what is said.
//!
//! The newtypes cannot hold a value that the database would refuse, so nothing after the parsing of a
//! request checks again. Knows no HTTP and no SQL, and of JSON only that of its own types.

use std::fmt;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Characters in the longest `appID`: the width of the `appid` column.
pub const APP_ID_MAX_CHARS: usize = 155;
/// Characters in the longest name of an owner.
pub const OWNER_MAX_CHARS: usize = 155;
/// Characters in the longest role.
pub const ROLE_MAX_CHARS: usize = 64;
/// The role of a completion.
pub const ASSISTANT: &str = "assistant";
/// The role of a tool's result.
const TOOL: &str = "tool";

/// Why a text cannot be part of a conversation, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidText {
    /// Empty where text is required.
    #[error("must not be empty")]
    Empty,
    /// More characters than fit.
    #[error("must be 1 to {max} characters long, has {got}")]
    TooLong {
        /// Characters that fit.
        max: usize,
        /// Characters in the text.
        got: usize,
    },
    /// Holds U+0000.
    #[error("must not contain a NUL character (\\u0000): PostgreSQL cannot hold it")]
    Nul,
    /// A name that URLs cannot hold.
    #[error("must not be `.` or `..`: URLs give these another meaning")]
    Dots,
}

fn bounded(text: String, max: usize) -> Result<String, InvalidText> {
    if text.is_empty() {
        return Err(InvalidText::Empty);
    }
    // There are never more characters than bytes, so most texts need not be counted.
    if text.len() > max {
        let got = text.chars().count();
        if got > max {
            return Err(InvalidText::TooLong { max, got });
        }
    }
    without_nul(text)
}

fn without_nul(text: String) -> Result<String, InvalidText> {
    if text.as_bytes().contains(&0) {
        return Err(InvalidText::Nul);
    }
    Ok(text)
}

/// Whose a conversation is: somebody that the operator's settings name, or, where they name nobody, the empty one. Shared
/// by all that one request does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner(Rc<str>);

impl Owner {
    /// The name as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name of 1 to [`OWNER_MAX_CHARS`] characters, no NUL.
impl TryFrom<&str> for Owner {
    type Error = InvalidText;

    fn try_from(name: &str) -> Result<Self, InvalidText> {
        let name = bounded(name.to_owned(), OWNER_MAX_CHARS)?;
        Ok(Self(name.into()))
    }
}

/// What a conversation is known by. Two owners may choose the same `appID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationName {
    /// Whose it is.
    pub owner: Owner,
    /// What the owner calls it.
    pub app_id: AppId,
}

/// The name of a conversation: 1 to [`APP_ID_MAX_CHARS`] characters, no NUL. It is a segment of a path too, so `.` and
/// `..` are refused, which clients resolve even if they are encoded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AppId(String);

impl AppId {
    /// The name as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AppId {
    type Error = InvalidText;

    fn try_from(text: String) -> Result<Self, InvalidText> {
        match text.as_str() {
            "." | ".." => Err(InvalidText::Dots),
            _ => bounded(text, APP_ID_MAX_CHARS).map(Self),
        }
    }
}

/// Who speaks: `user`, `system`, `assistant` or any other name of 1 to [`ROLE_MAX_CHARS`]
/// characters, no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Role(String);

impl Role {
    /// The role as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Role {
    /// Whether what a model is sent may begin with a message of this role: a reply or a tool's result belongs to
    /// what precedes it.
    pub fn may_begin_a_context(&self) -> bool {
        ![ASSISTANT, TOOL].contains(&self.as_str())
    }
}

impl TryFrom<String> for Role {
    type Error = InvalidText;

    fn try_from(text: String) -> Result<Self, InvalidText> {
        bounded(text, ROLE_MAX_CHARS).map(Self)
    }
}

/// The text of a message, exactly as it was sent; may be empty, holds no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Content(String);

impl Content {
    /// The text as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Content {
    type Error = InvalidText;

    fn try_from(text: String) -> Result<Self, InvalidText> {
        without_nul(text).map(Self)
    }
}

/// One message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// How a stored reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyStatus {
    /// Ollama sent `done`.
    Complete,
    /// The reply broke off; the row holds what the client was sent.
    Partial,
}

impl ReplyStatus {
    /// The value of the `status` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
        }
    }
}

/// What the model is sent of a conversation, as the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Turns, this one included.
    pub turns: u64,
    /// Bytes of the contents, this turn's included.
    pub bytes: u64,
    /// Whether older turns were left out.
    pub is_cut: bool,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turns, bytes, .. } = self;
        let more = if self.is_cut { "+" } else { "" };
        write!(f, "turns={turns}/{turns}{more}, bytes={bytes}")
    }
}

/// Appends messages to `json`, each `{"role": …, "content": …}`, with commas in between.
///
/// The past of a conversation is written **by the database** in the same form. The two ways give equal values
/// for every text (the end-to-end tests compare them on both databases).
pub fn push_json<'a>(json: &mut Vec<u8>, messages: impl IntoIterator<Item = &'a Message>) {
    #[derive(Serialize)]
    struct Object<'a> {
        role: &'a str,
        content: &'a str,
    }
    for (i, message) in messages.into_iter().enumerate() {
        if i > 0 {
            json.push(b',');
        }
        let (role, content) = (message.role.as_str(), message.content.as_str());
        // Serialising strings into memory cannot fail.
        let _ = serde_json::to_writer(&mut *json, &Object { role, content });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.to_owned().try_into().unwrap(),
            content: content.to_owned().try_into().unwrap(),
        }
    }

    #[test]
    fn a_conversation_is_not_named_by_dots_alone_that_urls_resolve() {
        let named = |name: &str| AppId::try_from(name.to_owned());
        for dots in [".", ".."] {
            assert_eq!(named(dots), Err(InvalidText::Dots));
        }
        for name in ["...", ".a", "a.", "../a", "/", "%2e"] {
            assert_eq!(named(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn messages_are_objects_with_commas_in_between() {
        let mut json = b"[".to_vec();
        push_json(&mut json, &[message("system", "a"), message("user", "b")]);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"[{"role":"system","content":"a"},{"role":"user","content":"b"}"#
        );
    }

    #[test]
    fn a_text_that_needs_escapes_is_read_back_as_it_was() {
        let nasty = "\"}],\\ \u{1}\u{7f}\u{2028}\r\n\t😀\u{fffd}";
        let mut json = Vec::new();
        push_json(&mut json, &[message(nasty, nasty)]);
        let read: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(read, serde_json::json!({"role": nasty, "content": nasty}));
    }

    #[test]
    fn only_before_a_reply_or_a_tools_result_a_conversation_cannot_be_cut() {
        let may_begin = |role: &str| message(role, "").role.may_begin_a_context();
        assert!(
            ["user", "system", "Tool", "narrator"]
                .into_iter()
                .all(may_begin)
        );
        assert!(!["assistant", "tool"].into_iter().any(may_begin));
    }

    #[test]
    fn a_context_says_what_is_sent_and_whether_that_is_all() {
        let mut context = Context {
            turns: 12,
            bytes: 18_211,
            is_cut: false,
        };
        assert_eq!(context.to_string(), "turns=12/12, bytes=18211");
        context.is_cut = true;
        assert_eq!(context.to_string(), "turns=12/12+, bytes=18211");
    }
}
