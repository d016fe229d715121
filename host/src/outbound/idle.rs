//! Connections whose last response was read to its end, for the next request to the same place.
//!
//! One that its other end has closed meanwhile is not handed out, and a request that such a
//! connection did not take any more comes back unsent.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::Sending;
use super::connect::Driver;

/// Connections kept for one place.
const KEPT: usize = 64;

/// How long one is kept, as in hyper's own pool: what is between may have forgotten it by then.
const LONGEST: Duration = Duration::from_secs(90);

/// Where a connection leads to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// An open connection.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Sending>,
    pub(super) driver: Driver<Sending>,
}

impl Connection {
    /// Whether it takes a request now.
    fn is_idle(&mut self) -> bool {
        self.driver.poll_io(&mut Context::from_waker(Waker::noop()));
        self.driver.is_here() && self.sender.is_ready()
    }
}

/// The connections that wait.
#[derive(Default)]
pub(super) struct Idle(Mutex<HashMap<Place, Vec<(Instant, Connection)>>>);

impl Idle {
    /// The one that was used last, so that the others can grow old.
    pub(super) fn take(&self, place: &Place) -> Option<Connection> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = kept.get_mut(place)?;
        while let Some((since, mut connection)) = waiting.pop() {
            if since.elapsed() < LONGEST && connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection, if it can be used again.
    pub(super) fn put(&self, place: &Place, mut connection: Connection) {
        if !connection.is_idle() {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = match kept.get_mut(place) {
            Some(waiting) => waiting,
            None => kept.entry(place.clone()).or_default(),
        };
        let oldest = Instant::now().checked_sub(LONGEST);
        waiting.retain(|(since, _)| oldest.is_none_or(|oldest| *since > oldest));
        if waiting.len() < KEPT {
            waiting.push((Instant::now(), connection));
        }
    }
}
