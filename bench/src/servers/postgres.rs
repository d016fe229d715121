//! A temporary PostgreSQL with the durability that it has by default.
//!
//! It is the tests' cluster, which gives up durability for speed and logs every statement. Both
//! are undone here: nobody runs a database like that.

use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_testkit::{Cluster, Database, until};

use crate::process;

pub struct Postgres {
    pub cluster: &'static Cluster,
    admin: Database,
}

impl Postgres {
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let admin = cluster.database().await?;
        let postgres = Self { cluster, admin };
        postgres.set("fsync", "on").await?;
        postgres.set("full_page_writes", "on").await?;
        postgres.set("synchronous_commit", "on").await?;
        postgres.set("log_statement", "none").await?;
        Ok(postgres)
    }

    /// Its version, and the settings that decide what a commit costs.
    pub async fn description(&self) -> Result<String> {
        let sql = "SELECT format(
            'PostgreSQL %s, fsync = %s, full_page_writes = %s, synchronous_commit = %s',
            current_setting('server_version'), current_setting('fsync'),
            current_setting('full_page_writes'), current_setting('synchronous_commit'))";
        value(&self.admin, sql).await
    }

    /// The prepared statements that are executed in a database while `work` runs, those of the component,
    /// each by its first line. (A pool resets its connections with plain text.)
    pub async fn statements<T>(
        &self,
        database: &Database,
        work: impl Future<Output = T>,
    ) -> Result<(T, Vec<String>)> {
        // None is logged at any other time.
        self.set("log_statement", "all").await?;
        let done = work.await;
        self.set("log_statement", "none").await?;
        Ok((done, database.executed()?))
    }

    /// CPU seconds of all its processes.
    pub async fn cpu_seconds(&self) -> Result<f64> {
        let sql = "SELECT pg_backend_pid()";
        let pid = value(&self.admin, sql).await?.parse()?;
        process::family_cpu_seconds(pid)
    }

    /// Changes a setting for all connections, and waits until it is in force.
    async fn set(&self, name: &str, value: &str) -> Result<()> {
        let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
        self.admin.execute(&sql).await?;
        self.admin.execute("SELECT pg_reload_conf()").await?;
        let show = format!("SHOW {name}");
        until("a changed setting", async || {
            Ok(self::value(&self.admin, &show).await? == value)
        })
        .await?;
        // Other connections read the file a moment later.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }
}

/// Connections to a database, idle ones included.
pub async fn connections(database: &Database) -> Result<f64> {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    Ok(value(database, sql).await?.parse()?)
}

async fn value(database: &Database, sql: &str) -> Result<String> {
    let values = database.query(sql).await?;
    values.into_iter().next().context("no row")
}
