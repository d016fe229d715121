//! How many turns this instance runs: where it is full, the host sends the next to another one.

use std::cell::Cell;

use spin_sdk::wit_bindgen::{backpressure_dec, backpressure_inc};

thread_local! {
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

/// The place of a turn among those that run here; free again when dropped.
#[derive(Debug)]
pub struct Place {
    limit: usize,
}

impl Place {
    /// Takes a place of `limit`. With the last one the instance asks the host for no more requests
    /// (the component model's backpressure), so none is ever refused here.
    pub fn take(limit: usize) -> Self {
        let running = RUNNING.get() + 1;
        RUNNING.set(running);
        if running == limit {
            backpressure_inc();
        }
        Self { limit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let running = RUNNING.get();
        if running == self.limit {
            backpressure_dec();
        }
        RUNNING.set(running.saturating_sub(1));
    }
}
