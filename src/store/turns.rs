//! What is asked of either database about turns, and how its answers are read. The two answer with the same columns.
//!
//! Every call can be made again after its answer was lost: all ids are the caller's, and an attempt is the fence. One
//! that is no longer its turn's changes nothing.

use std::time::Duration;

use uuid::Uuid;

use super::cells::{Row, required};
use super::{StoreError, Window};
use crate::conversation::{Context, ConversationName, Message};
use crate::reply::position::{Attempt, Position};

/// The name of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TurnName {
    pub(crate) conversation: ConversationName,
    pub(crate) turn: Uuid,
}

/// What a model is asked besides its context.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) model: Option<String>,
    pub(crate) stream: Option<bool>,
    /// The other fields of the request, a JSON object.
    pub(crate) fields: Option<String>,
}

/// What makes a repeated request known: hashes, in hexadecimal.
#[derive(Debug)]
pub(crate) struct Repeat {
    pub(crate) key: String,
    pub(crate) body: String,
}

/// How many attempts an owner may have; 0: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerLimits {
    /// That begin within a minute.
    pub(crate) per_minute: u64,
    /// That run at the same time.
    pub(crate) running: u64,
}

/// The limit that keeps an owner from beginning an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limited {
    /// Another one may begin in so many seconds.
    PerMinute(u64),
    /// Another one may begin when one has ended.
    Running,
}

/// An attempt to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewAttempt {
    pub(crate) attempt: Attempt,
    /// Of the reply's row, if the turn has none yet.
    pub(crate) reply_id: Uuid,
    /// How long it is taken to run after its last checkpoint.
    pub(crate) lease: Duration,
    /// No other exclusive one may run in its conversation.
    pub(crate) is_exclusive: bool,
    /// Whether a reply that its host cannot finish is stored with its white space collapsed.
    pub(crate) collapses: bool,
    pub(crate) limits: OwnerLimits,
}

/// A turn to begin, or to begin again where its key is known.
#[derive(Debug)]
pub(crate) struct NewTurn {
    /// What precedes the prompt.
    pub(crate) window: Window,
    /// The prompt's messages, each with the id of its row.
    pub(crate) prompt: Vec<(Uuid, Message)>,
    pub(crate) asked: Asked,
    pub(crate) repeat: Option<Repeat>,
    pub(crate) attempt: NewAttempt,
}

/// What became of a turn that was to begin.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The attempt runs.
    Started(Box<Started>),
    /// Another attempt of the turn runs.
    Follow(Uuid),
    /// The turn has ended.
    Replay(Uuid),
    /// The key came with another body before.
    Reused,
    /// The turn was deleted.
    Deleted,
    /// The owner is at a limit; nothing is stored.
    Limited(Limited),
    /// Another exclusive attempt runs in the conversation; nothing is stored.
    Busy,
    /// What may not be left out is more than the model is sent; nothing is stored.
    TooLarge,
    /// Neither the prompt nor the conversation has a message; nothing is stored.
    Empty,
    /// There is no such turn.
    Unknown,
    /// Nobody knows which model to ask.
    NoModel,
}

/// An attempt that has begun.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) turn: Uuid,
    pub(crate) context: Context,
    /// What precedes the prompt, as JSON objects with commas in between. `None` where it is larger than was asked for.
    pub(crate) past: Option<String>,
    /// Whether the turn was stored before, so that its own prompt counts and not the caller's.
    pub(crate) is_stored: bool,
    /// Its prompt, likewise, unless that is part of the past.
    pub(crate) prompt: Option<String>,
    /// What the model is asked, of a turn that is asked again.
    pub(crate) asked: Asked,
}

/// What precedes the prompt of a turn that has begun.
#[derive(Debug)]
pub(crate) struct Past {
    /// JSON objects with commas in between.
    pub(crate) messages: String,
    /// Whether its own prompt is among them.
    pub(crate) has_prompt: bool,
}

/// The columns of the databases' answer to a begin.
pub(super) struct BeginRow {
    pub(super) outcome: String,
    pub(super) turn: Option<Uuid>,
    pub(super) turns: u64,
    pub(super) bytes: Option<u64>,
    pub(super) is_cut: bool,
    pub(super) past: Option<String>,
    pub(super) prompt: Option<String>,
    /// Seconds; 0: when another attempt has ended.
    pub(super) retry_after: u64,
    pub(super) is_stored: bool,
    pub(super) asked: Asked,
}

