//! The port on SQLite, through `spin:sqlite`.
//!
//! SQLite has no writing CTE, but what an `INSERT` returns may be a query: so a turn begins with one
//! statement here too. Rows are read to their end at once: an open row stream holds the lock of the
//! database.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use spin_sdk::sqlite::{Connection, Error, Value};

use uuid::Uuid;

use super::history::{History, each, is_too_large, unexpected_row, whole};
use super::{Begun, NewTurn, Reply, Store, StoreError, TurnStart, schema};
use crate::conversation::{ASSISTANT, AppId};
use crate::ollama::body::ChatBody;

/// When a row's turn began. Old rows have no turn: they count by their time. The index
/// `chatts_conversation` is on this very expression.
macro_rules! start {
    () => {
        "coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000)"
    };
}

/// The start of a turn after all that the conversation had.
macro_rules! next_start {
    () => {
        concat!(
            "(SELECT max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull(max(",
            start!(),
            ") + 1, 0)) FROM chatts WHERE appid = ?1)"
        )
    };
}

/// A conversation; `$start` is what each row carries besides.
macro_rules! read {
    ($start:expr) => {
        concat!(
            "SELECT name, message, ",
            $start,
            " FROM chatts WHERE appid = ?1 ORDER BY ",
            start!(),
            ", turn_id, rowid"
        )
    };
}

/// Inserts the prompt, a JSON array of `[role, content, id]`, and returns the turn's start for each
/// message that is new, and with the first of them what was said before: the messages' JSON with commas
/// in between, as it goes into the request. Whether the rows just inserted are there already when it is
/// gathered is undefined, so they are left out by name.
const BEGIN: &str = concat!(
    "INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
    SELECT value ->> 0, value ->> 1, value ->> 2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?1, ?2, ",
    next_start!(),
    "
    FROM json_each(?3) WHERE true ORDER BY key
    ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
    RETURNING turn_start, CASE WHEN id = ?3 ->> '$[0][2]' THEN (
        SELECT group_concat(
            '{\"role\":' || json_quote(name) || ',\"content\":' || json_quote(message) || '}', ','
            ORDER BY ",
    start!(),
    ", turn_id, rowid
        )
        FROM chatts WHERE appid = ?1 AND turn_id IS NOT ?2
    ) END"
);

/// The conversation, row by row: where the prompt is there already, since an earlier try was committed
/// and its answer lost. Rows of the turn itself carry its start.
const READ: &str = read!("CASE WHEN turn_id = ?2 THEN turn_start END");

/// A turn without a prompt: the conversation as it is, and the start of a turn after it.
const READ_ONLY: &str = read!(next_start!());

const COMMIT: &str = "\
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start, status)
VALUES (?1, ?2, ?3, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?4, ?5, ?6, ?7)
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING";

/// The lease, for `?3` microseconds; a row comes back if the turn has it.
const LEASE: &str = "\
INSERT INTO chatts_leases AS held (appid, turn_id, expires)
VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000000 AS integer) + ?3)
ON CONFLICT (appid) DO UPDATE SET turn_id = excluded.turn_id, expires = excluded.expires
WHERE held.expires < CAST(unixepoch('subsec') * 1000000 AS integer) OR held.turn_id = excluded.turn_id
RETURNING 1";

const RENEW: &str = "\
UPDATE chatts_leases SET expires = CAST(unixepoch('subsec') * 1000000 AS integer) + ?3
WHERE appid = ?1 AND turn_id = ?2";

const END: &str = "DELETE FROM chatts_leases WHERE appid = ?1 AND turn_id = ?2";

/// Conversations in the host's SQLite database `default`.
#[derive(Debug, Clone)]
pub struct Sqlite;

