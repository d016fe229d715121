//! `spin:sqlite`: the databases that the manifest grants, as files.
//!
//! As in Spin: a connection for every `open`, statements run one at a time on a thread
//! that may block, and its rows leave a batch at a time. So a reader that is slow holds the
//! connection, and with it SQLite's lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{Value as Sql, ValueRef};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, StreamReader};

use crate::component::bindings::spin::sqlite::sqlite as wit;
use crate::instance::Instance;
use crate::rows;

/// How long a statement waits for another connection's lock: what rusqlite, and so Spin, sets.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A batch of rows ends with the one that makes it as large.
const BATCH_BYTES: usize = 64 * 1024;

/// The label whose file Spin provides without a runtime configuration.
const DEFAULT: &str = "default";

/// What a component may open.
pub(crate) struct Databases {
    granted: BTreeSet<String>,
    dir: PathBuf,
    /// That of `default`, the only file there is.
    line: Arc<Line>,
}

impl Databases {
    pub(crate) fn new(granted: BTreeSet<String>, dir: PathBuf) -> Self {
        Self {
            granted,
            dir,
            line: Arc::default(),
        }
    }

    fn path(&self, label: &str) -> Result<PathBuf, wit::Error> {
        match (self.granted.contains(label), label) {
            (false, _) => Err(wit::Error::AccessDenied),
            (true, DEFAULT) => Ok(default_path(&self.dir)),
            (true, _) => Err(wit::Error::NoSuchDatabase),
        }
    }
}

/// Those that want to write to one file, one after the other.
///
/// SQLite lets one connection write at a time and has the others look in again now and then, after up
/// to a tenth of a second. Within this process the next one starts at once.
#[derive(Default)]
struct Line {
    is_taken: Mutex<bool>,
    free: Condvar,
}

impl Line {
    /// Waits to be the one that writes, for as long as SQLite would; after that its own lock decides.
    fn turn(&self) -> Option<Turn<'_>> {
        let is_taken = self.lock();
        let waited = self
            .free
            .wait_timeout_while(is_taken, BUSY_TIMEOUT, |is_taken| *is_taken);
        let (mut is_taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *is_taken = true;
        Some(Turn(self))
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of the one that writes.
struct Turn<'a>(&'a Line);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}

/// The file of the database `default`: the same as Spin's.
pub fn default_path(state_dir: &Path) -> PathBuf {
    state_dir.join("sqlite_db.db")
}

/// A connection resource.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub struct Connection {
    connection: Arc<Mutex<rusqlite::Connection>>,
    line: Arc<Line>,
}

impl Connection {
    fn open(path: &Path, line: Arc<Line>) -> Result<Self, wit::Error> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|error| wit::Error::Io(error.to_string()))?;
        }
        let connection = rusqlite::Connection::open(path).map_err(io)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(io)?;
        // ATTACH would reach every file that this process can.
        connection.authorizer(Some(|context: AuthContext<'_>| match context.action {
            AuthAction::Attach { filename } if !matches!(filename, "" | ":memory:") => {
                Authorization::Deny
            }
            _ => Authorization::Allow,
        }));
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            line,
        })
    }

    fn lock(&self) -> MutexGuard<'_, rusqlite::Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one statement and hands its result to `reply`; an error of any kind comes after the rows.
    fn execute(&self, statement: &str, parameters: Vec<wit::Value>, mut reply: Reply) {
        let outcome = self.run(statement, parameters, &mut reply);
        reply.end(outcome);
    }

    fn run(
        &self,
        statement: &str,
        parameters: Vec<wit::Value>,
        reply: &mut Reply,
    ) -> Result<(), wit::Error> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(statement).map_err(io)?;
        let columns = statement.column_names().into_iter().map(str::to_owned);
        reply.columns = columns.collect();
        let width = reply.columns.len();
        // Within a transaction, which spans calls, SQLite's own lock decides.
        let _turn = (connection.is_autocommit() && !statement.readonly()).then(|| self.line.turn());
        if reply.is_abandoned() {
            return Ok(());
        }
        let parameters = rusqlite::params_from_iter(parameters.into_iter().map(to_sql));
        let mut found = statement.query(parameters).map_err(io)?;
        while let Some(row) = found.next().map_err(io)? {
            let values = (0..width).map(|index| from_sql(row.get_ref(index).map_err(io)?));
            reply.row(wit::RowResult {
                values: values.collect::<Result<_, _>>()?,
            })?;
        }
        Ok(())
    }
}

