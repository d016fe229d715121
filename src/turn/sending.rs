//! What Ollama is to be sent, with a past that may be too large to be held before there is room for it.
//!
//! Ollama may take its requests slowly, and a conversation has megabytes: so an instance holds only some of them at
//! a time, and the turns of the others wait, which costs them little.

use std::time::Duration;

use super::Turn;
use crate::clock::{self, Ticker};
use crate::error::{Code, RelayError};
use crate::ollama::body::Body;
use crate::permit::Room;
use crate::store::Database;

/// How often a turn looks whether there is room. Turns do not wake each other.
const INTERVAL: Duration = Duration::from_millis(50);

/// A request to be sent.
pub(super) struct Sending {
    body: Body,
    /// Whether the past is yet to be read.
    is_incomplete: bool,
    room: Option<Room>,
}

impl Sending {
    /// The body with its past, where that was read.
    pub(super) fn new(body: Body, past: Option<String>, mut room: Option<Room>) -> Self {
        if let Some(room) = &mut room {
            room.resize(past.as_ref().map_or(0, String::len));
        }
        Self {
            is_incomplete: past.is_none(),
            body: body.with_past(past.unwrap_or_default()),
            room,
        }
    }

    /// The whole body, once there is room for it.
    pub(super) async fn complete(self, turn: &Turn) -> Result<(Body, Option<Room>), RelayError> {
        if !self.is_incomplete {
            return Ok((self.body, self.room));
        }
        drop(self.room);
        let mut room = loop {
            match Room::take(turn.max_bytes) {
                Some(room) => break room,
                None => clock::sleep(INTERVAL).await,
            }
        };
        let mut ticker = Ticker::new(turn.config.timeouts.tick());
        let limit = turn.config.timeouts.database;
        let read = async |store: &Database| {
            store
                .read_past(&turn.name, turn.attempt, turn.max_bytes)
                .await
        };
        let past = turn.store.retry(&mut ticker, limit, read).await;
        let past = past.map_err(|error| {
            RelayError::new(
                Code::DatabaseFailed,
                format!(
                    "The conversation could not be read, and Ollama was not called; the prompt is stored. {}",
                    error.for_client()
                ),
            )
        })?;
        room.resize(past.messages.len());
        let body = match past.has_prompt {
            true => self.body.with_prompt(String::new()),
            false => self.body,
        };
        Ok((body.with_past(past.messages), Some(room)))
    }
}