impl Store for Sqlite {
    async fn begin_turn(
        &self,
        turn: &NewTurn,
        history: &mut ChatBody,
    ) -> Result<Begun, StoreError> {
        let call = Call::begin().await?;
        let connection = &call.connection;
        let app_id = Value::text(turn.app_id.as_str());
        if let Some(lease) = turn.lease {
            let lease = vec![
                app_id.clone(),
                Value::text(turn.id.to_string()),
                microseconds(lease),
            ];
            if execute(connection, LEASE, lease).await? == 0 {
                call.end();
                return Ok(Begun::Busy);
            }
        }
        if let Some(start) = insert(connection, turn, history).await? {
            call.end();
            return Ok(Begun::Started(start));
        }
        let (statement, parameters) = if turn.prompt.is_empty() {
            (READ_ONLY, vec![app_id])
        } else {
            (READ, vec![app_id, Value::text(turn.id.to_string())])
        };
        let mut history = History::new(history, turn.prompt.len());
        rows(connection, statement, parameters, |row| {
            let [name, message, start]: [Value; 3] =
                row.try_into().map_err(|_| unexpected_row())?;
            let message = match (&name, &message) {
                (Value::Text(role), Value::Text(content)) => Some((&**role, &**content)),
                (Value::Null, _) | (_, Value::Null) => None,
                _ => return Err(unexpected_row()),
            };
            history.row(integer(&start), message);
            Ok(())
        })
        .await?;
        call.end();
        // No row, no start: the conversation is empty, and so is the prompt.
        let start = history.end()?.unwrap_or(TurnStart(0));
        Ok(Begun::Started(start))
    }

    async fn commit_reply(&self, reply: &Reply) -> Result<(), StoreError> {
        let parameters = vec![
            Value::text(ASSISTANT),
            Value::text(reply.text.as_str()),
            Value::text(reply.id.to_string()),
            Value::text(reply.app_id.as_str()),
            Value::text(reply.turn.to_string()),
            Value::Integer(reply.start.0),
            Value::text(reply.status.as_str()),
        ];
        once(COMMIT, parameters).await?;
        if reply.leased {
            // The reply is stored, whatever becomes of the lease: it runs out by itself.
            let _ = self.end_lease(&reply.app_id, reply.turn).await;
        }
        Ok(())
    }

    async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let parameters = vec![
            Value::text(app_id.as_str()),
            Value::text(turn.to_string()),
            microseconds(lease),
        ];
        once(RENEW, parameters).await
    }

    async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        let parameters = vec![Value::text(app_id.as_str()), Value::text(turn.to_string())];
        once(END, parameters).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let call = Call::begin().await?;
        for statement in schema::SQLITE {
            match execute(&call.connection, statement, Vec::new()).await {
                // SQLite cannot be asked to add a column only where it is missing.
                Err(StoreError::Failed { why }) if why.contains("duplicate column name") => {}
                // Leaving the rollback journal can fail beside an open reader, and costs only speed.
                Err(_) if statement.contains("journal_mode") => {}
                done => drop(done?),
            }
        }
        call.end();
        Ok(())
    }
}

thread_local! {
    static SHARED: RefCell<Option<Rc<Connection>>> = const { RefCell::new(None) };
}

/// The instance's connection, for one call.
///
/// It stays open between turns: SQLite writes its log back into the database, with all the syncing
/// that this takes, whenever the last connection closes, and a new one has everything to prepare
/// again. A call that does not end well takes it out of use.
struct Call {
    connection: Rc<Connection>,
    is_well: bool,
}

impl Call {
    async fn begin() -> Result<Self, StoreError> {
        let shared = SHARED.with_borrow(Clone::clone);
        let connection = match shared {
            Some(connection) => connection,
            None => {
                let opened = Rc::new(Connection::open_default().await.map_err(classify)?);
                SHARED.with_borrow_mut(|shared| shared.get_or_insert(opened).clone())
            }
        };
        Ok(Self {
            connection,
            is_well: false,
        })
    }

    fn end(mut self) {
        self.is_well = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.is_well {
            return;
        }
        SHARED.with_borrow_mut(|shared| {
            if shared
                .as_ref()
                .is_some_and(|shared| Rc::ptr_eq(shared, &self.connection))
            {
                *shared = None;
            }
        });
    }
}

/// One statement, by itself.
async fn once(statement: &str, parameters: Vec<Value>) -> Result<(), StoreError> {
    let call = Call::begin().await?;
    execute(&call.connection, statement, parameters).await?;
    call.end();
    Ok(())
}

