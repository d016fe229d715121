//! The HTTP server: connections, requests, and an end that loses nothing.
//!
//! A request becomes a turn (see `turns`) in some instance (see `instances`). A client
//! that leaves takes its connection along, and with it the reading end of the response;
//! the component finds its next write failing and decides what to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::handler::{self, InstantiationError, ProxyHandler};

use crate::instance::Services;
use crate::outbound::Outbound;
use crate::outbound::allowed::AllowedHosts;
use crate::postgres::Pools;
use crate::sqlite::Databases;
use crate::{Output, Program, Variables};

mod instances;
mod turns;

pub use instances::InstanceLimits;
use instances::Instances;
use turns::{Ticket, TurnBody, Turns};

/// Connections that may wait to be accepted: one too many is tried again by TCP after a second.
const BACKLOG: u32 = 4096;

/// How long a connection may take over the head of its next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request waits for room in the pool of instances, in pieces.
const INSTANTIATION_PAUSE: Duration = Duration::from_millis(20);
const INSTANTIATION_TRIES: u32 = 50;

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
    services: Weak<Services>,
    closing: CancellationToken,
    accepting: JoinHandle<()>,
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
        let variables = Variables::resolve(manifest, &options.variables)?;
        let allowed = AllowedHosts::resolve(manifest, &variables);
        let outbound = Arc::new(Outbound::new(allowed, options.output.clone())?);
        let state_dir = options.state_dir.unwrap_or_else(|| manifest.state_dir());
        let turns = Arc::new(Turns::default());
        let services = Arc::new(Services {
            variables,
            postgres: Pools::new(outbound.clone()),
            outbound,
            sqlite: Databases::new(manifest.sqlite_databases().clone(), state_dir),
            output: options.output.clone(),
        });
        let remains = Arc::downgrade(&services);
        let server = Server {
            program: program.clone(),
            turns: turns.clone(),
            output: options.output,
            head: options.instances.head,
            handler: ProxyHandler::new(Instances {
                program: program.clone(),
                services,
                limits: options.instances,
                turns: turns.clone(),
            }),
        };
        let listener = listen(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, Arc::new(server), closing.clone()));
        Ok(Self {
            address,
            drain: options.drain,
            turns,
            services: remains,
            closing,
            accepting,
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
    pub async fn stop(mut self) -> usize {
        self.closing.cancel();
        let ended = timeout(self.drain, async {
            // Once the connections are gone no turn can be added.
            let _ = (&mut self.accepting).await;
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
pub struct Remains(Weak<Services>);

impl Remains {
    /// Whether there is anything yet.
    pub fn any(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.closing.cancel();
        self.turns.cut.cancel();
        self.accepting.abort();
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

/// Ends when `closing` is set and the last connection is gone. Dropped, it drops them.
async fn accept(listener: TcpListener, server: Arc<Server>, closing: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = closing.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, server.clone(), closing.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some will be free in a moment.
                    server.output.line(format_args!("cannot accept a connection: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, server: Arc<Server>, closing: CancellationToken) {
    // One write an event, and each leaves at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the client's business: it leaves, or speaks no HTTP.
    let _ = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

type Body = UnsyncBoxBody<Bytes, Error>;

struct Server {
    program: Program,
    handler: ProxyHandler<Instances>,
    turns: Arc<Turns>,
    head: Option<Duration>,
    output: Output,
}

impl Server {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.program.manifest().serves(request.uri().path()) {
            return plain(StatusCode::NOT_FOUND);
        }
        let Some(request) = with_authority(request) else {
            return plain(StatusCode::BAD_REQUEST);
        };
        let ticket = self.turns.arrive();
        let turn = ticket.turn.clone();
        let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
        // Dropped (the client leaves, the head takes too long), this leaves the component
        // alone: its response goes nowhere, and its writes fail.
        let response = self.handle(ticket, request);
        let response = match self.head {
            None => response.await,
            Some(limit) => match timeout(limit, response).await {
                Ok(response) => response,
                Err(_) => return plain(StatusCode::GATEWAY_TIMEOUT),
            },
        };
        match response {
            Ok(response) => response.map(|body| TurnBody { body, turn }.boxed_unsync()),
            Err(error) => {
                turn.end();
                self.output
                    .line(format_args!("a request failed: {error:#}"));
                plain(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

impl Server {
    /// Waits for a response's head, and for room where a burst has filled the pool of
    /// instances: each of those takes many requests, so that there will soon be some.
    async fn handle(
        &self,
        mut ticket: Ticket,
        mut request: handler::Request,
    ) -> wasmtime::Result<handler::Response> {
        let mut tries = 0;
        loop {
            let error = match self.handler.handle(ticket, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error.downcast::<InstantiationError<Ticket>>()?,
            };
            tries += 1;
            if tries > INSTANTIATION_TRIES {
                return Err(wasmtime::Error::msg(format!(
                    "no instance could be made: {:#}",
                    error.error
                )));
            }
            ticket = error.request_data;
            request = error
                .request
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(INSTANTIATION_PAUSE).await;
        }
    }
}

/// A response of the host's own.
fn plain(status: StatusCode) -> Response<Body> {
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Fills in what the request line leaves out: a component sees a whole address.
fn with_authority(mut request: Request<Incoming>) -> Option<Request<Incoming>> {
    let host = request
        .headers()
        .get(header::HOST)
        .map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let authority = match (host, parts.authority.take()) {
        // What does not parse, or contradicts itself, is nobody's address.
        (Some(None), _) | (None, None) => return None,
        (Some(Some(host)), Some(authority)) if host != authority => return None,
        (Some(Some(authority)), _) | (None, Some(authority)) => authority,
    };
    parts.authority = Some(authority);
    parts.scheme = Some(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}
