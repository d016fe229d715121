//! The port on PostgreSQL, through `spin:postgres`.
//!
//! In Spin a statement costs a prepare and an execute, and a connection taken from the pool a
//! clean-up round trip: hence one statement to begin a turn and one to end it.

use std::time::Duration;

use spin_sdk::pg::{Connection, DbValue, Error, ParameterValue, PgError, QueryError};

use uuid::Uuid;

use super::history::{History, each, is_too_large, unexpected_row, whole};
use super::{Begun, NewTurn, Reply, Store, StoreError, TurnStart, schema};
use crate::conversation::{ASSISTANT, AppId, Message};
use crate::ollama::body::ChatBody;

/// The start of a turn after all that the conversation had. `max` would say the same, and takes longer
/// to plan, which in Spin is done for every turn.
macro_rules! next_start {
    () => {
        "greatest(now(), (
            SELECT coalesce(turn_start, time) + interval '1 microsecond' FROM chatts
            WHERE appid = $1 AND coalesce(turn_start, time) IS NOT NULL
            ORDER BY coalesce(turn_start, time) DESC LIMIT 1
        ))"
    };
}

/// Inserts the prompt, `$rows`, and says how many of its messages are new, the turn's start, and what was
/// said before: the messages' JSON with commas in between, as it goes into the request. A conversation
/// of ten thousand messages is one value so, and not as many rows to be carried into the component.
///
/// The outer `SELECT` sees the table as it was before the statement: without the prompt.
macro_rules! begin {
    ($rows:expr) => {
        concat!(
            "WITH prompt AS (
    INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
    ",
            $rows,
            "
    ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
    RETURNING turn_start
)
SELECT count(*), (extract(epoch FROM max(turn_start)) * 1000000)::bigint, (
    SELECT string_agg(
        '{\"role\":' || to_json(name) || ',\"content\":' || to_json(message) || '}', ','
        ORDER BY coalesce(turn_start, time), turn_id, seq
    )
    FROM chatts WHERE appid = $1
)
FROM prompt"
        )
    };
}

/// A prompt of one message, as most are: half the planning of [`BEGIN`].
const BEGIN_ONE: &str = begin!(concat!(
    "VALUES ($3::text, $4::text, $5::uuid, now(), $1::text, $2::uuid, ",
    next_start!(),
    ")"
));

const BEGIN: &str = begin!(concat!(
    "SELECT p.name, p.message, p.id, now(), $1::text, $2::uuid, ",
    next_start!(),
    "
    FROM unnest($3::text[], $4::text[], $5::text[]::uuid[])
        WITH ORDINALITY AS p (name, message, id, position)
    ORDER BY p.position"
));

/// The conversation, row by row: where the prompt is there already, since an earlier try was committed
/// and its answer lost, or where there is none.
///
/// The first row carries the start of a turn after all others and no message. The turn's own rows carry
/// the start that they are stored with.
const READ: &str = "\
SELECT name, message, (extract(epoch FROM start) * 1000000)::bigint
FROM (
    SELECT NULL AS name, NULL AS message, '-infinity' AS at, NULL::uuid AS turn_id, NULL::bigint AS seq,
        greatest(now(), max(coalesce(turn_start, time)) + interval '1 microsecond') AS start
    FROM chatts WHERE appid = $1
    UNION ALL
    SELECT name, message, coalesce(turn_start, time), turn_id, seq,
        CASE WHEN turn_id = $2::uuid THEN turn_start END
    FROM chatts WHERE appid = $1
) AS conversation
ORDER BY at, turn_id, seq";

/// The lease, for `$3` microseconds; no row is touched if another turn has it. A statement of its
/// own: it may wait for the turn that holds the lease to store its reply, and what comes after must
/// see that reply.
const LEASE: &str = "\
INSERT INTO chatts_leases AS held (appid, turn_id, expires)
VALUES ($1, $2::uuid, now() + $3::bigint * interval '1 microsecond')
ON CONFLICT (appid) DO UPDATE SET turn_id = excluded.turn_id, expires = excluded.expires
WHERE held.expires < now() OR held.turn_id = excluded.turn_id";

