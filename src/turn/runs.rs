//! The attempts that run in this instance: what came of each since its last checkpoint, and what the database says of
//! it.
//!
//! One statement each `checkpoint_interval` stores what came of all of them and renews their leases. Tasks of different
//! requests cannot wake each other, so each looks at what they share on a timer of its own. The first that finds the
//! interval over makes the statement, beside its relay.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::rota::Rota;
use crate::clock::Ticker;
use crate::config::Timeouts;
use crate::log;
use crate::reply::position::Attempt;
use crate::reply::{End, Mark, Outcome, Pipeline};
use crate::store::{Checked, Checkpoint, Database, StoreError, TurnName};

/// Bytes that one statement stores, or one attempt's more: the others wait for the next.
const BATCH_MAX: usize = 4 << 20;
/// Statements without an answer whose marks are remembered: one of them may have been executed.
const TRIED_MAX: usize = 16;

thread_local! {
    static RUNNING: RefCell<Vec<Weak<Run>>> = const { RefCell::new(Vec::new()) };
    static ROTA: Rc<Rota> = Rc::new(Rota::new());
}

/// An attempt, as far as it has come.
pub(super) struct Run {
    pub(super) name: TurnName,
    pub(super) attempt: Attempt,
    /// `None` once it has ended.
    pipeline: RefCell<Option<Pipeline>>,
    /// What is stored.
    stored: Cell<Mark>,
    /// What may be: the ends of statements that have had no answer.
    tried: RefCell<Vec<Mark>>,
    verdict: Cell<Option<Verdict>>,
    /// It has been waited for through a tick of its clock. Most turns of a busy server are over before, and spared the
    /// timer of their checkpoints, two calls of the host.
    pub(super) is_long: Cell<bool>,
}

/// Why an attempt is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Somebody asked for it.
    Stop,
    /// It is no longer the turn's.
    Gone,
}

impl Run {
    /// An attempt that begins.
    pub(super) fn new(name: TurnName, attempt: Attempt, pipeline: Pipeline) -> Self {
        Self {
            name,
            attempt,
            pipeline: RefCell::new(Some(pipeline)),
            stored: Cell::default(),
            tried: RefCell::default(),
            verdict: Cell::new(None),
            is_long: Cell::new(false),
        }
    }

    /// It is checked from now on.
    pub(super) fn start(self) -> Rc<Self> {
        let run = Rc::new(self);
        RUNNING.with_borrow_mut(|running| {
            if running.is_empty() {
                // Its lease is fresh.
                ROTA.with(|rota| rota.begin());
            }
            running.push(Rc::downgrade(&run));
        });
        run
    }

    pub(super) fn feed(&self, chunk: &[u8], events: &mut Vec<u8>) -> ControlFlow<()> {
        match &mut *self.pipeline.borrow_mut() {
            Some(pipeline) => pipeline.feed(chunk, events),
            None => ControlFlow::Break(()),
        }
    }

    pub(super) fn finish(&self, events: &mut Vec<u8>) {
        if let Some(pipeline) = &mut *self.pipeline.borrow_mut() {
            pipeline.finish(events);
        }
    }

    /// What it comes to. `None` where it was asked before.
    pub(super) fn end(&self, end: End) -> Option<Outcome> {
        let pipeline = self.pipeline.borrow_mut().take();
        pipeline.map(|pipeline| pipeline.end(end))
    }

