//! A connection: its statements, and the queue of those that write.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{Value as Sql, ValueRef};

use super::result::Sender;
use super::{private, wit};

/// How long a statement waits for another connection's lock: rusqlite's default, and so Spin's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Held by the connection that writes to a file.
///
/// SQLite lets one connection write at a time and has the others poll, up to a tenth of a second
/// apart. Within this process the next one starts at once.
pub(super) type SharedQueues = Arc<Queues>;

/// Statements that read at once: each can take as much memory as its rows, and the processor is shared.
const READERS: usize = 2;

/// Who waits for the file.
#[derive(Debug, Default)]
pub(super) struct Queues {
    write: Arc<Mutex<()>>,
    read: [Mutex<()>; READERS],
    next: AtomicUsize,
}

impl Queues {
    /// A turn to write or to read. None where that takes longer than SQLite itself would wait: it decides then.
    fn enter(&self, is_reader: bool) -> Option<MutexGuard<'_, ()>> {
        if !is_reader {
            return self.write.try_lock_for(BUSY_TIMEOUT);
        }
        let free = self.read.iter().find_map(Mutex::try_lock);
        free.or_else(|| {
            let next = self.next.fetch_add(1, Ordering::Relaxed) % READERS;
            self.read.get(next)?.try_lock_for(BUSY_TIMEOUT)
        })
    }
}

/// A connection resource.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub struct Connection {
    connection: Arc<Mutex<rusqlite::Connection>>,
    queues: SharedQueues,
}

impl Connection {
    pub(super) fn open(path: &Path, queues: SharedQueues) -> Result<Self, wit::Error> {
        private::create(path).map_err(io)?;
        let connection = rusqlite::Connection::open(path).map_err(io)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(io)?;
        // ATTACH would give access to every file of this process.
        connection.authorizer(Some(|context: AuthContext<'_>| match context.action {
            AuthAction::Attach { filename } if !matches!(filename, "" | ":memory:") => {
                Authorization::Deny
            }
            _ => Authorization::Allow,
        }));
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            queues,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, rusqlite::Connection> {
        self.connection.lock()
    }

    /// Runs one statement and sends its result; an error of any kind comes after the rows.
    pub(super) fn execute(&self, statement: &str, parameters: Vec<wit::Value>, mut result: Sender) {
        let outcome = self.run(statement, parameters, &mut result);
        result.end(outcome);
    }

    fn run(
        &self,
        statement: &str,
        parameters: Vec<wit::Value>,
        result: &mut Sender,
    ) -> Result<(), wit::Error> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(statement).map_err(io)?;
        let width = statement.column_count();
        let columns = statement.column_names().into_iter().map(str::to_owned);
        result.columns(columns.collect());
        // A transaction spans calls: within one SQLite's own lock decides, and so it does where the
        // queue takes longer than SQLite would wait.
        let is_alone = connection.is_autocommit();
        let _permit = is_alone.then(|| self.queues.enter(statement.readonly()));
        if result.is_abandoned() {
            return Ok(());
        }
        let parameters = rusqlite::params_from_iter(parameters.into_iter().map(to_sql));
        let mut rows = statement.query(parameters).map_err(io)?;
        while let Some(row) = rows.next().map_err(io)? {
            let values = (0..width).map(|index| from_sql(row.get_ref(index).map_err(io)?));
            let values = values.collect::<Result<_, _>>()?;
            result.row(wit::RowResult { values })?;
        }
        Ok(())
    }
}

fn io(error: impl ToString) -> wit::Error {
    wit::Error::Io(error.to_string())
}

fn to_sql(value: wit::Value) -> Sql {
    match value {
        wit::Value::Null => Sql::Null,
        wit::Value::Integer(it) => Sql::Integer(it),
        wit::Value::Real(it) => Sql::Real(it),
        wit::Value::Text(it) => Sql::Text(it),
        wit::Value::Blob(it) => Sql::Blob(it),
    }
}

