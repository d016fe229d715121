//! The conversation's memory: one port, two databases.
//!
//! [`Database`] is the port; the adapters `postgres/` and `sqlite/` differ in their SQL, which lies beside
//! them in `.sql` files and in the migrations' functions, views and triggers. All use of Spin's database interfaces is
//! below this module. A turn makes two calls: [`Database::begin`] before Ollama is asked, and [`Database::commit`]
//! after; an instance makes one more each `checkpoint_interval` for all turns that it runs, and one for all that it
//! follows. All are idempotent, since every id is chosen before the first try: a try whose answer was lost is simply
//! made again. No PostgreSQL connection is held in between, while tokens stream.
//!
//! A conversation is ordered by turn, then by row: all rows of a turn carry its id and its start (by the
//! database's clock, and later than every start that was there), so that two prompts at once cannot end as
//! prompt, prompt, reply, reply.
//!
//! | table | holds |
//! | --- | --- |
//! | `chatts` | the messages, as older servers have them and with a few columns more |
//! | `chatts_turns` | for each turn the outcome of the attempt that stands, and what its key was |
//! | `chatts_runs` | a row for each attempt while it runs: its lease, how much of it is stored, whether it is to stop |
//! | `chatts_parts` | what running attempts generated so far, a row for each checkpoint |
//! | `chatts_attempts` | when the attempts of the last minute began, where the operator limits their number |
//!
//! An attempt is a fence: whoever checkpoints or commits names it, and does nothing once its run is another's or gone.
//! An expired lease ends nothing; only a take-over does.

#![cfg_attr(
    not(feature = "sqlite"),
    expect(dead_code, reason = "what only the other adapter uses")
)]

use std::pin::Pin;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::Ticker;
use crate::conversation::ConversationName;
use crate::reply::position::Attempt;
use postgres::Postgres;
use retry::Bounds;
#[cfg(feature = "sqlite")]
use sqlite::Sqlite;

/// The text of a file `<database>/<name>.sql` without comments but the first (see `build.rs`).
macro_rules! statement {
    ($database:literal, $name:literal) => {
        include_str!(concat!(
            env!("OUT_DIR"),
            "/statements/",
            $database,
            "/",
            $name,
            ".sql"
        ))
    };
}

mod cells;
mod error;
mod phrases;
mod postgres;
mod retry;
mod rows;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
mod turns;

pub(crate) use error::{Kind, StoreError};
pub(crate) use turns::*;

/// Messages of the past that a model is sent at most, however short they are: each takes some of the bytes that
/// are sent, and some tokens of the model's window.
const PAST_MESSAGES_MAX: i64 = 65_536;

/// What precedes a prompt: as much of its conversation as fits.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The turn, its id a UUID v7.
    pub(crate) name: TurnName,
    /// Bytes of the prompt.
    pub(crate) prompt_bytes: usize,
    /// Whether all that precedes the prompt may be left out.
    pub(crate) stands_alone: bool,
    /// Bytes that a model is sent, the prompt's included.
    pub(crate) max_bytes: usize,
}

/// The database of this server.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    Postgres(Postgres),
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
}

/// A call of either adapter.
macro_rules! call {
    ($database:expr, $method:ident($($argument:expr),*)) => {
        match $database {
            Self::Postgres(store) => store.$method($($argument),*).await,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.$method($($argument),*).await,
        }
    };
}

impl Database {
    /// PostgreSQL at `url`, or the host's SQLite.
    pub(crate) fn open(url: Option<&str>) -> Self {
        match url {
            #[cfg(feature = "sqlite")]
            None => Self::Sqlite(Sqlite),
            // Without SQLite the settings have refused an empty one.
            url => Self::Postgres(Postgres::new(url.unwrap_or_default().to_owned())),
        }
    }

