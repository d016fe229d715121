//! A throw-away PostgreSQL with the durability that it has by default.
//!
//! It is the tests' cluster, which gives up durability for speed and logs every statement: both are
//! undone here, since nobody runs a database so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{Cluster, Database};

use crate::process;

/// The settings that the tests have changed, and the ones that say what a commit is worth.
const DURABLE: [(&str, &str); 4] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("log_statement", "none"),
];

/// A statement in the server's log.
pub struct Statement {
    /// Sent as text, as a pool's clean-up is; otherwise prepared, as the component's are, and this
    /// is an execution of it.
    pub is_simple: bool,
    /// Its first line.
    pub sql: String,
}

/// The cluster of one benchmark.
pub struct Postgres {
    cluster: &'static Cluster,
    admin: Database,
    postmaster: u32,
}

impl Postgres {
    /// Starts it.
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let admin = cluster.database().await?;
        let client = admin.connect().await?;
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await?;
        let backend: i32 = row.try_get(0)?;
        let postgres = Self {
            cluster,
            admin,
            postmaster: process::parent(u32::try_from(backend)?)?,
        };
        for (name, value) in DURABLE {
            postgres.set(name, value).await?;
        }
        Ok(postgres)
    }

    /// An empty database.
    pub async fn database(&self) -> Result<Database> {
        self.cluster.database().await
    }

    /// Its version and the settings that decide what a commit costs, in a line.
    pub async fn description(&self) -> Result<String> {
        let mut description = format!("PostgreSQL {}", self.show("server_version").await?);
        for (name, _) in DURABLE {
            let value = self.show(name).await?;
            description.push_str(&format!(", {name} = {value}"));
        }
        Ok(description)
    }

    /// Its first process, the parent of all others.
    pub fn pid(&self) -> u32 {
        self.postmaster
    }

    /// Connections to a database, those included that do nothing at the moment.
    pub async fn connections(&self, database: &Database) -> Result<f64> {
        let name = name(database)?;
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'");
        let count = self.admin.query(&sql).await?;
        Ok(count.first().context("no count")?.parse()?)
    }

    /// Whether every statement is logged from now on.
    pub async fn log_statements(&self, all: bool) -> Result<()> {
        self.set("log_statement", if all { "all" } else { "none" })
            .await
    }

    /// The statements logged for a database so far.
    pub fn statements(&self, database: &Database) -> Result<Vec<Statement>> {
        let ours = format!("{}|", name(database)?);
        let log = self.cluster.log()?;
        let logged = log.lines().filter_map(|line| {
            let (_, event) = line.strip_prefix(&ours)?.split_once('|')?;
            let event = event.strip_prefix("LOG:  ")?;
            let (is_simple, sql) = match event.strip_prefix("statement: ") {
                Some(sql) => (true, sql),
                None => (false, event.strip_prefix("execute ")?.split_once(": ")?.1),
            };
            Some(Statement {
                is_simple,
                sql: sql.to_owned(),
            })
        });
        Ok(logged.collect())
    }

    async fn show(&self, name: &str) -> Result<String> {
        let values = self.admin.query(&format!("SHOW {name}")).await?;
        values.into_iter().next().context("no such setting")
    }

    /// Changes a setting for all, and waits until it holds.
    async fn set(&self, name: &str, value: &str) -> Result<()> {
        let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
        self.admin.execute(&sql).await?;
        self.admin.execute("SELECT pg_reload_conf()").await?;
        for _ in 0..100 {
            if self.show(name).await? == value {
                // Connections that are open read the file a moment later.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(self.show(name).await? == value, "{name} is not {value}");
        Ok(())
    }
}

/// A database's name, which its URL ends with.
fn name(database: &Database) -> Result<String> {
    let url = database.url_at(database.address());
    let (_, name) = url.rsplit_once('/').context("a URL without a name")?;
    Ok(name.to_owned())
}
