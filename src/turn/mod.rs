//! A stored turn from its prompt to its reply: order and policy.
//!
//! 1. **Begin**: the prompt is stored and what fits of the conversation read, in one step (unless that is large
//!    and there is no room for it: then it is read later). Where the key of the request is known, its turn is asked
//!    again, or watched. Where the operator wants one turn at a time in a conversation and another is running, nothing
//!    is stored. A turn that has begun is answered by a stream, and from then on every failure is reported in it.
//! 2. **Relay**: Ollama is sent the conversation, and its lines reach the client as they arrive (see [`relay`]).
//!    Meanwhile checkpoints store what came, and tell whether it is to go on (see [`runs`]).
//! 3. **Commit**: the reply is stored, and only then is the last event sent: `done` is a receipt.
//!
//! A turn outlives its client: a reply that nobody reads any more is finished and stored too (or, if the
//! operator so wishes, cut short and stored as far as it has come).

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use thiserror::Error;

use crate::clock::{self, Ticker};
use crate::config::Config;
use crate::conversation::{Context, ConversationName, Message, Owner};
use crate::error::{Code, RelayError};
use crate::http::EventStream;
use crate::ids::Ids;
use crate::log;
use crate::ollama::body::Body;
use crate::ollama::call;
use crate::permit::{Permit, Room};
use crate::reply::position::Attempt;
use crate::reply::{Caps, Last, Outcome, Pipeline, Whitespace};
use crate::request::{ChatRequest, Fields, fields_json, fields_of};
use crate::store::{
    Asked, Begun, Committed, Database, Ended, Limited, NewAttempt, NewTurn, Repeat, Started, State,
    StoreError, StoredReply, TurnName, Window,
};

pub(crate) mod follow;
mod relay;
mod rota;
mod runs;
mod sending;

use relay::Relay;
use runs::{Run, Verdict};
use sending::Sending;

/// Bytes of a past that is read where there is no room at present.
const SMALL: usize = 64 * 1024;

/// Why a turn did not begin. Nothing was sent to Ollama.
#[derive(Debug, Error)]
pub(crate) enum NotBegun {
    /// Another turn of the conversation is running.
    #[error("the conversation is busy")]
    Busy,
    /// Its owner may begin no other one now.
    #[error("the owner is at a limit")]
    Limited(Limited),
    /// Neither the prompt nor the conversation has a message.
    #[error("there is nothing to send")]
    Empty,
    /// What may not be left out is more than the model is sent.
    #[error("the context is too large")]
    TooLarge {
        /// Bytes that the model is sent.
        limit: usize,
    },
    /// The key of the request came with another body before.
    #[error("the key was used for another request")]
    KeyReused,
    /// The turn of the key was deleted.
    #[error("the turn was deleted")]
    Deleted,
    /// There is no such turn.
    #[error("there is no such turn")]
    Unknown,
    /// The turn's model is not known.
    #[error("nobody knows which model to ask")]
    NoModel,
    /// The prompt could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a request for a reply comes to.
pub(crate) enum Opened {
    /// An attempt of its own.
    Run(Turn),
    /// A turn that runs, or has ended.
    Watch(TurnName, Means),
}

/// What it takes to run a turn, or to watch one.
pub(crate) struct Means {
    pub(crate) store: Database,
    pub(crate) config: Rc<Config>,
    pub(crate) permit: Permit,
}

/// An attempt that has begun.
pub(crate) struct Turn {
    name: TurnName,
    attempt: Attempt,
    context: Context,
    /// Bytes that the model is sent.
    max_bytes: usize,
    /// What Ollama is to be sent.
    sending: Option<Sending>,
    /// Ollama is asked for a line a token, not for one object.
    is_streamed: bool,
    model: String,
    /// Its client has something of another attempt, which it is to drop.
    is_restart: bool,
    store: Database,
    config: Rc<Config>,
    permit: Permit,
}

/// What a model is asked besides its messages.
struct Question {
    model: String,
    stream: bool,
    fields: Fields,
}

impl Turn {
    /// Stores the prompt and reads the conversation.
    pub(crate) async fn open(
        owner: Owner,
        request: ChatRequest,
        repeat: Option<Repeat>,
        ticker: &mut Ticker,
        means: Means,
    ) -> Result<Opened, NotBegun> {
        let mut ids = Ids::draw();
        let max_bytes = means.config.limits.history_bytes;
        let (prompt_bytes, stands_alone) = (request.bytes(), request.stands_alone());
        let conversation = ConversationName {
            owner,
            app_id: request.app_id,
        };
        let turn = ids.take();
        let window = Window {
            name: TurnName { conversation, turn },
            prompt_bytes,
            stands_alone,
            max_bytes,
        };
        let prompt = request.messages.into_iter();
        let new = NewTurn {
            window,
            prompt: prompt.map(|message| (ids.take(), message)).collect(),
            asked: Asked {
                model: Some(request.model.clone()),
                stream: Some(request.stream),
                fields: Some(fields_json(&request.fields)),
            },
            repeat,
            attempt: new_attempt(&mut ids, &means.config),
        };
        let (room, at_once) = room_for_past(max_bytes);
        let limit = means.config.timeouts.database;
        let begin = async |store: &Database| store.begin(&new, at_once).await;
        let begun = means.store.retry(ticker, limit, begin).await?;
        let question = Question {
            model: request.model,
            stream: request.stream,
            fields: request.fields,
        };
        let prompt = new.prompt.iter().map(|(_, message)| message);
        let own = |started: &Started| {
            let prompt = prompt.filter(|_| !started.is_stored);
            Ok(question.body(prompt))
        };
        let attempt = new.attempt.attempt;
        let conversation = new.window.name.conversation.clone();
        opened(conversation, begun, attempt, room, means, own)
    }

