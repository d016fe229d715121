//! The adapter for PostgreSQL, through `spin:postgres`.
//!
//! In Spin a statement costs a prepare and an execute, and taking a connection from the pool a round trip
//! to clean it: hence one statement to begin a turn and one to end it.

use std::time::Duration;

use spin_sdk::pg::{Connection, DbValue, ParameterValue};
use uuid::Uuid;

use super::history::{self, History};
use super::{Begun, Kind, NewTurn, Reply, StoreError, TurnStart, microseconds, rows, schema};
use crate::conversation::{ASSISTANT, AppId, Message, Messages};

mod error;
mod url;

use error::classify;
use url::DatabaseUrl;

/// These two insert the prompt and return how many of its messages are new, the turn's start, and the
/// earlier messages as JSON with commas in between, as they go into the request to the model: so a
/// conversation of ten thousand messages is one value, not as many rows to be carried into the component.
/// The outer `SELECT` sees the table as it was before the statement, without the prompt. The start of a
/// turn is after all that the conversation had; `max` would say the same but takes longer to plan, which
/// Spin does for every turn.
const BEGIN_ONE: &str = include_str!("begin_one.sql");
const BEGIN: &str = include_str!("begin.sql");

/// For where the prompt is there already, since an earlier try was committed and its answer lost; where
/// there is no prompt; and where the conversation is too large for one value.
const READ: &str = include_str!("read.sql");

/// A statement of its own: it may wait for the turn that holds the lease to store its reply, and what comes
/// after must see that reply.
const LEASE: &str = include_str!("lease.sql");
const COMMIT: &str = include_str!("commit.sql");
const COMMIT_LEASED: &str = include_str!("commit_leased.sql");
const RENEW_LEASE: &str = include_str!("renew_lease.sql");
const END_LEASE: &str = include_str!("end_lease.sql");

/// Conversations in PostgreSQL.
#[derive(Debug, Clone)]
pub(crate) struct Postgres {
    url: DatabaseUrl,
}

impl Postgres {
    /// The database at `url` (`postgres://user:password@host/database`).
    pub(super) fn new(url: String) -> Self {
        let url = DatabaseUrl::new(url);
        Self { url }
    }

    /// The same database by way of other connections.
    pub(super) fn other_pool(&self) -> Self {
        let url = self.url.other_pool();
        Self { url }
    }

    pub(super) async fn begin_turn(
        &self,
        turn: &NewTurn,
        messages: &mut Messages,
    ) -> Result<Begun, StoreError> {
        let connection = self.connect().await?;
        if let Some(lease) = turn.lease {
            let parameters = [text(turn.app_id.as_str()), uuid(turn.id), integer(lease)];
            let taken = connection.execute(LEASE, parameters).await;
            if taken.map_err(|error| classify(error, &self.url))? == 0 {
                return Ok(Begun::Busy);
            }
        }
        let start = match self.insert(&connection, turn, messages).await? {
            Some(start) => start,
            None => self.read(&connection, turn, messages).await?,
        };
        Ok(Begun::Started(start))
    }

    pub(super) async fn commit_reply(&self, reply: &Reply) -> Result<bool, StoreError> {
        let statement = if reply.leased { COMMIT_LEASED } else { COMMIT };
        let parameters = vec![
            text(ASSISTANT),
            text(&reply.text),
            uuid(reply.id),
            text(reply.app_id.as_str()),
            uuid(reply.turn),
            ParameterValue::Int64(reply.start.0),
            text(reply.status.as_str()),
        ];
        self.execute(statement, parameters).await?;
        Ok(reply.leased)
    }

