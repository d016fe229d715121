//! The adapter for PostgreSQL, through `spin:postgres`.
//!
//! In Spin a statement costs a prepare and an execute, and taking a connection from the pool a round trip
//! to clean it: hence one statement to begin a turn and one to end it. Each is a call of a function that the migrations
//! create: a connection keeps the plans of a function, while Spin has every statement planned anew.

use std::time::Duration;

use uuid::Uuid;

use super::cells::{Row, required};
use super::schema::Migrations;
use super::turns::{
    Asked, BeginRow, Begun, Checked, Checkpoint, Committed, Deletion, Ended, Followed, NewAttempt,
    NewTurn, News, Page, PageMessage, Past, Stopped, TurnName, TurnView, read_asked,
};
use super::{Kind, PAST_MESSAGES_MAX, StoreError, microseconds, rows};
use crate::conversation::{ConversationName, Message};
use crate::reply::position::Attempt;
use crate::spin::pg::{Connection, ParameterValue};

mod error;
mod url;

use error::classify;
use url::DatabaseUrl;

const BEGIN: &str = statement!("postgres", "begin_turn");
const AGAIN: &str = statement!("postgres", "again");
const PAST: &str = statement!("postgres", "past_of_turn");
const COMMIT: &str = statement!("postgres", "commit_turn");
const CHECKPOINT: &str = statement!("postgres", "checkpoint");
const FOLLOW: &str = statement!("postgres", "follow");
const TURN: &str = statement!("postgres", "turn");
const STOP: &str = statement!("postgres", "stop");
const PAGE: &str = statement!("postgres", "page");
const PING: &str = statement!("postgres", "ping");
const DELETE_TURN: &str = statement!("postgres", "delete_turn");
const DELETE_REPLY: &str = statement!("postgres", "delete_reply");
const DELETE_FROM: &str = statement!("postgres", "delete_from");
const DELETE_CONVERSATION: &str = statement!("postgres", "delete_conversation");

/// Conversations in PostgreSQL.
#[derive(Debug, Clone)]
pub(crate) struct Postgres {
    url: DatabaseUrl,
}

impl Postgres {
    /// The database at `url` (`postgres://user:password@host/database`).
    pub(super) fn new(url: String) -> Self {
        let url = DatabaseUrl::new(url);
        Self { url }
    }

    /// The same database by way of other connections.
    pub(super) fn other_pool(&self) -> Self {
        let url = self.url.other_pool();
        Self { url }
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        let is_read_only = self.only(PING, Vec::new()).await?.flag()?;
        match is_read_only {
            true => Err(StoreError::new(Kind::ReadOnly, "a standby, perhaps")),
            false => Ok(()),
        }
    }

    pub(super) async fn begin(&self, new: &NewTurn, at_once: usize) -> Result<Begun, StoreError> {
        let (window, attempt, asked) = (&new.window, &new.attempt, &new.asked);
        let repeat = new.repeat.as_ref();
        let column = |value: fn(&(Uuid, Message)) -> String| list(new.prompt.iter().map(value));
        let mut parameters = of_turn(&window.name);
        parameters.extend([
            id(attempt.attempt.id()),
            id(attempt.reply_id),
            optional(repeat.map(|repeat| repeat.key.as_str())),
            optional(repeat.map(|repeat| repeat.body.as_str())),
            optional(asked.model.as_deref()),
            flag(asked.stream),
            optional(asked.fields.as_deref()),
            column(|(_, message)| message.role.as_str().to_owned()),
            column(|(_, message)| message.content.as_str().to_owned()),
            column(|(id, _)| id.to_string()),
            count(window.prompt_bytes),
            ParameterValue::Boolean(window.stands_alone),
            count(window.max_bytes),
            ParameterValue::Int64(PAST_MESSAGES_MAX),
            count(at_once),
            integer(attempt.lease),
            ParameterValue::Boolean(attempt.is_exclusive),
            ParameterValue::Boolean(attempt.collapses),
            count(attempt.limits.per_minute),
            count(attempt.limits.running),
        ]);
        let mut row = self.only(BEGIN, parameters).await?;
        begun(&mut row, |_| Ok(Asked::default()))
    }

    pub(super) async fn begin_again(
        &self,
        name: &TurnName,
        asked: &Asked,
        attempt: &NewAttempt,
        max_bytes: usize,
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        let mut parameters = of_turn(name);
        parameters.extend([
            id(attempt.attempt.id()),
            id(attempt.reply_id),
            optional(asked.model.as_deref()),
            flag(asked.stream),
            optional(asked.fields.as_deref()),
            count(max_bytes),
            ParameterValue::Int64(PAST_MESSAGES_MAX),
            count(at_once),
            integer(attempt.lease),
            ParameterValue::Boolean(attempt.is_exclusive),
            ParameterValue::Boolean(attempt.collapses),
            count(attempt.limits.per_minute),
            count(attempt.limits.running),
        ]);
        let mut row = self.only(AGAIN, parameters).await?;
        begun(&mut row, read_asked)
    }

