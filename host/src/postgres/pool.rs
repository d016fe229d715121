//! The clients of one address: created when they are needed, kept for the next time.

use std::pin::pin;
use std::time::Duration;

use deadpool_postgres::{BuildError, Manager, Object, Pool, PoolError, QueueMode};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// Clients that are created as soon as they are needed.
pub(super) const FEW: usize = 4;

/// How often another one is added. It costs the server a process and some 10 ms of computing, as much
/// as dozens of small statements: in a burst, creating as many as could be used would delay them all
/// (measured with a thousand concurrent requests).
const PATIENCE: Duration = Duration::from_millis(250);

/// How long a client may be idle: routers forget a silent connection, without a word to either side.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// A pool that grows slowly while it is too small.
pub(super) struct Clients {
    pool: Pool,
    limit: usize,
    grown: Mutex<Instant>,
}

impl Clients {
    /// A pool of at most `limit` clients, [`FEW`] or more.
    pub(super) fn new(manager: Manager, limit: usize) -> Result<Self, BuildError> {
        let pool = Pool::builder(manager)
            .max_size(FEW)
            // The one that was used last: the server's caches are warm for it.
            .queue_mode(QueueMode::Lifo)
            .build()?;
        Ok(Self {
            pool,
            limit,
            grown: Mutex::new(Instant::now()),
        })
    }

    pub(super) async fn get(&self) -> Result<Object, PoolError> {
        self.pool.retain(|_, used| used.last_used() < MAX_IDLE);
        let mut getting = pin!(self.pool.get());
        loop {
            if let Ok(client) = timeout(PATIENCE, getting.as_mut()).await {
                return client;
            }
            self.grow();
        }
    }

    /// Makes room for one more client, unless that was done a moment ago or there is room already.
    fn grow(&self) {
        let status = self.pool.status();
        if status.size < status.max_size || status.max_size >= self.limit {
            return;
        }
        let mut grown = self.grown.lock();
        if grown.elapsed() >= PATIENCE {
            *grown = Instant::now();
            self.pool.resize(status.max_size + 1);
        }
    }
}
