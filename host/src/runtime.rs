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

/// Has the allocator of glibc return large blocks to the system, for the whole process. Its own threshold grows with
/// what was freed, and each of its arenas, of which threads get several, then keeps the largest rows that it ever
/// held: 300 MB after two hundred of 4 MB each.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(
        unsafe_code,
        reason = "a call of C that takes two numbers and sets one"
    )]
    // SAFETY: `mallopt` may be called at any time, and refuses what it does not know.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}
