//! Requests, from their arrival to the end of the work that they started.
//!
//! The end of a response is not the end of its request: a component can go on after its client
//! has left, and what it does then (storing something, say) must not be lost to a restart.
//! Nothing reports the end of one guest task, but an instance reports when it has no task left.
//! So a request counts as open until its response has ended or its instance is idle, and a
//! drain waits for the instances.

use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::{Error, WasiBody};

use super::connection::Responding;

/// All requests of a host.
#[derive(Default)]
pub(super) struct Requests {
    counts: Mutex<Counts>,
    changed: Notify,
    /// Set when the time to finish is over: every instance ends.
    pub(super) cut: CancellationToken,
}

#[derive(Default)]
struct Counts {
    /// Requests that no instance has accepted yet.
    pending: usize,
    instances: Vec<Weak<InstanceRequests>>,
}

impl Requests {
    pub(super) fn arrive(self: &Arc<Self>) -> PendingRequest {
        self.counts.lock().pending += 1;
        PendingRequest {
            requests: self.clone(),
            response: Arc::default(),
        }
    }

    pub(super) fn add_instance(self: &Arc<Self>) -> Arc<InstanceRequests> {
        let instance = Arc::new(InstanceRequests {
            requests: self.clone(),
            accepted: Mutex::default(),
        });
        let instances = &mut self.counts.lock().instances;
        instances.retain(|instance| instance.strong_count() > 0);
        instances.push(Arc::downgrade(&instance));
        instance
    }

    /// How many are open. An instance that goes on after all its responses counts as one.
    pub(super) fn open(&self) -> usize {
        let counts = self.counts.lock();
        let instances = counts.instances.iter().filter_map(Weak::upgrade);
        counts.pending + instances.map(|instance| instance.open()).sum::<usize>()
    }

    /// How many instances there are.
    pub(super) fn instances(&self) -> usize {
        let instances = &self.counts.lock().instances;
        instances.iter().filter(|it| it.strong_count() > 0).count()
    }

    /// Waits until no request is open.
    pub(super) async fn ended(&self) {
        self.wait_until(|| self.open() == 0).await;
    }

    /// Waits until there is no instance.
    pub(super) async fn instances_ended(&self) {
        self.wait_until(|| self.instances() == 0).await;
    }

    async fn wait_until(&self, is_done: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if is_done() {
                return;
            }
            changed.await;
        }
    }
}

/// A request on its way to an instance.
pub(super) struct PendingRequest {
    requests: Arc<Requests>,
    pub(super) response: Arc<ResponseState>,
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.requests.counts.lock().pending -= 1;
        self.requests.changed.notify_waiters();
    }
}

/// The requests that one instance has accepted since it was last idle.
pub(super) struct InstanceRequests {
    requests: Arc<Requests>,
    accepted: Mutex<Vec<Arc<ResponseState>>>,
}

impl InstanceRequests {
    pub(super) fn accept(&self, request: &PendingRequest) {
        self.accepted.lock().push(request.response.clone());
    }

    /// The instance has no task left.
    pub(super) fn idle(&self) {
        if !std::mem::take(&mut *self.accepted.lock()).is_empty() {
            self.requests.changed.notify_waiters();
        }
    }

    /// Whether a response has a client that reads it.
    pub(super) fn are_read(&self) -> bool {
        // Here is one handle; another is the body's.
        let accepted = self.accepted.lock();
        accepted.iter().any(|it| Arc::strong_count(it) > 1)
    }

    /// The instance is about to be dropped in the middle of its work: the responses that it was
    /// writing must not look complete.
    pub(super) fn fail(&self) {
        for response in self.accepted.lock().iter() {
            response.set(Outcome::BrokenOff);
        }
    }

    /// Whether the host ended the instance itself.
    pub(super) fn was_cut(&self) -> bool {
        self.requests.cut.is_cancelled()
    }

    fn open(&self) -> usize {
        let accepted = self.accepted.lock();
        let open = accepted
            .iter()
            .filter(|response| response.0.get().is_none());
        open.count().max(usize::from(!accepted.is_empty()))
    }
}

impl Drop for InstanceRequests {
    fn drop(&mut self) {
        self.requests.changed.notify_waiters();
    }
}

/// How a response ended, once it has.
#[derive(Default)]
pub(super) struct ResponseState(OnceLock<Outcome>);

#[derive(PartialEq)]
pub(super) enum Outcome {
    Ended,
    BrokenOff,
}

impl ResponseState {
    /// Only the first outcome counts.
    pub(super) fn set(&self, outcome: Outcome) {
        let _ = self.0.set(outcome);
    }

    fn is_broken_off(&self) -> bool {
        self.0.get() == Some(&Outcome::BrokenOff)
    }
}

/// The body of a response. If it ends because its instance did, it ends in an error, which
/// breaks off the client's chunked body; it would look complete otherwise.
pub(super) struct ResponseBody {
    pub(super) body: WasiBody,
    pub(super) state: Arc<ResponseState>,
    pub(super) _responding: Responding,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.state.set(Outcome::Ended);
            if self.state.is_broken_off() {
                return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // hyper does not poll a body that has ended.
        let is_end = self.body.is_end_stream() && !self.state.is_broken_off();
        if is_end {
            self.state.set(Outcome::Ended);
        }
        is_end
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use http_body_util::{BodyExt as _, Full};

    use super::super::connection::State;
    use super::*;

    fn body(state: &Arc<ResponseState>) -> ResponseBody {
        let body = Full::new(Bytes::from_static(b"text")).map_err(|never| match never {});
        ResponseBody {
            body: body.boxed_unsync(),
            state: state.clone(),
            _responding: Arc::<State>::default().responding(),
        }
    }

    #[tokio::test]
    async fn a_request_is_open_until_its_response_ended_and_its_instance_is_idle() {
        let requests = Arc::new(Requests::default());
        assert_eq!(requests.open(), 0);
        let (one, other) = (requests.arrive(), requests.arrive());
        assert_eq!(requests.open(), 2, "on their way to an instance");
        let instance = requests.add_instance();
        for request in [&one, &other] {
            instance.accept(request);
        }
        let response = one.response.clone();
        drop((one, other));
        assert_eq!(requests.open(), 2, "in the instance");
        assert_eq!(body(&response).collect().await.unwrap().to_bytes(), "text");
        assert_eq!(requests.open(), 1, "one response was read to its end");
        instance.idle();
        assert_eq!(requests.open(), 0, "the other client left");
        requests.ended().await;
    }

    #[tokio::test]
    async fn an_instance_that_goes_on_after_its_responses_counts_as_one_request() {
        let requests = Arc::new(Requests::default());
        let instance = requests.add_instance();
        let request = requests.arrive();
        instance.accept(&request);
        request.response.set(Outcome::Ended);
        drop(request);
        assert_eq!(requests.open(), 1);
        instance.idle();
        assert_eq!(requests.open(), 0);
    }

    #[tokio::test]
    async fn a_response_whose_instance_failed_does_not_end_like_a_complete_one() {
        let requests = Arc::new(Requests::default());
        let request = requests.arrive();
        let instance = requests.add_instance();
        instance.accept(&request);
        instance.fail();
        let body = body(&request.response);
        assert!(!body.is_end_stream());
        assert!(matches!(
            body.collect().await,
            Err(Error::HttpResponseIncomplete)
        ));
        drop((request, instance));
        requests.instances_ended().await;
        assert_eq!(requests.open(), 0);
    }
}
