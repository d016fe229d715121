//! `spin:sqlite`: the databases that the manifest grants, as files.
//!
//! As in Spin: a connection for every `open`, statements run one at a time on a thread
//! that may block, and its rows leave a few at a time. So a reader that is slow holds the
//! connection, and with it SQLite's lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{Value as Sql, ValueRef};
use tokio::sync::oneshot;
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, StreamReader};

use crate::component::bindings::spin::sqlite::sqlite as wit;
use crate::instance::Instance;
use crate::rows;

/// How long a statement waits for another connection's lock: what rusqlite, and so Spin, sets.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The label whose file Spin provides without a runtime configuration.
const DEFAULT: &str = "default";

/// What a component may open.
pub(crate) struct Databases {
    granted: BTreeSet<String>,
    dir: PathBuf,
}

impl Databases {
    pub(crate) fn new(granted: BTreeSet<String>, dir: PathBuf) -> Self {
        Self { granted, dir }
    }

    fn path(&self, label: &str) -> Result<PathBuf, wit::Error> {
        match (self.granted.contains(label), label) {
            (false, _) => Err(wit::Error::AccessDenied),
            (true, DEFAULT) => Ok(default_path(&self.dir)),
            (true, _) => Err(wit::Error::NoSuchDatabase),
        }
    }
}

/// The file of the database `default`: the same as Spin's.
pub fn default_path(state_dir: &Path) -> PathBuf {
    state_dir.join("sqlite_db.db")
}

/// A connection resource.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub struct Connection(Arc<Mutex<rusqlite::Connection>>);

impl Connection {
    fn open(path: &Path) -> Result<Self, wit::Error> {
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
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    fn lock(&self) -> MutexGuard<'_, rusqlite::Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one statement. `columns` are sent as soon as it is prepared; an error of any
    /// kind is the outcome of the rows.
    fn execute(
        &self,
        statement: &str,
        parameters: Vec<wit::Value>,
        columns: oneshot::Sender<Vec<String>>,
        rows: &tokio::sync::mpsc::Sender<wit::RowResult>,
    ) -> Result<(), wit::Error> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(statement).map_err(io)?;
        let names = statement
            .column_names()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let width = names.len();
        let _ = columns.send(names);
        let parameters = rusqlite::params_from_iter(parameters.into_iter().map(to_sql));
        let mut found = statement.query(parameters).map_err(io)?;
        while let Some(row) = found.next().map_err(io)? {
            let values = (0..width).map(|index| from_sql(row.get_ref(index).map_err(io)?));
            let row = wit::RowResult {
                values: values.collect::<Result<_, _>>()?,
            };
            if rows.blocking_send(row).is_err() {
                return Err(wit::Error::Io("the rows were dropped unread".to_owned()));
            }
        }
        Ok(())
    }
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
        let path = accessor.with(|mut access| access.get().services.sqlite.path(&database));
        let opened = match path {
            Ok(path) => tokio::task::spawn_blocking(move || Connection::open(&path)).await?,
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
        let (columns_sender, columns) = oneshot::channel();
        let (sender, receiver) = rows::channel();
        tokio::task::spawn_blocking(move || {
            let outcome = connection.execute(&statement, parameters, columns_sender, &sender.rows);
            let _ = sender.outcome.send(outcome);
        });
        // A statement that could not be prepared has no columns; its error is the outcome.
        let columns = columns.await.unwrap_or_default();
        let (rows, outcome) =
            receiver.split(|| wit::Error::Io("the statement was abandoned".to_owned()));
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
