//! The words of a conversation: who it belongs to, who spoke, what was said.
//!
//! The newtypes cannot hold a value that the database would refuse, so nothing past the request
//! reader checks again. Knows no HTTP, no SQL, no JSON but its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Characters in the longest `appID`: the width of the `appid` column.
pub const APP_ID_MAX_CHARS: usize = 155;
/// Characters in the longest role.
pub const ROLE_MAX_CHARS: usize = 64;
/// The role of a completion.
pub const ASSISTANT: &str = "assistant";

/// Why a text cannot be part of a conversation; says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidText {
    /// Empty where something must stand.
    Empty,
    /// More characters than fit.
    TooLong {
        /// Characters that fit.
        max: usize,
        /// Characters that came.
        got: usize,
    },
    /// Holds U+0000.
    Nul,
}

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("must not be empty"),
            Self::TooLong { max, got } => {
                write!(f, "must be 1 to {max} characters long, has {got}")
            }
            Self::Nul => {
                f.write_str("must not contain a NUL character (\\u0000): PostgreSQL cannot hold it")
            }
        }
    }
}

impl std::error::Error for InvalidText {}

fn bounded(text: String, max: usize) -> Result<String, InvalidText> {
    if text.is_empty() {
        return Err(InvalidText::Empty);
    }
    // Bytes bound characters from above, so the count is only taken where it can matter.
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

/// Names a conversation: 1 to [`APP_ID_MAX_CHARS`] characters, no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AppId(String);

impl AppId {
    /// The name as the client wrote it.
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
/// characters that the model's template knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Role(String);

impl Role {
    /// The role as it is stored and sent.
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

/// What is said in a prompt, kept exactly as it came; may be empty, holds no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Content(String);

impl Content {
    /// The text as it is stored and sent.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ReplyStatus {
    /// Ollama said `done`.
    Complete,
    /// It broke off; the row holds what the client was shown.
    Partial,
}

impl ReplyStatus {
    /// The word in the `status` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
        }
    }
}
