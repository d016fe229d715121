//! Turns: requests from their arrival to the end of the work that they began.
//!
//! A response's end is not the end of its request: a component can go on after its client
//! has left, and what it does then (storing something, say) must not be lost to a restart.
//! Nothing reports the end of one guest task, but an instance does report that it has no
//! task left. So a turn counts as open until its response came to its end or its instance
//! was idle, and a drain waits for the instances.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::{Error, WasiBody};

/// All turns of a host.
#[derive(Default)]
pub(super) struct Turns {
    counts: Mutex<Counts>,
    changed: Notify,
    /// Set when the time to finish is over: every instance ends.
    pub(super) cut: CancellationToken,
}

#[derive(Default)]
struct Counts {
    /// Requests that no instance has taken yet.
    waiting: usize,
    instances: Vec<Weak<Work>>,
}

impl Turns {
    pub(super) fn arrive(self: &Arc<Self>) -> Ticket {
        self.lock().waiting += 1;
        Ticket {
            turns: self.clone(),
            turn: Arc::default(),
        }
    }

    pub(super) fn instance(self: &Arc<Self>) -> Arc<Work> {
        let work = Arc::new(Work {
            turns: self.clone(),
            taken: Mutex::default(),
        });
        let mut counts = self.lock();
        counts.instances.retain(|work| work.strong_count() > 0);
        counts.instances.push(Arc::downgrade(&work));
        work
    }

    /// How many are open. An instance that works on after all its responses counts as one.
    pub(super) fn open(&self) -> usize {
        let counts = self.lock();
        let works = counts.instances.iter().filter_map(Weak::upgrade);
        counts.waiting + works.map(|work| work.open()).sum::<usize>()
    }

    /// How many instances there are.
    pub(super) fn instances(&self) -> usize {
        self.lock()
            .instances
            .iter()
            .filter(|work| work.strong_count() > 0)
            .count()
    }

    /// Waits until none is open.
    pub(super) async fn ended(&self) {
        self.wait(|| self.open() == 0).await;
    }

    /// Waits until there is no instance.
    pub(super) async fn gone(&self) {
        self.wait(|| {
            self.lock()
                .instances
                .iter()
                .all(|work| work.strong_count() == 0)
        })
        .await;
    }

    async fn wait(&self, done: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if done() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request on its way to an instance.
pub(super) struct Ticket {
    turns: Arc<Turns>,
    pub(super) turn: Arc<Turn>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.turns.lock().waiting -= 1;
        self.turns.changed.notify_waiters();
    }
}

/// What one instance has taken on.
pub(super) struct Work {
    turns: Arc<Turns>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    busy: bool,
    turns: Vec<Arc<Turn>>,
}

impl Work {
    /// The instance has taken the request.
    pub(super) fn begin(&self, ticket: &Ticket) {
        let mut taken = self.lock();
        taken.busy = true;
        taken.turns.push(ticket.turn.clone());
    }

    /// The instance has no task left.
    pub(super) fn idle(&self) {
        let mut taken = self.lock();
        if taken.busy {
            *taken = Taken::default();
            drop(taken);
            self.turns.changed.notify_waiters();
        }
    }

    /// The instance is about to be dropped with work undone: the responses that it was
    /// writing must not look finished.
    pub(super) fn failed(&self) {
        for turn in &self.lock().turns {
            turn.fail();
        }
    }

    /// Whether the host ended the instance itself.
    pub(super) fn was_cut(&self) -> bool {
        self.turns.cut.is_cancelled()
    }

    fn open(&self) -> usize {
        let taken = self.lock();
        let open = taken.turns.iter().filter(|turn| turn.is_open()).count();
        if taken.busy { open.max(1) } else { 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.turns.changed.notify_waiters();
    }
}

/// One request.
#[derive(Default)]
pub(super) struct Turn(AtomicU8);

const OPEN: u8 = 0;
const ENDED: u8 = 1;
const FAILED: u8 = 2;

impl Turn {
    pub(super) fn end(&self) {
        let _ = self
            .0
            .compare_exchange(OPEN, ENDED, Ordering::AcqRel, Ordering::Acquire);
    }

    fn fail(&self) {
        let _ = self
            .0
            .compare_exchange(OPEN, FAILED, Ordering::AcqRel, Ordering::Acquire);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) == OPEN
    }

    fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire) == FAILED
    }
}

/// A response's body. One that ends because its instance did ends in an error, which
/// breaks the client's chunked body off; it would look complete otherwise.
pub(super) struct TurnBody {
    pub(super) body: WasiBody,
    pub(super) turn: Arc<Turn>,
}

impl Body for TurnBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.turn.end();
            if self.turn.has_failed() {
                return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // hyper does not poll a body that says so.
        let end = self.body.is_end_stream() && !self.turn.has_failed();
        if end {
            self.turn.end();
        }
        end
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn body(turn: &Arc<Turn>) -> TurnBody {
        let body = Full::new(Bytes::from_static(b"text")).map_err(|never| match never {});
        TurnBody {
            body: body.boxed_unsync(),
            turn: turn.clone(),
        }
    }

    #[tokio::test]
    async fn a_turn_is_open_until_its_response_ended_and_its_instance_is_idle() {
        let turns = Arc::new(Turns::default());
        assert_eq!(turns.open(), 0);
        let (one, other) = (turns.arrive(), turns.arrive());
        assert_eq!(turns.open(), 2, "on their way to an instance");
        let work = turns.instance();
        for ticket in [&one, &other] {
            work.begin(ticket);
        }
        let turn = one.turn.clone();
        drop((one, other));
        assert_eq!(turns.open(), 2, "in the instance");
        assert_eq!(body(&turn).collect().await.unwrap().to_bytes(), "text");
        assert_eq!(turns.open(), 1, "the one that was read to its end is over");
        work.idle();
        assert_eq!(
            turns.open(),
            0,
            "whose client left is over when the instance is"
        );
        turns.ended().await;
    }

    #[tokio::test]
    async fn a_response_whose_instance_failed_does_not_end_like_a_whole_one() {
        let turns = Arc::new(Turns::default());
        let ticket = turns.arrive();
        let work = turns.instance();
        work.begin(&ticket);
        work.failed();
        let body = body(&ticket.turn);
        assert!(!body.is_end_stream());
        assert!(matches!(
            body.collect().await,
            Err(Error::HttpResponseIncomplete)
        ));
        drop((ticket, work));
        turns.gone().await;
        assert_eq!(turns.open(), 0);
    }
}
