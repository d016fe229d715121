//! Time: deadlines for waits, on a coarse clock that costs nothing per token.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::spin::wasip3::clocks::monotonic_clock;
use crate::spin::wit_bindgen::yield_async;

/// The least that a clock ticks by.
pub(crate) const SHORTEST_TICK: Duration = Duration::from_millis(5);

/// A duration in nanoseconds, as the component model counts it.
// Inlined in each place that computes a deadline, it makes the component larger (measured).
#[inline(never)]
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits for `duration`.
pub(crate) async fn sleep(duration: Duration) {
    let time = Monotonic.now().saturating_add(nanoseconds(duration));
    Monotonic.wait_until(time).await;
}

/// Runs `work` to its end, and `aside` beside it once it `is_due`, for as long and until it is not busy.
pub(crate) async fn alongside<T>(
    work: impl Future<Output = T>,
    aside: impl Future<Output = ()>,
    is_due: &Cell<bool>,
    is_busy: &Cell<bool>,
) -> T {
    let mut work = pin!(work);
    let aside = pin!(aside);
    let mut aside = Quiet::new(aside);
    let (mut aside_ended, mut output) = (false, None);
    poll_fn(|cx| {
        let was_due = is_due.get();
        if was_due && !aside_ended {
            aside_ended = Pin::new(&mut aside).poll(cx).is_ready();
        }
        if output.is_none()
            && let Poll::Ready(it) = work.as_mut().poll(cx)
        {
            output = Some(it);
        }
        if !was_due && is_due.get() {
            aside_ended = Pin::new(&mut aside).poll(cx).is_ready();
        }
        match output.take() {
            Some(output) if !is_busy.get() => Poll::Ready(output),
            unfinished => {
                output = unfinished;
                Poll::Pending
            }
        }
    })
    .await
}

/// The latest moment that RFC 3339 can write, in microseconds since the Unix epoch.
const LATEST: i64 = 253_402_300_799_999_999;

/// A time as JSON has it (RFC 3339, UTC, microseconds), of microseconds since the Unix epoch. `None` where it is before
/// that or after the year 9999, which databases can hold.
pub(crate) fn rfc3339(time: i64) -> Option<String> {
    let time = (time <= LATEST)
        .then(|| u64::try_from(time).ok())
        .flatten()?;
    let time = UNIX_EPOCH + Duration::from_micros(time);
    Some(humantime::format_rfc3339_micros(time).to_string())
}

/// Microseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(LATEST)
    })
}

/// What a [`Ticker`] needs of a clock: WASI's in the component, a scripted one in unit tests.
pub(crate) trait Clock {
    /// Nanoseconds since some fixed moment.
    fn now(&self) -> u64;
    /// Waits until [`now`](Self::now) is `time` or later.
    fn wait_until(&self, time: u64) -> Timer;
    /// Lets other tasks run.
    fn yield_now(&self) -> impl Future<Output = ()>;
}

type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// WASI's monotonic clock.
#[derive(Debug)]
pub(crate) struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        monotonic_clock::now()
    }

    fn wait_until(&self, time: u64) -> Timer {
        Box::pin(Quiet::new(Box::pin(monotonic_clock::wait_until(time))))
    }

    async fn yield_now(&self) {
        yield_async().await;
    }
}

/// A future that is polled when it was woken itself, and not whenever what it waits beside was: to poll one that waits
/// for the host is a call of the host, and a turn waits thousands of times.
struct Quiet<F> {
    future: F,
    signal: Arc<Signal>,
    waker: Waker,
}

/// Whether a future was woken, and whom to wake then.
struct Signal {
    is_woken: AtomicBool,
    parent: Mutex<Waker>,
}

impl<F> Quiet<F> {
    fn new(future: F) -> Self {
        let signal = Arc::new(Signal {
            is_woken: AtomicBool::new(true),
            parent: Mutex::new(Waker::noop().clone()),
        });
        let waker = signal.clone().into();
        Self {
            future,
            signal,
            waker,
        }
    }
}

impl<F: Future + Unpin> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.signal.parent().clone_from(cx.waker());
        if !this.signal.is_woken.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        let mut cx = Context::from_waker(&this.waker);
        Pin::new(&mut this.future).poll(&mut cx)
    }
}

impl Signal {
    fn parent(&self) -> MutexGuard<'_, Waker> {
        self.parent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Relaxed);
        self.parent().wake_by_ref();
    }
}

/// Waits between two yields. While Ollama and the client are both fast, every wait ends at once: without
/// a yield now and then no other task would run and no timer fire. Sixteen waits move up to 128 KiB.
const WAITS_PER_YIELD: u32 = 16;

/// A moment by a [`Ticker`], in nanoseconds since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline(u64);

