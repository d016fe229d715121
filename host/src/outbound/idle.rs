//! Connections whose last response was read to its end, kept for the next request to the same
//! endpoint.
//!
//! A connection that the server has closed meanwhile is not handed out.

use std::collections::HashMap;
use std::task::{Context, Waker};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Sending;
use super::connect::Driver;

/// Connections kept for one endpoint.
const MAX_IDLE: usize = 64;

/// How long one is kept, as in hyper's own pool: a proxy on the way may have dropped it by then.
const MAX_IDLE_TIME: Duration = Duration::from_secs(90);

/// What a connection is connected to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
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
    /// Whether it can take a request now.
    fn is_idle(&mut self) -> bool {
        self.driver.poll_io(&mut Context::from_waker(Waker::noop()));
        self.driver.is_here() && self.sender.is_ready()
    }
}

/// The idle connections.
#[derive(Default)]
pub(super) struct Idle(Mutex<HashMap<Endpoint, Vec<(Instant, Connection)>>>);

impl Idle {
    /// Takes the one that was used last, so that the others can expire.
    pub(super) fn take(&self, endpoint: &Endpoint) -> Option<Connection> {
        let mut kept = self.0.lock();
        let idle = kept.get_mut(endpoint)?;
        while let Some((since, mut connection)) = idle.pop() {
            if since.elapsed() < MAX_IDLE_TIME && connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection, if it can be used again.
    pub(super) fn put(&self, endpoint: &Endpoint, mut connection: Connection) {
        if !connection.is_idle() {
            return;
        }
        let mut kept = self.0.lock();
        let idle = match kept.get_mut(endpoint) {
            Some(idle) => idle,
            None => kept.entry(endpoint.clone()).or_default(),
        };
        let oldest = Instant::now().checked_sub(MAX_IDLE_TIME);
        idle.retain(|(since, _)| oldest.is_none_or(|oldest| *since > oldest));
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), connection));
        }
    }
}
