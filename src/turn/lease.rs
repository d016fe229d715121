//! The lease of a turn that has its conversation to itself (`on_busy = reject`): [`begin_turn`] takes it,
//! and as long as the turn runs it is renewed here, well before it would expire.
//!
//! [`begin_turn`]: Database::begin_turn

use std::time::Duration;

use uuid::Uuid;

use crate::clock::{self, Ticker};
use crate::conversation::AppId;
use crate::log;
use crate::store::{Database, StoreError};

/// Renews the lease again and again, until dropped.
pub(super) async fn renew(store: &Database, app_id: &AppId, turn: Uuid, lease: Duration) {
    let interval = lease / 4;
    loop {
        clock::sleep(interval).await;
        let mut ticker = Ticker::new(interval);
        let deadline = ticker.deadline(Duration::ZERO);
        let renewing = store.renew_lease(app_id, turn, lease);
        if let Some(Err(error)) = ticker.timeout_at(deadline, renewing).await {
            log::line(format_args!(
                "turn {turn}: the lease was not renewed: {error}"
            ));
        }
    }
}

/// Ends the lease of a turn that has no reply.
pub(super) async fn end(
    store: &Database,
    app_id: &AppId,
    turn: Uuid,
    ticker: &mut Ticker,
    limit: Duration,
) -> Result<(), StoreError> {
    let end = async |store: &Database| store.end_lease(app_id, turn).await;
    store.retry(ticker, limit, end).await
}