/// A coarse clock that advances while a task waits.
///
/// A timer for each wait would be two host calls for each token, and cancelling one that did not fire is
/// a round through the host's event loop. So one timer serves all waits of a turn: it divides time into
/// ticks, and a wait ends up to two ticks after its limit, never before it. Ticks are counted from the
/// start, so that the lateness of one is not added to the next.
pub(crate) struct Ticker<C = Monotonic> {
    clock: C,
    /// By `clock`.
    start: u64,
    /// Nanoseconds.
    tick: u64,
    /// Nanoseconds from the start to the latest tick.
    now: u64,
    waits: u32,
    /// Fires at the next tick; there is none before the first wait.
    timer: Option<Timer>,
}

impl Ticker {
    /// A clock that advances by `tick`.
    pub(crate) fn new(tick: Duration) -> Self {
        Self::on(Monotonic, tick)
    }
}

impl<C: Clock> Ticker<C> {
    fn on(clock: C, tick: Duration) -> Self {
        Self {
            start: clock.now(),
            clock,
            tick: nanoseconds(tick).max(1),
            now: 0,
            waits: 0,
            timer: None,
        }
    }

    /// The moment `limit` from now.
    pub(crate) fn deadline(&self, limit: Duration) -> Deadline {
        // The real time is up to one tick after `now`, which the last poll has updated.
        let now = self.now.saturating_add(self.tick);
        Deadline(now.saturating_add(nanoseconds(limit)))
    }

    /// A moment `interval` from now, up to a tick early or late: for intervals that need not be exact.
    pub(crate) fn about(&self, interval: Duration) -> Deadline {
        Deadline(self.now.saturating_add(nanoseconds(interval)))
    }

    /// The moment `limit` after the start of this clock.
    pub(crate) fn deadline_from_start(&self, limit: Duration) -> Deadline {
        Deadline(self.tick.saturating_add(nanoseconds(limit)))
    }

    /// Whether `deadline` has passed.
    pub(crate) fn is_past(&self, deadline: Deadline) -> bool {
        self.now >= deadline.0
    }