    /// Why it is to end, if it is.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    /// The output of `work`, unless the attempt is to end before.
    pub(super) async fn unless_told<T>(&self, work: impl Future<Output = T>) -> Result<T, Verdict> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| match self.verdict.get() {
            Some(verdict) => Poll::Ready(Err(verdict)),
            None => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// What is to be stored of it, with at most `room` bytes of text, and the end of that.
    fn checkpoint(&self, room: usize) -> (Checkpoint, Mark) {
        let stored = self.stored.get();
        let mut checkpoint = Checkpoint {
            name: self.name.clone(),
            attempt: self.attempt,
            from: stored.position,
            content: String::new(),
            thinking: String::new(),
            calls: String::new(),
            to_calls: stored.position.calls,
        };
        let pipeline = self.pipeline.borrow();
        // The text of a final line is not stored before the line itself: who follows would get it twice.
        let Some(pipeline) = pipeline.as_ref().filter(|pipeline| !pipeline.is_over()) else {
            return (checkpoint, stored);
        };
        let growth = pipeline.since(&stored);
        if growth.content.len() + growth.thinking.len() + growth.calls.len() > room {
            return (checkpoint, stored);
        }
        checkpoint.content = growth.content.to_owned();
        checkpoint.thinking = growth.thinking.to_owned();
        checkpoint.calls = growth.calls.to_owned();
        checkpoint.to_calls = growth.mark.position.calls;
        (checkpoint, growth.mark)
    }

    fn hear(&self, checked: Checked) {
        match checked {
            Checked::Stop => self.verdict.set(Some(Verdict::Stop)),
            Checked::Gone => self.verdict.set(Some(Verdict::Gone)),
            Checked::GoesOn(position) => {
                let mut tried = self.tried.borrow_mut();
                // One of an earlier statement whose answer was lost may be what is stored.
                if let Some(mark) = tried.iter().find(|mark| mark.position == position) {
                    self.stored.set(*mark);
                    tried.clear();
                }
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(|running| running.retain(|run| run.strong_count() > 0));
    }
}

/// Keeps the attempts of this instance stored, until dropped. `is_busy` says when a statement of this task runs, on
/// which others wait.
pub(super) async fn tend(store: &Database, timeouts: &Timeouts, is_busy: &Cell<bool>) {
    let rota = ROTA.with(Rc::clone);
    rota.tend(timeouts.checkpoint_interval, is_busy, async || {
        if let Err(error) = check_all(store, timeouts).await {
            log::line(format_args!("a checkpoint was not stored: {error}"));
        }
    })
    .await;
}

async fn check_all(store: &Database, timeouts: &Timeouts) -> Result<(), StoreError> {
    let running: Vec<_> =
        RUNNING.with_borrow(|running| running.iter().filter_map(Weak::upgrade).collect());
    let mut room = BATCH_MAX;
    let mut checkpoints = Vec::with_capacity(running.len());
    let mut asked = Vec::with_capacity(running.len());
    for run in running {
        // One attempt's text is sent however much it is, unless others' was before.
        let limit = if room == BATCH_MAX { usize::MAX } else { room };
        let (checkpoint, mark) = run.checkpoint(limit);
        let bytes = checkpoint.content.len() + checkpoint.thinking.len() + checkpoint.calls.len();
        room = room.saturating_sub(bytes);
        let mut tried = run.tried.borrow_mut();
        if tried.len() < TRIED_MAX && !tried.contains(&mark) {
            tried.push(mark);
        }
        drop(tried);
        checkpoints.push(checkpoint);
        // Not held meanwhile: its turn may end.
        asked.push(Rc::downgrade(&run));
    }
    let checked = check(store, timeouts, &checkpoints, &asked).await;
    match checked {
        // One that the database refuses must not keep the others from being stored.
        Err(error) if error.is_final() && checkpoints.len() > 1 => {}
        checked => return checked,
    }
    let mut refused = Ok(());
    for (checkpoint, run) in checkpoints.chunks(1).zip(asked.chunks(1)) {
        if let Err(error) = check(store, timeouts, checkpoint, run).await {
            refused = Err(error);
        }
    }
    refused
}

/// Stores some of them, and takes note of what the database says.
async fn check(
    store: &Database,
    timeouts: &Timeouts,
    checkpoints: &[Checkpoint],
    runs: &[Weak<Run>],
) -> Result<(), StoreError> {
    if checkpoints.is_empty() {
        return Ok(());
    }
    let mut ticker = Ticker::new(timeouts.tick());
    let call = async |store: &Database| store.checkpoint(checkpoints, timeouts.turn_lease).await;
    for (number, checked) in store.retry(&mut ticker, timeouts.database, call).await? {
        if let Some(run) = runs.get(number).and_then(Weak::upgrade) {
            run.hear(checked);
        }
    }
    Ok(())
}