    /// What precedes a turn that has begun.
    pub(super) async fn read_past(
        &self,
        name: &TurnName,
        _: Attempt,
        max_bytes: usize,
    ) -> Result<Past, StoreError> {
        let mut parameters = of_turn(name);
        parameters.extend([count(max_bytes), ParameterValue::Int64(PAST_MESSAGES_MAX)]);
        let mut row = self.only(PAST, parameters).await?;
        Ok(Past {
            messages: row.text()?.unwrap_or_default(),
            has_prompt: false,
        })
    }

    pub(super) async fn commit(&self, ended: &Ended) -> Result<Committed, StoreError> {
        let reply = ended.reply.as_ref();
        let error = ended.error.as_ref();
        let mut parameters = of_turn(&ended.name);
        parameters.extend([
            id(ended.attempt.id()),
            text(ended.state.as_str()),
            optional(ended.final_line.as_deref()),
            optional(error.map(|(code, _)| *code)),
            optional(error.map(|(_, text)| text.as_str())),
            optional(ended.usage.as_deref()),
            ParameterValue::Boolean(reply.is_some()),
            optional(reply.map(|reply| reply.message.as_str())),
            optional(reply.map(|reply| reply.status.as_str())),
            optional(reply.and_then(|reply| reply.raw.as_deref())),
            optional(reply.and_then(|reply| reply.thinking.as_deref())),
            optional(reply.and_then(|reply| reply.calls.as_deref())),
        ]);
        let committed = self.only(COMMIT, parameters).await?.text()?;
        let committed = required(committed)?.parse();
        committed.map_err(|_| StoreError::unexpected_row())
    }

    /// An answer for each attempt that there is one for, by its number.
    pub(super) async fn checkpoint(
        &self,
        checkpoints: &[Checkpoint],
        lease: Duration,
    ) -> Result<Vec<(usize, Checked)>, StoreError> {
        let column = |value: fn(&Checkpoint) -> String| list(checkpoints.iter().map(value));
        let parameters = vec![
            column(|it| it.name.conversation.owner.as_str().to_owned()),
            column(|it| it.name.conversation.app_id.as_str().to_owned()),
            column(|it| it.name.turn.to_string()),
            column(|it| it.attempt.id().to_string()),
            column(|it| it.from.content.to_string()),
            column(|it| it.from.thinking.to_string()),
            column(|it| it.from.calls.to_string()),
            column(|it| it.content.clone()),
            column(|it| it.thinking.clone()),
            column(|it| it.calls.clone()),
            column(|it| it.to_calls.to_string()),
            integer(lease),
        ];
        let mut answers = Vec::new();
        self.query(CHECKPOINT, parameters, &mut |mut row| {
            answers.push((number(&mut row)?, Checked::read(&mut row)?));
            Ok(())
        })
        .await?;
        Ok(answers)
    }

    pub(super) async fn follow(
        &self,
        followed: &[Followed],
    ) -> Result<Vec<(usize, News)>, StoreError> {
        let column = |value: fn(&Followed) -> String| list(followed.iter().map(value));
        let parameters = vec![
            column(|it| it.name.conversation.owner.as_str().to_owned()),
            column(|it| it.name.conversation.app_id.as_str().to_owned()),
            column(|it| it.name.turn.to_string()),
            column(|it| it.attempt.id().to_string()),
            column(|it| it.known.content.to_string()),
            column(|it| it.known.thinking.to_string()),
            column(|it| it.known.calls.to_string()),
        ];
        let mut news = Vec::new();
        self.query(FOLLOW, parameters, &mut |mut row| {
            news.push((number(&mut row)?, News::read(&mut row)?));
            Ok(())
        })
        .await?;
        Ok(news)
    }

    pub(super) async fn turn(&self, name: &TurnName) -> Result<Option<TurnView>, StoreError> {
        let row = self.row(TURN, of_turn(name)).await?;
        row.map(|mut row| TurnView::read(&mut row)).transpose()
    }

    pub(super) async fn stop(&self, name: &TurnName) -> Result<Stopped, StoreError> {
        let stopped = self.only(STOP, of_turn(name)).await?.text()?;
        let stopped = required(stopped)?.parse();
        stopped.map_err(|_| StoreError::unexpected_row())
    }

    /// Deletes up to `rows` rows. Returns until when it deletes, to be given again, where some are left.
    pub(super) async fn delete(
        &self,
        conversation: &ConversationName,
        deletion: Deletion,
        until: Option<i64>,
        rows: usize,
    ) -> Result<Option<Option<i64>>, StoreError> {
        let until = until.map_or(ParameterValue::DbNull, ParameterValue::Int64);
        let (statement, rest) = match deletion {
            Deletion::Turn(turn) => (DELETE_TURN, vec![id(turn), count(rows)]),
            Deletion::Reply(turn) => (DELETE_REPLY, vec![id(turn)]),
            Deletion::From(turn) => (DELETE_FROM, vec![id(turn), until, count(rows)]),
            Deletion::Conversation => (DELETE_CONVERSATION, vec![until, count(rows)]),
        };
        let mut parameters = of_conversation(conversation);
        parameters.extend(rest);
        let row = self.row(statement, parameters).await?;
        if let Deletion::Reply(_) = deletion {
            return Ok(None);
        }
        let mut row = required(row)?;
        let is_left = row.flag()?;
        let until = row.integer()?;
        Ok(is_left.then_some(until))
    }