const COMMIT: &str = "\
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start, status)
VALUES ($1, $2, $3, now(), $4, $5::uuid, 'epoch'::timestamptz + $6::bigint * interval '1 microsecond', $7)
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING";

/// The same, ending the turn's lease.
const COMMIT_LEASED: &str = "\
WITH ended AS (DELETE FROM chatts_leases WHERE appid = $4 AND turn_id = $5::uuid)
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start, status)
VALUES ($1, $2, $3, now(), $4, $5::uuid, 'epoch'::timestamptz + $6::bigint * interval '1 microsecond', $7)
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING";

const RENEW: &str = "\
UPDATE chatts_leases SET expires = now() + $3::bigint * interval '1 microsecond'
WHERE appid = $1 AND turn_id = $2::uuid";

const END: &str = "DELETE FROM chatts_leases WHERE appid = $1 AND turn_id = $2::uuid";

/// Conversations in PostgreSQL.
#[derive(Clone)]
pub struct Postgres {
    /// Holds the password: never shown.
    url: String,
}

impl Postgres {
    /// The database at `url` (`postgres://user:password@host/database`).
    pub fn new(url: String) -> Self {
        Self { url }
    }

    async fn open(&self) -> Result<Connection, StoreError> {
        Connection::open(self.url.as_str())
            .await
            .map_err(|error| self.classify(error))
    }

