//! The HTTP server: connections, requests, and an end that loses nothing.
//!
//! A connection goes to one of the threads (see `workers`) and stays there. Its request becomes
//! a turn (see `turns`) in some instance of that thread (see `instances`). A client that leaves takes
//! its connection along, and with it the reading end of the response; the component finds its next
//! write failing and decides what to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

use crate::instance::Services;
use crate::outbound::allowed::AllowedHosts;
use crate::outbound::{Outbound, Rules};
use crate::postgres::Pools;
use crate::sqlite::Databases;
use crate::{Output, Program, Variables};

mod connection;
mod instances;
mod turns;
mod workers;

use connection::Server;
pub use instances::InstanceLimits;
use instances::Instances;
use turns::Turns;
use workers::{Ending, Worker};

/// Connections that may wait to be accepted: one too many is tried again by TCP after a second.
const BACKLOG: u32 = 4096;

/// How long instances that were told to end have for it: only one that computes without
/// ever waiting takes any time at all.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How to run a program.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Values for the manifest's variables.
    pub variables: BTreeMap<String, String>,
    /// Where databases live; by default where Spin has them, beside the manifest.
    pub state_dir: Option<PathBuf>,
    /// How long [`Host::stop`] waits for turns to end.
    pub drain: Duration,
    /// Threads that serve. The caller's runtime accepts connections, and is free otherwise.
    pub threads: NonZeroUsize,
    /// How far one instance goes.
    pub instances: InstanceLimits,
    /// Where the component's stdout and stderr go.
    pub output: Output,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            variables: BTreeMap::new(),
            state_dir: None,
            drain: Duration::from_secs(30),
            threads: NonZeroUsize::MIN,
            instances: InstanceLimits::default(),
            output: Output::Inherit,
        }
    }
}

/// A program being served. Dropped, it ends at once; see [`stop`](Self::stop).
pub struct Host {
    address: SocketAddr,
    drain: Duration,
    turns: Arc<Turns>,
    services: Vec<Weak<Services>>,
    ending: Ending,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Listens and serves.
    pub async fn start(program: &Program, options: Options) -> Result<Self> {
        let manifest = program.manifest();
        let variables = Arc::new(Variables::resolve(manifest, &options.variables)?);
        let allowed = AllowedHosts::resolve(manifest, &variables);
        let rules = Arc::new(Rules::new(allowed, options.output.clone())?);
        let state_dir = options.state_dir.unwrap_or_else(|| manifest.state_dir());
        let sqlite = Arc::new(Databases::new(
            manifest.sqlite_databases().clone(),
            state_dir,
        ));
        let turns = Arc::new(Turns::default());
        let listener = listen(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let address = listener.local_addr()?;

        let ending = Ending::default();
        let unfinished = ending.over.clone().drop_guard();
        let mut services = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..options.threads.get() {
            let own = Arc::new(Services {
                variables: variables.clone(),
                outbound: Arc::new(Outbound::new(rules.clone())),
                postgres: Pools::new(rules.clone(), options.threads),
                sqlite: sqlite.clone(),
                output: options.output.clone(),
            });
            services.push(Arc::downgrade(&own));
            let server = Server::new(Instances {
                program: program.clone(),
                services: own,
                limits: options.instances.clone(),
                turns: turns.clone(),
            });
            let worker = Worker::start(server, ending.clone());
            workers.push(worker.context("cannot start a thread")?);
        }
        ending.serving.close();
        unfinished.disarm();
        tokio::spawn(workers::accept(
            listener,
            workers,
            ending.closing.clone(),
            move |error| {
                options
                    .output
                    .line(format_args!("cannot accept a connection: {error}"));
            },
        ));
        Ok(Self {
            address,
            drain: options.drain,
            turns,
            services,
            ending,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many turns are open: requests whose response has not come to its end, and work
    /// that goes on although it has, or although its client has left.
    pub fn open_turns(&self) -> usize {
        self.turns.open()
    }

    /// How many instances there are.
    pub fn instances(&self) -> usize {
        self.turns.instances()
    }

    /// What may outlive this.
    pub fn remains(&self) -> Remains {
        Remains(self.services.clone())
    }

    /// Stops accepting, and waits for the open turns to end, as long as `Options::drain`
    /// says. Returns how many that limit cut off.
    pub async fn stop(self) -> usize {
        self.ending.closing.cancel();
        let ended = timeout(self.drain, async {
            // Once the connections are gone no turn can be added.
            self.ending.serving.wait().await;
            self.turns.ended().await;
        })
        .await;
        let cut = if ended.is_ok() { 0 } else { self.turns.open() };
        self.turns.cut.cancel();
        let _ = timeout(CUT_TIMEOUT, self.turns.gone()).await;
        cut
    }
}

/// What is left of a host that was dropped: a statement of SQLite's, say, which runs on a thread
/// that cannot be cut off.
#[derive(Debug, Clone)]
pub struct Remains(Vec<Weak<Services>>);

impl Remains {
    /// Whether there is anything yet.
    pub fn any(&self) -> bool {
        self.0.iter().any(|services| services.strong_count() > 0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.ending.closing.cancel();
        self.turns.cut.cancel();
        self.ending.over.cancel();
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