/// Stores the prompt. `None` where the conversation has to be read row by row.
async fn insert(
    connection: &Connection,
    turn: &NewTurn,
    history: &mut ChatBody,
) -> Result<Option<TurnStart>, StoreError> {
    if turn.prompt.is_empty() {
        return Ok(None);
    }
    let prompt: Vec<_> = turn
        .prompt
        .iter()
        .map(|(id, message)| {
            (
                message.role.as_str(),
                message.content.as_str(),
                id.to_string(),
            )
        })
        .collect();
    // Serialising strings into memory cannot fail.
    let prompt = serde_json::to_string(&prompt).unwrap_or_default();
    let parameters = vec![
        Value::text(turn.app_id.as_str()),
        Value::text(turn.id.to_string()),
        Value::Text(prompt),
    ];
    let (mut new, mut start, mut past) = (0, None, String::new());
    let read = rows(connection, BEGIN, parameters, |row| {
        let [at, before]: [Value; 2] = row.try_into().map_err(|_| unexpected_row())?;
        new += 1;
        start = integer(&at);
        match before {
            Value::Text(before) => past = before,
            Value::Null => {}
            _ => return Err(unexpected_row()),
        }
        Ok(())
    });
    match read.await {
        Err(StoreError::Failed { why }) if is_too_large(&why) => return Ok(None),
        done => done?,
    }
    if new < turn.prompt.len() {
        return Ok(None);
    }
    let start = start.ok_or_else(unexpected_row)?;
    Ok(Some(whole(history, &past, turn, start)))
}

/// Runs a statement and reads its rows to their end.
async fn rows(
    connection: &Connection,
    statement: &str,
    parameters: Vec<Value>,
    mut take: impl FnMut(Vec<Value>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let result = connection.execute(statement, parameters).await;
    let (_, rows, outcome) = result.map_err(classify)?.into_inner();
    each(rows, |row| take(row.values)).await?;
    // An execution error arrives here, after no rows.
    outcome.await.map_err(classify)
}

/// Runs a statement of whose rows only the number is of interest.
async fn execute(
    connection: &Connection,
    statement: &str,
    parameters: Vec<Value>,
) -> Result<usize, StoreError> {
    let mut count = 0;
    rows(connection, statement, parameters, |_| {
        count += 1;
        Ok(())
    })
    .await?;
    Ok(count)
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(it) => Some(*it),
        _ => None,
    }
}

fn microseconds(duration: Duration) -> Value {
    Value::Integer(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

/// Sorts an error by what can be done about it. SQLite's code does not reach the component, its
/// words do.
fn classify(error: Error) -> StoreError {
    let why = match error {
        Error::NoSuchDatabase | Error::AccessDenied => {
            return StoreError::Failed {
                why: "the component has no SQLite database: give it `sqlite_databases = [\"default\"]` in spin.toml, or set `database_url`".into(),
            };
        }
        Error::InvalidConnection => "the connection is not valid".to_owned(),
        Error::DatabaseFull => "the database is full".to_owned(),
        Error::Io(why) => why,
    };
    let says = |words: &[&str]| words.iter().any(|words| why.contains(words));
    if says(&[
        "no such table",
        "no such column",
        "has no column named",
        "ON CONFLICT clause does not match",
    ]) {
        StoreError::Schema { why }
    } else if says(&["is locked", "busy", "schema has changed"]) {
        StoreError::Unavailable { why }
    } else if says(&["readonly"]) {
        StoreError::NotAllowed { why }
    } else {
        StoreError::Failed { why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqlite_says_decides_what_is_done() {
        for (words, schema, again) in [
            ("no such table: chatts", true, false),
            ("table chatts has no column named turn_id", true, false),
            ("no such column: turn_start", true, false),
            ("database is locked", false, true),
            ("disk I/O error", false, false),
        ] {
            let error = classify(Error::Io(words.into()));
            assert_eq!(
                matches!(error, StoreError::Schema { .. }),
                schema,
                "{words}"
            );
            assert_eq!(
                matches!(error, StoreError::Unavailable { .. }),
                again,
                "{words}"
            );
        }
    }
}
