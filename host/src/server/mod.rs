//! The HTTP server: connections, requests, and a stop that loses nothing.
//!
//! A connection goes to one of the threads (see `workers`) and stays there. Its requests are
//! served by instances of that thread (see `instances`) and counted until all their work has ended
//! (see `requests`). A client that leaves takes its connection with it, and so the reading end of
//! the response; the component finds that its next write fails and decides what to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use wasmtime_wasi_http::handler::ProxyHandler;

use crate::instance::Services;
use crate::outbound::allowed::AllowedHosts;
use crate::outbound::{Outbound, Rules};
use crate::postgres::Pools;
use crate::sqlite::Databases;
use crate::{Output, Program, Variables, rows};

mod authority;
mod body;
mod connection;
mod descriptors;
mod instances;
mod limits;
mod requests;
mod respond;
mod workers;

pub use instances::InstanceLimits;
use instances::Instances;
pub use limits::ResponseLimits;
use requests::Requests;
use respond::Server;
use workers::{Shutdown, Worker};

/// Connections that may wait to be accepted: the client of one too many tries again after a second.
const BACKLOG: u32 = 4096;

/// How long instances may take to end once they are cut off: only one that computes without ever
/// waiting takes any time at all.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How to run a program.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Values for the manifest's variables.
    pub variables: BTreeMap<String, String>,
    /// The directory of SQLite's files; by default Spin's, beside the manifest.
    pub state_dir: Option<PathBuf>,
    /// Names under which requests are answered, besides `localhost` and loopback addresses; `None`:
    /// under any. A server that only this machine can reach needs them: a page of the web can make
    /// its own name lead here.
    pub allowed_hosts: Option<Vec<String>>,
    /// How long a client may take for the head of a request and the beginning of its body, and how
    /// long its connection is kept without one.
    pub request_timeout: Duration,
    /// How long [`Host::stop`] waits for open requests to end.
    pub drain: Duration,
    /// Threads that serve. The caller's runtime accepts connections, and is free otherwise.
    pub threads: NonZeroUsize,
    /// The limits of one instance.
    pub instances: InstanceLimits,
    /// The limits of one response, as platforms have them; by default there are none.
    pub responses: ResponseLimits,
    /// The largest row of a query's result, in bytes counted as Spin does; by default Spin's limit.
    /// A larger one ends the result with the error "query result exceeds limit of … bytes".
    pub max_row_bytes: usize,
    /// How far the component's wall clock is ahead of this machine's: for tests of hosts whose clocks differ.
    pub clock_ahead: Duration,
    /// Where the component's stdout and stderr go.
    pub output: Output,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            variables: BTreeMap::new(),
            state_dir: None,
            allowed_hosts: None,
            request_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            threads: NonZeroUsize::MIN,
            instances: InstanceLimits::default(),
            responses: ResponseLimits::default(),
            max_row_bytes: rows::MAX_ROW_BYTES,
            clock_ahead: Duration::ZERO,
            output: Output::default(),
        }
    }
}

/// A program being served. Dropped, it ends at once; see [`stop`](Self::stop).
pub struct Host {
    address: SocketAddr,
    drain: Duration,
    requests: Arc<Requests>,
    services: Vec<Weak<Services>>,
    shutdown: Shutdown,
}

impl Host {
    /// Listens and serves.
    pub async fn start(program: &Program, options: Options) -> Result<Self> {
        let manifest = &program.manifest;
        let variables = Arc::new(Variables::resolve(manifest, &options.variables)?);
        let allowed = AllowedHosts::resolve(manifest, &variables);
        let rules = Arc::new(Rules::new(allowed, options.output.clone())?);
        let state_dir = options.state_dir.unwrap_or_else(|| manifest.state_dir());
        let sqlite = Arc::new(Databases::new(
            manifest.sqlite_databases.clone(),
            state_dir,
            options.max_row_bytes,
        ));
        for path in sqlite.make_private() {
            let output = &options.output;
            output.line(format_args!(
                "{} could be read by other users: now only by this one",
                path.display()
            ));
        }
        let requests = Arc::<Requests>::default();
        let listener = listen(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let address = listener.local_addr()?;

        let shutdown = Shutdown::default();
        let end_if_unfinished = shutdown.now.clone().drop_guard();
        let mut services = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..options.threads.get() {
            let own = Arc::new(Services {
                variables: variables.clone(),
                outbound: Arc::new(Outbound::new(rules.clone())),
                postgres: Pools::new(rules.clone(), options.threads, options.max_row_bytes),
                sqlite: sqlite.clone(),
                clock_ahead: options.clock_ahead,
                output: options.output.clone(),
            });
            services.push(Arc::downgrade(&own));
            let server = Server {
                handler: ProxyHandler::new(Instances {
                    program: program.clone(),
                    services: own,
                    limits: options.instances.clone(),
                    requests: requests.clone(),
                    started: Default::default(),
                }),
                address,
                allowed_hosts: authority::AllowedHosts(options.allowed_hosts.clone()),
                request_timeout: options.request_timeout,
                limits: options.responses,
            };
            let worker = Worker::start(server, shutdown.clone());
            workers.push(worker.context("cannot start a thread")?);
        }
        shutdown.serving.close();
        end_if_unfinished.disarm();
        let output = options.output;
        let failed = move |error| output.line(format_args!("cannot accept a connection: {error}"));
        tokio::spawn(workers::accept(
            listener,
            workers,
            descriptors::max_connections(),
            shutdown.draining.clone(),
            failed,
        ));
        Ok(Self {
            address,
            drain: options.drain,
            requests,
            services,
            shutdown,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests are open: those whose response has not ended, and work that goes on
    /// although its response has, or although its client has left.
    pub fn open_requests(&self) -> usize {
        self.requests.open()
    }

    /// How many instances there are.
    pub fn instances(&self) -> usize {
        self.requests.instances()
    }

    /// A handle to what may outlive this host.
    pub fn remains(&self) -> Remains {
        Remains(self.services.clone())
    }

    /// Stops accepting, and waits up to `Options::drain` for the open requests to end. Returns how
    /// many that limit cut off.
    pub async fn stop(self) -> usize {
        self.shutdown.draining.cancel();
        let ended = timeout(self.drain, async {
            // No request can be added once the connections are closed.
            self.shutdown.serving.wait().await;
            self.requests.ended().await;
        })
        .await;
        let cut = if ended.is_ok() {
            0
        } else {
            self.requests.open()
        };
        self.requests.cut.cancel();
        let _ = timeout(CUT_TIMEOUT, self.requests.instances_ended()).await;
        cut
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown.draining.cancel();
        self.requests.cut.cancel();
        self.shutdown.now.cancel();
    }
}

/// What is left of a dropped host: a statement of SQLite's, for example, which runs on a thread that
/// cannot be cancelled.
pub struct Remains(Vec<Weak<Services>>);

impl Remains {
    /// Whether anything is left.
    pub fn any(&self) -> bool {
        self.0.iter().any(|services| services.strong_count() > 0)
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
