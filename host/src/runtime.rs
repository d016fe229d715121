//! The threads that a host runs on.

use std::io;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

/// One thread fewer than there are cores, and at least one. A turn is a few hundred microseconds of
/// work in a dozen pieces, and a second thread costs it a wake-up for nearly each of them; the core
/// that is left is for SQLite's own threads, and for what else is on the machine.
pub fn default_threads() -> NonZeroUsize {
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores - 1).unwrap_or(NonZeroUsize::MIN)
}

/// A runtime for a [`Host`](crate::Host).
pub fn runtime(threads: NonZeroUsize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads.get())
        .enable_all()
        .build()
}
