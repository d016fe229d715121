//! Time: bounds on waits, and a ticking clock that costs nothing per token.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wit_bindgen::yield_async;

/// A duration as the component model counts it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    monotonic_clock::wait_for(nanoseconds(duration)).await;
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
/// A timer for each wait would be two calls of the host for each token, and one whose wait ends in
/// time has to be cancelled, for which the host goes once around its event loop. This one timer
/// serves all waits of a turn: it divides them into ticks, and they are bounded to the accuracy of
/// one.
pub struct Ticker {
    tick: Duration,
    ticks: u32,
    waits: u32,
    /// From the first wait that is one.
    timer: Option<Timer>,
}

type Timer = Pin<Box<dyn Future<Output = ()>>>;

impl Ticker {
    /// A clock that advances by `tick`.
    pub fn new(tick: Duration) -> Self {
        Self {
            tick,
            ticks: 0,
            waits: 0,
            timer: None,
        }
    }

    /// Time since the start, to the tick.
    #[inline(never)]
    pub fn now(&self) -> Duration {
        self.tick.saturating_mul(self.ticks)
    }

    /// Whether more than `limit` has certainly passed since `then`.
    pub fn is_past(&self, then: Duration, limit: Duration) -> bool {
        self.now().saturating_sub(then) > limit
    }

    /// The outcome of `work`, or `None` if it has not ended when more than `deadline` has certainly
    /// passed since the start; it is dropped then.
    pub async fn timeout_at<T>(
        &mut self,
        deadline: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let has_advanced = self.advance(cx);
            match work.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending if has_advanced || self.start(cx) => match self.now() > deadline {
                    true => Poll::Ready(None),
                    false => Poll::Pending,
                },
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for `duration`; the clock goes on meanwhile.
    pub async fn sleep(&mut self, duration: Duration) {
        let sleeping: Timer = Box::pin(sleep(duration));
        self.timeout_at(Duration::MAX, sleeping).await;
    }

    /// Polls `work`; `None` when the clock has advanced and `work` is not done.
    pub async fn or_tick<F: Future>(&mut self, mut work: Pin<&mut F>) -> Option<F::Output> {
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(WAITS_BETWEEN_YIELDS) {
            yield_async().await;
        }
        poll_fn(|cx| {
            let has_advanced = self.advance(cx);
            match work.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                // Started only now: the work is under way meanwhile.
                Poll::Pending if has_advanced || self.start(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Starts the timer if there is none; whether it has run out at once.
    #[inline(never)]
    fn start(&mut self, cx: &mut Context<'_>) -> bool {
        if self.timer.is_some() {
            return false;
        }
        self.timer = Some(self.timer());
        self.advance(cx)
    }

    /// Counts the ticks that are over; whether there are any.
    #[inline(never)]
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.ticks;
        while let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.timer = Some(self.timer());
            self.ticks = self.ticks.saturating_add(1);
        }
        self.ticks != before
    }

    fn timer(&self) -> Timer {
        Box::pin(sleep(self.tick))
    }
}
