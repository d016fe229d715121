//! A conversation on its way into a request, from either database: whole, as the JSON that the database
//! makes of it, or row by row.

use spin_sdk::wit_bindgen::{StreamReader, StreamResult};

use super::{NewTurn, StoreError, TurnStart};
use crate::ollama::body::ChatBody;

/// Rows asked for at once.
const ROWS: usize = 16;

/// Reads rows to their end.
pub(super) async fn each<R>(
    mut rows: StreamReader<R>,
    mut take: impl FnMut(R) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut batch = Vec::with_capacity(ROWS);
    loop {
        let status;
        (status, batch) = rows.read(batch).await;
        for row in batch.drain(..) {
            take(row)?;
        }
        if status == StreamResult::Dropped {
            return Ok(());
        }
    }
}

/// A turn that is stored now: `past` is the JSON of what was said before, and its prompt comes last.
pub(super) fn whole(body: &mut ChatBody, past: &str, turn: &NewTurn, start: i64) -> TurnStart {
    body.push_json(past);
    for (_, message) in &turn.prompt {
        body.push(message.role.as_str(), message.content.as_str());
    }
    TurnStart(start)
}

/// Whether a result did not fit into the host: Spin hands out rows of up to 128 MiB. The prompt is
/// stored then, and its conversation can be read row by row.
pub(super) fn is_too_large(why: &str) -> bool {
    why.contains("exceeds limit")
}

/// A conversation that is being read row by row at the beginning of a turn.
pub(super) struct History<'a> {
    body: &'a mut ChatBody,
    /// Messages of the turn's own prompt that must come.
    prompt: usize,
    /// Those that have come.
    own: usize,
    start: Option<TurnStart>,
}

impl<'a> History<'a> {
    /// Nothing read yet, for a turn whose prompt has `prompt` messages.
    pub(super) fn new(body: &'a mut ChatBody, prompt: usize) -> Self {
        Self {
            body,
            prompt,
            own: 0,
            start: None,
        }
    }

    /// Takes the next row. The turn's own rows carry its start; a row without a message carries
    /// that alone, or is an older server's and says nothing.
    pub(super) fn row(&mut self, start: Option<i64>, message: Option<(&str, &str)>) {
        if self.own > 0 && start.is_none() {
            // A turn that began after this one: between two tries, or two statements.
            return;
        }
        if let Some(at) = start {
            self.start = Some(TurnStart(at));
        }
        if let Some((role, content)) = message {
            self.body.push(role, content);
            self.own += usize::from(start.is_some());
        }
    }

    /// All rows were read: when the turn began, if any row says so.
    pub(super) fn end(self) -> Result<Option<TurnStart>, StoreError> {
        if self.own < self.prompt {
            // An earlier try of this turn was committed while this one ran.
            return Err(StoreError::Unavailable {
                why: "the conversation came back without its new prompt".into(),
            });
        }
        Ok(self.start)
    }
}

/// A row that the migrations did not make possible.
pub(super) fn unexpected_row() -> StoreError {
    StoreError::Failed {
        why: "the table `chatts` has columns of unexpected types".into(),
    }
}
