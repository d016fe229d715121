//! The conversation's memory: one port, two databases.
//!
//! [`Database`] is the port; the adapters `postgres/` and `sqlite/` differ in their SQL, which lies beside
//! them in `.sql` files. All use of Spin's database interfaces is below this module. A turn makes two
//! calls: [`Database::begin_turn`] before Ollama is asked, and [`Database::commit_reply`] after. Both are
//! idempotent, since every id is chosen before the first try: a try whose answer was lost is simply made
//! again. No PostgreSQL connection is held in between, while tokens stream.
//!
//! A conversation is ordered by turn, then by row: all rows of a turn carry its id and its start (by the
//! database's clock, and later than every start that was there), so that two prompts at once cannot end as
//! prompt, prompt, reply, reply. Where turns must not even overlap, one holds a lease on its conversation,
//! which expires if the turn's host is gone.

#![cfg_attr(
    not(feature = "sqlite"),
    expect(dead_code, reason = "what only the other adapter uses")
)]

use std::time::Duration;

use uuid::Uuid;

use crate::clock::Ticker;
use crate::conversation::{AppId, Context, Message, ReplyStatus};
use crate::ids::Ids;
use postgres::Postgres;
use retry::Bounds;
#[cfg(feature = "sqlite")]
use sqlite::Sqlite;

mod error;
mod phrases;
mod postgres;
mod retry;
mod rows;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;

pub(crate) use error::{Kind, StoreError};

/// Messages of the past that a model is sent at most, however short they are: each takes some of the bytes that
/// are sent, and some tokens of the model's window.
const PAST_MESSAGES_MAX: i64 = 65_536;

/// A turn to begin.
#[derive(Debug)]
pub(crate) struct NewTurn {
    /// What precedes the prompt.
    pub(crate) window: Window,
    /// The prompt's messages, each with the id of its row.
    pub(crate) prompt: Vec<(Uuid, Message)>,
    /// How long the turn holds its conversation unless the lease is renewed; `None` where turns may
    /// overlap.
    pub(crate) lease: Option<Duration>,
}

/// What precedes a prompt: as much of its conversation as fits.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The turn's id, a UUID v7.
    pub(crate) turn: Uuid,
    pub(crate) app_id: AppId,
    /// Bytes of the prompt.
    pub(crate) prompt_bytes: usize,
    /// Whether all that precedes the prompt may be left out.
    pub(crate) stands_alone: bool,
    /// Bytes that a model is sent, the prompt's included.
    pub(crate) max_bytes: usize,
}

impl NewTurn {
    /// A turn with the next of `ids`.
    pub(crate) fn new(
        ids: &mut Ids,
        window: Window,
        prompt: Vec<Message>,
        lease: Option<Duration>,
    ) -> Self {
        let prompt = prompt.into_iter().map(|message| (ids.take(), message));
        Self {
            window,
            prompt: prompt.collect(),
            lease,
        }
    }
}

/// Whether a turn began.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The prompt is stored.
    Started(Started),
    /// Another turn holds the conversation's lease; nothing is stored.
    Busy,
    /// What may not be left out is more than the model is sent; nothing is stored.
    TooLarge,
}

/// A turn that has begun.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) start: TurnStart,
    pub(crate) context: Context,
    /// What precedes the prompt, as JSON objects with commas in between. `None` where it is larger than was
    /// asked for: [`Database::read_past`] returns it.
    pub(crate) past: Option<String>,
}

impl Started {
    /// From the columns of either database. `None` where `bytes` is: what may not be left out does not fit.
    fn new(
        window: &Window,
        start: i64,
        turns: i64,
        bytes: Option<i64>,
        is_cut: bool,
        past: Option<String>,
    ) -> Option<Self> {
        let bytes = u64::try_from(bytes?).unwrap_or_default();
        let nothing = || (bytes <= window.prompt_bytes as u64 && turns <= 1).then(String::new);
        Some(Self {
            start: TurnStart(start),
            context: Context {
                turns: u64::try_from(turns).unwrap_or_default(),
                bytes,
                is_cut,
            },
            past: past.or_else(nothing),
        })
    }
}

/// When a turn began, by the database's clock: microseconds since the Unix epoch. Later than the start of
/// every turn that its conversation had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnStart(pub(crate) i64);

/// A reply to be stored.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The id of its row.
    pub(crate) id: Uuid,
    pub(crate) turn: Uuid,
    /// When the turn began.
    pub(crate) start: TurnStart,
    pub(crate) app_id: AppId,
    pub(crate) text: String,
    pub(crate) status: ReplyStatus,
    /// Whether the turn holds a lease, which is to end with it.
    pub(crate) leased: bool,
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
        mut call: impl AsyncFnMut(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
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
            None => call(self).await,
            Some(other) => call(&other).await,
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

    /// Stores the prompt, and reads what precedes it if that has at most `at_once` bytes.
    pub(crate) async fn begin_turn(
        &self,
        turn: &NewTurn,
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        call!(self, begin_turn(turn, at_once))
    }

    /// Reads what precedes a turn that has begun.
    pub(crate) async fn read_past(
        &self,
        window: &Window,
        start: TurnStart,
    ) -> Result<String, StoreError> {
        call!(self, read_past(window, start))
    }

    /// Stores the reply in its place in the conversation. Whether this has ended the turn's lease, too.
    pub(crate) async fn commit_reply(&self, reply: &Reply) -> Result<bool, StoreError> {
        call!(self, commit_reply(reply))
    }

    /// Holds the conversation for another `lease` from now.
    pub(crate) async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        call!(self, renew_lease(app_id, turn, lease))
    }

    /// Ends the lease of a turn.
    pub(crate) async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        call!(self, end_lease(app_id, turn))
    }
}

/// A duration as both databases count it.
fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A number of bytes as both databases count it.
fn bytes(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