/// Rows that leave the thread of a statement together, and after the last of them its outcome.
struct Batch {
    rows: Vec<wit::RowResult>,
    end: Option<Result<(), wit::Error>>,
}

/// The result of a statement on its way from the thread that it runs on. The columns are told with
/// the first rows, so that a small result costs one change of thread.
struct Reply {
    columns: Vec<String>,
    started: Option<oneshot::Sender<Vec<String>>>,
    batches: mpsc::Sender<Batch>,
    rows: Vec<wit::RowResult>,
    bytes: usize,
}

impl Reply {
    /// The reply, and its other ends: the columns, and the rows.
    fn new() -> (Self, oneshot::Receiver<Vec<String>>, mpsc::Receiver<Batch>) {
        let (started, columns) = oneshot::channel();
        let (sender, batches) = mpsc::channel(1);
        let reply = Self {
            columns: Vec::new(),
            started: Some(started),
            batches: sender,
            rows: Vec::new(),
            bytes: 0,
        };
        (reply, columns, batches)
    }

    fn row(&mut self, row: wit::RowResult) -> Result<(), wit::Error> {
        self.bytes += row.values.iter().map(size).sum::<usize>();
        self.rows.push(row);
        if self.rows.len() < rows::BATCH && self.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.send(None)
            .map_err(|_| wit::Error::Io("the rows were dropped unread".to_owned()))
    }

    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool {
        self.batches.is_closed()
    }

    fn end(mut self, outcome: Result<(), wit::Error>) {
        let _ = self.send(Some(outcome));
    }

    /// Waits while the last batch has not been taken.
    fn send(&mut self, end: Option<Result<(), wit::Error>>) -> Result<(), SendError<Batch>> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        self.batches.blocking_send(Batch { rows, end })?;
        if let Some(started) = self.started.take() {
            let _ = started.send(std::mem::take(&mut self.columns));
        }
        Ok(())
    }
}

fn size(value: &wit::Value) -> usize {
    match value {
        wit::Value::Text(it) => it.len(),
        wit::Value::Blob(it) => it.len(),
        wit::Value::Null | wit::Value::Integer(_) | wit::Value::Real(_) => size_of::<wit::Value>(),
    }
}

/// The rows of the batches, one by one.
fn rows_of(
    mut batches: mpsc::Receiver<Batch>,
) -> impl Stream<Item = Result<wit::RowResult, wit::Error>> {
    let mut rows = Vec::new().into_iter();
    let mut end = None;
    futures_util::stream::poll_fn(move |cx| {
        loop {
            if let Some(row) = rows.next() {
                return Poll::Ready(Some(Ok(row)));
            }
            match end.take() {
                Some(Ok(())) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
            let Some(batch) = ready!(batches.poll_recv(cx)) else {
                // Only a thread that panicked ends without a word.
                let abandoned = wit::Error::Io("the statement was abandoned".to_owned());
                return Poll::Ready(Some(Err(abandoned)));
            };
            rows = batch.rows.into_iter();
            end = batch.end;
        }
    })
}

fn io(error: rusqlite::Error) -> wit::Error {
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
        ValueRef::Text(it) => wit::Value::Text(
            String::from_utf8(it.to_vec())
                .map_err(|_| wit::Error::Io("a text is not UTF-8".to_owned()))?,
        ),
        ValueRef::Blob(it) => wit::Value::Blob(it.to_vec()),
    })
}

/// `spin:sqlite` on an instance.
pub(crate) struct SpinSqlite;

impl HasData for SpinSqlite {
    type Data<'a> = &'a mut Instance;
}

impl wit::Host for &mut Instance {}

