//! The adapter for SQLite, through `spin:sqlite`.
//!
//! SQLite has no functions: a procedure is a view, and a trigger runs for what is inserted into it. A turn begins with
//! two statements, since a read of a large conversation must not hold the lock that all writers wait for.

use std::time::Duration;

use uuid::Uuid;

use super::cells::{Row, required};
use super::phrases::{self, contains};
use super::schema::Migrations;
use super::turns::{
    Asked, BeginRow, Begun, Checked, Checkpoint, Committed, Deletion, Ended, Followed, NewAttempt,
    NewTurn, News, Page, PageMessage, Past, Stopped, TurnName, TurnView,
};
use super::{Kind, PAST_MESSAGES_MAX, StoreError, microseconds};
use crate::conversation::ConversationName;
use crate::reply::position::Attempt;
use crate::spin::sqlite::Value;

mod connection;
mod error;

use connection::Call;

const CONTEXT: &str = statement!("sqlite", "context");
const SETTLE: &str = statement!("sqlite", "settle");
const ADOPT: &str = statement!("sqlite", "adopt");
const BEGIN: &str = statement!("sqlite", "begin");
const AGAIN: &str = statement!("sqlite", "again");
const COMMIT: &str = statement!("sqlite", "commit_turn");
const CHECKPOINT: &str = statement!("sqlite", "checkpoint");
const FOLLOW: &str = statement!("sqlite", "follow");
const TURN: &str = statement!("sqlite", "turn");
const STOP: &str = statement!("sqlite", "stop");
const PAGE: &str = statement!("sqlite", "page");
const PING: &str = statement!("sqlite", "ping");
const DELETE_TURN: &str = statement!("sqlite", "delete_turn");
const DELETE_REPLY: &str = statement!("sqlite", "delete_reply");
const DELETE_FROM: &str = statement!("sqlite", "delete_from");
const DELETE_CONVERSATION: &str = statement!("sqlite", "delete_conversation");
const DROP_VIEWS: &str = statement!("sqlite", "drop_views");

/// Conversations in the host's SQLite database `default`.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite;

/// What precedes a turn, and what becomes of it.
struct Context {
    turn: Option<Uuid>,
    outcome: Option<String>,
    is_stored: bool,
    is_unsettled: bool,
    turns: u64,
    bytes: Option<u64>,
    is_cut: bool,
    past: Option<String>,
}

/// The parameters of `context.sql`.
struct Asking<'a> {
    name: &'a TurnName,
    attempt: Uuid,
    key: Option<&'a str>,
    body: Option<&'a str>,
    prompt_bytes: usize,
    stands_alone: bool,
    max_bytes: usize,
    at_once: usize,
}

impl Asking<'_> {
    async fn read(&self, call: &Call) -> Result<Context, StoreError> {
        let mut parameters = of_turn(self.name);
        parameters.extend([
            id(self.attempt),
            optional(self.key),
            optional(self.body),
            count(self.prompt_bytes),
            Value::Integer(self.stands_alone.into()),
            count(self.max_bytes),
            Value::Integer(PAST_MESSAGES_MAX),
            count(self.at_once),
        ]);
        let mut row = only(call, CONTEXT, parameters).await?;
        let turn = row.id()?;
        row.skip();
        let outcome = row.text()?;
        Ok(Context {
            turn,
            outcome,
            is_stored: row.flag()?,
            is_unsettled: row.flag()?,
            turns: row.count()?,
            bytes: row
                .integer()?
                .map(|bytes| u64::try_from(bytes).unwrap_or_default()),
            is_cut: row.flag()?,
            past: row.text()?,
        })
    }

    /// With what orphans left in the conversation.
    async fn read_settled(&self, call: &Call) -> Result<Context, StoreError> {
        let context = self.read(call).await?;
        if !context.is_unsettled {
            return Ok(context);
        }
        call.execute(SETTLE, of_conversation(&self.name.conversation))
            .await?;
        self.read(call).await
    }
}

