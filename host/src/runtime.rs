//! The threads that a host runs on: one for each core, each with a runtime of its own.

use std::io;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

/// As many as there are cores.
pub fn default_threads() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A runtime for one thread of a [`Host`](crate::Host)'s. Its tasks stay on that thread.
pub fn new() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
