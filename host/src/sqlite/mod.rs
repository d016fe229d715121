//! `spin:sqlite`: the databases that the manifest grants, as files.
//!
//! As in Spin: a connection for each `open`, whose statements run one at a time on a thread
//! that may block. Rows leave that thread in batches, so a slow reader holds the connection, and
//! with it SQLite's lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use wasmtime::component::{Accessor, FutureReader, Resource, StreamReader};

use crate::component::bindings::spin::sqlite::sqlite as wit;
use crate::instance::{Instance, Spin, push, resource, services};
use crate::rows;

mod connection;
mod private;
mod result;

#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub use connection::Connection;
use connection::SharedQueues;

/// The label whose file Spin provides without a runtime configuration.
const DEFAULT: &str = "default";

/// The file of the database `default`: the same as Spin's.
pub fn sqlite_file(state_dir: &Path) -> PathBuf {
    state_dir.join("sqlite_db.db")
}

/// The databases that a component may open.
pub(crate) struct Databases {
    granted: BTreeSet<String>,
    dir: PathBuf,
    /// The queues of `default`, the only file there is.
    queues: SharedQueues,
    max_row_bytes: usize,
}

impl Databases {
    pub(crate) fn new(granted: BTreeSet<String>, dir: PathBuf, max_row_bytes: usize) -> Self {
        Self {
            granted,
            dir,
            queues: SharedQueues::default(),
            max_row_bytes,
        }
    }

    /// Takes from group and others what an earlier run gave them: the files, and `.spin` itself.
    /// Another directory is somebody's choice. Returns what was changed.
    pub(crate) fn make_private(&self) -> Vec<PathBuf> {
        let file = sqlite_file(&self.dir);
        let beside = |suffix: &str| {
            let mut name = file.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let is_ours = self.dir.file_name().is_some_and(|name| name == ".spin");
        let mut paths = vec![beside("-wal"), beside("-shm"), file.clone()];
        paths.extend(is_ours.then(|| self.dir.clone()));
        paths.retain(|path| private::tighten(path).unwrap_or(false));
        paths
    }

    fn path(&self, label: &str) -> Result<PathBuf, wit::Error> {
        match (self.granted.contains(label), label) {
            (false, _) => Err(wit::Error::AccessDenied),
            (true, DEFAULT) => Ok(sqlite_file(&self.dir)),
            (true, _) => Err(wit::Error::NoSuchDatabase),
        }
    }
}

impl wit::Host for &mut Instance {}

impl wit::HostConnection for &mut Instance {
    fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

type QueryResult = (
    Vec<String>,
    StreamReader<wit::RowResult>,
    FutureReader<Result<(), wit::Error>>,
);

impl<T: Send> wit::HostConnectionWithStore<T> for Spin {
    async fn open_async(
        accessor: &Accessor<T, Self>,
        database: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, wit::Error>> {
        let databases = services(accessor).sqlite.clone();
        let queue = databases.queues.clone();
        let open = move || Connection::open(&databases.path(&database)?, queue);
        push(accessor, spawn_blocking(open).await?)
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::Value>,
    ) -> wasmtime::Result<Result<QueryResult, wit::Error>> {
        let connection = resource(accessor, &connection)?;
        let services = services(accessor);
        let (sender, receiver) = result::channel(services.sqlite.max_row_bytes);
        spawn_blocking(move || {
            connection.execute(&statement, parameters, sender);
            drop(connection);
            drop(services);
        });
        let (columns, rows) = result::receive(receiver).await;
        let (rows, outcome) = rows::readers(accessor, rows, wit::Error::Io)?;
        Ok(Ok((columns, rows, outcome)))
    }

    async fn changes_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
    ) -> wasmtime::Result<u64> {
        let connection = resource(accessor, &connection)?;
        Ok(spawn_blocking(move || connection.lock().changes()).await?)
    }

    async fn last_insert_rowid_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
    ) -> wasmtime::Result<i64> {
        let connection = resource(accessor, &connection)?;
        Ok(spawn_blocking(move || connection.lock().last_insert_rowid()).await?)
    }
}
