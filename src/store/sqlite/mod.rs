//! The adapter for SQLite, through `spin:sqlite`.
//!
//! SQLite has no writing CTE, but what an `INSERT` returns may be a query: so a turn begins with one
//! statement here too.

use std::time::Duration;

use spin_sdk::sqlite::Value;
use uuid::Uuid;

use super::history::{self, History};
use super::phrases::{self, contains};
use super::{Begun, Kind, NewTurn, Reply, StoreError, TurnStart, microseconds, schema};
use crate::conversation::{ASSISTANT, AppId, Messages};

mod connection;
mod error;

use connection::Call;

/// Inserts the prompt and returns the turn's start for each message that is new, and with the first of
/// them the earlier messages as JSON with commas in between, as they go into the request to the model.
/// Whether the new rows are visible already when that is gathered is undefined, so they are left out by
/// their turn. The start of a turn is after all that the conversation had. A row of an older server has no
/// turn and counts by its time; the index `chatts_conversation` is on the very expression for it.
const BEGIN: &str = include_str!("begin.sql");

/// For where the prompt is there already, since an earlier try was committed and its answer lost, and where
/// the conversation is too large for one value.
const READ: &str = include_str!("read.sql");
const READ_WITHOUT_PROMPT: &str = include_str!("read_without_prompt.sql");

const COMMIT: &str = include_str!("commit.sql");
const LEASE: &str = include_str!("lease.sql");
const RENEW_LEASE: &str = include_str!("renew_lease.sql");
const END_LEASE: &str = include_str!("end_lease.sql");

/// Conversations in the host's SQLite database `default`.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite;

impl Sqlite {
    pub(super) async fn begin_turn(
        &self,
        turn: &NewTurn,
        messages: &mut Messages,
    ) -> Result<Begun, StoreError> {
        let call = Call::begin().await?;
        if let Some(lease) = turn.lease {
            let parameters = vec![text(turn.app_id.as_str()), uuid(turn.id), integer(lease)];
            if call.execute(LEASE, parameters).await? == 0 {
                call.end();
                return Ok(Begun::Busy);
            }
        }
        let start = match insert(&call, turn, messages).await? {
            Some(start) => {
                call.end();
                start
            }
            None => read(call, turn, messages).await?,
        };
        Ok(Begun::Started(start))
    }

    pub(super) async fn commit_reply(&self, reply: &Reply) -> Result<bool, StoreError> {
        let parameters = vec![
            text(ASSISTANT),
            text(&reply.text),
            uuid(reply.id),
            text(reply.app_id.as_str()),
            uuid(reply.turn),
            Value::Integer(reply.start.0),
            text(reply.status.as_str()),
        ];
        execute(COMMIT, parameters).await?;
        // That takes a statement of its own.
        Ok(false)
    }

    pub(super) async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let parameters = vec![text(app_id.as_str()), uuid(turn), integer(lease)];
        execute(RENEW_LEASE, parameters).await
    }

    pub(super) async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        execute(END_LEASE, vec![text(app_id.as_str()), uuid(turn)]).await
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let call = Call::begin().await?;
        let mut faults = Vec::new();
        call.query(schema::SQLITE_CHECK, Vec::new(), |mut row| {
            if let Some(Value::Text(fault)) = row.pop() {
                faults.push(fault);
            }
            Ok(())
        })
        .await?;
        if !faults.is_empty() {
            call.end();
            let faults = faults.join(" And ");
            let why = format!("The table `chatts` cannot be used as it is: {faults}");
            return Err(StoreError::new(Kind::Unusable, why));
        }
        for statement in schema::SQLITE {
            match call.execute(statement, Vec::new()).await {
                // SQLite cannot be asked to add a column only where it is missing.
                Err(error) if contains(&error.why, phrases::SQLITE_COLUMN_EXISTS) => {}
                // Leaving the rollback journal can fail beside an open reader, and costs only speed.
                Err(_) if statement.contains("journal_mode") => {}
                done => drop(done?),
            }
        }
        call.end();
        Ok(())
    }
}

/// One statement in a call of its own.
async fn execute(statement: &str, parameters: Vec<Value>) -> Result<(), StoreError> {
    let call = Call::begin().await?;
    call.execute(statement, parameters).await?;
    call.end();
    Ok(())
}

/// Stores the prompt. `None` where the conversation has to be read row by row.
async fn insert(
    call: &Call,
    turn: &NewTurn,
    messages: &mut Messages,
) -> Result<Option<TurnStart>, StoreError> {
    if turn.prompt.is_empty() {
        return Ok(None);
    }
    let prompt = turn.prompt.iter().map(|(id, message)| {
        let (role, content) = (message.role.as_str(), message.content.as_str());
        (role, content, id.to_string())
    });
    // Serialising strings into memory cannot fail.
    let prompt = serde_json::to_string(&prompt.collect::<Vec<_>>()).unwrap_or_default();
    let parameters = vec![
        text(turn.app_id.as_str()),
        uuid(turn.id),
        Value::Text(prompt),
    ];
    let (mut new, mut start, mut past) = (0, None, String::new());
    let read = call.query(BEGIN, parameters, |row| {
        let [at, before]: [Value; 2] = row.try_into().map_err(|_| StoreError::unexpected_row())?;
        new += 1;
        start = to_integer(&at);
        match before {
            Value::Text(before) => past = before,
            Value::Null => {}
            _ => return Err(StoreError::unexpected_row()),
        }
        Ok(())
    });
    match read.await {
        // The prompt is stored.
        Err(error) if error.kind == Kind::TooLarge => return Ok(None),
        done => done?,
    }
    if new < turn.prompt.len() {
        return Ok(None);
    }
    let start = start.ok_or_else(StoreError::unexpected_row)?;
    history::whole(messages, &past, turn);
    Ok(Some(TurnStart(start)))
}

/// Reads the conversation row by row.
async fn read(
    call: Call,
    turn: &NewTurn,
    messages: &mut Messages,
) -> Result<TurnStart, StoreError> {
    let mut parameters = vec![text(turn.app_id.as_str())];
    let statement = if turn.prompt.is_empty() {
        READ_WITHOUT_PROMPT
    } else {
        parameters.push(uuid(turn.id));
        READ
    };
    let mut history = History::new(messages, turn.prompt.len());
    call.query(statement, parameters, |row| {
        let [name, message, start]: [Value; 3] =
            row.try_into().map_err(|_| StoreError::unexpected_row())?;
        let message = match (&name, &message) {
            (Value::Text(role), Value::Text(content)) => Some((&**role, &**content)),
            // Others may have stored what is no text, or nothing.
            _ => None,
        };
        history.row(to_integer(&start), message);
        Ok(())
    })
    .await?;
    // The statement went well, whatever its rows say: the connection stays in use.
    call.end();
    // Neither a row nor a start: the conversation is empty, and so is the prompt.
    Ok(history.end()?.unwrap_or(TurnStart(0)))
}

fn to_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(it) => Some(*it),
        _ => None,
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn uuid(id: Uuid) -> Value {
    Value::Text(id.to_string())
}

fn integer(duration: Duration) -> Value {
    Value::Integer(microseconds(duration))
}
