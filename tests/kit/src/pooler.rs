//! PgBouncer between the component and PostgreSQL, as many people run it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::cluster::{PASSWORD, USER, command, give_away, start_keeper};
use crate::{Database, kept, until};

const NOT_INSTALLED: &str = "\
PgBouncer (`pgbouncer`) was not found, and this test needs it. Install it:
    Debian, Ubuntu    sudo apt-get install pgbouncer
    Fedora            sudo dnf install pgbouncer
    macOS             brew install pgbouncer";

/// Ends with its stdin, and so with this process however that ends.
const KEEPER: &str = r#""$1" -q "$2" </dev/null & cat >/dev/null; kill $!; wait $!"#;

/// A running pooler, gone when dropped.
#[derive(Debug)]
pub struct Pooler {
    address: SocketAddr,
    keeper: Child,
    _directory: TempDir,
}

impl Pooler {
    /// A pooler before a database's server, in PgBouncer's `pool_mode`, with so many connections.
    pub async fn start(database: &Database, pool_mode: &str, size: usize) -> Result<Self> {
        let binary = kept::find("pgbouncer").context(NOT_INSTALLED)?;
        let directory = TempDir::with_prefix("llmchat-pgbouncer-")?;
        let owner = give_away(directory.path())?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let server = database.address();
        let settings = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]
* = host={} port={} user={USER} password={PASSWORD}
[pgbouncer]
listen_addr = {}
listen_port = {}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {size}
",
            server.ip(),
            server.port(),
            address.ip(),
            address.port()
        );
        fs::write(&settings, text)?;
        let sh = command(Path::new("sh"), owner);
        let keeper = start_keeper(sh, KEEPER, [&binary, &settings])?;
        let pooler = Self {
            address,
            keeper,
            _directory: directory,
        };
        let listens = async || Ok(TcpStream::connect(address).await.is_ok());
        until("PgBouncer's start", listens).await?;
        Ok(pooler)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
