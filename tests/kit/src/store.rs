//! What the database holds, read without the component's help: one interface to both backends.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rusqlite::{Connection, StatementStatus};

use crate::{Database, LONG};

/// The databases that a component can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The default.
    Sqlite,
    /// By `database_url`.
    Postgres,
}

/// The database of one component.
#[derive(Debug)]
pub enum Store {
    /// SQLite's file, which may not exist yet.
    Sqlite(PathBuf),
    /// One database of the shared cluster.
    Postgres(Database),
}

/// A row of the table `chatts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The column `name`.
    pub role: String,
    /// The column `message`.
    pub message: String,
    /// `complete` or `partial`.
    pub status: String,
    /// The turn that it belongs to; a row of an older server has none.
    pub turn: Option<String>,
}

impl Row {
    /// `(role, message, status)`
    pub fn parts(&self) -> (&str, &str, &str) {
        (&self.role, &self.message, &self.status)
    }
}

/// Messages as [`TestApp::conversation`](crate::TestApp::conversation) returns them.
pub fn messages(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(role, content): &(&str, &str)| ((*role).to_owned(), (*content).to_owned());
    pairs.iter().map(owned).collect()
}

const SQLITE_ROWS: &str = "SELECT name, message, status, turn_id FROM chatts WHERE appid = ?1
    ORDER BY turn_start, turn_id, rowid";

impl Store {
    /// Runs SQL: one statement or several.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(path) => Ok(open(path)?.execute_batch(sql)?),
            Self::Postgres(database) => database.execute(sql).await,
        }
    }

    /// A conversation's rows, in order; none if there is no table yet.
    pub async fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        match self {
            _ if !self.has_table().await? => Ok(Vec::new()),
            Self::Sqlite(path) => {
                let connection = open(path)?;
                let mut statement = connection.prepare(SQLITE_ROWS)?;
                let rows = statement.query_map([app_id], |row| {
                    Ok(Row {
                        role: row.get(0)?,
                        message: row.get(1)?,
                        status: row.get(2)?,
                        turn: row.get(3)?,
                    })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            }
            Self::Postgres(database) => database.rows(app_id).await,
        }
    }

    /// The number of rows of all conversations.
    pub async fn row_count(&self) -> Result<usize> {
        match self.has_table().await? {
            true => Ok(self.query("SELECT message FROM chatts").await?.len()),
            false => Ok(0),
        }
    }

    /// What it costs to run a statement, which is undone: the rows of `tables` that PostgreSQL reads, or the steps that
    /// SQLite takes.
    pub async fn cost(&self, sql: &str, tables: &[&str]) -> Result<i64> {
        match self {
            Self::Sqlite(path) => {
                let mut connection = open(path)?;
                let transaction = connection.transaction()?;
                let mut statement = transaction.prepare(sql)?;
                let rows = statement.query_map([], |_| Ok(()))?;
                rows.collect::<rusqlite::Result<()>>()?;
                Ok(statement.get_status(StatementStatus::VmStep).into())
            }
            Self::Postgres(database) => {
                let mut client = database.connect().await?;
                let transaction = client.transaction().await?;
                transaction.batch_execute(sql).await?;
                let read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint
                    FROM pg_stat_xact_user_tables WHERE relname = ANY ($1)";
                Ok(transaction.query_one(read, &[&tables]).await?.try_get(0)?)
            }
        }
    }

    /// Keeps every writer from the table until the lock is released.
    pub async fn lock(&self) -> Result<Lock> {
        Ok(match self {
            Self::Sqlite(path) => {
                let connection = open(path)?;
                connection.execute_batch("BEGIN IMMEDIATE")?;
                Lock::Sqlite(connection)
            }
            Self::Postgres(database) => {
                let client = database.connect().await?;
                let lock = "BEGIN; LOCK TABLE chatts IN EXCLUSIVE MODE";
                client.batch_execute(lock).await?;
                Lock::Postgres(client)
            }
        })
    }

    async fn has_table(&self) -> Result<bool> {
        let found = match self {
            // Looking into it would make it.
            Self::Sqlite(path) if !path.exists() => return Ok(false),
            Self::Sqlite(_) => "SELECT name FROM sqlite_master WHERE name = 'chatts'",
            Self::Postgres(_) => "SELECT 1 WHERE to_regclass('chatts') IS NOT NULL",
        };
        Ok(!self.query(found).await?.is_empty())
    }

    /// The first column, which is text, of a query's rows.
    pub async fn query(&self, sql: &str) -> Result<Vec<String>> {
        match self {
            Self::Sqlite(path) => {
                let connection = open(path)?;
                let mut statement = connection.prepare(sql)?;
                let texts = statement.query_map([], |row| row.get(0))?;
                Ok(texts.collect::<rusqlite::Result<_>>()?)
            }
            Self::Postgres(database) => database.query(sql).await,
        }
    }
}

/// A transaction that holds the table.
#[derive(Debug)]
pub enum Lock {
    /// SQLite's only writer.
    Sqlite(Connection),
    /// An exclusive lock.
    Postgres(tokio_postgres::Client),
}

impl Lock {
    /// Ends the transaction.
    pub async fn release(self) -> Result<()> {
        match self {
            Self::Sqlite(connection) => Ok(connection.execute_batch("COMMIT")?),
            Self::Postgres(client) => Ok(client.batch_execute("COMMIT").await?),
        }
    }
}

fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(LONG)?;
    Ok(connection)
}
