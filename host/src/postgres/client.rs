//! A client of a pool: its statements stay prepared, and it is cleaned when it goes back.
//!
//! Spin prepares anew for each call and cleans a client when it is taken out. What a component
//! sees is the same; here neither is part of what it waits for.

use std::pin::pin;
use std::time::Duration;

use deadpool_postgres::{Object, RecyclingMethod};
use futures_util::TryStreamExt as _;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, RowStream, Statement};

use super::values::Parameter;

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;

/// How long a client may take to come clean: a statement that was abandoned comes first.
const CLEANING: Duration = Duration::from_secs(10);

/// A client until it goes back to its pool.
pub(super) struct Client(Option<Object>);

impl Client {
    pub(super) fn new(object: Object) -> Self {
        Self(Some(object))
    }

    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<RowStream, Error> {
        let prepared = self.prepare(statement).await?;
        let outcome = self
            .object()
            .query_raw(&prepared, references(parameters))
            .await;
        if !outcome.as_ref().is_err_and(is_stale) {
            return outcome;
        }
        self.object().statement_cache.remove(statement, &[]);
        let prepared = self.prepare(statement).await?;
        self.object()
            .query_raw(&prepared, references(parameters))
            .await
    }

    /// How many rows were affected.
    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<u64, Error> {
        let mut rows = pin!(self.query(statement, parameters).await?);
        while rows.try_next().await?.is_some() {}
        Ok(rows.rows_affected().unwrap_or(0))
    }

    async fn prepare(&self, statement: &str) -> Result<Statement, Error> {
        let client = self.object();
        if client.statement_cache.size() > STATEMENTS {
            client.statement_cache.clear();
        }
        client.prepare_cached(statement).await
    }

    #[allow(clippy::expect_used, reason = "only `drop` takes it out")]
    fn object(&self) -> &Object {
        self.0.as_ref().expect("a client that was not dropped")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(client) = self.0.take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            drop(Object::take(client));
            return;
        };
        runtime.spawn(async move {
            let cleaning = RecyclingMethod::Clean;
            let cleaned = client.simple_query(cleaning.query().unwrap_or_default());
            if !matches!(timeout(CLEANING, cleaned).await, Ok(Ok(_))) {
                drop(Object::take(client));
            }
        });
    }
}

fn references(parameters: &[Parameter]) -> impl ExactSizeIterator<Item = &(dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| &**parameter as _)
}

/// Whether a statement has to be prepared anew, and was not run: somebody has discarded it, or
/// changed the types of its columns.
fn is_stale(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::INVALID_SQL_STATEMENT_NAME
            // The message is in the server's language.
            || *error.code() == SqlState::FEATURE_NOT_SUPPORTED
                && error.routine() == Some("RevalidateCachedQuery")
    })
}
