//! The lease of a turn that has its conversation to itself (`on_busy = reject`): [`begin_turn`] takes it,
//! as long as the turn runs it is renewed here, well before it would expire, and however the turn ends, so
//! does the lease.
//!
//! [`begin_turn`]: Database::begin_turn

use std::time::Duration;

use uuid::Uuid;

use crate::clock::{self, Ticker};
use crate::conversation::AppId;
use crate::log;
use crate::spin::wasip3::spawn;
use crate::store::{Database, StoreError};

/// How long an answer waits for the end of its lease, since the next prompt may follow at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Fine enough for the first of several tries.
const LONGEST_TICK: Duration = Duration::from_millis(500);

/// A lease that is held, or may be: the turn's, on its conversation.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) store: Database,
    pub(super) app_id: AppId,
    pub(super) turn: Uuid,
    /// Between two renewals.
    pub(super) length: Duration,
}

impl Lease {
    /// Renews it again and again, until dropped.
    pub(super) async fn renew(&self) {
        let interval = self.length / 4;
        loop {
            clock::sleep(interval).await;
            let renew = async |store: &Database| {
                let (app_id, turn) = (&self.app_id, self.turn);
                store.renew_lease(app_id, turn, self.length).await
            };
            let mut ticker = ticker(interval);
            let renewed = self.store.retry(&mut ticker, interval, renew);
            if let Err(error) = renewed.await {
                self.log(format_args!("was not renewed: {error}"));
            }
        }
    }

    /// Ends it: at once, or else in the background.
    pub(super) async fn end(self) {
        if self.try_to_end(PATIENCE).await.is_err() {
            self.end_later();
        }
    }

    /// Ends it in the background. Where that fails until it would have expired, it has.
    pub(super) fn end_later(self) {
        spawn(async move {
            if let Err(error) = self.try_to_end(self.length).await {
                self.log(format_args!(
                    "expires, since it could not be ended: {error}"
                ));
            }
        });
    }

    async fn try_to_end(&self, limit: Duration) -> Result<(), StoreError> {
        let end = async |store: &Database| store.end_lease(&self.app_id, self.turn).await;
        self.store.retry(&mut ticker(limit), limit, end).await
    }

    fn log(&self, what: std::fmt::Arguments<'_>) {
        log::line(format_args!("turn {}: the lease {what}", self.turn));
    }
}

/// A clock for waits of `limit`.
fn ticker(limit: Duration) -> Ticker {
    Ticker::new((limit / 32).min(LONGEST_TICK))
}
