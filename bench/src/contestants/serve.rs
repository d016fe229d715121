//! The contestants' own side: serve, say where, and end with stdin.

use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmchat_host::variables::environment_name;
use llmchat_host::{Host, InstanceLimits, Manifest, Options, Program, runtime};
use ollama_stand_in::{Config, Server};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use super::pass_through;
use crate::cli::Serve;

/// Any free port of this machine's own.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Clients that may wait to be accepted. With the usual 128, the rest of a thousand that come at
/// once would try again after a second.
const BACKLOG: u32 = 4096;

/// Serves until stdin ends.
pub fn run(what: Serve) -> Result<()> {
    // Each as it is run in production.
    let runtime = match what {
        Serve::Llmchat { .. } => runtime::new()?,
        Serve::StandIn { .. } | Serve::PassThrough { .. } => {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
        }
    };
    runtime.block_on(async {
        match what {
            Serve::StandIn { listen } => stand_in(listen).await,
            Serve::PassThrough { upstream } => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(ANYWHERE.into())?;
                let listener = socket.listen(BACKLOG)?;
                announce(listener.local_addr()?)?;
                let _orders = orders(None);
                pass_through::serve(listener, upstream).await
            }
            Serve::Llmchat {
                manifest,
                state,
                requests,
            } => llmchat(&manifest, &state, requests).await,
        }
    })
}

async fn stand_in(listen: SocketAddr) -> Result<()> {
    let config = Config {
        listen,
        ..Config::default()
    };
    let mut server = Server::start(config).await?;
    let listen = server.address();
    announce(listen)?;
    let mut orders = orders(None);
    while let Some(order) = orders.recv().await {
        let (tokens, rate) = order.split_once(' ').context("TOKENS RATE")?;
        let rate: f64 = rate.parse()?;
        let config = Config {
            listen,
            tokens: Some(tokens.parse()?),
            rate: (rate > 0.0).then_some(rate),
        };
        drop(server);
        server = again(config).await?;
        announce(listen)?;
    }
    Ok(())
}

/// Starts where the last one has stopped just now; its socket may take a moment to go.
async fn again(config: Config) -> Result<Server> {
    for _ in 0..100 {
        if let Ok(server) = Server::start(config.clone()).await {
            return Ok(server);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Server::start(config).await
}

async fn llmchat(manifest: &Path, state: &Path, requests: Option<usize>) -> Result<()> {
    let manifest = Manifest::load(manifest)?;
    let given = |name: &String| {
        let value = std::env::var(environment_name(name)).ok()?;
        Some((name.clone(), value))
    };
    let variables = manifest.variables().keys().filter_map(given).collect();
    let program = Program::load(&manifest)?;
    let mut instances = InstanceLimits::default();
    if let Some(requests) = requests {
        ensure!(requests > 0, "an instance serves one request at least");
        instances.requests = requests;
    }
    let options = Options {
        listen: ANYWHERE.into(),
        variables,
        state_dir: Some(state.to_owned()),
        threads: runtime::default_threads(),
        instances,
        ..Options::default()
    };
    let host = Host::start(&program, options).await?;
    announce(host.address())?;
    let mut orders = orders(Some(state.to_owned()));
    while orders.recv().await.is_some() {}
    Ok(())
}

fn announce(address: SocketAddr) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{address}")?;
    Ok(stdout.flush()?)
}

/// The lines of stdin; the process ends with them, and takes its state along.
fn orders(state: Option<PathBuf>) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
        if let Some(state) = state {
            // Whoever started us would remove it, but may be gone.
            let _ = std::fs::remove_dir_all(state);
        }
        std::process::exit(0);
    });
    receiver
}