impl Sqlite {
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        let call = Call::begin().await?;
        call.execute(PING, Vec::new()).await?;
        call.end();
        Ok(())
    }

    pub(super) async fn begin(&self, new: &NewTurn, at_once: usize) -> Result<Begun, StoreError> {
        let call = Call::begin().await?;
        let window = &new.window;
        let asking = Asking {
            name: &window.name,
            attempt: new.attempt.attempt.id(),
            key: new.repeat.as_ref().map(|repeat| repeat.key.as_str()),
            body: new.repeat.as_ref().map(|repeat| repeat.body.as_str()),
            prompt_bytes: window.prompt_bytes,
            stands_alone: window.stands_alone,
            max_bytes: window.max_bytes,
            at_once,
        };
        let context = asking.read_settled(&call).await?;
        let begun = match (&context.outcome, context.bytes) {
            (Some(outcome), _) => row(outcome.clone(), context).into_begun()?,
            (None, None) => Begun::TooLarge,
            (None, _) if new.prompt.is_empty() && !context.is_stored && context.turns <= 1 => {
                Begun::Empty
            }
            (None, Some(bytes)) => {
                let answer = text_of(&call, BEGIN, begin_parameters(new, bytes)).await?;
                started(&call, &asking, context, &answer, Asked::default()).await?
            }
        };
        call.end();
        Ok(begun)
    }

    pub(super) async fn begin_again(
        &self,
        name: &TurnName,
        asked: &Asked,
        attempt: &NewAttempt,
        max_bytes: usize,
        at_once: usize,
    ) -> Result<Begun, StoreError> {
        let call = Call::begin().await?;
        let mut parameters = of_turn(name);
        parameters.push(id(attempt.reply_id));
        call.execute(ADOPT, parameters).await?;
        let asking = Asking {
            name,
            attempt: attempt.attempt.id(),
            key: None,
            body: None,
            prompt_bytes: 0,
            stands_alone: true,
            max_bytes,
            at_once,
        };
        let context = asking.read_settled(&call).await?;
        let Some(bytes) = context.bytes else {
            call.end();
            return Ok(Begun::TooLarge);
        };
        let mut parameters = of_turn(name);
        parameters.extend([
            id(attempt.attempt.id()),
            id(attempt.reply_id),
            optional(asked.model.as_deref()),
            asked
                .stream
                .map_or(Value::Null, |stream| Value::Integer(stream.into())),
            optional(asked.fields.as_deref()),
            Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX)),
            integer(attempt.lease),
            Value::Integer(attempt.is_exclusive.into()),
            Value::Integer(attempt.collapses.into()),
            count(attempt.limits.per_minute),
            count(attempt.limits.running),
        ]);
        let answer = text_of(&call, AGAIN, parameters).await?;
        let stands = call.row(TURN, of_turn(name)).await?;
        let begun = match stands {
            Some(row) => {
                let asked = TurnView::read(&mut Row::new(row))?.asked;
                started(&call, &asking, context, &answer, asked).await?
            }
            // There is none, or it was deleted since.
            None => Begun::Unknown,
        };
        call.end();
        Ok(begun)
    }

    /// What a turn that has begun is asked with, its own prompt included.
    pub(super) async fn read_past(
        &self,
        name: &TurnName,
        attempt: Attempt,
        max_bytes: usize,
    ) -> Result<Past, StoreError> {
        let call = Call::begin().await?;
        let asking = Asking {
            name,
            attempt: attempt.id(),
            key: None,
            body: None,
            prompt_bytes: 0,
            stands_alone: true,
            max_bytes,
            at_once: usize::MAX,
        };
        let context = asking.read(&call).await?;
        call.end();
        Ok(Past {
            messages: context.past.unwrap_or_default(),
            has_prompt: true,
        })
    }

    pub(super) async fn commit(&self, ended: &Ended) -> Result<Committed, StoreError> {
        let reply = ended.reply.as_ref();
        let (code, error) = ended
            .error
            .as_ref()
            .map(|(code, text)| (*code, text.as_str()))
            .unzip();
        let mut parameters = of_turn(&ended.name);
        parameters.extend([
            id(ended.attempt.id()),
            text(ended.state.as_str()),
            optional(ended.final_line.as_deref()),
            optional(code),
            optional(error),
            optional(ended.usage.as_deref()),
            Value::Integer(reply.is_some().into()),
            optional(reply.map(|reply| reply.message.as_str())),
            optional(reply.map(|reply| reply.status.as_str())),
            optional(reply.and_then(|reply| reply.raw.as_deref())),
            optional(reply.and_then(|reply| reply.thinking.as_deref())),
            optional(reply.and_then(|reply| reply.calls.as_deref())),
        ]);
        let call = Call::begin().await?;
        let committed = text_of(&call, COMMIT, parameters).await?;
        call.end();
        committed.parse().map_err(|_| StoreError::unexpected_row())
    }

    /// An answer for each attempt that there is one for, by its number.
    pub(super) async fn checkpoint(
        &self,
        checkpoints: &[Checkpoint],
        lease: Duration,
    ) -> Result<Vec<(usize, Checked)>, StoreError> {
        let asked = checkpoints.iter().map(|it| {
            let name = &it.name;
            (
                (
                    name.conversation.owner.as_str(),
                    name.conversation.app_id.as_str(),
                    name.turn.to_string(),
                    it.attempt.id().to_string(),
                ),
                (it.from.content, it.from.thinking, it.from.calls),
                (
                    filled(&it.content),
                    filled(&it.thinking),
                    filled(&it.calls),
                    it.to_calls,
                ),
            )
        });
        let asked: Vec<_> = asked
            .map(|((a, b, c, d), (e, f, g), (h, i, j, k))| (a, b, c, d, e, f, g, h, i, j, k))
            .collect();
        let call = Call::begin_checkpoint().await?;
        let parameters = vec![json(&asked), integer(lease)];
        let mut answers = Vec::new();
        call.query(CHECKPOINT, parameters, &mut |values| {
            let mut row = Row::new(values);
            let (owner, app_id) = (required(row.text()?)?, required(row.text()?)?);
            let turn = row.id()?;
            let number = checkpoints.iter().position(|it| {
                let of = &it.name.conversation;
                Some(it.name.turn) == turn
                    && (of.owner.as_str(), of.app_id.as_str()) == (&owner, &app_id)
            });
            let mut answer = Row::from_json(&required(row.text()?)?)?;
            answers.push((required(number)?, Checked::read(&mut answer)?));
            Ok(())
        })
        .await?;
        call.end();
        Ok(answers)
    }

    pub(super) async fn follow(
        &self,
        followed: &[Followed],
    ) -> Result<Vec<(usize, News)>, StoreError> {
        let asked: Vec<_> = followed
            .iter()
            .map(|it| {
                let (name, known) = (&it.name, it.known);
                let (turn, attempt) = (name.turn.to_string(), it.attempt.id().to_string());
                (
                    name.conversation.owner.as_str(),
                    name.conversation.app_id.as_str(),
                    turn,
                    attempt,
                    known.content,
                    known.thinking,
                    known.calls,
                )
            })
            .collect();
        let call = Call::begin().await?;
        let mut news = Vec::new();
        call.query(FOLLOW, vec![json(&asked)], &mut |values| {
            let mut row = Row::new(values);
            news.push((row.size()?, News::read(&mut row)?));
            Ok(())
        })
        .await?;
        call.end();
        Ok(news)
    }

    pub(super) async fn turn(&self, name: &TurnName) -> Result<Option<TurnView>, StoreError> {
        let call = Call::begin().await?;
        let row = call.row(TURN, of_turn(name)).await?;
        call.end();
        row.map(|row| TurnView::read(&mut Row::new(row)))
            .transpose()
    }

    pub(super) async fn stop(&self, name: &TurnName) -> Result<Stopped, StoreError> {
        let call = Call::begin().await?;
        let stopped = text_of(&call, STOP, of_turn(name)).await?;
        call.end();
        stopped.parse().map_err(|_| StoreError::unexpected_row())
    }

    /// Deletes up to `rows` rows. Returns until when it deletes, to be given again, where some are left.
    pub(super) async fn delete(
        &self,
        conversation: &ConversationName,
        deletion: Deletion,
        until: Option<i64>,
        rows: usize,
    ) -> Result<Option<Option<i64>>, StoreError> {
        let until = until.map_or(Value::Null, Value::Integer);
        let (statement, rest) = match deletion {
            Deletion::Turn(turn) => (DELETE_TURN, vec![id(turn), count(rows)]),
            Deletion::Reply(turn) => (DELETE_REPLY, vec![id(turn)]),
            Deletion::From(turn) => (DELETE_FROM, vec![id(turn), until, count(rows)]),
            Deletion::Conversation => (DELETE_CONVERSATION, vec![until, count(rows)]),
        };
        let mut parameters = of_conversation(conversation);
        parameters.extend(rest);
        let call = Call::begin().await?;
        let row = call.row(statement, parameters).await?;
        call.end();
        let mut row = Row::new(row.unwrap_or_default());
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
            count(limit),
            before.map_or(Value::Null, id),
            count(max_bytes),
        ]);
        let call = Call::begin().await?;
        let mut is_gone = false;
        let mut page = Page {
            messages: Vec::new(),
            running: None,
            has_more: false,
        };
        call.query(PAGE, parameters, &mut |values| {
            let mut row = Row::new(values);
            is_gone = row.flag()?;
            page.running = row.id()?;
            page.has_more = row.flag()?;
            page.messages.extend(PageMessage::read(&mut row)?);
            Ok(())
        })
        .await?;
        call.end();
        Ok((!is_gone).then_some(page))
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let migrations = Migrations::sqlite()?;
        let mut statements = migrations.statements();
        let call = Call::begin().await?;
        let check = statements.next().unwrap_or_default();
        let faults = texts(&call, check).await?;
        if !faults.is_empty() {
            // They would be in the way of what mends it, and come again with the next migration.
            for statement in texts(&call, DROP_VIEWS).await? {
                call.execute(&statement, Vec::new()).await?;
            }
            call.end();
            let faults = faults.join(" And ");
            let why = format!("The table `chatts` cannot be used as it is: {faults}");
            return Err(StoreError::new(Kind::Unusable, why));
        }
        for statement in statements {
            match call.execute(statement, Vec::new()).await {
                // SQLite cannot be asked to add a column only where it is missing.
                Err(error) if contains(&error.why, phrases::SQLITE_COLUMN_EXISTS) => {}
                // Leaving the rollback journal can fail beside an open reader, and costs only speed.
                Err(_) if statement.contains("journal_mode") => {}
                done => drop(done?),
            }
        }
        call.end();
        Ok(())
    }
}