    /// `None` where the message that the page should end before is gone.
    pub(super) async fn page(
        &self,
        conversation: &ConversationName,
        before: Option<Uuid>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Option<Page>, StoreError> {
        let mut parameters = of_conversation(conversation);
        parameters.extend([
            before.map_or(ParameterValue::DbNull, id),
            count(limit),
            count(max_bytes),
        ]);
        let (mut messages, mut last) = (Vec::new(), None);
        self.query(PAGE, parameters, &mut |mut row| {
            match PageMessage::read(&mut row)? {
                Some(message) => messages.push(message),
                None => last = Some(row),
            }
            Ok(())
        })
        .await?;
        messages.reverse();
        let mut last = required(last)?;
        // The rest of the message, which is not there.
        for _ in 0..8 {
            last.skip();
        }
        let is_gone = last.flag()?;
        let page = Page {
            messages,
            running: last.id()?,
            has_more: last.flag()?,
        };
        Ok((!is_gone).then_some(page))
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        for statement in Migrations::postgres()?.statements() {
            self.query(statement, Vec::new(), &mut |_| Ok(())).await?;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        if self.url.has_two_ends_of_a_password() {
            return Err(StoreError::new(Kind::Unusable, self.url.complaint()));
        }
        Connection::open(self.url.as_str())
            .await
            .map_err(|error| classify(error, &self.url))
    }

    /// Runs a statement and reads its rows to their end.
    async fn query(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
        take: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let connection = self.connect().await?;
        let result = connection.query(statement, parameters).await;
        let result = result.map_err(|error| classify(error, &self.url))?;
        let (_, rows, outcome) = result.into_inner();
        rows::each(rows, |row| take(Row::new(row))).await?;
        // An error of the execution arrives here, after no rows.
        let outcome = outcome.await;
        outcome.map_err(|error| classify(error.into(), &self.url))
    }

    /// Runs a statement that returns one row or none.
    async fn row(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<Option<Row>, StoreError> {
        let mut only = None;
        self.query(statement, parameters, &mut |row| {
            only = Some(row);
            Ok(())
        })
        .await?;
        Ok(only)
    }

    /// Runs a statement that returns one row.
    async fn only(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<Row, StoreError> {
        required(self.row(statement, parameters).await?)
    }
}

/// Reads the answer to a begin: `outcome, turn, attempt, reply_id, start, turns, bytes, older, past, prompt, retry_after`.
fn begun(
    row: &mut Row,
    asked: impl FnOnce(&mut Row) -> Result<Asked, StoreError>,
) -> Result<Begun, StoreError> {
    let outcome = required(row.text()?)?;
    let turn = row.id()?;
    for _ in ["attempt", "reply_id", "start"] {
        row.skip();
    }
    let mut begun = BeginRow {
        outcome,
        turn,
        turns: row.count()?,
        bytes: row
            .integer()?
            .map(|bytes| u64::try_from(bytes).unwrap_or_default()),
        is_cut: row.flag()?,
        past: row.text()?,
        prompt: row.text()?,
        retry_after: row.count()?,
        is_stored: false,
        asked: asked(row)?,
    };
    begun.is_stored = begun.prompt.is_some();
    begun.into_begun()
}

/// The number of an answer, which PostgreSQL counts from 1.
fn number(row: &mut Row) -> Result<usize, StoreError> {
    required(row.size()?.checked_sub(1))
}

fn of_conversation(name: &ConversationName) -> Vec<ParameterValue> {
    vec![text(name.owner.as_str()), text(name.app_id.as_str())]
}

fn of_turn(name: &TurnName) -> Vec<ParameterValue> {
    let mut parameters = of_conversation(&name.conversation);
    parameters.push(id(name.turn));
    parameters
}

fn list(values: impl Iterator<Item = String>) -> ParameterValue {
    ParameterValue::ArrayStr(values.map(Some).collect())
}

fn text(text: &str) -> ParameterValue {
    ParameterValue::Str(text.to_owned())
}

fn optional(value: Option<&str>) -> ParameterValue {
    value.map_or(ParameterValue::DbNull, text)
}

fn flag(value: Option<bool>) -> ParameterValue {
    value.map_or(ParameterValue::DbNull, ParameterValue::Boolean)
}

fn id(id: Uuid) -> ParameterValue {
    ParameterValue::Uuid(id.to_string())
}

fn integer(duration: Duration) -> ParameterValue {
    ParameterValue::Int64(microseconds(duration))
}

fn count(count: impl TryInto<i64>) -> ParameterValue {
    ParameterValue::Int64(super::number(count))
}
