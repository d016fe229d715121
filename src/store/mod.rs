//! The conversation's memory: one port, two databases.
//!
//! All SQL lives below this module, and so does every use of Spin's database interfaces. A turn
//! makes two calls: [`Store::begin_turn`] before Ollama is asked, [`Store::commit_reply`] after.
//! Both are idempotent, since every id is chosen before the first try, so a try whose answer was
//! lost is simply made again. No connection of PostgreSQL's is held in between, while tokens stream.
//!
//! The order of a conversation is by turn, then by row: all rows of a turn carry its id and its
//! start (the database's clock; later than every start that was there), so that two prompts at
//! once cannot end as prompt, prompt, reply, reply. Where they must not even overlap, a turn holds a
//! lease on its conversation, which runs out by itself if the turn's host is gone.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::conversation::{AppId, Message, ReplyStatus};
use crate::ids::Ids;
use crate::ollama::body::ChatBody;
use postgres::Postgres;
use sqlite::Sqlite;

mod history;
pub mod postgres;
pub mod retry;
pub mod schema;
pub mod sqlite;

/// A turn that is about to begin.
#[derive(Debug)]
pub struct NewTurn {
    /// The turn's id, a UUID v7.
    pub id: Uuid,
    /// The conversation.
    pub app_id: AppId,
    /// The prompt's messages, each with the id of its row.
    pub prompt: Vec<(Uuid, Message)>,
    /// How long the conversation is the turn's alone, unless the lease is renewed; `None` where
    /// others may speak at the same time.
    pub lease: Option<Duration>,
}

impl NewTurn {
    /// A turn with ids of `ids`.
    pub fn new(
        ids: &mut Ids,
        app_id: AppId,
        messages: Vec<Message>,
        lease: Option<Duration>,
    ) -> Self {
        Self {
            id: ids.take(),
            app_id,
            prompt: messages
                .into_iter()
                .map(|message| (ids.take(), message))
                .collect(),
            lease,
        }
    }
}

/// What became of a turn that was to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// The prompt is stored.
    Started(TurnStart),
    /// Another turn holds the conversation's lease; nothing is stored.
    Busy,
}

/// When a turn began, by the database's clock: microseconds since the Unix epoch. Later than the
/// start of every turn that its conversation had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnStart(pub i64);

/// A reply to be stored.
#[derive(Debug)]
pub struct Reply {
    /// The id of its row.
    pub id: Uuid,
    /// The turn that it belongs to.
    pub turn: Uuid,
    /// When that turn began.
    pub start: TurnStart,
    /// The conversation.
    pub app_id: AppId,
    /// The completion.
    pub text: String,
    /// How it ended.
    pub status: ReplyStatus,
    /// Whether the turn holds a lease, which ends with it.
    pub leased: bool,
}

/// The port. The adapters differ in SQL alone; one set of tests runs against both.
pub trait Store {
    /// Stores the prompt and pushes the whole conversation, the prompt last, into `history`.
    fn begin_turn(
        &self,
        turn: &NewTurn,
        history: &mut ChatBody,
    ) -> impl Future<Output = Result<Begun, StoreError>>;

    /// Stores the reply, in its place in the conversation, and ends the turn's lease.
    fn commit_reply(&self, reply: &Reply) -> impl Future<Output = Result<(), StoreError>>;

    /// Holds the conversation for another `lease` from now.
    fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> impl Future<Output = Result<(), StoreError>>;

    /// Ends the lease of a turn that has no reply.
    fn end_lease(&self, app_id: &AppId, turn: Uuid)
    -> impl Future<Output = Result<(), StoreError>>;

    /// Brings the schema up to date; safe when many do so at the same time.
    fn migrate(&self) -> impl Future<Output = Result<(), StoreError>>;
}

/// The database of this server. One type for both adapters, so that what is built on the port is
/// compiled once.
#[derive(Clone)]
pub enum Database {
    /// By `database_url`.
    Postgres(Postgres),
    /// With none set.
    Sqlite(Sqlite),
}

impl Store for Database {
    async fn begin_turn(
        &self,
        turn: &NewTurn,
        history: &mut ChatBody,
    ) -> Result<Begun, StoreError> {
        match self {
            Self::Postgres(store) => store.begin_turn(turn, history).await,
            Self::Sqlite(store) => store.begin_turn(turn, history).await,
        }
    }

    async fn commit_reply(&self, reply: &Reply) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.commit_reply(reply).await,
            Self::Sqlite(store) => store.commit_reply(reply).await,
        }
    }

    async fn renew_lease(
        &self,
        app_id: &AppId,
        turn: Uuid,
        lease: Duration,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.renew_lease(app_id, turn, lease).await,
            Self::Sqlite(store) => store.renew_lease(app_id, turn, lease).await,
        }
    }

    async fn end_lease(&self, app_id: &AppId, turn: Uuid) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.end_lease(app_id, turn).await,
            Self::Sqlite(store) => store.end_lease(app_id, turn).await,
        }
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.migrate().await,
            Self::Sqlite(store) => store.migrate().await,
        }
    }
}

/// Why the database did not do what it was asked. The texts are for the log; they come from the
/// database, which does not repeat passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The table is missing or old: migrate and try again.
    Schema {
        /// The database's words.
        why: String,
    },
    /// The database's role may not create or change the table.
    NotAllowed {
        /// The database's words.
        why: String,
    },
    /// A value does not fit into its column (an older table's may be narrower).
    Refused {
        /// The database's words.
        why: String,
    },
    /// No answer, no connection, too busy: another try may succeed.
    Unavailable {
        /// The database's words, or the host's.
        why: String,
    },
    /// Anything else: another try would fail likewise.
    Failed {
        /// The database's words.
        why: String,
    },
}

impl StoreError {
    /// What the client may know: which part failed, and who can do what.
    pub fn for_client(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => {
                "The database's role may not create or change the table `chatts`: apply the files in `migrations/` with a role that may."
            }
            Self::Unavailable { .. } => {
                "The database cannot be reached or does not answer: try again later."
            }
            Self::Schema { .. } | Self::Refused { .. } | Self::Failed { .. } => {
                "The database failed: the server's log says why."
            }
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, why) = match self {
            Self::Schema { why } => ("the schema is missing or old", why),
            Self::NotAllowed { why } => ("the role lacks a right", why),
            Self::Refused { why } => ("a value was refused", why),
            Self::Unavailable { why } => ("the database is unavailable", why),
            Self::Failed { why } => ("the database failed", why),
        };
        write!(f, "{kind}: {why}")
    }
}

impl std::error::Error for StoreError {}