/// Reads what `begin.sql` and `again.sql` answered, an array in JSON.
async fn started(
    call: &Call,
    asking: &Asking<'_>,
    mut context: Context,
    answer: &str,
    asked: Asked,
) -> Result<Begun, StoreError> {
    let mut answer = Row::from_json(answer)?;
    let outcome = required(answer.text()?)?;
    let turn = answer.id()?;
    for _ in ["attempt", "reply_id", "start"] {
        answer.skip();
    }
    let retry_after = answer.count()?;
    if outcome == "started" && turn != context.turn {
        // Its key has become known since.
        context = asking.read(call).await?;
    }
    BeginRow {
        turn,
        retry_after,
        asked,
        ..row(outcome, context)
    }
    .into_begun()
}

fn row(outcome: String, context: Context) -> BeginRow {
    BeginRow {
        outcome,
        turn: context.turn,
        turns: context.turns,
        bytes: context.bytes,
        is_cut: context.is_cut,
        past: context.past,
        prompt: None,
        retry_after: 0,
        is_stored: context.is_stored,
        asked: Asked::default(),
    }
}

fn begin_parameters(new: &NewTurn, sent_bytes: u64) -> Vec<Value> {
    let prompt: Vec<_> = new
        .prompt
        .iter()
        .map(|(id, message)| {
            (
                message.role.as_str(),
                message.content.as_str(),
                id.to_string(),
            )
        })
        .collect();
    let (window, attempt, asked) = (&new.window, &new.attempt, &new.asked);
    let repeat = new.repeat.as_ref();
    let mut parameters = of_turn(&window.name);
    parameters.extend([
        id(attempt.attempt.id()),
        id(attempt.reply_id),
        optional(repeat.map(|repeat| repeat.key.as_str())),
        optional(repeat.map(|repeat| repeat.body.as_str())),
        optional(asked.model.as_deref()),
        asked
            .stream
            .map_or(Value::Null, |stream| Value::Integer(stream.into())),
        optional(asked.fields.as_deref()),
        json(&prompt),
        Value::Integer(i64::try_from(sent_bytes).unwrap_or(i64::MAX)),
        integer(attempt.lease),
        Value::Integer(attempt.is_exclusive.into()),
        Value::Integer(attempt.collapses.into()),
        count(attempt.limits.per_minute),
        count(attempt.limits.running),
    ]);
    parameters
}

