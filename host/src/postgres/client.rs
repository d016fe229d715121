//! A pooled client: its statements stay prepared, and what one use leaves behind is cleaned up before
//! the next.
//!
//! Spin prepares each statement again and cleans a client when it leaves the pool. The component
//! sees no difference, but here it waits for neither round trip.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_postgres::{Object, RecyclingMethod};
use futures_util::TryStreamExt as _;
use futures_util::future::join;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, RowStream, Statement};

use super::values::Parameter;

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;

/// How long the server may take to clean a client after a statement that failed.
const CLEANING: Duration = Duration::from_secs(2);

/// A client until it returns to its pool.
pub(super) struct Client {
    object: Option<Object>,
    /// It was used before and has not been cleaned since, or could not be.
    is_unclean: AtomicBool,
    /// Statements whose end was not seen.
    unfinished: AtomicUsize,
    /// The server has refused a statement: a transaction may be open, and have failed.
    has_failed: AtomicBool,
}

impl Client {
    pub(super) fn new(object: Object) -> Self {
        Self {
            is_unclean: AtomicBool::new(Object::metrics(&object).recycle_count > 0),
            unfinished: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            object: Some(object),
        }
    }

    /// Sends a statement. Call [`finished`](Self::finished) once its rows were read to their end.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<RowStream, Error> {
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        let sent = self.clean_and_send(statement, parameters).await;
        sent.inspect_err(|error| self.failed(error))
    }

    async fn clean_and_send(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<RowStream, Error> {
        if !self.is_unclean.swap(false, Ordering::Relaxed) {
            return self.send(statement, parameters).await;
        }
        // Polled in this order and so sent in it: one round trip, and the server cleans first.
        let cleaning = self.object().batch_execute(cleaning_query());
        let (cleaned, rows) = join(cleaning, self.send(statement, parameters)).await;
        if let Err(error) = cleaned {
            self.is_unclean.store(true, Ordering::Relaxed);
            return Err(error);
        }
        rows
    }

    /// Returns the number of affected rows.
    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<u64, Error> {
        let mut rows = pin!(self.query(statement, parameters).await?);
        while rows
            .try_next()
            .await
            .inspect_err(|error| self.failed(error))?
            .is_some()
        {}
        self.finished();
        Ok(rows.rows_affected().unwrap_or(0))
    }

    /// A statement has ended.
    pub(super) fn finished(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    /// A statement has ended with an error: the server's own, or the connection is of no use.
    pub(super) fn failed(&self, error: &Error) {
        if error.as_db_error().is_some() {
            self.has_failed.store(true, Ordering::Relaxed);
            self.finished();
        }
    }

    async fn send(&self, statement: &str, parameters: &[Parameter]) -> Result<RowStream, Error> {
        let prepared = self.prepare(statement).await?;
        let client = self.object();
        match client.query_raw(&prepared, references(parameters)).await {
            Err(error) if is_stale(&error) => {}
            outcome => return outcome,
        }
        client.statement_cache.remove(statement, &[]);
        let prepared = self.prepare(statement).await?;
        client.query_raw(&prepared, references(parameters)).await
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
        self.object.as_ref().expect("a client that was not dropped")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(client) = self.object.take() else {
            return;
        };
        if *self.unfinished.get_mut() > 0 {
            // It was given up: the connection may be dead without a word, and then so are those that
            // were idle meanwhile. Whoever tries again must not get one of them.
            if let Some(pool) = Object::pool(&client) {
                pool.retain(|_, _| false);
            }
            drop(Object::take(client));
            return;
        }
        if !*self.has_failed.get_mut() {
            // Dropping it returns it to the pool.
            return;
        }
        let cleaning_failed = *self.is_unclean.get_mut();
        let (Ok(runtime), false) = (Handle::try_current(), cleaning_failed) else {
            drop(Object::take(client));
            return;
        };
        runtime.spawn(async move {
            // The server refuses in a transaction that has failed: that client is not used again.
            let cleaned = timeout(CLEANING, client.batch_execute(cleaning_query())).await;
            if !matches!(cleaned, Ok(Ok(()))) {
                drop(Object::take(client));
            }
        });
    }
}

fn cleaning_query() -> &'static str {
    static METHOD: RecyclingMethod = RecyclingMethod::Clean;
    METHOD.query().unwrap_or_default()
}

fn references(parameters: &[Parameter]) -> impl ExactSizeIterator<Item = &(dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| &**parameter as _)
}

/// Whether a statement was not run and must be prepared again: it was discarded, or the types of its
/// columns have changed.
fn is_stale(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::INVALID_SQL_STATEMENT_NAME
            // The message is in the server's language.
            || *error.code() == SqlState::FEATURE_NOT_SUPPORTED
                && error.routine() == Some("RevalidateCachedQuery")
    })
}
