//! Time: bounds on waits, and a ticking clock that costs nothing per token.

use std::future::poll_fn;
use std::ops::Add;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wit_bindgen::yield_async;

/// A moment of the host's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// This moment; a call of the host.
    pub fn now() -> Self {
        Self(monotonic_clock::now())
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }
}

/// A duration as the component model counts it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    monotonic_clock::wait_for(nanoseconds(duration)).await;
}

/// The outcome of `work`, or `None` if it has not ended at `deadline`; it is dropped then.
pub async fn timeout_at<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut timer = pin!(monotonic_clock::wait_until(deadline.0));
    poll_fn(|cx| {
        if let Poll::Ready(value) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// The outcome of `work`; `aside` goes on beside it for as long.
pub async fn alongside<T>(work: impl Future<Output = T>, aside: impl Future<Output = ()>) -> T {
    let mut work = pin!(work);
    let mut aside = pin!(aside);
    let mut aside_ended = false;
    poll_fn(|cx| {
        if !aside_ended {
            aside_ended = aside.as_mut().poll(cx).is_ready();
        }
        work.as_mut().poll(cx)
    })
    .await
}

/// Where work is always ready (Ollama and the client are both fast), nobody else gets a turn, and
/// no timer is heard, unless the task steps back now and then. Sixteen waits move up to 128 KiB.
const WAITS_BETWEEN_YIELDS: u32 = 16;

/// A coarse clock that runs while a task waits.
///
/// A timer for each wait would be two calls of the host for each token. This one timer serves all
/// waits of a turn: it divides them into ticks, and they are bounded to the accuracy of one.
pub struct Ticker {
    tick: Duration,
    ticks: u32,
    waits: u32,
    timer: Pin<Box<dyn Future<Output = ()>>>,
}

impl Ticker {
    /// A clock that starts now and advances by `tick`.
    pub fn new(tick: Duration) -> Self {
        Self {
            tick,
            ticks: 0,
            waits: 0,
            timer: Box::pin(sleep(tick)),
        }
    }

    /// Time since the start, to the tick.
    pub fn now(&self) -> Duration {
        self.tick.saturating_mul(self.ticks)
    }

    /// Whether more than `limit` has certainly passed since `then`.
    pub fn is_past(&self, then: Duration, limit: Duration) -> bool {
        self.now().saturating_sub(then) > limit
    }

    /// Polls `work`; `None` when the clock has advanced and `work` is not done.
    pub async fn or_tick<F: Future>(&mut self, mut work: Pin<&mut F>) -> Option<F::Output> {
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(WAITS_BETWEEN_YIELDS) {
            yield_async().await;
        }
        poll_fn(|cx| {
            let mut advanced = false;
            while self.timer.as_mut().poll(cx).is_ready() {
                self.timer = Box::pin(sleep(self.tick));
                self.ticks = self.ticks.saturating_add(1);
                advanced = true;
            }
            match work.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending if advanced => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}
