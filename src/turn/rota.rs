//! Work that the tasks of an instance do for each other, once an interval.
//!
//! Tasks of different requests cannot wake each other, so each looks on a timer of its own. The first that finds the
//! interval over does the work, for all of them.

use std::cell::Cell;
use std::time::Duration;

use crate::clock::{self, Clock as _, Monotonic, nanoseconds};

/// How often a task looks whether another one has done the work.
const LOOK: Duration = Duration::from_millis(25);

/// When the work was done last, and whether it is being done.
pub(super) struct Rota {
    /// By the monotonic clock.
    latest: Cell<u64>,
    is_busy: Cell<bool>,
}

impl Rota {
    pub(super) const fn new() -> Self {
        Self {
            latest: Cell::new(0),
            is_busy: Cell::new(false),
        }
    }

    /// The interval begins now.
    pub(super) fn begin(&self) {
        self.latest.set(Monotonic.now());
    }

    /// Sees to it that the work is done each `interval`, until dropped. `is_mine` says when it is being done by this
    /// task, on which others wait.
    pub(super) async fn tend(
        &self,
        interval: Duration,
        is_mine: &Cell<bool>,
        work: impl AsyncFn(),
    ) {
        loop {
            let due = self.latest.get().saturating_add(nanoseconds(interval));
            let now = Monotonic.now();
            if self.is_busy.get() {
                clock::sleep(LOOK).await;
            } else if now < due {
                clock::sleep(Duration::from_nanos(due - now)).await;
            } else {
                self.latest.set(now);
                let working = Working::start([&self.is_busy, is_mine]);
                work().await;
                drop(working);
            }
        }
    }
}

/// While the work is being done.
struct Working<'a>([&'a Cell<bool>; 2]);

impl<'a> Working<'a> {
    fn start(flags: [&'a Cell<bool>; 2]) -> Self {
        for flag in flags {
            flag.set(true);
        }
        Self(flags)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        for flag in self.0 {
            flag.set(false);
        }
    }
}