    /// Asks for another reply of a turn, with what is `asked` instead of what was before.
    pub(crate) async fn again(
        name: TurnName,
        asked: Asked,
        ticker: &mut Ticker,
        means: Means,
    ) -> Result<Opened, NotBegun> {
        let mut ids = Ids::draw();
        let attempt = new_attempt(&mut ids, &means.config);
        let max_bytes = means.config.limits.history_bytes;
        let (room, at_once) = room_for_past(max_bytes);
        let limit = means.config.timeouts.database;
        let begin = async |store: &Database| {
            let again = store.begin_again(&name, &asked, &attempt, max_bytes, at_once);
            again.await
        };
        let begun = means.store.retry(ticker, limit, begin).await?;
        let own = |started: &Started| {
            let asked = &started.asked;
            let fields = asked.fields.as_deref().unwrap_or("{}");
            let question = Question {
                model: asked.model.clone().ok_or(NotBegun::NoModel)?,
                stream: asked.stream.unwrap_or(true),
                // As this server stored them.
                fields: fields_of(fields).unwrap_or_default(),
            };
            Ok(question.body([]))
        };
        opened(name.conversation, begun, attempt.attempt, room, means, own)
    }

    /// Its client comes with what it has of another attempt.
    pub(crate) fn restart(self) -> Self {
        let is_restart = true;
        Self { is_restart, ..self }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &TurnName {
        &self.name
    }

    /// What the model is sent of the conversation.
    pub(crate) fn context(&self) -> Context {
        self.context
    }

    /// Runs the turn to its end.
    pub(crate) async fn run(self, client: EventStream, ticker: Ticker) {
        let mut relay = Relay::new(client, ticker, self.config.clone());
        let caps = Caps {
            line: self.line_cap(),
            completion: self.config.max_completion_bytes,
            stream: self.config.max_stream_bytes,
        };
        let whitespace = self.config.completion_whitespace;
        let mut pipeline = Pipeline::new(caps, whitespace, Some(self.attempt.short()));
        pipeline.hide(self.config.ollama_api_key.clone());
        if self.is_restart {
            relay.restart(self.name.turn, self.attempt);
            pipeline.after_restart();
        }
        let run = Run::new(self.name.clone(), self.attempt, pipeline).start();
        let (store, timeouts) = (self.store.clone(), self.config.timeouts);
        let is_busy = Cell::new(false);
        let tending = runs::tend(&store, &timeouts, &is_busy);
        let work = self.relay_and_commit(relay, run.clone());
        clock::alongside(work, tending, &run.is_long, &is_busy).await;
    }

    async fn relay_and_commit(mut self, mut relay: Relay, run: Rc<Run>) {
        let config = self.config.clone();
        let sending = self.sending.take();
        let sending = async {
            let (body, room) = match sending {
                Some(sending) => sending.complete(&self).await?,
                None => {
                    return Err(RelayError::new(
                        Code::OllamaBrokeOff,
                        "the turn was run before",
                    ));
                }
            };
            let answer = call::chat(&config, body, room).await;
            self.permit.resize(0);
            answer
        };
        let end = relay.run(&run, sending).await;
        let Some(outcome) = run.end(end) else {
            return;
        };
        // Not once a line: there can be thousands. The number comes first, since a long line is cut.
        for (error, count) in &outcome.told {
            self.log(&format_args!("{count} × {error}"));
        }
        if let Last::Error(error) = &outcome.last {
            self.log(error);
        }
        let after_error = !outcome.told.is_empty();
        let (mut ended, mut last) = self.ended(outcome, run.verdict());
        let limit = config.timeouts.database;
        let committed = loop {
            let commit = async |store: &Database| store.commit(&ended).await;
            match self.store.retry(&mut relay.ticker, limit, commit).await {
                // Somebody was told that it stops, and must not see the model asked again.
                Ok(Committed::ToStop) => last = self.stopped(&mut ended, after_error),
                committed => break committed,
            }
        };
        let (last, attempt, not_stored) = match committed {
            Ok(Committed::Stored) => (last, Some(self.attempt.short()), None),
            Ok(Committed::Kept | Committed::ToStop) => (last, None, None),
            Ok(Committed::Superseded) => (Last::Error(superseded()), None, None),
            Ok(Committed::Deleted) => (Last::Error(deleted()), None, None),
            Err(error) => {
                self.log(&error);
                let error = RelayError::new(
                    Code::DatabaseFailed,
                    format!(
                        "It is not certain that the reply was stored: the next prompt may not have it as context. {}",
                        error.for_client()
                    ),
                );
                (last, None, Some(error))
            }
        };
        relay.finish(&last, not_stored.as_ref(), attempt).await;
    }

    /// What is to be stored, and what the client is to be told last.
    fn ended(&self, outcome: Outcome, verdict: Option<Verdict>) -> (Ended, Last) {
        let final_line = outcome.final_line().map(|line| line.into_owned());
        let is_stopped = verdict == Some(Verdict::Stop) && final_line.is_none();
        let error = match &outcome.last {
            // Others than the client that left must not take this for the end of the reply.
            Last::Nothing => Some(cut_short()),
            Last::Done { .. } | Last::Error(_) => outcome.error().cloned(),
        };
        let after_error = !outcome.told.is_empty();
        let reply = outcome.reply.map(|reply| StoredReply {
            status: match reply.status {
                crate::conversation::ReplyStatus::Complete => State::Complete,
                crate::conversation::ReplyStatus::Partial => State::Partial,
            },
            message: reply.message,
            raw: reply.raw,
            thinking: reply.thinking,
            calls: reply.calls,
        });
        let usage = final_line.as_deref().and_then(crate::reply::wire::usage);
        let mut ended = Ended {
            name: self.name.clone(),
            attempt: self.attempt,
            state: match outcome.state {
                crate::reply::State::Complete => State::Complete,
                crate::reply::State::Partial => State::Partial,
                crate::reply::State::Failed => State::Failed,
            },
            final_line,
            error: error.map(|error| (error.code.as_str(), error.text.into_owned())),
            usage,
            reply,
        };
        let last = match is_stopped {
            true => self.stopped(&mut ended, after_error),
            false => outcome.last,
        };
        (ended, last)
    }

    /// It was stopped, however it ended. What its client is to be told last.
    fn stopped(&self, ended: &mut Ended, after_error: bool) -> Last {
        ended.state = State::Stopped;
        ended.error = None;
        if let Some(reply) = &mut ended.reply {
            reply.status = State::Stopped;
        }
        let now = clock::rfc3339(clock::now()).unwrap_or_default();
        let line = crate::reply::catch_up::receipt(&self.model, &now, "stopped");
        Last::Done { line, after_error }
    }

    /// The most bytes of a line. One object for a whole reply has the completion, escaped, and what comes on
    /// top of it: thinking, tool calls, log probabilities. These can be hundreds of times as long
    /// (`top_logprobs`), so that some factor must do; a turn holds such an object until it is stored.
    fn line_cap(&self) -> usize {
        let (line, completion) = (self.config.max_line_bytes, self.config.max_completion_bytes);
        match self.is_streamed {
            true => line,
            false => line.max(completion.saturating_mul(4)),
        }
    }

    fn log(&self, error: &impl fmt::Display) {
        log::line(format_args!("turn {}: {error}", self.name.turn));
    }
}

impl Question {
    /// The body that asks it, of what the model is sent the prompt alone.
    fn body<'a>(self, prompt: impl IntoIterator<Item = &'a Message>) -> Asking {
        let body = Body::new(&self.model, prompt, self.stream, &self.fields);
        Asking {
            body,
            model: self.model,
            stream: self.stream,
        }
    }
}

/// A question, ready to be sent but for the past.
struct Asking {
    body: Body,
    model: String,
    stream: bool,
}

/// Room for a past of so many bytes, if there is any at present, and the bytes of it that are read at once.
fn room_for_past(max_bytes: usize) -> (Option<Room>, usize) {
    match Room::take(max_bytes) {
        Some(room) => (Some(room), max_bytes),
        None => (None, SMALL),
    }
}

/// What a turn that was to begin comes to.
fn opened(
    conversation: ConversationName,
    begun: Begun,
    attempt: Attempt,
    room: Option<Room>,
    means: Means,
    asking: impl FnOnce(&Started) -> Result<Asking, NotBegun>,
) -> Result<Opened, NotBegun> {
    let max_bytes = means.config.limits.history_bytes;
    let started = match begun {
        Begun::Started(started) => *started,
        Begun::Follow(turn) | Begun::Replay(turn) => {
            return Ok(Opened::Watch(TurnName { conversation, turn }, means));
        }
        Begun::Reused => return Err(NotBegun::KeyReused),
        Begun::Deleted => return Err(NotBegun::Deleted),
        Begun::Limited(limit) => return Err(NotBegun::Limited(limit)),
        Begun::Busy => return Err(NotBegun::Busy),
        Begun::TooLarge => return Err(NotBegun::TooLarge { limit: max_bytes }),
        Begun::Empty => return Err(NotBegun::Empty),
        Begun::Unknown => return Err(NotBegun::Unknown),
        Begun::NoModel => return Err(NotBegun::NoModel),
    };
    let Asking {
        body,
        model,
        stream,
    } = asking(&started)?;
    let body = match started.prompt {
        Some(prompt) => body.with_prompt(prompt),
        None => body,
    };
    if started.past.as_ref().is_some_and(String::is_empty) && body.is_empty() {
        return Err(NotBegun::Empty);
    }
    let turn = started.turn;
    Ok(Opened::Run(Turn {
        name: TurnName { conversation, turn },
        attempt,
        context: started.context,
        max_bytes,
        sending: Some(Sending::new(body, started.past, room)),
        is_streamed: stream,
        model,
        is_restart: false,
        store: means.store,
        config: means.config,
        permit: means.permit,
    }))
}

fn cut_short() -> RelayError {
    RelayError::new(
        Code::OllamaEndedEarly,
        "The reply was cut short when its client left, and what came is kept: post the prompt again with its Idempotency-Key, and the model is asked anew",
    )
}

fn superseded() -> RelayError {
    RelayError::new(
        Code::TurnSuperseded,
        "Another attempt has taken the turn over, and nothing of this one is kept: ask for the turn again",
    )
}

fn deleted() -> RelayError {
    RelayError::new(
        Code::TurnDeleted,
        "The turn was deleted; nothing of it is kept",
    )
}

fn new_attempt(ids: &mut Ids, config: &Config) -> NewAttempt {
    NewAttempt {
        attempt: Attempt::new(Ids::random()),
        reply_id: ids.take(),
        lease: config.timeouts.turn_lease,
        is_exclusive: config.is_exclusive,
        collapses: config.completion_whitespace == Whitespace::Collapse,
        limits: config.owner_limits,
    }
}
