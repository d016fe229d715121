//! How many turns this instance runs: while it is full, the host sends further requests to another one.

use std::cell::Cell;

use spin_sdk::wit_bindgen::{backpressure_dec, backpressure_inc};

/// The turns that run.
#[derive(Debug, Default)]
struct Turns(Cell<usize>);

impl Turns {
    /// Counts one more; whether it was the last that may run.
    fn begin(&self, limit: usize) -> bool {
        self.0.set(self.0.get() + 1);
        self.0.get() == limit
    }

    /// Counts one less; whether another may run again.
    fn end(&self, limit: usize) -> bool {
        let running = self.0.get();
        self.0.set(running.saturating_sub(1));
        running == limit
    }
}

thread_local! {
    static TURNS: Turns = Turns::default();
}

/// The permission to run a turn, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: usize,
}

impl Permit {
    /// Takes one of `limit` permits. With the last one the instance asks the host for no more requests
    /// (the component model's backpressure), so no request is ever refused here.
    pub(crate) fn take(limit: usize) -> Self {
        if TURNS.with(|turns| turns.begin(limit)) {
            backpressure_inc();
        }
        Self { limit }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if TURNS.with(|turns| turns.end(self.limit)) {
            backpressure_dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backpressure_is_on_from_the_last_permit_until_one_is_given_back() {
        let turns = Turns::default();
        assert_eq!([turns.begin(2), turns.begin(2)], [false, true]);
        // The host had sent this one already.
        assert!(!turns.begin(2));
        assert_eq!(
            [turns.end(2), turns.end(2), turns.end(2)],
            [false, true, false]
        );
    }
}
