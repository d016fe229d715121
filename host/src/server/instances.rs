//! Instances: made when needed, shared by many requests, ended when idle.
//!
//! wasmtime's `ProxyHandler` does the work; what is decided here is when an instance takes
//! a request and when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance as HandlerInstance, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::turns::{Ticket, Turns, Work};
use crate::Program;
use crate::instance::{Instance, Services};

/// How far one instance goes. The defaults are Spin's.
#[derive(Debug, Clone)]
pub struct InstanceLimits {
    /// Requests in its life.
    pub requests: usize,
    /// Requests at once that wait for their response's head. Those whose head is out do
    /// not count; `requests` bounds them.
    pub concurrent: usize,
    /// How long it waits for the next request when it has nothing to do.
    pub idle: Duration,
    /// How long a request may wait for its response's head. What the component began goes on.
    pub head: Option<Duration>,
    /// How long an instance may work on after its latest response's head. It ends every
    /// stream of the instance, which is why there is none by default.
    pub after_head: Option<Duration>,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            requests: 128,
            concurrent: 16,
            idle: Duration::from_secs(1),
            head: None,
            after_head: None,
        }
    }
}

/// Makes instances.
pub(super) struct Instances {
    pub(super) program: Program,
    pub(super) services: Arc<Services>,
    pub(super) limits: InstanceLimits,
    pub(super) turns: Arc<Turns>,
}

impl HandlerState for Instances {
    type StoreData = Instance;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<HandlerInstance<Instance, Expiration, Worker>> {
        let mut store = Store::new(self.program.engine(), Instance::new(self.services.clone()));
        let proxy = self.program.service().instantiate_async(&mut store).await?;
        let work = self.turns.instance();
        Ok(HandlerInstance {
            store,
            proxy,
            view: |instance| instance.http(),
            expiration: Expiration {
                idle: self.limits.idle,
                after_head: self.limits.after_head,
                cut: Box::pin(self.turns.cut.clone().cancelled_owned()),
                sleep: Box::pin(tokio::time::sleep(self.limits.idle)),
                work: work.clone(),
            },
            state: Worker {
                limits: self.limits.clone(),
                services: self.services.clone(),
                work,
            },
        })
    }
}

/// Decides when an instance ends.
pub(super) struct Expiration {
    idle: Duration,
    after_head: Option<Duration>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    sleep: Pin<Box<Sleep>>,
    work: Arc<Work>,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let limit = match status {
            WorkerStatus::Idle => {
                self.work.idle();
                Some(self.idle)
            }
            // The server bounds the wait for a head: ending the instance would take the
            // other requests along.
            WorkerStatus::Requests => None,
            WorkerStatus::PostReturn => self.after_head,
        };
        let Some(deadline) = limit.and_then(|limit| since.checked_add(limit)) else {
            return Poll::Pending;
        };
        let deadline = deadline.into();
        if self.sleep.deadline() != deadline {
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// Decides what an instance takes on.
pub(super) struct Worker {
    limits: InstanceLimits,
    services: Arc<Services>,
    work: Arc<Work>,
}

impl WorkerState for Worker {
    type StoreData = Instance;
    type RequestData = Ticket;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.limits.requests {
            ShouldAccept::Never
        } else if concurrent >= self.limits.concurrent {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, Instance>,
        ticket: Ticket,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        self.work.begin(&ticket);
        Box::pin(std::future::pending())
    }

    fn drop(&self, store: Store<Instance>, result: wasmtime::Result<()>) {
        if let Err(error) = result {
            // Before the store goes, and with it the writing ends of the responses.
            self.work.failed();
            if !self.work.was_cut() {
                self.services
                    .output
                    .line(format_args!("an instance failed: {error:?}"));
            }
        }
        drop(store);
    }
}
