//! A client of a pool: its statements stay prepared, and what one use has left behind is gone before
//! the next.
//!
//! Spin prepares anew for each call and cleans a client when it is taken out. What a component
//! sees is the same; here neither is a round trip that it waits for.

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

/// How long a client may take to end what was abandoned.
const ENDING: Duration = Duration::from_secs(10);

/// A client until it goes back to its pool.
pub(super) struct Client {
    object: Option<Object>,
    /// Somebody has used it, and it was not cleaned since, or could not be.
    is_unclean: AtomicBool,
    /// Statements whose end has not been seen, or was an error.
    unfinished: AtomicUsize,
}

impl Client {
    pub(super) fn new(object: Object) -> Self {
        Self {
            is_unclean: AtomicBool::new(Object::metrics(&object).recycle_count > 0),
            unfinished: AtomicUsize::new(0),
            object: Some(object),
        }
    }

    /// Sends a statement. Whoever reads its rows to their end calls [`finished`](Self::finished) then.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<RowStream, Error> {
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        if !self.is_unclean.swap(false, Ordering::Relaxed) {
            return self.send(statement, parameters).await;
        }
        // Polled in this order, and sent in it: both leave at once, and the server cleans first.
        let cleaning = self.object().batch_execute(cleaning_query());
        let (cleaned, rows) = join(cleaning, self.send(statement, parameters)).await;
        if let Err(error) = cleaned {
            self.is_unclean.store(true, Ordering::Relaxed);
            return Err(error);
        }
        rows
    }

    /// How many rows were affected.
    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: &[Parameter],
    ) -> Result<u64, Error> {
        let mut rows = pin!(self.query(statement, parameters).await?);
        while rows.try_next().await?.is_some() {}
        self.finished();
        Ok(rows.rows_affected().unwrap_or(0))
    }

    /// A statement has come to its end.
    pub(super) fn finished(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    async fn send(&self, statement: &str, parameters: &[Parameter]) -> Result<RowStream, Error> {
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
        if *self.unfinished.get_mut() == 0 {
            // Back into the pool.
            return;
        }
        let is_hopeless = *self.is_unclean.get_mut();
        let (Ok(runtime), false) = (Handle::try_current(), is_hopeless) else {
            drop(Object::take(client));
            return;
        };
        runtime.spawn(async move {
            // Refused in a transaction that has failed: such a client is not used again.
            let ended = timeout(ENDING, client.batch_execute(cleaning_query())).await;
            if !matches!(ended, Ok(Ok(()))) {
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