    async fn execute(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<(), StoreError> {
        let done = self.open().await?.execute(statement, parameters).await;
        done.map(drop).map_err(|error| self.classify(error))
    }

    /// Stores the prompt. `None` where the conversation has to be read row by row.
    async fn insert(
        &self,
        connection: &Connection,
        turn: &NewTurn,
        history: &mut ChatBody,
    ) -> Result<Option<TurnStart>, StoreError> {
        if turn.prompt.is_empty() {
            return Ok(None);
        }
        let mut parameters = vec![
            ParameterValue::Str(turn.app_id.as_str().to_owned()),
            ParameterValue::Uuid(turn.id.to_string()),
        ];
        let statement = match turn.prompt.as_slice() {
            [(id, message)] => {
                parameters.push(ParameterValue::Str(message.role.as_str().to_owned()));
                parameters.push(ParameterValue::Str(message.content.as_str().to_owned()));
                parameters.push(ParameterValue::Uuid(id.to_string()));
                BEGIN_ONE
            }
            several => {
                let each = |column: fn(&(Uuid, Message)) -> String| {
                    ParameterValue::ArrayStr(several.iter().map(column).map(Some).collect())
                };
                parameters.push(each(|(_, message)| message.role.as_str().to_owned()));
                parameters.push(each(|(_, message)| message.content.as_str().to_owned()));
                parameters.push(each(|(id, _)| id.to_string()));
                BEGIN
            }
        };
        let mut only = None;
        let read = self.rows(connection, statement, parameters, |row| {
            only = Some(row);
            Ok(())
        });
        match read.await {
            Err(StoreError::Failed { why }) if is_too_large(&why) => return Ok(None),
            done => done?,
        }
        let [new, start, past]: [DbValue; 3] = only
            .and_then(|row| row.try_into().ok())
            .ok_or_else(unexpected_row)?;
        if integer(&new) != i64::try_from(turn.prompt.len()).ok() {
            return Ok(None);
        }
        let start = integer(&start).ok_or_else(unexpected_row)?;
        let past = match &past {
            DbValue::Str(past) => past,
            DbValue::DbNull => "",
            _ => return Err(unexpected_row()),
        };
        Ok(Some(whole(history, past, turn, start)))
    }

    /// Runs a query and reads its rows to their end.
    async fn rows(
        &self,
        connection: &Connection,
        statement: &str,
        parameters: Vec<ParameterValue>,
        take: impl FnMut(Vec<DbValue>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let result = connection.query(statement, parameters).await;
        let (_, rows, outcome) = result.map_err(|error| self.classify(error))?.into_inner();
        each(rows, take).await?;
        // An execution error arrives here, after no rows.
        outcome.await.map_err(|error| classify(error, &self.url))
    }

    fn classify(&self, error: Error) -> StoreError {
        match error {
            Error::Decode(why) => StoreError::Failed { why },
            Error::PgError(error) => classify(error, &self.url),
        }
    }
}

impl Store for Postgres {
    async fn begin_turn(
        &self,
        turn: &NewTurn,
        history: &mut ChatBody,
    ) -> Result<Begun, StoreError> {
        let app_id = ParameterValue::Str(turn.app_id.as_str().to_owned());
        let turn_id = ParameterValue::Uuid(turn.id.to_string());
        let connection = self.open().await?;
        if let Some(lease) = turn.lease {
            let parameters = [app_id.clone(), turn_id.clone(), microseconds(lease)];
            let taken = connection.execute(LEASE, parameters).await;
            if taken.map_err(|error| self.classify(error))? == 0 {
                return Ok(Begun::Busy);
            }
        }
        if let Some(start) = self.insert(&connection, turn, history).await? {
            return Ok(Begun::Started(start));
        }
        let mut history = History::new(history, turn.prompt.len());
        self.rows(&connection, READ, vec![app_id, turn_id], |row| {
            let [name, message, start]: [DbValue; 3] =
                row.try_into().map_err(|_| unexpected_row())?;
            let message = match (&name, &message) {
                (DbValue::Str(role), DbValue::Str(content)) => Some((&**role, &**content)),
                (DbValue::DbNull, _) | (_, DbValue::DbNull) => None,
                _ => return Err(unexpected_row()),
            };
            history.row(integer(&start), message);
            Ok(())
        })
        .await?;
        let start = history.end()?.ok_or_else(unexpected_row)?;
        Ok(Begun::Started(start))
    }

    async fn commit_reply(&self, reply: &Reply) -> Result<(), StoreError> {
        let statement = if reply.leased { COMMIT_LEASED } else { COMMIT };
        let parameters = vec![
            ParameterValue::Str(ASSISTANT.to_owned()),
            ParameterValue::Str(reply.text.clone()),
            ParameterValue::Uuid(reply.id.to_string()),
            ParameterValue::Str(reply.app_id.as_str().to_owned()),
            ParameterValue::Uuid(reply.turn.to_string()),
            ParameterValue::Int64(reply.start.0),
            ParameterValue::Str(reply.status.as_str().to_owned()),
        ];
        self.execute(statement, parameters).await
    }

    async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let parameters = vec![
            ParameterValue::Str(app_id.as_str().to_owned()),
            ParameterValue::Uuid(turn.to_string()),
            microseconds(lease),
        ];
        self.execute(RENEW, parameters).await
    }

    async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        let parameters = vec![
            ParameterValue::Str(app_id.as_str().to_owned()),
            ParameterValue::Uuid(turn.to_string()),
        ];
        self.execute(END, parameters).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        for statement in schema::POSTGRES {
            self.execute(statement, Vec::new()).await?;
        }
        Ok(())
    }
}

fn integer(value: &DbValue) -> Option<i64> {
    match value {
        DbValue::Int64(it) => Some(*it),
        _ => None,
    }
}

