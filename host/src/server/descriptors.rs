//! How many connections the limit of file descriptors leaves room for.

/// Descriptors of the process itself: libraries, runtimes, the databases' files.
const RESERVED: usize = 64;

/// Raises the limit as far as this process may, and divides it: a connection of a client is rarely
/// without one to somewhere else.
pub(super) fn max_connections() -> usize {
    share(limit()).min(tokio::sync::Semaphore::MAX_PERMITS)
}

fn share(limit: usize) -> usize {
    (limit.saturating_sub(RESERVED) / 2).max(8)
}

#[cfg(unix)]
fn limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let soft = limit.current;
    limit.current = limit.maximum;
    let is_raised = setrlimit(Resource::Nofile, limit).is_ok();
    let limit = if is_raised { limit.current } else { soft };
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(not(unix))]
fn limit() -> usize {
    usize::MAX
}
