//! A database call made again until it succeeds, cannot succeed, or its time is up.
//!
//! Also the one place where a missing schema is noticed and brought up to date: nothing is paid
//! for it on the ordinary path.

use std::time::Duration;

use uuid::Uuid;

use super::{Begun, NewTurn, Reply, Store, StoreError};
use crate::clock::Ticker;
use crate::conversation::AppId;
use crate::ollama::body::ChatBody;

/// The pause before the second try; doubled for each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often a call brings the schema up to date: where many do at once, the next try may find a
/// connection of SQLite's that still knows the schema from before.
const MIGRATIONS: u32 = 4;

/// [`Store::begin_turn`], bounded by `limit`.
pub async fn begin_turn(
    store: &impl Store,
    turn: &NewTurn,
    history: &mut ChatBody,
    ticker: &mut Ticker,
    limit: Duration,
) -> Result<Begun, StoreError> {
    within(store, ticker, limit, async || {
        history.clear();
        store.begin_turn(turn, history).await
    })
    .await
}

/// [`Store::commit_reply`], bounded by `limit`.
pub async fn commit_reply(
    store: &impl Store,
    reply: &Reply,
    ticker: &mut Ticker,
    limit: Duration,
) -> Result<(), StoreError> {
    within(store, ticker, limit, async || {
        store.commit_reply(reply).await
    })
    .await
}

/// [`Store::end_lease`], bounded by `limit`.
pub async fn end_lease(
    store: &impl Store,
    app_id: &AppId,
    turn: Uuid,
    ticker: &mut Ticker,
    limit: Duration,
) -> Result<(), StoreError> {
    within(store, ticker, limit, async || {
        store.end_lease(app_id, turn).await
    })
    .await
}

async fn within<T>(
    store: &impl Store,
    ticker: &mut Ticker,
    limit: Duration,
    mut call: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let deadline = ticker.now().saturating_add(limit);
    let mut pause = FIRST_PAUSE;
    let mut migrate = false;
    let mut migrations = 0;
    let mut last = None;
    loop {
        let attempt = async {
            if migrate {
                store.migrate().await?;
                migrate = false;
                migrations += 1;
            }
            call().await
        };
        let error = match ticker.timeout_at(deadline, attempt).await {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => error,
            None => {
                let before =
                    last.map_or_else(String::new, |error| format!("; before that, {error}"));
                return Err(StoreError::Unavailable {
                    why: format!("no answer within {limit:?} (database_timeout){before}"),
                });
            }
        };
        match error {
            StoreError::Schema { .. } if !migrate && migrations < MIGRATIONS => migrate = true,
            StoreError::Unavailable { .. } if ticker.now() < deadline => {
                last = Some(error);
                ticker.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            error => return Err(error),
        }
    }
}