fn microseconds(duration: Duration) -> ParameterValue {
    ParameterValue::Int64(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

/// Sorts an error by what can be done about it: by SQLSTATE where there is one (PostgreSQL's
/// manual, appendix A).
fn classify(error: PgError, url: &str) -> StoreError {
    match error {
        PgError::QueryFailed(QueryError::DbError(error)) => {
            let why = format!("{} ({})", error.message, error.code);
            match error.code.as_str() {
                "42P01" | "42703" | "42P10" => StoreError::Schema { why },
                "42501" => StoreError::NotAllowed { why },
                "22001" => StoreError::Refused { why },
                // Serialization failure, deadlock, lock not available, shutting down, starting up.
                "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" => {
                    StoreError::Unavailable { why }
                }
                // Connection exceptions, insufficient resources.
                code if code.starts_with("08") || code.starts_with("53") => {
                    StoreError::Unavailable { why }
                }
                _ => StoreError::Failed { why },
            }
        }
        // What the host itself could not do with a value or a row.
        PgError::QueryFailed(QueryError::Text(why)) if is_about_a_value(&why) => {
            StoreError::Failed {
                why: redact(&why, url),
            }
        }
        // The connection went away under the statement.
        PgError::QueryFailed(QueryError::Text(why)) => StoreError::Unavailable {
            why: redact(&why, url),
        },
        PgError::ConnectionFailed(why) => connection_failed(why, url),
        PgError::BadParameter(why) | PgError::ValueConversionFailed(why) | PgError::Other(why) => {
            StoreError::Failed {
                why: redact(&why, url),
            }
        }
    }
}

fn is_about_a_value(why: &str) -> bool {
    ["serializing", "convert", "exceeds limit"]
        .iter()
        .any(|words| why.contains(words))
}

/// A connection that did not come about: the host has words for it, no code.
fn connection_failed(why: String, url: &str) -> StoreError {
    if why.contains("is not permitted") {
        return StoreError::Failed {
            why: format!(
                "{}: set the variable `database_host` to this address, since `allowed_outbound_hosts` lists only this machine and `database_host`",
                redact(&why, url)
            ),
        };
    }
    // What does not parse may be a piece of the password.
    if why.contains("connection string") || why.contains("invalid configuration") {
        return StoreError::Failed {
            why: "`database_url` is not a valid PostgreSQL URL (postgres://user:password@host/database, special characters in the password percent-encoded)".into(),
        };
    }
    let why = redact(&why, url);
    // Wrong password, wrong role, no such database: the same the next time.
    if ["28P01", "28000", "3D000"]
        .iter()
        .any(|code| why.contains(code))
    {
        return StoreError::Failed { why };
    }
    StoreError::Unavailable { why }
}

/// One line of a host's text, without the password: hosts dump several, down to a backtrace.
fn redact(text: &str, url: &str) -> String {
    let text = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Stack backtrace"))
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    passwords(url).fold(text, |text, password| text.replace(&password, "***"))
}

/// The password in a URL, as it is written and as it is meant.
fn passwords(url: &str) -> impl Iterator<Item = String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let of_user = address
        .rsplit_once('@')
        .and_then(|(credentials, _)| credentials.split_once(':'))
        .map(|(_, password)| password);
    let in_query = query
        .split('&')
        .find_map(|parameter| parameter.strip_prefix("password="));
    [of_user, in_query]
        .into_iter()
        .flatten()
        .flat_map(|written| [written.to_owned(), percent_decoded(written)])
        .filter(|password| !password.is_empty())
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .filter(|_| byte == b'%')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(code.unwrap_or(byte));
        rest = after
            .get(if code.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://me:s3cr@t@db.example:5432/chat";

    #[test]
    fn the_password_is_in_no_error() {
        for text in [
            "failed: s3cr@t",
            "invalid connection string: unexpected `s3cr`",
            "address is not permitted s3cr@t",
        ] {
            let error = connection_failed(text.into(), URL).to_string();
            assert!(!error.contains("s3cr"), "{error}");
        }
    }

    #[test]
    fn a_password_is_known_in_every_form() {
        let known = |url| passwords(url).collect::<Vec<_>>();
        assert_eq!(known("postgres://me:a%40b@db/chat"), ["a%40b", "a@b"]);
        assert_eq!(known("postgres://me@db/chat?password=s%2"), ["s%2", "s%2"]);
        assert!(known("postgres://me@db/chat?application_name=a@b").is_empty());
    }

    #[test]
    fn a_dump_of_the_host_becomes_one_line() {
        let dump = "Error opening\n\nCaused by:\n    refused\n\nStack backtrace:\n   0: main";
        assert_eq!(redact(dump, URL), "Error opening Caused by: refused");
    }

    #[test]
    fn a_connection_that_broke_is_worth_another_try_and_a_wrong_password_is_not() {
        assert!(matches!(
            connection_failed("Connection refused".into(), URL),
            StoreError::Unavailable { .. }
        ));
        assert!(matches!(
            connection_failed("db error: SqlState(E28P01)".into(), URL),
            StoreError::Failed { .. }
        ));
    }
}
