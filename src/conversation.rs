//! The vocabulary of a conversation, shared by all other modules: whose it is, who speaks, what is said.
//!
//! The newtypes cannot hold a value that the database would refuse, so nothing after the parsing of a
//! request checks again. Knows no HTTP and no SQL, and of JSON only that of its own types.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Characters in the longest `appID`: the width of the `appid` column.
pub const APP_ID_MAX_CHARS: usize = 155;
/// Characters in the longest role.
pub const ROLE_MAX_CHARS: usize = 64;
/// The role of a completion.
pub const ASSISTANT: &str = "assistant";

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

/// The name of a conversation: 1 to [`APP_ID_MAX_CHARS`] characters, no NUL.
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
        bounded(text, APP_ID_MAX_CHARS).map(Self)
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

/// Messages as a JSON array under construction, each `{"role": …, "content": …}`: what a model is sent
/// of a conversation.
///
/// The past of a conversation is written **by the database**: its SQL makes the JSON of all earlier
/// messages in one value, which [`push_json`](Self::push_json) appends unread. Only the new prompt, and
/// a past that is read row by row, pass through [`push`](Self::push). The two ways give equal values for
/// every text (the end-to-end tests compare them on both databases).
#[derive(Debug)]
pub struct Messages {
    json: Vec<u8>,
    /// The length of what precedes the first message.
    start: usize,
}

impl Messages {
    /// An empty array, to be written after the bytes that are in `buffer` already: so a conversation of
    /// megabytes need not be copied to get something in front of it.
    pub fn append_to(mut buffer: Vec<u8>) -> Self {
        buffer.push(b'[');
        Self {
            start: buffer.len(),
            json: buffer,
        }
    }

    /// Appends a message.
    pub fn push(&mut self, role: &str, content: &str) {
        #[derive(Serialize)]
        struct Object<'a> {
            role: &'a str,
            content: &'a str,
        }
        self.separate();
        // Serialising strings into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.json, &Object { role, content });
    }

    /// Appends messages that are JSON objects already, separated by commas; none, if it is empty.
    pub fn push_json(&mut self, messages: &str) {
        if messages.is_empty() {
            return;
        }
        self.separate();
        self.json.extend_from_slice(messages.as_bytes());
    }

    /// Removes the messages, for the conversation to be read again.
    pub fn clear(&mut self) {
        self.json.truncate(self.start);
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.json.len() == self.start
    }

    /// Closes the array and returns the buffer with it.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.push(b']');
        self.json
    }

    fn separate(&mut self) {
        if !self.is_empty() {
            self.json.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(messages: Messages) -> String {
        String::from_utf8(messages.finish()).unwrap()
    }

    #[test]
    fn messages_are_separated_however_they_were_added() {
        let mut messages = Messages::append_to(b"{\"messages\":".to_vec());
        messages.push("system", "gone");
        messages.clear();
        assert!(messages.is_empty());
        messages.push_json("");
        assert!(messages.is_empty());
        messages.push_json(r#"{"role":"user","content":"a"},{"role":"assistant","content":"b"}"#);
        messages.push("user", "c");
        messages.push_json(r#"{"role":"assistant","content":"d"}"#);
        assert_eq!(
            text(messages),
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]"#
        );
    }

    #[test]
    fn no_message_is_an_empty_array() {
        assert_eq!(text(Messages::append_to(Vec::new())), "[]");
    }

    #[test]
    fn a_text_that_needs_escapes_is_read_back_as_it_was() {
        let nasty = "\"}],\\ \u{1}\u{7f}\u{2028}\r\n\t😀\u{fffd}";
        let mut messages = Messages::append_to(Vec::new());
        messages.push(nasty, nasty);
        let read: serde_json::Value = serde_json::from_str(&text(messages)).unwrap();
        assert_eq!(read, serde_json::json!([{"role": nasty, "content": nasty}]));
    }
}
