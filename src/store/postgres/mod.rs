//! The adapter for PostgreSQL, through `spin:postgres`.
//!
//! In Spin a statement costs a prepare and an execute, and taking a connection from the pool a round trip
//! to clean it: hence one statement to begin a turn and one to end it.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Begun, Kind, NewTurn, PAST_MESSAGES_MAX, Reply, Started, StoreError, TurnStart, Window,
    microseconds, rows, schema,
};
use crate::conversation::{ASSISTANT, AppId, Message};
use crate::spin::pg::{Connection, DbValue, ParameterValue};

mod error;
mod url;

use error::classify;
use url::DatabaseUrl;

/// A call of the function `llmchat_begin_1`, which the migrations create: a connection keeps the plans of a
/// function, while Spin has every statement planned anew.
const BEGIN: &str = include_str!("begin.sql");
const PAST: &str = include_str!("past.sql");

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
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        let connection = self.connect().await?;
        let window = &turn.window;
        if let Some(lease) = turn.lease {
            let (app_id, turn) = (window.app_id.as_str(), window.turn);
            let parameters = [text(app_id), uuid(turn), integer(lease)];
            let taken = connection.execute(LEASE, parameters).await;
            if taken.map_err(|error| classify(error, &self.url))? == 0 {
                return Ok(Begun::Busy);
            }
        }
        let column = |value: fn(&(Uuid, Message)) -> String| {
            ParameterValue::ArrayStr(turn.prompt.iter().map(value).map(Some).collect())
        };
        let parameters = vec![
            text(window.app_id.as_str()),
            uuid(window.turn),
            column(|(_, message)| message.role.as_str().to_owned()),
            column(|(_, message)| message.content.as_str().to_owned()),
            column(|(id, _)| id.to_string()),
            count(window.prompt_bytes),
            ParameterValue::Boolean(window.stands_alone),
            count(window.max_bytes),
            ParameterValue::Int64(PAST_MESSAGES_MAX),
            count(at_once),
        ];
        let row: [DbValue; 5] = self.row(&connection, BEGIN, parameters).await?;
        let [
            DbValue::Int64(start),
            DbValue::Int64(turns),
            size,
            DbValue::Boolean(is_cut),
            past,
        ] = row
        else {
            return Err(StoreError::unexpected_row());
        };
        let size = match size {
            DbValue::Int64(size) => Some(size),
            _ => None,
        };
        let started = Started::new(window, start, turns, size, is_cut, to_text(past));
        Ok(started.map_or(Begun::TooLarge, Begun::Started))
    }

    pub(super) async fn read_past(
        &self,
        window: &Window,
        start: TurnStart,
    ) -> Result<String, StoreError> {
        let parameters = vec![
            text(window.app_id.as_str()),
            uuid(window.turn),
            ParameterValue::Int64(start.0),
            count(window.prompt_bytes),
            ParameterValue::Boolean(window.stands_alone),
            count(window.max_bytes),
            ParameterValue::Int64(PAST_MESSAGES_MAX),
        ];
        let connection = self.connect().await?;
        let [past] = self.row(&connection, PAST, parameters).await?;
        Ok(to_text(past).unwrap_or_default())
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

    /// Runs a query and reads its rows to their end. Returns the only one.
    async fn row<const N: usize>(
        &self,
        connection: &Connection,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<[DbValue; N], StoreError> {
        let result = connection.query(statement, parameters).await;
        let result = result.map_err(|error| classify(error, &self.url))?;
        let (_, rows, outcome) = result.into_inner();
        let mut only = None;
        rows::each(rows, |row| {
            only = Some(row);
            Ok(())
        })
        .await?;
        // An error of the execution arrives here, after no rows.
        let outcome = outcome.await;
        outcome.map_err(|error| classify(error.into(), &self.url))?;
        let only = only.and_then(|row: Vec<DbValue>| row.try_into().ok());
        only.ok_or_else(StoreError::unexpected_row)
    }
}

fn to_text(value: DbValue) -> Option<String> {
    match value {
        DbValue::Str(text) => Some(text),
        _ => None,
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

fn count(bytes: usize) -> ParameterValue {
    ParameterValue::Int64(super::bytes(bytes))
}
