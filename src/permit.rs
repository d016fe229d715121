//! What this instance has room for: a number of turns, and numbers of bytes of their requests and of the
//! conversations that they send to Ollama.
//!
//! While its turns are as many as may run, or their requests as large, the host sends further requests to
//! another instance. A conversation for which there is no room is read later.

use std::cell::Cell;

use crate::spin::wit_bindgen::{backpressure_dec, backpressure_inc};

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

/// Bytes of requests with which an instance asks for no more of them.
const REQUESTS_BYTES: usize = 32 * 1024 * 1024;

/// Bytes of requests beyond which none of several may grow: they had begun when the instance could still
/// take them. The largest request, too: parsed it needs as much again, and some hosts give an instance
/// no more than 256 MiB.
pub(crate) const REQUESTS_MAX: usize = 64 * 1024 * 1024;

/// The bytes of the requests whose prompts are not yet sent.
#[derive(Debug, Default)]
struct Requests(Cell<usize>);

impl Requests {
    /// Whether one of `held` bytes may have `bytes`.
    fn may_grow(&self, held: usize, bytes: usize) -> bool {
        let others = self.0.get().saturating_sub(held);
        others == 0 || others.saturating_add(bytes) <= REQUESTS_MAX
    }

    /// Counts one that had `held` bytes and has `bytes`; whether there is too much of them, where that changes.
    fn resize(&self, held: usize, bytes: usize) -> Option<bool> {
        let before = self.0.get();
        let after = before.saturating_sub(held).saturating_add(bytes);
        self.0.set(after);
        let [was_full, is_full] = [before, after].map(|bytes| bytes >= REQUESTS_BYTES);
        (was_full != is_full).then_some(is_full)
    }
}

thread_local! {
    static REQUESTS: Requests = Requests::default();
}

/// The permission to run a turn, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: usize,
    /// Bytes of the request.
    held: Cell<usize>,
}

impl Permit {
    /// Takes one of `limit` permits. With the last one the instance asks the host for no more requests
    /// (the component model's backpressure), so no request is ever refused here.
    pub(crate) fn take(limit: usize) -> Self {
        if TURNS.with(|turns| turns.begin(limit)) {
            backpressure_inc();
        }
        let held = Cell::default();
        Self { limit, held }
    }

    /// Room for a request that grows to `bytes`, unless others hold too much.
    pub(crate) fn grow(&self, bytes: usize) -> bool {
        let may_grow = REQUESTS.with(|all| all.may_grow(self.held.get(), bytes));
        if may_grow {
            self.resize(bytes);
        }
        may_grow
    }

    /// Takes note of the bytes that the request has now.
    pub(crate) fn resize(&self, bytes: usize) {
        let held = self.held.replace(bytes);
        match REQUESTS.with(|all| all.resize(held, bytes)) {
            Some(true) => backpressure_inc(),
            Some(false) => backpressure_dec(),
            None => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
        if TURNS.with(|turns| turns.end(self.limit)) {
            backpressure_dec();
        }
    }
}

/// Bytes of conversations that wait to be sent to Ollama.
const CONVERSATIONS_BYTES: usize = 5 * 1024 * 1024;

/// The bytes that are taken.
#[derive(Debug, Default)]
struct Bytes(Cell<usize>);

impl Bytes {
    /// Takes some more, if there is room for them; one conversation always has room.
    fn take(&self, bytes: usize) -> bool {
        let taken = self.0.get();
        let fits = taken == 0 || taken.saturating_add(bytes) <= CONVERSATIONS_BYTES;
        if fits {
            self.0.set(taken.saturating_add(bytes));
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_sub(bytes));
    }
}

thread_local! {
    static CONVERSATIONS: Bytes = Bytes::default();
}

/// Room for the past of a conversation, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room(usize);

impl Room {
    /// Room for `bytes`, where there is any at present.
    pub(crate) fn take(bytes: usize) -> Option<Self> {
        // Not `then_some`, whose value is dropped where there is no room, and would give back what it never had.
        CONVERSATIONS
            .with(|taken| taken.take(bytes))
            .then(|| Self(bytes))
    }

    /// Takes note of the bytes that are really needed.
    pub(crate) fn resize(&mut self, bytes: usize) {
        CONVERSATIONS.with(|taken| {
            taken.give_back(self.0);
            taken.0.set(taken.0.get().saturating_add(bytes));
        });
        self.0 = bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        CONVERSATIONS.with(|taken| taken.give_back(self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backpressure_is_on_while_requests_are_large_and_each_change_is_told_once() {
        let requests = Requests::default();
        let half = REQUESTS_BYTES / 2;
        assert_eq!(requests.resize(0, half), None);
        assert_eq!(requests.resize(0, half - 1), None);
        assert_eq!(requests.resize(half - 1, half), Some(true));
        assert_eq!(requests.resize(half, 2 * half), None);
        assert_eq!(requests.resize(2 * half, 0), Some(false));
        assert_eq!(requests.resize(half, 0), None);
        assert_eq!(requests.0.get(), 0);
    }

    #[test]
    fn a_request_alone_may_grow_and_several_only_so_far() {
        let requests = Requests::default();
        assert!(requests.may_grow(0, REQUESTS_MAX + 1));
        requests.resize(0, REQUESTS_MAX + 1);
        assert!(requests.may_grow(REQUESTS_MAX + 1, REQUESTS_MAX + 2));
        assert!(!requests.may_grow(0, 1));
        requests.resize(REQUESTS_MAX + 1, REQUESTS_MAX - 1);
        assert!(requests.may_grow(0, 1));
        assert!(!requests.may_grow(0, 2));
    }

    #[test]
    fn there_is_room_for_one_conversation_or_for_several_that_fit() {
        let taken = Bytes::default();
        assert!(taken.take(2 * CONVERSATIONS_BYTES));
        assert!(!taken.take(1));
        taken.give_back(2 * CONVERSATIONS_BYTES);
        assert!(taken.take(CONVERSATIONS_BYTES - 1));
        assert!(taken.take(1));
        assert!(!taken.take(1));
    }

    #[test]
    fn room_is_given_back_at_its_latest_size() {
        let mut room = Room::take(CONVERSATIONS_BYTES).unwrap();
        assert!(Room::take(1).is_none());
        assert!(Room::take(1).is_none());
        room.resize(1);
        let other = Room::take(CONVERSATIONS_BYTES - 1).unwrap();
        assert!(Room::take(1).is_none());
        drop((room, other));
        assert!(Room::take(CONVERSATIONS_BYTES).is_some());
    }

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