fn from_sql(value: ValueRef<'_>) -> Result<wit::Value, wit::Error> {
    Ok(match value {
        ValueRef::Null => wit::Value::Null,
        ValueRef::Integer(it) => wit::Value::Integer(it),
        ValueRef::Real(it) => wit::Value::Real(it),
        ValueRef::Text(it) => {
            wit::Value::Text(String::from_utf8(it.to_vec()).map_err(|_| io("a text is not UTF-8"))?)
        }
        ValueRef::Blob(it) => wit::Value::Blob(it.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use futures_util::{StreamExt as _, TryStreamExt as _};
    use tempfile::TempDir;
    use tokio::task::{spawn_blocking, yield_now};

    use super::super::result::{channel, receive};
    use super::*;
    use crate::rows::MAX_ROW_BYTES;

    async fn run(
        connection: &Connection,
        statement: &'static str,
    ) -> Result<Vec<wit::RowResult>, wit::Error> {
        let connection = connection.clone();
        let (sender, receiver) = channel(MAX_ROW_BYTES);
        spawn_blocking(move || connection.execute(statement, Vec::new(), sender));
        receive(receiver).await.1.try_collect().await
    }

    /// Connections to one file with a table `it`.
    async fn connections() -> (TempDir, [Connection; 3]) {
        let dir = tempfile::tempdir().unwrap();
        let queue = SharedQueues::default();
        let open = |_| Connection::open(&dir.path().join("it.db"), queue.clone()).unwrap();
        let connections = [(); 3].map(open);
        run(&connections[0], "CREATE TABLE it (n)").await.unwrap();
        (dir, connections)
    }

    async fn count(connection: &Connection) -> i64 {
        let rows = run(connection, "SELECT count(*) FROM it").await.unwrap();
        match rows[0].values[0] {
            wit::Value::Integer(count) => count,
            _ => panic!("a count is an integer"),
        }
    }

    #[tokio::test]
    async fn connections_that_write_wait_for_each_other_and_none_is_refused() {
        let (_dir, [one, two, three]) = connections().await;
        let write = async |connection: &Connection| {
            for _ in 0..50 {
                run(connection, "INSERT INTO it VALUES (1)").await.unwrap();
            }
        };
        tokio::join!(write(&one), write(&two), write(&three));
        assert_eq!(count(&one).await, 150);
    }

    #[tokio::test]
    async fn a_statement_that_nobody_waits_for_any_more_does_not_write() {
        let (_dir, [one, two, _]) = connections().await;
        let queue = one.queues.clone();
        let permit = queue.write.lock_arc();
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { run(&two, "INSERT INTO it VALUES (1)").await }
        });
        // It waits in the queue with its connection locked.
        while !two.connection.is_locked() {
            yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        drop(permit);
        // It has ended when the connection is free again.
        assert_eq!(count(&two).await, 0);
    }

    #[tokio::test]
    async fn a_transaction_goes_on_while_another_connection_waits_for_it() {
        let (_dir, [one, two, _]) = connections().await;
        run(&one, "BEGIN IMMEDIATE").await.unwrap();
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { run(&two, "INSERT INTO it VALUES (2)").await }
        });
        // It has started to write, and cannot.
        while !two.queues.write.is_locked() {
            yield_now().await;
        }
        run(&one, "INSERT INTO it VALUES (1)").await.unwrap();
        run(&one, "COMMIT").await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(count(&one).await, 2);
    }

    #[tokio::test]
    async fn a_row_over_the_limit_ends_the_result_as_in_spin() {
        let (_dir, [connection, ..]) = connections().await;
        let limit = size_of::<wit::Value>() + 10;
        let (sender, receiver) = channel(limit);
        spawn_blocking(move || {
            let rows = "VALUES (zeroblob(10)), (zeroblob(11)), (NULL)";
            connection.execute(rows, Vec::new(), sender);
        });
        let rows: Vec<_> = receive(receiver).await.1.take(2).collect().await;
        let [Ok(_), Err(wit::Error::Io(message))] = &rows[..] else {
            panic!("{rows:?}");
        };
        let expected = format!("query result exceeds limit of {limit} bytes");
        assert_eq!(*message, expected);
    }
}