/// Runs a statement that returns one row.
async fn only(call: &Call, statement: &str, parameters: Vec<Value>) -> Result<Row, StoreError> {
    let row = call.row(statement, parameters).await?;
    Ok(Row::new(required(row)?))
}

/// Runs a statement that returns one text.
async fn text_of(
    call: &Call,
    statement: &str,
    parameters: Vec<Value>,
) -> Result<String, StoreError> {
    required(only(call, statement, parameters).await?.text()?)
}

/// The rows of a statement that returns one text each.
async fn texts(call: &Call, statement: &str) -> Result<Vec<String>, StoreError> {
    let mut texts = Vec::new();
    call.query(statement, Vec::new(), &mut |row| {
        texts.extend(Row::new(row).text()?);
        Ok(())
    })
    .await?;
    Ok(texts)
}

fn of_conversation(name: &ConversationName) -> Vec<Value> {
    vec![text(name.owner.as_str()), text(name.app_id.as_str())]
}

fn of_turn(name: &TurnName) -> Vec<Value> {
    let mut parameters = of_conversation(&name.conversation);
    parameters.push(id(name.turn));
    parameters
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn optional(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |text| Value::Text(text.to_owned()))
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn json(value: &impl serde::Serialize) -> Value {
    // Serialising strings and numbers into memory cannot fail.
    Value::Text(serde_json::to_string(value).unwrap_or_default())
}

fn id(id: Uuid) -> Value {
    Value::Text(id.to_string())
}

fn integer(duration: Duration) -> Value {
    Value::Integer(microseconds(duration))
}

fn count(count: impl TryInto<i64>) -> Value {
    Value::Integer(super::number(count))
}
