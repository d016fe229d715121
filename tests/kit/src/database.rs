//! One database of the cluster: how the component reaches it, and what a test looks up in it.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::{APPLICATION, Cluster, PASSWORD, USER, give_away};
use crate::disk::Disk;
use crate::store::Row;
use crate::until;

/// A database that one test has for itself.
#[derive(Debug)]
pub struct Database {
    cluster: &'static Cluster,
    name: String,
    client: Mutex<Option<Arc<Client>>>,
}

const ROWS: &str = "SELECT name, message, status, turn_id::text FROM chatts WHERE appid = $1
    ORDER BY coalesce(turn_start, time), turn_id, seq";

impl Database {
    pub(crate) async fn create(cluster: &'static Cluster) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = cluster.connect("postgres").await?;
        let create = format!("CREATE DATABASE {name}");
        admin.batch_execute(&create).await?;
        Ok(Self {
            cluster,
            name,
            client: Mutex::default(),
        })
    }

    /// The server's own address.
    pub fn address(&self) -> SocketAddr {
        self.cluster.address()
    }

    /// Its URL, password included, at an address: the server's own, or a wire's.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{address}/{}", self.name)
    }

    /// The URL for a new role that may read and write but not create.
    pub async fn url_without_create(&self) -> Result<String> {
        let role = format!("limited_{}", self.name);
        self.execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        ))
        .await?;
        let url = self.url_at(self.address());
        Ok(url.replace(&format!("//{USER}:"), &format!("//{role}:")))
    }

    /// A small disk, on which the tables are that are created from now on.
    pub async fn disk(&self, mebibytes: usize) -> Result<Disk> {
        let (name, disk) = (&self.name, self.cluster.disk(mebibytes)?);
        let location = disk.path().join("tables");
        fs::create_dir(&location)?;
        give_away(&location)?;
        let location = location.display();
        self.execute(&format!("CREATE TABLESPACE {name} LOCATION '{location}'"))
            .await?;
        self.execute(&format!(
            "ALTER DATABASE {name} SET default_tablespace = {name}"
        ))
        .await?;
        Ok(disk)
    }

    /// Runs SQL: one statement or several.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        Ok(self.client().await?.batch_execute(sql).await?)
    }

    /// The first column of a query's rows.
    pub async fn query(&self, sql: &str) -> Result<Vec<String>> {
        let messages = self.client().await?.simple_query(sql).await?;
        let values = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        });
        Ok(values.collect())
    }

    /// A connection of its own, for a lock or a transaction that stays open.
    pub async fn connect(&self) -> Result<Client> {
        self.cluster.connect(&self.name).await
    }

    /// Waits until nobody but the kit is connected.
    pub async fn until_unused(&self) -> Result<()> {
        let others = format!(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
             AND pid <> pg_backend_pid() AND application_name <> '{APPLICATION}'"
        );
        let is_unused = async || Ok(self.query(&others).await?.is_empty());
        until("the end of connections to the database", is_unused).await
    }

    pub(crate) async fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        let rows = self.client().await?.query(ROWS, &[&app_id]).await?;
        let rows = rows.iter().map(|row| {
            Ok(Row {
                role: row.try_get(0)?,
                message: row.try_get(1)?,
                status: row.try_get(2)?,
                turn: row.try_get(3)?,
            })
        });
        rows.collect()
    }

    /// The connection for queries; a new one where a restart has closed it.
    async fn client(&self) -> Result<Arc<Client>> {
        let mut shared = self.client.lock().await;
        if let Some(client) = shared.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.connect().await?);
        Ok(shared.insert(client).clone())
    }

    /// The prepared statements that others than the test have executed here, in order.
    pub fn executed(&self) -> Result<Vec<String>> {
        self.logged("execute ")
    }

    /// What others than the test have sent as text, without preparing it: a pool's clean-up.
    pub fn sent_as_text(&self) -> Result<Vec<String>> {
        self.logged("statement")
    }

    fn logged(&self, kind: &str) -> Result<Vec<String>> {
        let log = self.cluster.log()?;
        let of_this_database = format!("{}|", self.name);
        let logged = log.lines().filter_map(|line| {
            let (application, event) = line.strip_prefix(&of_this_database)?.split_once('|')?;
            let statement = event.strip_prefix("LOG:  ")?.strip_prefix(kind)?;
            let (_, sql) = statement.split_once(": ")?;
            (application != APPLICATION).then(|| sql.to_owned())
        });
        Ok(logged.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn two_databases() -> Result<(Database, Database)> {
        let cluster = Cluster::shared().await?;
        Ok((cluster.database().await?, cluster.database().await?))
    }

    #[tokio::test]
    async fn each_test_has_a_database_of_its_own() -> Result<()> {
        let (one, other) = two_databases().await?;
        one.execute("CREATE TABLE t AS SELECT 7 AS n").await?;
        assert_eq!(one.query("SELECT n FROM t").await?, ["7"]);
        assert!(other.query("SELECT n FROM t").await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn executed_statements_are_counted_by_database() -> Result<()> {
        let (one, other) = two_databases().await?;
        one.query("SELECT 'by the test'").await?;
        let url = one.url_at(one.address());
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.query("SELECT 1\n + 1", &[]).await?;
        assert_eq!(one.executed()?, ["SELECT 1"]);
        assert_eq!(other.executed()?, [""; 0]);
        Ok(())
    }
}