impl wit::HostConnection for &mut Instance {
    fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

fn connection<T>(
    accessor: &Accessor<T, SpinSqlite>,
    connection: &Resource<Connection>,
) -> wasmtime::Result<Connection> {
    accessor.with(|mut access| Ok(access.get().table.get(connection)?.clone()))
}

type QueryResult = (
    Vec<String>,
    StreamReader<wit::RowResult>,
    FutureReader<Result<(), wit::Error>>,
);

impl<T: Send> wit::HostConnectionWithStore<T> for SpinSqlite {
    async fn open_async(
        accessor: &Accessor<T, Self>,
        database: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, wit::Error>> {
        let databases = accessor.with(|mut access| access.get().services.sqlite.clone());
        let opened = match databases.path(&database) {
            Ok(path) => {
                let line = databases.line.clone();
                tokio::task::spawn_blocking(move || Connection::open(&path, line)).await?
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => accessor.with(|mut access| Ok(Ok(access.get().table.push(opened)?))),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        resource: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::Value>,
    ) -> wasmtime::Result<Result<QueryResult, wit::Error>> {
        let connection = connection(accessor, &resource)?;
        let services = accessor.with(|mut access| access.get().services.clone());
        let (reply, columns, batches) = Reply::new();
        tokio::task::spawn_blocking(move || {
            connection.execute(&statement, parameters, reply);
            drop(connection);
            drop(services);
        });
        let columns = columns.await.unwrap_or_default();
        let (rows, outcome) = rows::split(rows_of(batches), || {
            wit::Error::Io("the rows were dropped unread".to_owned())
        });
        accessor.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            let outcome = FutureReader::new(&mut access, outcome)?;
            Ok(Ok((columns, rows, outcome)))
        })
    }

    async fn changes_async(
        accessor: &Accessor<T, Self>,
        resource: Resource<Connection>,
    ) -> wasmtime::Result<u64> {
        let connection = connection(accessor, &resource)?;
        Ok(tokio::task::spawn_blocking(move || connection.lock().changes()).await?)
    }

    async fn last_insert_rowid_async(
        accessor: &Accessor<T, Self>,
        resource: Resource<Connection>,
    ) -> wasmtime::Result<i64> {
        let connection = connection(accessor, &resource)?;
        Ok(tokio::task::spawn_blocking(move || connection.lock().last_insert_rowid()).await?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// Runs a statement to its end on a thread of its own.
    async fn run(connection: &Connection, statement: &'static str) -> Result<(), wit::Error> {
        let connection = connection.clone();
        let (reply, _columns, mut batches) = Reply::new();
        let running = tokio::task::spawn_blocking(move || {
            connection.execute(statement, Vec::new(), reply);
        });
        let mut end = Ok(());
        while let Some(batch) = batches.recv().await {
            end = batch.end.unwrap_or(Ok(()));
        }
        running.await.unwrap();
        end
    }

    fn connections() -> (tempfile::TempDir, [Connection; 3]) {
        let dir = tempfile::tempdir().unwrap();
        let line = Arc::<Line>::default();
        let open = |_| Connection::open(&dir.path().join("it.db"), line.clone()).unwrap();
        let connections = [(); 3].map(open);
        (dir, connections)
    }

    async fn count(connection: &Connection) -> i64 {
        let connection = connection.clone();
        let count = move || {
            let sql = "SELECT count(*) FROM it";
            connection.lock().query_row(sql, [], |row| row.get(0))
        };
        tokio::task::spawn_blocking(count).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn those_that_write_wait_for_each_other_and_none_is_refused() {
        let (_dir, connections) = connections();
        run(&connections[0], "CREATE TABLE it (n)").await.unwrap();
        let write = async |connection: &Connection| {
            for _ in 0..50 {
                run(connection, "INSERT INTO it VALUES (1)").await.unwrap();
            }
        };
        let [one, two, three] = &connections;
        tokio::join!(write(one), write(two), write(three));
        assert_eq!(count(one).await, 150);
    }

    #[tokio::test]
    async fn a_statement_that_nobody_waits_for_any_more_does_not_write() {
        let (_dir, [one, two, _]) = connections();
        run(&one, "CREATE TABLE it (n)").await.unwrap();
        let turn = one.line.turn();
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { run(&two, "INSERT INTO it VALUES (1)").await }
        });
        // It waits in line with its connection locked.
        while two.connection.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        drop(turn);
        // It is over when the connection is free again.
        assert_eq!(count(&two).await, 0);
    }

    #[tokio::test]
    async fn a_transaction_goes_on_while_another_connection_waits_for_it() {
        let (_dir, [one, two, _]) = connections();
        run(&one, "CREATE TABLE it (n)").await.unwrap();
        run(&one, "BEGIN IMMEDIATE").await.unwrap();
        let waiting = {
            let two = two.clone();
            tokio::spawn(async move { run(&two, "INSERT INTO it VALUES (2)").await })
        };
        // It has begun to write, and cannot.
        while !*two.line.lock() {
            tokio::task::yield_now().await;
        }
        run(&one, "INSERT INTO it VALUES (1)").await.unwrap();
        run(&one, "COMMIT").await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(count(&one).await, 2);
    }
}
