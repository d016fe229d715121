//! Workers: threads that each serve the connections handed to them, from the first byte to the last.
//!
//! A request is a few hundred microseconds of computing in a dozen pieces, and a piece that moves to
//! another thread costs a wake-up. So nothing moves: what a connection needs (instances, database
//! clients, outbound connections) lives on its thread, and a new connection goes to the worker that
//! has the fewest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Server;
use super::connection::serve;
use crate::runtime;

/// How workers are stopped.
#[derive(Clone, Default)]
pub(super) struct Shutdown {
    /// No connection is accepted any more, and each closes after its response.
    pub(super) draining: CancellationToken,
    /// Workers end, whatever they are doing.
    pub(super) now: CancellationToken,
    /// Workers that have connections, or may receive some.
    pub(super) serving: TaskTracker,
}

/// A connection for a worker, with a reference that counts it until it is closed.
type Counted = (std::net::TcpStream, Arc<()>);

/// The sending side of a worker.
pub(super) struct Worker {
    connections: mpsc::UnboundedSender<Counted>,
    count: Arc<()>,
}

impl Worker {
    /// Starts a worker on its own thread: a component that computes without ever waiting holds up
    /// nothing but this worker.
    pub(super) fn start(server: Server, shutdown: Shutdown) -> io::Result<Self> {
        let (connections, receiver) = mpsc::unbounded_channel();
        let serving = shutdown.serving.token();
        // A running statement of SQLite's cannot be cancelled: at the end it is not waited for.
        let runtime = scopeguard::guard(runtime::new()?, Runtime::shutdown_background);
        let thread = std::thread::Builder::new().name("worker".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                let now = shutdown.now.clone();
                work(receiver, Arc::new(server), shutdown, serving).await;
                // Work whose client has left goes on.
                now.cancelled().await;
            });
        })?;
        Ok(Self {
            connections,
            count: Arc::default(),
        })
    }

    fn load(&self) -> usize {
        Arc::strong_count(&self.count)
    }

    fn send(&self, stream: TcpStream) -> io::Result<()> {
        let counted = (stream.into_std()?, self.count.clone());
        let sent = self.connections.send(counted);
        sent.map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

/// Distributes connections to workers until draining begins.
pub(super) async fn accept(
    listener: TcpListener,
    workers: Vec<Worker>,
    draining: CancellationToken,
    failed: impl Fn(io::Error),
) {
    loop {
        let accepted = tokio::select! {
            () = draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let least_loaded = workers.iter().min_by_key(|worker| worker.load());
        let sent = accepted
            .and_then(|(stream, _)| least_loaded.map_or(Ok(()), |worker| worker.send(stream)));
        if let Err(error) = sent {
            // Out of file descriptors, most likely: some will be free in a moment.
            failed(error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves the connections that it receives, until there will be no more and the last one is closed,
/// or all ends.
async fn work(
    mut receiver: mpsc::UnboundedReceiver<Counted>,
    server: Arc<Server>,
    shutdown: Shutdown,
    _serving: TaskTrackerToken,
) {
    let mut connections = JoinSet::new();
    let mut is_receiving = true;
    while is_receiving || !connections.is_empty() {
        tokio::select! {
            () = shutdown.now.cancelled() => return,
            Some(_) = connections.join_next() => {}
            counted = receiver.recv(), if is_receiving => match counted {
                Some((stream, count)) => {
                    let (server, draining) = (server.clone(), shutdown.draining.clone());
                    connections.spawn(async move {
                        let _count = count;
                        if let Ok(stream) = TcpStream::from_std(stream) {
                            serve(stream, server, draining).await;
                        }
                    });
                }
                None => is_receiving = false,
            },
        }
    }
}
