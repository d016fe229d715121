//! What the database holds, read without the component's help.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};

/// A row of the table `chatts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The column `name`.
    pub role: String,
    /// The column `message`.
    pub message: String,
    /// `complete` or `partial`.
    pub status: String,
    /// The turn that it belongs to; an old row has none.
    pub turn: Option<String>,
}

impl Row {
    /// `(role, message)`: what the model is sent.
    pub fn words(&self) -> (&str, &str) {
        (&self.role, &self.message)
    }
}

pub(crate) async fn postgres(client: &tokio_postgres::Client, app_id: &str) -> Result<Vec<Row>> {
    let sql = "SELECT name, message, status, turn_id::text FROM chatts WHERE appid = $1
               ORDER BY coalesce(turn_start, time), turn_id, seq";
    let rows = client.query(sql, &[&app_id]).await?;
    let row = |row: &tokio_postgres::Row| {
        Ok(Row {
            role: row.try_get(0)?,
            message: row.try_get(1)?,
            status: row.try_get(2)?,
            turn: row.try_get(3)?,
        })
    };
    rows.iter().map(row).collect()
}

/// The file that the component's SQLite database is in.
#[derive(Clone, Debug)]
pub struct Sqlite {
    /// May not exist yet.
    pub path: PathBuf,
}

impl Sqlite {
    /// Runs SQL, several statements even; makes the file if it is missing.
    pub fn execute(&self, sql: &str) -> Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Connection::open(&self.path)?.execute_batch(sql)?)
    }

    /// The first column of a query's rows.
    pub fn query(&self, sql: &str) -> Result<Vec<String>> {
        let connection = self.open()?;
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            let value: rusqlite::types::Value = row.get(0)?;
            Ok(match value {
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A conversation's rows, in their order.
    pub fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        let connection = self.open()?;
        let sql = "SELECT name, message, status, turn_id FROM chatts WHERE appid = ?1
                   ORDER BY turn_start, turn_id, rowid";
        let mut statement = connection.prepare(sql)?;
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

    /// Whether the component has made its table.
    pub fn has_table(&self) -> Result<bool> {
        let sql = "SELECT name FROM sqlite_master WHERE name = 'chatts'";
        Ok(self.path.exists() && !self.query(sql)?.is_empty())
    }

    /// A connection of the test's own.
    pub fn open(&self) -> Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .with_context(|| format!("no SQLite database at {}", self.path.display()))?;
        connection.busy_timeout(crate::LONG)?;
        Ok(connection)
    }
}
