//! The clients of one address: made when they are missed, kept for the next time.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::{BuildError, Manager, Object, Pool, PoolError, QueueMode};
use tokio::time::{Instant, timeout};

/// Clients that are made as soon as they are missed.
pub(super) const FEW: usize = 4;

/// How often one is added to them. It costs the server a process and some 10 ms of computing, as much
/// as thirty turns: in a burst, making as many as could be used would hold all of them up (measured:
/// a thousand turns begun at once).
const PATIENCE: Duration = Duration::from_millis(250);

/// A pool that grows slowly while it is too small.
pub(super) struct Clients {
    pool: Pool,
    most: usize,
    grown: Mutex<Instant>,
}

impl Clients {
    /// A pool that never has more than `most`, [`FEW`] or more.
    pub(super) fn new(manager: Manager, most: usize) -> Result<Self, BuildError> {
        let pool = Pool::builder(manager)
            .max_size(FEW)
            // The one that was used last: the server has everything at hand for it.
            .queue_mode(QueueMode::Lifo)
            .build()?;
        Ok(Self {
            pool,
            most,
            grown: Mutex::new(Instant::now()),
        })
    }

    pub(super) async fn get(&self) -> Result<Object, PoolError> {
        let mut getting = pin!(self.pool.get());
        loop {
            if let Ok(client) = timeout(PATIENCE, getting.as_mut()).await {
                return client;
            }
            self.grow();
        }
    }

    /// Somebody has waited for a client: makes room for one more, unless that was done a moment ago or
    /// there is room already.
    fn grow(&self) {
        let status = self.pool.status();
        if status.size < status.max_size || status.max_size >= self.most {
            return;
        }
        let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        if grown.elapsed() >= PATIENCE {
            *grown = Instant::now();
            self.pool.resize(status.max_size + 1);
        }
    }
}
