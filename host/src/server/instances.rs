//! Instances: created when needed, shared by many requests, ended when idle.
//!
//! wasmtime's `ProxyHandler` does the work; what is decided here is when an instance accepts
//! a request and when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance as HandlerInstance, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::requests::{InstanceRequests, PendingRequest, Requests};
use crate::Program;
use crate::instance::{Instance, Services};

/// The limits of one instance. The defaults are Spin's, but for the memory, where Spin has none.
#[derive(Debug, Clone)]
pub struct InstanceLimits {
    /// Requests in its life.
    pub requests: usize,
    /// Concurrent requests that wait for the head of their response. Those whose head was sent do
    /// not count; `requests` bounds them.
    pub concurrent: usize,
    /// How long it waits for the next request when it has nothing to do.
    pub idle: Duration,
    /// Whether work that goes on after the responses is something to do, as for Spin 4.1. For Spin 4.0 an
    /// instance is idle once its responses have ended or lost their clients.
    pub finishes: bool,
    /// Bytes of a memory: an allocation beyond fails.
    pub memory: usize,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            requests: 128,
            concurrent: 16,
            idle: Duration::from_secs(1),
            finishes: true,
            memory: 256 << 20,
        }
    }
}

/// Instances that a burst of requests may start on a thread at once. An instance that is being started accepts no
/// request but its own, so that each request of a burst would get one, with all the memory that one takes.
const AT_ONCE: usize = 8;
/// Between two further ones. Meanwhile requests wait, and mostly find one that has begun to accept others.
const PAUSE: Duration = Duration::from_millis(40);

/// Creates instances.
pub(super) struct Instances {
    pub(super) program: Program,
    pub(super) services: Arc<Services>,
    pub(super) limits: InstanceLimits,
    pub(super) requests: Arc<Requests>,
    pub(super) started: Started,
}

/// The instances of a thread, and when the latest was started.
#[derive(Default)]
pub(super) struct Started {
    alive: Arc<()>,
    latest: Mutex<Option<Instant>>,
}

impl Started {
    /// Counts another one for as long as the value lives, unless there are many and one was started just now.
    fn another(&self) -> Option<Arc<()>> {
        let mut latest = self.latest.lock();
        let is_many = Arc::strong_count(&self.alive) > AT_ONCE;
        if is_many && latest.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        *latest = Some(Instant::now());
        Some(self.alive.clone())
    }
}

impl HandlerState for Instances {
    type StoreData = Instance;
    type WorkerExpiration = Expiration;
    type WorkerState = Admission;

    async fn instantiate(
        &self,
    ) -> wasmtime::Result<HandlerInstance<Instance, Expiration, Admission>> {
        let instance = Instance::new(self.services.clone(), self.limits.memory);
        let alive = self.started.another();
        let alive = alive.ok_or_else(|| wasmtime::format_err!("many were started just now"))?;
        let mut store = Store::new(&self.program.engine, instance);
        store.limiter(|instance| &mut instance.memory);
        let proxy = self.program.service().instantiate_async(&mut store).await?;
        let requests = self.requests.add_instance();
        Ok(HandlerInstance {
            store,
            proxy,
            view: |instance| instance.http(),
            expiration: Expiration {
                idle: self.limits.idle,
                finishes: self.limits.finishes,
                unread_since: None,
                cut: Box::pin(self.requests.cut.clone().cancelled_owned()),
                sleep: Box::pin(tokio::time::sleep(self.limits.idle)),
                requests: requests.clone(),
            },
            state: Admission {
                limits: self.limits.clone(),
                services: self.services.clone(),
                requests,
                _alive: alive,
            },
        })
    }
}

/// Decides when an instance ends.
pub(super) struct Expiration {
    idle: Duration,
    finishes: bool,
    /// Since when nobody has read a response, where that makes it idle.
    unread_since: Option<Instant>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    sleep: Pin<Box<Sleep>>,
    requests: Arc<InstanceRequests>,
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
        let this = &mut *self;
        let can_be_unread = status == WorkerStatus::PostReturn && !this.finishes;
        let is_unread = can_be_unread && !this.requests.are_read();
        this.unread_since = is_unread.then(|| this.unread_since.unwrap_or_else(Instant::now));
        match this.unread_since {
            _ if status == WorkerStatus::Idle => {
                this.requests.idle();
                this.poll_after(cx, since, this.idle)
            }
            // As Spin 4.0: the last client's leaving begins the time that an idle instance has.
            Some(since) => this.poll_after(cx, since, this.idle),
            // Nothing tells when a client leaves: look again.
            None if can_be_unread => this.poll_after(cx, Instant::now(), LOOK),
            // Ending a busy instance would break off all its streams.
            None => Poll::Pending,
        }
    }
}

impl Expiration {
    /// Ready at `time` after `since`.
    fn poll_after(&mut self, cx: &mut Context<'_>, since: Instant, time: Duration) -> Poll<()> {
        let Some(deadline) = since.checked_add(time) else {
            return Poll::Pending;
        };
        let deadline = deadline.into();
        if self.sleep.deadline() != deadline {
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// Between two looks at whether the responses still have clients.
const LOOK: Duration = Duration::from_millis(20);

/// Decides which requests an instance accepts.
pub(super) struct Admission {
    limits: InstanceLimits,
    services: Arc<Services>,
    requests: Arc<InstanceRequests>,
    _alive: Arc<()>,
}

impl WorkerState for Admission {
    type StoreData = Instance;
    type RequestData = PendingRequest;

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
        request: PendingRequest,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        self.requests.accept(&request);
        Box::pin(std::future::pending())
    }

    fn drop(&self, store: Store<Instance>, result: wasmtime::Result<()>) {
        if let Err(error) = result {
            // Before the store is dropped, and with it the writing ends of the responses.
            self.requests.fail();
            if !self.requests.was_cut() {
                let output = &self.services.output;
                output.line(format_args!("an instance failed: {error:?}"));
            }
        }
        drop(store);
    }
}
