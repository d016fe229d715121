//! The adapter for SQLite, through `spin:sqlite`.
//!
//! A turn begins with two statements, since a read of a large conversation must not hold the lock that all writers
//! wait for.

use std::time::Duration;

use uuid::Uuid;

use super::phrases::{self, contains};
use super::{
    Begun, Kind, NewTurn, PAST_MESSAGES_MAX, Reply, Started, StoreError, TurnStart, Window,
    microseconds, schema,
};
use crate::conversation::{ASSISTANT, AppId};
use crate::spin::sqlite::Value;

mod connection;
mod error;

use connection::Call;

const PAST: &str = include_str!("past.sql");
const INSERT: &str = include_str!("insert.sql");
const START: &str = include_str!("start.sql");
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
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        let call = Call::begin().await?;
        let window = &turn.window;
        if let Some(lease) = turn.lease {
            let (app_id, turn) = (window.app_id.as_str(), window.turn);
            let parameters = vec![text(app_id), uuid(turn), integer(lease)];
            if call.execute(LEASE, parameters).await? == 0 {
                call.end();
                return Ok(Begun::Busy);
            }
        }
        let past = past(&call, window, i64::MAX, at_once).await?;
        let Some(mut started) = past else {
            call.end();
            return Ok(Begun::TooLarge);
        };
        if !turn.prompt.is_empty() {
            let (stored, at) = insert(&call, turn).await?;
            started.start = at;
            if stored < turn.prompt.len() {
                // An earlier try has stored it, its answer lost: what began since is not its past.
                let again = self::past(&call, window, at.0, at_once).await?;
                started = again.ok_or_else(StoreError::unexpected_row)?;
                started.start = at;
            }
        }
        call.end();
        Ok(Begun::Started(started))
    }

    pub(super) async fn read_past(
        &self,
        window: &Window,
        start: TurnStart,
    ) -> Result<String, StoreError> {
        let call = Call::begin().await?;
        let past = past(&call, window, start.0, usize::MAX).await?;
        call.end();
        Ok(past.and_then(|started| started.past).unwrap_or_default())
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
        for statement in schema::sqlite() {
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

/// What precedes a prompt, of the turns that began before `before`. `None` where it does not fit.
async fn past(
    call: &Call,
    window: &Window,
    before: i64,
    at_once: usize,
) -> Result<Option<Started>, StoreError> {
    let parameters = vec![
        text(window.app_id.as_str()),
        uuid(window.turn),
        Value::Integer(before),
        count(window.prompt_bytes),
        Value::Integer(window.stands_alone.into()),
        count(window.max_bytes),
        Value::Integer(PAST_MESSAGES_MAX),
        count(at_once),
    ];
    let row = call.row(PAST, parameters).await?;
    let row: Option<[Value; 5]> = row.and_then(|row| row.try_into().ok());
    let Some(
        [
            Value::Integer(start),
            Value::Integer(turns),
            size,
            Value::Integer(is_cut),
            past,
        ],
    ) = row
    else {
        return Err(StoreError::unexpected_row());
    };
    let past = match past {
        Value::Text(past) => Some(past),
        _ => None,
    };
    let size = to_integer(&size);
    Ok(Started::new(window, start, turns, size, is_cut != 0, past))
}

/// Stores the prompt. Returns how many of its messages are new, and when the turn began.
async fn insert(call: &Call, turn: &NewTurn) -> Result<(usize, TurnStart), StoreError> {
    let prompt = turn.prompt.iter().map(|(id, message)| {
        let (role, content) = (message.role.as_str(), message.content.as_str());
        (role, content, id.to_string())
    });
    // Serialising strings into memory cannot fail.
    let prompt = serde_json::to_string(&prompt.collect::<Vec<_>>()).unwrap_or_default();
    let window = &turn.window;
    let parameters = vec![
        text(window.app_id.as_str()),
        uuid(window.turn),
        Value::Text(prompt),
    ];
    let (mut stored, mut start) = (0, None);
    call.query(INSERT, parameters, |row| {
        stored += 1;
        start = row.first().and_then(to_integer);
        Ok(())
    })
    .await?;
    if start.is_none()
        && let Some((id, _)) = turn.prompt.first()
    {
        let row = call.row(START, vec![uuid(*id), uuid(window.turn)]).await?;
        start = row.and_then(|row| row.first().and_then(to_integer));
    }
    let start = start.ok_or_else(StoreError::unexpected_row)?;
    Ok((stored, TurnStart(start)))
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

fn count(bytes: usize) -> Value {
    Value::Integer(super::bytes(bytes))
}
