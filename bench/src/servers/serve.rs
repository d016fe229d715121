//! The child process' side: serve, print the address, and end when stdin does.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use clap::Subcommand;
use llmchat_host::{Host, InstanceLimits, Options, Program, runtime};
use ollama_stand_in as stand_in;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::pass_through;

const FREE_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Connections that may wait to be accepted. With the usual 128, most of a thousand that come at
/// once would have to try again after a second.
const BACKLOG: u32 = 4096;

/// What a child process serves, until its stdin closes.
#[derive(Subcommand)]
pub enum Serve {
    /// The stand-in for Ollama, at full speed if RATE is 0.
    #[command(hide = true)]
    StandIn {
        listen: SocketAddr,
        tokens: usize,
        rate: f64,
    },
    /// The proxy that copies bytes.
    #[command(hide = true)]
    PassThrough { upstream: SocketAddr },
    /// llmchat on the host.
    #[command(hide = true)]
    Llmchat {
        upstream: SocketAddr,
        #[arg(long)]
        database_url: Option<String>,
        /// The requests that one instance serves.
        #[arg(long)]
        requests: Option<usize>,
        #[arg(long)]
        threads: Option<NonZeroUsize>,
        /// A setting of the operator's: NAME=VALUE.
        #[arg(long)]
        variable: Vec<String>,
    },
}

pub fn run(what: Serve) -> Result<()> {
    // Each as it is run in production.
    let runtime = match what {
        Serve::Llmchat { .. } => runtime::new()?,
        _ => tokio::runtime::Runtime::new()?,
    };
    runtime.block_on(async {
        match what {
            Serve::StandIn {
                listen,
                tokens,
                rate,
            } => {
                let config = stand_in::Config {
                    listen,
                    tokens: Some(tokens),
                    rate: (rate > 0.0).then_some(rate),
                    ..stand_in::Config::default()
                };
                let server = stand_in::Server::start(config).await?;
                announce_and_wait(server.address()).await
            }
            Serve::PassThrough { upstream } => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(FREE_PORT.into())?;
                let listener = socket.listen(BACKLOG)?;
                let address = listener.local_addr()?;
                tokio::spawn(pass_through::serve(listener, upstream));
                announce_and_wait(address).await
            }
            Serve::Llmchat {
                upstream,
                database_url,
                requests,
                threads,
                variable,
            } => {
                let ollama = ("ollama_url".to_owned(), format!("http://{upstream}"));
                let mut variables = BTreeMap::from([ollama]);
                variables.extend(database_url.map(|url| ("database_url".to_owned(), url)));
                for variable in &variable {
                    let (name, value) = variable
                        .split_once('=')
                        .context("--variable: no NAME=VALUE")?;
                    variables.insert(name.to_owned(), value.to_owned());
                }
                let mut instances = InstanceLimits::default();
                instances.requests = requests.unwrap_or(instances.requests);
                let state = TempDir::with_prefix("llmchat-bench-")?;
                let options = Options {
                    listen: FREE_PORT.into(),
                    variables,
                    state_dir: Some(state.path().to_owned()),
                    threads: threads.unwrap_or_else(runtime::default_threads),
                    instances,
                    ..Options::default()
                };
                let program = Program::load(&super::manifest()?)?;
                let host = Host::start(&program, options).await?;
                announce_and_wait(host.address()).await?;
                Ok(state.close()?)
            }
        }
    })?;
    // Connections that are still open must not delay the end.
    std::process::exit(0)
}

async fn announce_and_wait(address: SocketAddr) -> Result<()> {
    writeln!(std::io::stdout(), "{address}")?;
    let stdin_closes = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    tokio::task::spawn_blocking(stdin_closes).await??;
    Ok(())
}
