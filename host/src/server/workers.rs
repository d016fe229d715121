//! Workers: threads that each serve the connections handed to them, from the first byte to the last.
//!
//! A request is a few hundred microseconds of computing in a dozen pieces, and a piece that moves to
//! another thread costs a wake-up. So nothing moves: what a connection needs (instances, database
//! clients, outbound connections) lives on its thread, and a new connection goes to the worker that
//! has the fewest.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::serve;
use super::respond::Server;
use crate::runtime;

/// How long accepting rests after an error, and between two requests for a place.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// A connection for a worker.
struct Connection {
    stream: std::net::TcpStream,
    place: Option<OwnedSemaphorePermit>,
    crowded: Arc<Notify>,
    /// Counts the worker's connections.
    count: Arc<()>,
}

/// The sending side of a worker.
pub(super) struct Worker {
    connections: mpsc::UnboundedSender<Connection>,
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

    fn send(
        &self,
        stream: TcpStream,
        place: Option<OwnedSemaphorePermit>,
        crowded: Arc<Notify>,
    ) -> io::Result<()> {
        let connection = Connection {
            stream: stream.into_std()?,
            place,
            crowded,
            count: self.count.clone(),
        };
        let sent = self.connections.send(connection);
        sent.map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

/// Distributes connections to workers until draining begins. Where all places are taken, the
/// connection that has waited longest for a request gives up its own, and new ones wait in the
/// backlog.
pub(super) async fn accept(
    listener: TcpListener,
    workers: Vec<Worker>,
    max_connections: usize,
    draining: CancellationToken,
    failed: impl Fn(io::Error),
) {
    let places = Arc::new(Semaphore::new(max_connections));
    let crowded = Arc::<Notify>::default();
    let next = async || {
        let (stream, _) = listener.accept().await?;
        let place = take(&places, &crowded).await;
        match workers.iter().min_by_key(|worker| worker.load()) {
            Some(worker) => worker.send(stream, place, crowded.clone()),
            None => Ok(()),
        }
    };
    let serve = async {
        loop {
            if let Err(error) = next().await {
                // Out of file descriptors, most likely: some will be free in a moment. Only those who wait
                // now give theirs up; a stored notification would close the next connection that comes.
                failed(error);
                crowded.notify_waiters();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    tokio::select! {
        () = draining.cancelled() => {}
        () = serve => {}
    }
}

/// A place for a connection. (`None` would be that of a closed semaphore, which it never is.)
async fn take(places: &Arc<Semaphore>, crowded: &Notify) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return Some(place);
    }
    loop {
        crowded.notify_one();
        let free = places.clone().acquire_owned();
        if let Ok(place) = timeout(ACCEPT_PAUSE, free).await {
            // Where nobody was idle, the notification is still there: not for a connection to come.
            pin!(crowded.notified()).enable();
            return place.ok();
        }
    }
}

/// Serves the connections that it receives, until there will be no more and the last one is closed,
/// or all ends.
async fn work(
    mut receiver: mpsc::UnboundedReceiver<Connection>,
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
            connection = receiver.recv(), if is_receiving => match connection {
                Some(Connection { stream, place, crowded, count }) => {
                    let (server, draining) = (server.clone(), shutdown.draining.clone());
                    connections.spawn(async move {
                        let _counted = (place, count);
                        if let Ok(stream) = TcpStream::from_std(stream) {
                            serve(stream, server, draining, crowded).await;
                        }
                    });
                }
                None => is_receiving = false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_place_that_became_free_by_itself_closes_no_later_connection() {
        let (places, crowded) = (Arc::new(Semaphore::new(1)), Notify::new());
        let busy = take(&places, &crowded).await.unwrap();
        let waiting = async { take(&places, &crowded).await.unwrap() };
        let leaving = async {
            tokio::time::sleep(ACCEPT_PAUSE * 3).await;
            drop(busy);
        };
        let (_place, ()) = tokio::join!(waiting, leaving);
        assert!(crowded.notified().now_or_never().is_none());
    }
}