impl BeginRow {
    pub(super) fn into_begun(self) -> Result<Begun, StoreError> {
        Ok(match self.outcome.as_str() {
            "started" => Begun::Started(Box::new(Started {
                turn: required(self.turn)?,
                context: Context {
                    turns: self.turns,
                    bytes: required(self.bytes)?,
                    is_cut: self.is_cut,
                },
                past: match self.past {
                    // The turn's own prompt is all there is.
                    None if self.turns <= 1 && (!self.is_stored || self.prompt.is_some()) => {
                        Some(String::new())
                    }
                    past => past,
                },
                is_stored: self.is_stored,
                prompt: self.prompt,
                asked: self.asked,
            })),
            "follow" => Begun::Follow(required(self.turn)?),
            "replay" => Begun::Replay(required(self.turn)?),
            "reused" => Begun::Reused,
            "deleted" => Begun::Deleted,
            "limited" => Begun::Limited(match self.retry_after {
                0 => Limited::Running,
                seconds => Limited::PerMinute(seconds),
            }),
            "busy" => Begun::Busy,
            "too_large" => Begun::TooLarge,
            "empty" => Begun::Empty,
            "unknown" => Begun::Unknown,
            "no_model" => Begun::NoModel,
            _ => return Err(StoreError::unexpected_row()),
        })
    }
}

/// How a turn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum State {
    Running,
    Complete,
    Stopped,
    Partial,
    Failed,
}

impl State {
    /// As it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What an attempt came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) name: TurnName,
    pub(crate) attempt: Attempt,
    pub(crate) state: State,
    /// Ollama's final line, as it was sent.
    pub(crate) final_line: Option<String>,
    /// The error that ended it: its code and its text.
    pub(crate) error: Option<(&'static str, String)>,
    /// Ollama's metrics, a JSON object.
    pub(crate) usage: Option<String>,
    pub(crate) reply: Option<StoredReply>,
}

/// A reply to be stored.
#[derive(Debug)]
pub(crate) struct StoredReply {
    /// What the model is shown again.
    pub(crate) message: String,
    pub(crate) status: State,
    /// What was generated, where that differs.
    pub(crate) raw: Option<String>,
    pub(crate) thinking: Option<String>,
    /// JSON objects with commas in between.
    pub(crate) calls: Option<String>,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Committed {
    /// It is the turn's outcome.
    Stored,
    /// An older reply stands: the turn is what it was.
    Kept,
    /// Another attempt has taken the turn over.
    Superseded,
    /// The turn was deleted, or its reply.
    Deleted,
    /// Nothing is stored: it broke off, but a stop had been asked for.
    ToStop,
}

/// What an attempt generated since its last checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) name: TurnName,
    pub(crate) attempt: Attempt,
    /// What is believed to be stored.
    pub(crate) from: Position,
    pub(crate) content: String,
    pub(crate) thinking: String,
    /// JSON objects with commas in between, and how many there are with them.
    pub(crate) calls: String,
    pub(crate) to_calls: usize,
}

/// What the database says of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// It goes on; so much is stored.
    GoesOn(Position),
    /// It is to stop.
    Stop,
    /// It is no longer the turn's.
    Gone,
}

impl Checked {
    /// From `outcome, content, thinking, calls`.
    pub(super) fn read(row: &mut Row) -> Result<Self, StoreError> {
        match required(row.text()?)?.as_str() {
            "ok" => Ok(Self::GoesOn(position(row)?)),
            "stop" => Ok(Self::Stop),
            "gone" => Ok(Self::Gone),
            _ => Err(StoreError::unexpected_row()),
        }
    }
}

fn position(row: &mut Row) -> Result<Position, StoreError> {
    Ok(Position {
        content: row.size()?,
        thinking: row.size()?,
        calls: row.size()?,
    })
}

/// A turn that somebody follows, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub(crate) name: TurnName,
    pub(crate) attempt: Attempt,
    pub(crate) known: Position,
}

/// What is new of a turn that is followed.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) standing: Standing,
    /// The attempt that is there now.
    pub(crate) attempt: Option<Uuid>,
    /// Where the texts begin.
    pub(crate) from: Position,
    pub(crate) content: String,
    pub(crate) thinking: String,
    pub(crate) calls: String,
}

