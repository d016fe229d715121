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

/// How long the first try may hang.
const FIRST_TRY: Duration = Duration::from_secs(2);

/// How long tries may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// All of them together.
    all: Duration,
    /// The first one. It is doubled after each that hangs, so that a connection that died costs little,
    /// and a database that is only slow gets the time that it needs.
    first: Duration,
    /// One migration, which may have an index to build. Dropping it does not undo it: PostgreSQL goes
    /// on, and the next try waits for its lock.
    migration: Duration,
}

impl Bounds {
    /// Tries of which a hanging one is not the only one. Three fit, of one, two and four parts in seven.
    pub(super) fn several(limit: Duration) -> Self {
        Self {
            all: limit,
            first: (limit / 7).min(FIRST_TRY),
            migration: limit / 2,
        }
    }

    /// Two tries, so that the first can wait for SQLite's lock for as long as the host lets it, which is
    /// 5 s; one that is dropped would lose its place.
    pub(super) fn two(limit: Duration) -> Self {
        Self {
            all: limit,
            first: limit * 3 / 5,
            migration: limit,
        }
    }
}

/// What is to be done next.
#[derive(Clone, Copy)]
enum Step {
    Call,
    Migrate,
}

/// The output of `call`, made again within `bounds`; `migrate` brings the schema up to date. Both are told
/// how many tries have hung or met a read-only server, since their connections should not be used again.
pub(super) async fn within<T, C: Clock>(
    ticker: &mut Ticker<C>,
    bounds: Bounds,
    migrate: impl AsyncFn(u32) -> Result<(), StoreError>,
    mut call: impl AsyncFnMut(u32) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let limit = bounds.all;
    let deadline = ticker.deadline(limit);
    let mut patience = bounds.first;
    let mut pause = FIRST_PAUSE;
    let mut step = Step::Call;
    let (mut migrations, mut unusable) = (0, 0);
    let mut last: Option<StoreError> = None;
    loop {
        let bound = match step {
            Step::Call => patience,
            Step::Migrate => bounds.migration.max(patience),
        };
        let attempt = async {
            match step {
                Step::Call => call(unusable).await.map(Some),
                Step::Migrate => migrate(unusable).await.map(|()| None),
            }
        };
        let until = ticker.deadline(bound).min(deadline);
        let error = match ticker.timeout_at(until, attempt).await {
            Some(Ok(Some(output))) => return Ok(output),
            Some(Ok(None)) => {
                migrations += 1;
                step = Step::Call;
                continue;
            }
            Some(Err(error)) => error,
            None if ticker.is_past(deadline) => {
                let before =
                    last.map_or_else(String::new, |error| format!("; before that, {error}"));
                return Err(StoreError::new(
                    Kind::Unavailable,
                    format!("no answer within {limit:?} (database_timeout){before}"),
                ));
            }
            None => {
                unusable += 1;
                patience *= 2;
                continue;
            }
        };
        match (error.kind, step) {
            (Kind::Schema, Step::Call) if migrations < MIGRATIONS => step = Step::Migrate,
            (Kind::Unavailable | Kind::ReadOnly, _) if !ticker.is_past(deadline) => {
                unusable += u32::from(error.kind == Kind::ReadOnly);
                last = Some(error);
                // Where a migration had to wait for another one, that may have done it all.
                step = Step::Call;
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
                Bounds::several(LIMIT),
                async |_| migrate(next(&self.migrations)),
                async |_| answer(next(&self.calls)),
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
    fn a_read_only_server_is_left_for_another_connection() {
        let (output, told, _) = attempts(Bounds::several(LIMIT), async |_, n| match n {
            0 => Err(error(Kind::Unavailable)),
            1 => Err(error(Kind::ReadOnly)),
            n => Ok(n),
        });
        assert_eq!(output, Ok(2));
        assert_eq!(told, [0, 0, 1]);
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
    fn a_migration_is_tried_again_unless_another_one_has_done_it() {
        for (old, migrations) in [(1, 1), (2, 2)] {
            let store = Store::default();
            let migrate = |n| match n {
                0 => Err(error(Kind::Unavailable)),
                _ => Ok(()),
            };
            let answer = |n| match n < old {
                true => Err(error(Kind::Schema)),
                false => Ok(n),
            };
            assert_eq!(store.run(migrate, answer), Ok(old));
            let made = (store.calls.get(), store.migrations.get());
            assert_eq!(made, (old + 1, migrations));
        }

        let store = Store::default();
        let failed = store.run(
            |_| Err(error(Kind::NotAllowed)),
            |_| Err(error(Kind::Schema)),
        );
        assert_eq!(failed, Err(error(Kind::NotAllowed)));
    }

    /// A call whose `n`th try, counted from 0, is `attempt(n)`; returns how it ended, what was told about
    /// hung tries, and how long it took.
    fn attempts<A: Future<Output = Result<u32, StoreError>>>(
        bounds: Bounds,
        attempt: impl Fn(Manual, u32) -> A,
    ) -> (Result<u32, StoreError>, Vec<u32>, Duration) {
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let mut told = Vec::new();
        let call = within(
            &mut ticker,
            bounds,
            async |_| Ok(()),
            async |hung| {
                let n = told.len() as u32;
                told.push(hung);
                attempt(clock.clone(), n).await
            },
        );
        let output = clock.run(STEP, call);
        (output, told, clock.elapsed())
    }

    #[test]
    fn a_try_that_hangs_is_dropped_and_made_again() {
        let limit = Duration::from_secs(10);
        for hanging in 1..=2 {
            let (output, told, took) = attempts(Bounds::several(limit), async |_, n| {
                if n < hanging {
                    return pending().await;
                }
                Ok(n)
            });
            assert_eq!(output, Ok(hanging));
            assert_eq!(told, (0..=hanging).collect::<Vec<_>>());
            let expected = limit / 7 * (2_u32.pow(hanging) - 1);
            assert!(
                took >= expected && took < expected + 20 * STEP,
                "{hanging}: {took:?}"
            );
        }
        let long = Bounds::several(Duration::from_secs(3600));
        let (_, _, took) = attempts(long, async |_, n| match n {
            0 => pending().await,
            n => Ok(n),
        });
        assert!(took < FIRST_TRY + 20 * STEP, "{took:?}");
    }

    #[test]
    fn a_database_that_is_only_slow_gets_the_time_that_it_needs() {
        let limit = Duration::from_secs(10);
        for seconds in 1..=5 {
            let slow = Duration::from_secs(seconds);
            let (output, told, took) = attempts(Bounds::several(limit), async |clock, n| {
                clock.ticker().sleep(slow).await;
                Ok(n)
            });
            assert!(output.is_ok(), "{slow:?}: {output:?}");
            assert!(told.len() <= 3 && took < limit, "{slow:?}: {took:?}");
        }
        let (output, ..) = attempts(Bounds::two(limit), async |clock, n| {
            clock.ticker().sleep(limit / 2).await;
            Ok(n)
        });
        assert_eq!(output, Ok(0));
    }

    #[test]
    fn a_migration_that_hangs_is_made_again_and_has_time_to_build_an_index() {
        let limit = Duration::from_secs(10);
        let clock = Manual::default();
        let mut ticker = clock.ticker();
        let (migrations, calls) = (Cell::new(0), Cell::new(0));
        let next = |count: &Cell<u32>| count.replace(count.get() + 1);
        let call = within(
            &mut ticker,
            Bounds::several(limit),
            async |_| match next(&migrations) {
                0 => pending().await,
                _ => {
                    clock.ticker().sleep(limit * 4 / 10).await;
                    Ok(())
                }
            },
            async |_| match next(&calls) {
                0 => Err(error(Kind::Schema)),
                n => Ok(n),
            },
        );
        assert_eq!(clock.run(STEP, call), Ok(1));
        assert_eq!((migrations.get(), calls.get()), (2, 2));
    }

    #[test]
    fn calls_that_do_not_answer_are_given_up_in_time_and_say_what_failed_before() {
        let (output, told, took) = attempts(Bounds::several(LIMIT), async |_, n| match n {
            0 => Err(error(Kind::Unavailable)),
            _ => pending().await,
        });
        let failed = output.unwrap_err();
        assert_eq!(failed.kind, Kind::Unavailable);
        assert_eq!(
            failed.why,
            "no answer within 2s (database_timeout); before that, the database is unavailable: why"
        );
        assert_eq!(told, [0, 0, 1, 2]);
        assert!(took >= LIMIT && took < LIMIT + 10 * STEP, "{took:?}");
    }
}
