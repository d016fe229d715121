//! The threads of a host: one for each core, each with its own runtime, and that of the caller.

use std::io;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

/// One thread for each core.
pub fn default_threads() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A runtime whose tasks stay on the thread that drives it.
pub fn new() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
