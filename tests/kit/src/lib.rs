//! The kit of the end-to-end tests: the compiled component, started as in production, with a
//! database of its own on one side, a scripted Ollama on the other, and a client in front.
//!
//! [`TestApp`] puts them together; [`Backend`] says which database. [`Cluster`] is PostgreSQL for
//! one test run, [`Wire`] a network that fails on command, [`Answer`] and [`Events`] what a client
//! sees. Ollama is the crate `ollama_stand_in`.

mod app;
mod client;
mod cluster;
mod rows;
mod wire;

use std::time::Duration;

pub use app::{Setup, TestApp, prompt};
pub use client::{Answer, Client, Event, Events};
pub use cluster::{Cluster, Database, PASSWORD};
pub use rows::{Row, Sqlite};
pub use wire::Wire;

/// Longer than anything that works takes, on a busy machine too.
pub const LONG: Duration = Duration::from_secs(20);

/// Waits for what must come; fails with `what` if it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(LONG, future).await;
    done.map_err(|_| anyhow::anyhow!("still waiting after {LONG:?}: {what}"))
}

/// Waits until `probe` gives something. For conditions that nobody announces, such as a row that
/// another process wrote.
pub async fn eventually<T>(
    what: &str,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    within(what, async {
        loop {
            if let Some(found) = probe().await? {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await?
}

/// The two databases that a test runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// SQLite, the default.
    Sqlite,
    /// PostgreSQL, by `database_url`.
    Postgres,
}

/// Makes two tests of each `async fn name(backend: Backend) -> Result<()>`: `name::sqlite` and
/// `name::postgres`.
#[macro_export]
macro_rules! on_both_stores {
    ($($(#[$attribute:meta])* async fn $name:ident($backend:ident: Backend) -> Result<()> $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all of them")]
            use super::*;

            $(#[$attribute])*
            async fn test($backend: Backend) -> Result<()> $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() -> Result<()> {
                test(Backend::Sqlite).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() -> Result<()> {
                test(Backend::Postgres).await
            }
        }
    )*};
}