/// Whether a turn that is followed goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Standing {
    Running,
    /// The lease of its attempt has run out.
    Orphaned,
    Ended,
    Deleted,
}

impl News {
    /// From the columns after `number`.
    pub(super) fn read(row: &mut Row) -> Result<Self, StoreError> {
        let standing = required(row.text()?)?.parse();
        let attempt = row.id()?;
        row.skip();
        Ok(Self {
            standing: standing.map_err(|_| StoreError::unexpected_row())?,
            attempt,
            from: position(row)?,
            content: row.text()?.unwrap_or_default(),
            thinking: row.text()?.unwrap_or_default(),
            calls: row.text()?.unwrap_or_default(),
        })
    }
}

/// A turn as it stands.
#[derive(Debug)]
pub(crate) struct TurnView {
    pub(crate) state: State,
    pub(crate) attempt: Option<Uuid>,
    /// Microseconds since the Unix epoch.
    pub(crate) started: Option<i64>,
    pub(crate) ended: Option<i64>,
    pub(crate) code: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) final_line: Option<String>,
    pub(crate) usage: Option<String>,
    pub(crate) asked: Asked,
    /// What the attempt generated, so far where it runs.
    pub(crate) content: String,
    pub(crate) thinking: String,
    pub(crate) calls: String,
}

impl TurnView {
    pub(super) fn read(row: &mut Row) -> Result<Self, StoreError> {
        row.skip();
        let state = required(row.text()?)?.parse();
        let attempt = row.id()?;
        let (started, ended) = (row.integer()?, row.integer()?);
        let (code, error) = (row.text()?, row.text()?);
        let (final_line, usage) = (row.text()?, row.text()?);
        let asked = read_asked(row)?;
        row.skip();
        row.skip();
        let (message, raw) = (row.text()?, row.text()?);
        Ok(Self {
            state: state.map_err(|_| StoreError::unexpected_row())?,
            attempt,
            started,
            ended,
            code,
            error,
            final_line,
            usage,
            asked,
            content: raw.or(message).unwrap_or_default(),
            thinking: row.text()?.unwrap_or_default(),
            calls: row.text()?.unwrap_or_default(),
        })
    }
}

/// From `model, stream, request`.
pub(super) fn read_asked(row: &mut Row) -> Result<Asked, StoreError> {
    Ok(Asked {
        model: row.text()?,
        stream: row.integer()?.map(|stream| stream != 0),
        fields: row.text()?,
    })
}

/// What a request to stop a turn found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Stopped {
    /// Its attempt is to end.
    Running,
    Ended,
    Unknown,
}

/// A message for people.
#[derive(Debug)]
pub(crate) struct PageMessage {
    pub(crate) id: Uuid,
    pub(crate) turn: Uuid,
    pub(crate) role: String,
    /// As it was generated.
    pub(crate) content: String,
    /// Microseconds since the Unix epoch.
    pub(crate) time: Option<i64>,
    pub(crate) status: Option<String>,
    pub(crate) thinking: Option<String>,
    pub(crate) calls: Option<String>,
    pub(crate) usage: Option<String>,
}

impl PageMessage {
    /// From `id, turn, role, content, time, status, thinking, calls, usage`; `None` where the first is null.
    pub(super) fn read(row: &mut Row) -> Result<Option<Self>, StoreError> {
        let Some(id) = row.id()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            id,
            turn: required(row.id()?)?,
            role: row.text()?.unwrap_or_default(),
            content: row.text()?.unwrap_or_default(),
            time: row.integer()?,
            status: row.text()?,
            thinking: row.text()?,
            calls: row.text()?,
            usage: row.text()?,
        }))
    }
}

/// A page of a conversation.
#[derive(Debug)]
pub(crate) struct Page {
    /// Oldest first.
    pub(crate) messages: Vec<PageMessage>,
    /// The newest turn that runs.
    pub(crate) running: Option<Uuid>,
    /// Whether older messages stand before it.
    pub(crate) has_more: bool,
}

/// What to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    Turn(Uuid),
    Reply(Uuid),
    /// It and all later ones.
    From(Uuid),
    Conversation,
}
