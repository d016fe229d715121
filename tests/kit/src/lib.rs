//! What the end-to-end tests, the soak and the benchmark share: the compiled component in the host,
//! a database on one side, a scripted Ollama on the other, and a client in front.
//!
//! [`TestApp`] puts these together. [`Cluster`] is a PostgreSQL server for one run, [`Store`] the
//! database that a component uses, [`Wire`] a network that fails on command, [`Process`] the program that
//! users run, [`Client`] what a user has, [`Browser`] a page in Chromium. Ollama is the crate `ollama_stand_in`.

mod app;
mod browser;
mod client;
mod cluster;
mod component;
mod database;
mod disk;
mod kept;
mod nginx;
mod pooler;
mod process;
mod site;
mod spin;
mod store;
mod wire;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tokio::net::TcpStream;

pub use app::{Another, Setup, TestApp};
pub use browser::Browser;
pub use client::{Answer, Client, Event, Events, prompt};
pub use cluster::{Cluster, PASSWORD};
pub use database::Database;
pub use disk::Disk;
pub use nginx::Nginx;
pub use pooler::Pooler;
pub use process::{Process, Variables};
pub use site::Site;
pub use store::{Backend, Lock, Row, Store, messages};
pub use wire::Wire;

/// Longer than anything that works takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// Waits for what must come; fails with `what` if it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(LONG, future).await;
    done.map_err(|_| anyhow!("still waiting after {LONG:?}: {what}"))
}

/// How late something with a limit may be on a busy machine.
const SLACK: Duration = Duration::from_secs(4);

/// Waits for what ends at a limit; fails if it ends before, or later than a busy machine explains.
pub async fn at_limit<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    let begun = Instant::now();
    let done = within("what has a limit", future).await?;
    let took = begun.elapsed();
    ensure!(
        (limit..limit + SLACK).contains(&took),
        "took {took:?}, and its limit is {limit:?}"
    );
    Ok(done)
}

/// Polls until `condition` holds. For what nobody announces, such as a row that another process
/// wrote.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    within(what, async {
        while !condition().await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    })
    .await?
}

/// Waits until a server no longer accepts connections.
pub async fn until_refused(address: SocketAddr) -> Result<()> {
    let refused = async || Ok(TcpStream::connect(address).await.is_err());
    until("the listener's end", refused).await
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
