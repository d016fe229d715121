//! Makes a database call again until it succeeds, cannot succeed, or its time is up.
//!
//! Also the one place where a missing schema is noticed and brought up to date, so that nothing is paid
//! for it otherwise. Knows neither database: the calls, like the clock, are parameters.

use std::time::Duration;

use super::{Kind, StoreError};
use crate::clock::{Clock, Ticker};

/// The pause before the second try; doubled for each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often a call brings the schema up to date: where many do at once, the next try may find a
/// connection of SQLite's that still has the old schema.
const MIGRATIONS: u32 = 4;

/// The output of `call`, made again for `limit` at most; `migrate` brings the schema up to date.
pub(super) async fn within<T, C: Clock>(
    ticker: &mut Ticker<C>,
    limit: Duration,
    migrate: impl AsyncFn() -> Result<(), StoreError>,
    mut call: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let deadline = ticker.deadline(limit);
    let mut pause = FIRST_PAUSE;
    let mut schema_is_old = false;
    let mut migrations = 0;
    let mut last = None;
    loop {
        let attempt = async {
            if schema_is_old {
                migrate().await?;
                schema_is_old = false;
                migrations += 1;
            }
            call().await
        };
        let error = match ticker.timeout_at(deadline, attempt).await {
            Some(Ok(output)) => return Ok(output),
            Some(Err(error)) => error,
            None => {
                let before =
                    last.map_or_else(String::new, |error| format!("; before that, {error}"));
                return Err(StoreError::new(
                    Kind::Unavailable,
                    format!("no answer within {limit:?} (database_timeout){before}"),
                ));
            }
        };
        match error.kind {
            Kind::Schema if !schema_is_old && migrations < MIGRATIONS => schema_is_old = true,
            Kind::Unavailable if !ticker.is_past(deadline) => {
                last = Some(error);
                ticker.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use super::*;
    use crate::clock::tests::Manual;

    const LIMIT: Duration = Duration::from_secs(2);
    const STEP: Duration = Duration::from_millis(5);

    fn error(kind: Kind) -> StoreError {
        StoreError::new(kind, "why")
    }

    /// A store that answers its `n`th call, counted from 0, with `answer(n)`.
    #[derive(Default)]
    struct Store {
        clock: Manual,
        calls: Cell<u32>,
        migrations: Cell<u32>,
    }

    impl Store {
        fn run(
            &self,
            migrate: impl Fn(u32) -> Result<(), StoreError>,
            answer: impl Fn(u32) -> Result<u32, StoreError>,
        ) -> Result<u32, StoreError> {
            let next = |count: &Cell<u32>| count.replace(count.get() + 1);
            let mut ticker = self.clock.ticker();
            let call = within(
                &mut ticker,
                LIMIT,
                async || migrate(next(&self.migrations)),
                async || answer(next(&self.calls)),
            );
            self.clock.run(STEP, call)
        }
    }

    #[test]
    fn a_call_that_succeeds_is_made_once() {
        let store = Store::default();
        assert_eq!(store.run(|_| Ok(()), Ok), Ok(0));
        assert_eq!((store.calls.get(), store.migrations.get()), (1, 0));
        assert_eq!(store.clock.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_passing_failure_is_tried_again_after_growing_pauses() {
        let store = Store::default();
        let answer = |n| match n {
            0..4 => Err(error(Kind::Unavailable)),
            n => Ok(n),
        };
        assert_eq!(store.run(|_| Ok(()), answer), Ok(4));
        let pauses = Duration::from_millis(20 + 40 + 80 + 160);
        let took = store.clock.elapsed();
        assert!(took >= pauses && took < pauses + 8 * STEP, "{took:?}");
    }

    #[test]
    fn a_failure_that_lasts_is_given_up_in_time() {
        let store = Store::default();
        let failed = store.run(|_| Ok(()), |_| Err(error(Kind::Unavailable)));
        assert_eq!(failed, Err(error(Kind::Unavailable)));
        let took = store.clock.elapsed();
        assert!(
            took >= LIMIT && took < LIMIT + LONGEST_PAUSE + 4 * STEP,
            "{took:?}"
        );
        assert!(store.calls.get() > 5);
    }

    #[test]
    fn other_failures_are_final() {
        for kind in [
            Kind::Failed,
            Kind::Refused,
            Kind::NotAllowed,
            Kind::TooLarge,
        ] {
            let store = Store::default();
            assert_eq!(
                store.run(|_| Ok(()), |_| Err(error(kind))),
                Err(error(kind))
            );
            assert_eq!(
                (store.calls.get(), store.migrations.get()),
                (1, 0),
                "{kind}"
            );
        }
    }

    #[test]
    fn an_old_schema_is_brought_up_to_date_and_the_call_made_again() {
        let store = Store::default();
        let answer = |n| match n {
            0 => Err(error(Kind::Schema)),
            n => Ok(n),
        };
        assert_eq!(store.run(|_| Ok(()), answer), Ok(1));
        assert_eq!((store.calls.get(), store.migrations.get()), (2, 1));
    }

    #[test]
    fn a_schema_that_stays_old_is_given_up() {
        let store = Store::default();
        let failed = store.run(|_| Ok(()), |_| Err(error(Kind::Schema)));
        assert_eq!(failed, Err(error(Kind::Schema)));
        assert_eq!((store.calls.get(), store.migrations.get()), (5, MIGRATIONS));
    }

    #[test]
    fn a_migration_is_tried_again_like_any_call() {
        let store = Store::default();
        let migrate = |n| match n {
            0 => Err(error(Kind::Unavailable)),
            _ => Ok(()),
        };
        let answer = |n| match n {
            0 => Err(error(Kind::Schema)),
            n => Ok(n),
        };
        assert_eq!(store.run(migrate, answer), Ok(1));
        assert_eq!((store.calls.get(), store.migrations.get()), (2, 2));

        let store = Store::default();
        let failed = store.run(
            |_| Err(error(Kind::NotAllowed)),
            |_| Err(error(Kind::Schema)),
        );
        assert_eq!(failed, Err(error(Kind::NotAllowed)));
    }

    #[test]
    fn a_call_that_does_not_answer_is_given_up_in_time_and_says_what_failed_before() {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let calls = Cell::new(0);
        let call = within(
            &mut ticker,
            LIMIT,
            async || Ok(()),
            async || match calls.replace(calls.get() + 1) {
                0 => Err::<(), _>(error(Kind::Unavailable)),
                _ => pending().await,
            },
        );
        let failed = clock.run(STEP, call).unwrap_err();
        assert_eq!(failed.kind, Kind::Unavailable);
        assert_eq!(
            failed.why,
            "no answer within 2s (database_timeout); before that, the database is unavailable: why"
        );
        let took = clock.elapsed();
        assert!(took >= LIMIT && took < LIMIT + 10 * STEP, "{took:?}");
    }
}