    /// The output of `work`, or `None` if it has not ended by `deadline`; it is dropped then.
    pub(crate) async fn timeout_at<T>(
        &mut self,
        deadline: Deadline,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match self.poll(cx, work.as_mut()) {
            Poll::Ready(None) if !self.is_past(deadline) => Poll::Pending,
            output => output,
        })
        .await
    }

    /// Waits for `duration`, while the clock goes on.
    pub(crate) async fn sleep(&mut self, duration: Duration) {
        let time = self.clock.now().saturating_add(nanoseconds(duration));
        let timer = self.clock.wait_until(time);
        self.timeout_at(Deadline(u64::MAX), timer).await;
    }

    /// The output of `work`, or `None` if the clock advanced first; `work` can be polled again then.
    pub(crate) async fn or_tick<F: Future>(&mut self, mut work: Pin<&mut F>) -> Option<F::Output> {
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(WAITS_PER_YIELD) {
            self.clock.yield_now().await;
        }
        poll_fn(|cx| self.poll(cx, work.as_mut())).await
    }

    /// Polls `work`; ready with `None` if the clock has advanced and `work` is pending.
    fn poll<F: Future>(
        &mut self,
        cx: &mut Context<'_>,
        work: Pin<&mut F>,
    ) -> Poll<Option<F::Output>> {
        let has_advanced = self.advance(cx);
        match work.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Started only now, with the work under way.
            Poll::Pending if has_advanced || self.start(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Starts the timer if there is none; whether the clock has advanced.
    fn start(&mut self, cx: &mut Context<'_>) -> bool {
        if self.timer.is_some() {
            return false;
        }
        self.timer = Some(self.next_tick());
        self.advance(cx)
    }

    /// Moves the clock to the latest tick; whether that is a new one.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.now;
        while let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            let elapsed = self.clock.now().saturating_sub(self.start);
            self.now = elapsed - elapsed % self.tick;
            self.timer = Some(self.next_tick());
        }
        self.now != before
    }

    fn next_tick(&self) -> Timer {
        let next = self.now.saturating_add(self.tick);
        self.clock.wait_until(self.start.saturating_add(next))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::rc::Rc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    /// A clock that shows what it is set to.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Manual(Rc<State>);

    #[derive(Debug, Default)]
    struct State {
        now: Cell<Duration>,
        yields: Cell<u32>,
    }

    impl Manual {
        pub(crate) fn ticker(&self) -> Ticker<Self> {
            Ticker::on(self.clone(), TICK)
        }

        pub(crate) fn advance(&self, duration: Duration) {
            self.0.now.set(self.elapsed() + duration);
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.0.now.get()
        }

        /// Runs `work` to its end, moving the clock by `step` whenever it waits.
        pub(crate) fn run<T>(&self, step: Duration, work: impl Future<Output = T>) -> T {
            let mut work = pin!(work);
            loop {
                match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(output) => return output,
                    Poll::Pending => self.advance(step),
                }
            }
        }
    }

    impl Clock for Manual {
        fn now(&self) -> u64 {
            nanoseconds(self.elapsed())
        }

        fn wait_until(&self, time: u64) -> Timer {
            let clock = self.clone();
            Box::pin(poll_fn(move |_| match clock.now() >= time {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }))
        }

        async fn yield_now(&self) {
            self.0.yields.set(self.0.yields.get() + 1);
        }
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_quiet_future_is_polled_when_it_was_woken_and_wakes_whoever_polled_it_last() {
        let (polls, waker) = (Cell::new(0), Cell::new(None::<Waker>));
        let future = pin!(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            waker.set(Some(cx.waker().clone()));
            match polls.get() {
                2 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }));
        let mut quiet = Quiet::new(future);
        let tasks = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let mut poll = |task: &Arc<Woken>| {
            Pin::new(&mut quiet).poll(&mut Context::from_waker(&task.clone().into()))
        };
        for task in [&tasks[0], &tasks[0], &tasks[1]] {
            assert!(poll(task).is_pending());
        }
        assert_eq!(polls.get(), 1);
        waker.take().unwrap().wake();
        let woken = tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1]);
        assert!(poll(&tasks[1]).is_ready());
    }

    #[test]
    fn a_time_that_cannot_be_written_is_none() {
        let written = |time| super::rfc3339(time);
        assert_eq!(written(0).as_deref(), Some("1970-01-01T00:00:00.000000Z"));
        let latest = "9999-12-31T23:59:59.999999Z";
        assert_eq!(written(super::LATEST).as_deref(), Some(latest));
        for time in [super::LATEST + 1, i64::MAX, -1, i64::MIN] {
            assert_eq!(written(time), None, "{time}");
        }
    }

    #[test]
    fn lateness_does_not_add_up() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        // Every tick is noticed 4 ms late.
        let late = TICK + Duration::from_millis(4);
        for _ in 0..10_000 {
            clock.run(late, ticker.or_tick(pin!(pending::<()>())));
        }
        let elapsed = clock.elapsed();
        assert!(elapsed >= Duration::from_secs(100));
        let now = Duration::from_nanos(ticker.now);
        assert!(elapsed - now < TICK, "{elapsed:?} {now:?}");
    }

    #[test]
    fn a_wait_ends_after_its_deadline_and_within_two_ticks_of_it() {
        for begun_at in [0, 3, 9] {
            for limit in [1, 9, 10, 25, 40] {
                let clock = Manual::default();
                let mut ticker = clock.ticker();
                let begun_at = Duration::from_millis(begun_at);
                clock.run(begun_at.max(TICK), ticker.or_tick(pin!(pending::<()>())));
                clock.advance(begun_at);

                let limit = Duration::from_millis(limit);
                let begun = clock.elapsed();
                let deadline = ticker.deadline(limit);
                let step = Duration::from_millis(1);
                let output = clock.run(step, ticker.timeout_at(deadline, pending::<()>()));
                assert_eq!(output, None);
                let took = clock.elapsed() - begun;
                assert!(
                    took >= limit && took <= limit + 2 * TICK,
                    "{limit:?}: {took:?}"
                );
                assert!(ticker.is_past(deadline));
            }
        }
    }

    #[test]
    fn work_that_is_ready_needs_no_timer() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let deadline = ticker.deadline(Duration::ZERO);
        let work = ticker.timeout_at(deadline, async { 7 });
        assert_eq!(clock.run(Duration::ZERO, work), Some(7));
        assert!(ticker.timer.is_none());
    }

    #[test]
    fn work_goes_on_after_a_tick() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let mut work = pin!(clock.wait_until(nanoseconds(3 * TICK)));
        let mut ticks = 0;
        while clock.run(TICK, ticker.or_tick(work.as_mut())).is_none() {
            ticks += 1;
        }
        assert_eq!(ticks, 2);
    }

    #[test]
    fn a_sleep_lasts_as_long_as_it_should_and_the_clock_goes_on() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let deadline = ticker.deadline(3 * TICK);
        clock.run(Duration::from_millis(1), ticker.sleep(5 * TICK));
        assert_eq!(clock.elapsed(), 5 * TICK);
        assert!(ticker.is_past(deadline));
    }

    #[test]
    fn waits_that_end_at_once_let_others_run_now_and_then() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        for _ in 0..WAITS_PER_YIELD * 3 {
            clock.run(Duration::ZERO, ticker.or_tick(pin!(async {})));
        }
        assert_eq!(clock.0.yields.get(), 3);
    }
}