    /// Makes `call` until it succeeds, cannot succeed, or `limit` has passed, and brings the schema up to
    /// date where it is missing or old.
    pub(crate) async fn retry<T>(
        &self,
        ticker: &mut Ticker,
        limit: Duration,
        call: impl AsyncFnMut(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut noted = Noted { call, output: None };
        self.retry_any(ticker, limit, &mut noted).await?;
        noted.output.ok_or_else(StoreError::unexpected_row)
    }

    /// One for all calls, since it is large: a copy for each would be a tenth of the component (measured).
    async fn retry_any(
        &self,
        ticker: &mut Ticker,
        limit: Duration,
        call: &mut dyn AnyCall,
    ) -> Result<(), StoreError> {
        let bounds = match self {
            Self::Postgres(_) => Bounds::several(limit),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => Bounds::two(limit),
        };
        let migrate = async |unusable| match self.other_pool(unusable) {
            None => self.migrate().await,
            Some(other) => other.migrate().await,
        };
        let call = async |unusable| match self.other_pool(unusable) {
            None => call.make(self).await,
            Some(other) => call.make(&other).await,
        };
        retry::within(ticker, bounds, migrate, call).await
    }

    /// The same database by way of other connections, where some were found unusable.
    fn other_pool(&self, unusable: u32) -> Option<Self> {
        match self {
            Self::Postgres(store) if unusable > 0 => Some(Self::Postgres(store.other_pool())),
            _ => None,
        }
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        call!(self, migrate())
    }

    /// Whether it is there. Needs no schema.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        call!(self, ping())
    }

    /// Begins a turn or, where its key is known, another attempt of it, unless one runs or it has ended. Reads what
    /// precedes it if that has at most `at_once` bytes.
    pub(crate) async fn begin(&self, new: &NewTurn, at_once: usize) -> Result<Begun, StoreError> {
        call!(self, begin(new, at_once))
    }

    /// Begins another attempt of a turn, with what is `asked` instead of what was before.
    pub(crate) async fn begin_again(
        &self,
        name: &TurnName,
        asked: &Asked,
        attempt: &NewAttempt,
        max_bytes: usize,
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        call!(self, begin_again(name, asked, attempt, max_bytes, at_once))
    }

    /// Reads what precedes a turn that has begun.
    pub(crate) async fn read_past(
        &self,
        name: &TurnName,
        attempt: Attempt,
        max_bytes: usize,
    ) -> Result<Past, StoreError> {
        call!(self, read_past(name, attempt, max_bytes))
    }

    /// Ends an attempt, and stores what it came to.
    pub(crate) async fn commit(&self, ended: &Ended) -> Result<Committed, StoreError> {
        call!(self, commit(ended))
    }

    /// Stores what running attempts generated, and renews their leases. One that another statement holds just now has
    /// no answer.
    pub(crate) async fn checkpoint(
        &self,
        checkpoints: &[Checkpoint],
        lease: Duration,
    ) -> Result<Vec<(usize, Checked)>, StoreError> {
        call!(self, checkpoint(checkpoints, lease))
    }

    /// Reads what is new of turns that are followed.
    pub(crate) async fn follow(
        &self,
        followed: &[Followed],
    ) -> Result<Vec<(usize, News)>, StoreError> {
        call!(self, follow(followed))
    }

    /// Reads a turn as it stands.
    pub(crate) async fn turn(&self, name: &TurnName) -> Result<Option<TurnView>, StoreError> {
        call!(self, turn(name))
    }

    /// Asks the attempt of a turn to end.
    pub(crate) async fn stop(&self, name: &TurnName) -> Result<Stopped, StoreError> {
        call!(self, stop(name))
    }

    /// Deletes up to `rows` rows. Returns until when it deletes, to be given again, where some are left.
    pub(crate) async fn delete(
        &self,
        conversation: &ConversationName,
        deletion: Deletion,
        until: Option<i64>,
        rows: usize,
    ) -> Result<Option<Option<i64>>, StoreError> {
        call!(self, delete(conversation, deletion, until, rows))
    }

    /// Reads a page of a conversation. `None` where the message that it should end before is gone.
    pub(crate) async fn page(
        &self,
        conversation: &ConversationName,
        before: Option<Uuid>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Option<Page>, StoreError> {
        call!(self, page(conversation, before, limit, max_bytes))
    }
}

/// A call of any output.
trait AnyCall {
    fn make<'a>(&'a mut self, database: &'a Database) -> Made<'a>;
}

type Made<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + 'a>>;

/// A call, and its output once it has succeeded.
struct Noted<F, T> {
    call: F,
    output: Option<T>,
}

impl<T, F: AsyncFnMut(&Database) -> Result<T, StoreError>> AnyCall for Noted<F, T> {
    fn make<'a>(&'a mut self, database: &'a Database) -> Made<'a> {
        Box::pin(async move {
            self.output = Some((self.call)(database).await?);
            Ok(())
        })
    }
}

/// A duration as both databases count it.
fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A number of bytes or of attempts as both databases count it.
fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