    pub(super) async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let parameters = vec![text(app_id.as_str()), uuid(turn), integer(lease)];
        self.execute(RENEW_LEASE, parameters).await
    }

    pub(super) async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        let parameters = vec![text(app_id.as_str()), uuid(turn)];
        self.execute(END_LEASE, parameters).await
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        for statement in schema::POSTGRES {
            self.execute(statement, Vec::new()).await?;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        if self.url.has_two_ends_of_a_password() {
            return Err(StoreError::new(Kind::Unusable, self.url.complaint()));
        }
        Connection::open(self.url.as_str())
            .await
            .map_err(|error| classify(error, &self.url))
    }

    async fn execute(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<(), StoreError> {
        let done = self.connect().await?.execute(statement, parameters).await;
        done.map(drop).map_err(|error| classify(error, &self.url))
    }

    /// Runs a query and reads its rows to their end.
    async fn query(
        &self,
        connection: &Connection,
        statement: &str,
        parameters: Vec<ParameterValue>,
        take: impl FnMut(Vec<DbValue>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let result = connection.query(statement, parameters).await;
        let result = result.map_err(|error| classify(error, &self.url))?;
        let (_, rows, outcome) = result.into_inner();
        rows::each(rows, take).await?;
        // An error of the execution arrives here, after no rows.
        outcome
            .await
            .map_err(|error| classify(error.into(), &self.url))
    }

    /// Stores the prompt. `None` where the conversation has to be read row by row.
    async fn insert(
        &self,
        connection: &Connection,
        turn: &NewTurn,
        messages: &mut Messages,
    ) -> Result<Option<TurnStart>, StoreError> {
        let mut parameters = vec![text(turn.app_id.as_str()), uuid(turn.id)];
        let statement = match turn.prompt.as_slice() {
            [] => return Ok(None),
            [(id, message)] => {
                parameters.push(text(message.role.as_str()));
                parameters.push(text(message.content.as_str()));
                parameters.push(uuid(*id));
                BEGIN_ONE
            }
            several => {
                let column = |value: fn(&(Uuid, Message)) -> String| {
                    ParameterValue::ArrayStr(several.iter().map(value).map(Some).collect())
                };
                parameters.push(column(|(_, message)| message.role.as_str().to_owned()));
                parameters.push(column(|(_, message)| message.content.as_str().to_owned()));
                parameters.push(column(|(id, _)| id.to_string()));
                BEGIN
            }
        };
        let mut only = None;
        let read = self.query(connection, statement, parameters, |row| {
            only = Some(row);
            Ok(())
        });
        match read.await {
            // The prompt is stored.
            Err(error) if error.kind == Kind::TooLarge => return Ok(None),
            done => done?,
        }
        let row: Option<[DbValue; 3]> = only.and_then(|row| row.try_into().ok());
        let (new, start, past) = match row {
            Some([DbValue::Int64(new), start, DbValue::Str(past)]) => (new, start, past),
            Some([DbValue::Int64(new), start, DbValue::DbNull]) => (new, start, String::new()),
            _ => return Err(StoreError::unexpected_row()),
        };
        if i64::try_from(turn.prompt.len()) != Ok(new) {
            return Ok(None);
        }
        let DbValue::Int64(start) = start else {
            return Err(StoreError::unexpected_row());
        };
        history::whole(messages, &past, turn);
        Ok(Some(TurnStart(start)))
    }

    /// Reads the conversation row by row.
    async fn read(
        &self,
        connection: &Connection,
        turn: &NewTurn,
        messages: &mut Messages,
    ) -> Result<TurnStart, StoreError> {
        let mut history = History::new(messages, turn.prompt.len());
        let parameters = vec![text(turn.app_id.as_str()), uuid(turn.id)];
        self.query(connection, READ, parameters, |row| {
            let [name, message, start]: [DbValue; 3] =
                row.try_into().map_err(|_| StoreError::unexpected_row())?;
            let message = match (&name, &message) {
                (DbValue::Str(role), DbValue::Str(content)) => Some((&**role, &**content)),
                (DbValue::DbNull, _) | (_, DbValue::DbNull) => None,
                _ => return Err(StoreError::unexpected_row()),
            };
            let start = match start {
                DbValue::Int64(start) => Some(start),
                _ => None,
            };
            history.row(start, message);
            Ok(())
        })
        .await?;
        history.end()?.ok_or_else(StoreError::unexpected_row)
    }
}

fn text(text: &str) -> ParameterValue {
    ParameterValue::Str(text.to_owned())
}

fn uuid(id: Uuid) -> ParameterValue {
    ParameterValue::Uuid(id.to_string())
}

fn integer(duration: Duration) -> ParameterValue {
    ParameterValue::Int64(microseconds(duration))
}
