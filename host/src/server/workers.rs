//! Workers: threads that each serve the connections they are handed, from the first byte to the last.
//!
//! A turn is a few hundred microseconds of computing in a dozen pieces, and a piece that moves to
//! another thread costs a wake-up. So nothing moves: what a connection needs (instances, clients of
//! databases, connections to the outside) lives on its thread, and a new connection goes to the worker
//! that has the fewest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Server;
use super::connection::serve;
use crate::runtime;

/// When workers stop.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// Nobody new is taken; a connection ends with its response.
    pub(super) closing: CancellationToken,
    /// The end, whatever is under way.
    pub(super) over: CancellationToken,
    /// Workers that have connections, or may be handed some.
    pub(super) serving: TaskTracker,
}

/// A connection on its way to its worker, counted until it is gone.
type Handed = (std::net::TcpStream, Arc<()>);

/// Where connections are handed to a worker.
pub(super) struct Worker {
    connections: mpsc::UnboundedSender<Handed>,
    load: Arc<()>,
}

impl Worker {
    /// Starts one, on a thread of its own: code of the component that never waits holds up nothing but
    /// this worker.
    pub(super) fn start(server: Server, ending: Ending) -> io::Result<Self> {
        let (connections, handed) = mpsc::unbounded_channel();
        let serving = ending.serving.token();
        let runtime = runtime::Background::new()?;
        let thread = std::thread::Builder::new().name("llmchat-worker".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                let over = ending.over.clone();
                work(handed, Arc::new(server), ending, serving).await;
                // What clients that have left began goes on.
                over.cancelled().await;
            });
        })?;
        Ok(Self {
            connections,
            load: Arc::default(),
        })
    }

    fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    fn hand(&self, stream: TcpStream) -> io::Result<()> {
        let handed = (stream.into_std()?, self.load.clone());
        self.connections
            .send(handed)
            .map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

/// Hands connections to workers until it is told to close.
pub(super) async fn accept(
    listener: TcpListener,
    workers: Vec<Worker>,
    closing: CancellationToken,
    failed: impl Fn(io::Error),
) {
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let handed = accepted.and_then(|(stream, _)| {
            match workers.iter().min_by_key(|worker| worker.load()) {
                Some(worker) => worker.hand(stream),
                None => Ok(()),
            }
        });
        if let Err(error) = handed {
            // Out of file descriptors, most likely: some will be free in a moment.
            failed(error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves what is handed, until no more will be and the last connection is gone, or all is over.
async fn work(
    mut handed: mpsc::UnboundedReceiver<Handed>,
    server: Arc<Server>,
    ending: Ending,
    _serving: TaskTrackerToken,
) {
    let mut connections = JoinSet::new();
    let mut may_come = true;
    while may_come || !connections.is_empty() {
        tokio::select! {
            () = ending.over.cancelled() => return,
            Some(_) = connections.join_next() => {}
            connection = handed.recv(), if may_come => match connection {
                Some((stream, load)) => {
                    let (server, closing) = (server.clone(), ending.closing.clone());
                    connections.spawn(async move {
                        let _load = load;
                        if let Ok(stream) = TcpStream::from_std(stream) {
                            serve(stream, server, closing).await;
                        }
                    });
                }
                None => may_come = false,
            },
        }
    }
}
