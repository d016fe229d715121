//! nginx between clients and the component, as many people run it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::kept::{self, Kept};
use crate::until;

/// A running proxy, gone when dropped.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    _nginx: Kept,
    _directory: TempDir,
}

impl Nginx {
    /// Whether there is one; it is said where there is none, and that a test is left out for it.
    pub fn is_installed() -> bool {
        let is_installed = kept::find("nginx").is_some();
        if !is_installed {
            eprintln!("LEFT OUT: there is no nginx; `sudo apt-get install nginx-light` brings it");
        }
        is_installed
    }

    /// A proxy with the `server` blocks that `servers` makes for an address, and with these files beside them.
    pub async fn start(
        servers: impl FnOnce(SocketAddr) -> String,
        files: &[(&str, &str)],
    ) -> Result<Self> {
        let nginx = kept::find("nginx").context("nginx is not installed")?;
        let directory = TempDir::with_prefix("llmchat-nginx-")?;
        let path = directory.path();
        for (name, text) in files {
            fs::write(path.join(name), text)?;
        }
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {name};\n"));
        let settings = format!(
            "daemon off;
master_process off;
pid pid;
events {{}}
http {{
access_log requests;
{}{}
}}
",
            temporary.concat(),
            servers(address)
        );
        fs::write(path.join("nginx.conf"), settings)?;
        let log = path.join("log");
        let arguments = [
            "-p",
            &path.display().to_string(),
            "-e",
            "log",
            "-c",
            "nginx.conf",
        ];
        let kept = Kept::start(&nginx, &arguments.map(str::to_owned), path, &log)?;
        let proxy = Self {
            address,
            _nginx: kept,
            _directory: directory,
        };
        let listens = async || Ok(TcpStream::connect(address).await.is_ok());
        let listens = until("nginx's start", listens).await;
        listens.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(proxy)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
