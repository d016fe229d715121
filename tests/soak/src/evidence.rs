//! What is compared: what the clients saw, what Ollama was sent, and what the database holds.

use std::collections::BTreeMap;
use std::time::Duration;

use strum::{Display, VariantArray};

use crate::device::Device;
use crate::plan::Turn;
use crate::text::{ConversationId, TurnId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Display, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Kind {
    /// Not stored, or not in the context, though the client could rely on it.
    Lost,
    /// Stored or sent twice.
    Doubled,
    OutOfOrder,
    /// Where it does not belong.
    Mixed,
    /// Another owner's.
    Foreign,
    /// Not as the client was told.
    Untrue,
}

/// A guarantee that does not hold, and where.
pub(crate) type Violation = (Kind, String);

/// What one client saw of one turn. Times are since the beginning of the run.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) turn: Turn,
    /// From `x-turn-id`.
    pub(crate) turn_id: Option<String>,
    /// In order; one at least.
    pub(crate) connections: Vec<Connection>,
    /// What it has from all its events.
    pub(crate) has: Device,
    pub(crate) outcome: Outcome,
    /// When a stop was acknowledged, and its status.
    pub(crate) stopped: Option<(Duration, u16)>,
    /// A deletion of the turn or its reply was begun.
    pub(crate) is_deleted: bool,
    /// Attempts that were asked for besides those of repeated prompts.
    pub(crate) agains: usize,
    /// A request had no answer, and may have asked the model later.
    pub(crate) is_uncertain: bool,
    /// What the client found wrong while it read.
    pub(crate) wrong: Vec<Violation>,
}

impl Seen {
    /// Just before the first request.
    pub(crate) fn sent(&self) -> Duration {
        let first = self.connections.first();
        first.map_or(Duration::ZERO, |connection| connection.sent)
    }

    /// When the head of a stream had come: the prompt is stored.
    pub(crate) fn head(&self) -> Option<Duration> {
        let mut heads = self.connections.iter().filter_map(|it| it.head);
        heads.next()
    }

    /// When the client was done with it.
    pub(crate) fn ended(&self) -> Duration {
        let last = self.connections.last();
        last.map_or(Duration::ZERO, |connection| connection.ended)
    }

    /// Whether the stored outcome was told on the last connection.
    pub(crate) fn is_told(&self) -> bool {
        self.outcome == Outcome::Told || (self.outcome == Outcome::Once && self.has.is_done)
    }

    /// Whether the last try to store the reply may have been committed or not: its answer did not
    /// come in time.
    pub(crate) fn reply_is_uncertain(&self) -> bool {
        let mut codes = self.connections.iter().flat_map(|it| &it.codes);
        codes.any(|code| code == "database_failed")
    }
}

/// How a client left a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It asked once, whatever came.
    Once,
    /// It went on until it was told the outcome that is stored.
    Told,
    /// It had the reply deleted, and did not ask again.
    WithoutReply,
    /// It was told that the turn was deleted.
    Deleted,
    /// It got no answer, however often it asked.
    Unanswered,
}

/// One request for the turn's events.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The host that it connected to.
    pub(crate) host: usize,
    /// Just before the request.
    pub(crate) sent: Duration,
    /// When the head of a stream had come.
    pub(crate) head: Option<Duration>,
    pub(crate) ended: Duration,
    pub(crate) end: End,
    /// The receipt came.
    pub(crate) is_done: bool,
    /// Of each error event, and of a refusal.
    pub(crate) codes: Vec<String>,
    /// How it broke, for whoever looks into it.
    pub(crate) error: Option<String>,
}

/// How a connection ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A status that is not 200.
    Refused(u16),
    /// The client left, or the connection broke, before a head had come.
    NoAnswer,
    /// The stream came to its clean end.
    Clean,
    /// The stream was cut.
    Broken,
    /// The client left in mid-stream.
    Left,
}

/// The deletion of a part of a conversation: repeated until it is acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    pub(crate) conversation: ConversationId,
    /// This turn and all later ones; `None` is all of the conversation.
    pub(crate) from: Option<TurnId>,
    /// Just before the first request.
    pub(crate) sent: Duration,
    /// When it was acknowledged.
    pub(crate) acknowledged: Option<Duration>,
}

/// One chat request to Ollama.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The turn that it was made for, from a field that llmchat passes on unread.
    pub(crate) id: TurnId,
    /// `(role, content)`
    pub(crate) messages: Vec<(String, String)>,
    /// All that was sent.
    pub(crate) body: String,
}

/// A row of `chatts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) role: String,
    /// As the model is shown it.
    pub(crate) message: String,
    /// As it was generated, where that is not the message.
    pub(crate) raw: Option<String>,
    pub(crate) thinking: Option<String>,
    /// JSON objects with commas in between.
    pub(crate) calls: Option<String>,
    pub(crate) status: String,
    pub(crate) turn: String,
    pub(crate) id: String,
}

/// A row of `chatts_turns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TurnRow {
    pub(crate) turn: String,
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) attempt: Option<String>,
    pub(crate) reply_id: Option<String>,
    /// The columns that have a value, but for those that name the turn.
    pub(crate) columns: Vec<String>,
}

/// What the database holds once nobody writes any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    /// By conversation, in order.
    pub(crate) rows: BTreeMap<ConversationId, Vec<Row>>,
    /// The number of rows in the table.
    pub(crate) row_count: usize,
    pub(crate) turns: Vec<TurnRow>,
    /// The turns that have a row in `chatts_runs`.
    pub(crate) runs: Vec<String>,
    /// The turns that have rows in `chatts_parts`.
    pub(crate) parts: Vec<String>,
    /// The rows of all tables, with all columns, and whose they are.
    pub(crate) whole: Vec<(ConversationId, String)>,
}

/// A conversation as a user reads it, page by page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    /// Role and content, in order.
    pub(crate) messages: Vec<(String, String)>,
    /// All that was received.
    pub(crate) bodies: String,
}

/// Everything there is to compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) seen: Vec<Seen>,
    pub(crate) sweeps: Vec<Sweep>,
    pub(crate) calls: Vec<Call>,
    pub(crate) stored: Stored,
    pub(crate) pages: BTreeMap<ConversationId, Pages>,
    /// From this turn on, nothing fails any more.
    pub(crate) first_closing: usize,
    /// When each host was killed, or came back from a standstill.
    pub(crate) kills: Vec<(usize, Duration)>,
    /// The hosts' logs, which name a turn that failed by the id in its rows.
    pub(crate) log: String,
    /// A client that leaves ends its turn (`on_disconnect = cancel`).
    pub(crate) leaving_cancels: bool,
    /// Bytes of a conversation that a model is sent.
    pub(crate) history: usize,
}
