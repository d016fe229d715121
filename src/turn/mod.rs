//! A stored turn from its prompt to its reply: order and policy.
//!
//! 1. **Begin**: the prompt is stored and what fits of the conversation read, in one step (unless that is large
//!    and there is no room for it: then it is read later). Where the operator wants one
//!    turn at a time in a conversation and another is running, nothing is stored. A turn that has begun is
//!    answered by a stream, and from then on every failure is reported in it.
//! 2. **Relay**: Ollama is sent the conversation, and its lines reach the client as they arrive
//!    (see [`relay`]).
//! 3. **Commit**: the reply is stored, and only then is the last event sent: `done` is a receipt.
//!
//! A turn outlives its client: a reply that nobody reads any more is finished and stored too (or, if the
//! operator so wishes, cut short and stored as far as it has come).

use std::fmt;
use std::rc::Rc;

use thiserror::Error;
use uuid::Uuid;

use crate::clock::{self, Ticker};
use crate::config::Config;
use crate::conversation::{Context, ReplyStatus};
use crate::error::{Code, RelayError};
use crate::http::EventStream;
use crate::ids::Ids;
use crate::log;
use crate::ollama::body::Body;
use crate::ollama::call;
use crate::permit::{Permit, Room};
use crate::reply::{Caps, Last, Outcome, Pipeline};
use crate::request::ChatRequest;
use crate::store::{Begun, Database, NewTurn, Reply, Started, StoreError, TurnStart, Window};

mod lease;
mod relay;
mod sending;

use lease::Lease;
use relay::Relay;
use sending::Sending;

/// Bytes of a past that is read where there is no room at present.
const SMALL: usize = 64 * 1024;

/// Why a turn did not begin. Nothing was sent to Ollama.
#[derive(Debug, Error)]
pub(crate) enum NotBegun {
    /// Another turn of the conversation is running.
    #[error("the conversation is busy")]
    Busy,
    /// Neither the prompt nor the conversation has a message.
    #[error("there is nothing to send")]
    Empty,
    /// What may not be left out is more than the model is sent.
    #[error("the context is too large")]
    TooLarge {
        /// Bytes that the model is sent.
        limit: usize,
    },
    /// The prompt could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A turn whose prompt is stored.
pub(crate) struct Turn {
    window: Window,
    reply_id: Uuid,
    start: TurnStart,
    context: Context,
    /// What Ollama is to be sent.
    sending: Option<Sending>,
    /// Ollama is asked for a line a token, not for one object.
    is_streamed: bool,
    store: Database,
    /// Where turns of a conversation may not overlap.
    lease: Option<Lease>,
    config: Rc<Config>,
    permit: Permit,
}

impl Turn {
    /// Stores the prompt and reads the conversation.
    pub(crate) async fn begin(
        mut request: ChatRequest,
        store: Database,
        config: Rc<Config>,
        ticker: &mut Ticker,
        permit: Permit,
    ) -> Result<Self, NotBegun> {
        let mut ids = Ids::draw();
        let max_bytes = config.limits.history_bytes;
        let window = Window {
            turn: ids.take(),
            app_id: request.app_id.clone(),
            prompt_bytes: request.bytes(),
            stands_alone: request.stands_alone(),
            max_bytes,
        };
        let prompt = std::mem::take(&mut request.messages);
        let new = NewTurn::new(&mut ids, window, prompt, config.lease);
        let lease = config.lease.map(|length| Lease {
            store: store.clone(),
            app_id: request.app_id,
            turn: new.window.turn,
            length,
        });
        let room = Room::take(max_bytes);
        let at_once = if room.is_some() { max_bytes } else { SMALL };
        let limit = config.timeouts.database;
        let begin = async |store: &Database| store.begin_turn(&new, at_once).await;
        let begun = match store.retry(ticker, limit, begin).await {
            Ok(begun) => begun,
            Err(error) => {
                // It may have been taken before something failed.
                if let Some(lease) = lease {
                    lease.end_later();
                }
                return Err(error.into());
            }
        };
        let prompt = new.prompt.iter().map(|(_, message)| message);
        let body = Body::new(&request.model, prompt, request.stream, &request.fields);
        let refused = match begun {
            Begun::Busy => return Err(NotBegun::Busy),
            Begun::TooLarge => NotBegun::TooLarge { limit: max_bytes },
            Begun::Started(Started {
                past: Some(past), ..
            }) if past.is_empty() && body.is_empty() => NotBegun::Empty,
            Begun::Started(Started {
                start,
                context,
                past,
            }) => {
                return Ok(Self {
                    window: new.window,
                    reply_id: ids.take(),
                    start,
                    context,
                    sending: Some(Sending::new(body, past, room)),
                    is_streamed: request.stream,
                    store,
                    lease,
                    config,
                    permit,
                });
            }
        };
        if let Some(lease) = lease {
            lease.end().await;
        }
        Err(refused)
    }

    /// What the model is sent of the conversation.
    pub(crate) fn context(&self) -> Context {
        self.context
    }

    /// Runs the turn to its end.
    pub(crate) async fn run(self, client: EventStream, ticker: Ticker) {
        let relay = Relay::new(client, ticker, self.config.clone());
        let Some(lease) = self.lease.clone() else {
            return self.relay_and_commit(relay).await;
        };
        clock::alongside(self.relay_and_commit(relay), lease.renew()).await;
    }

    async fn relay_and_commit(mut self, mut relay: Relay) {
        let caps = Caps {
            line: self.line_cap(),
            completion: self.config.max_completion_bytes,
            stream: self.config.max_stream_bytes,
        };
        let mut pipeline = Pipeline::new(caps, self.config.completion_whitespace);
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
            let answer = call::send(&config.ollama_url, body, room, &config.timeouts).await;
            self.permit.resize(0);
            answer
        };
        let end = relay.run(&mut pipeline, sending).await;
        let Outcome { reply, last, told } = pipeline.end(end);
        // Not once a line: there can be thousands. The number comes first, since a long line is cut.
        for (error, count) in &told {
            self.log(&format_args!("{count} × {error}"));
        }
        if let Last::Error(error) = &last {
            self.log(error);
        }
        let committed = self.commit(reply, &mut relay.ticker).await;
        let not_stored = committed.err().map(|error| {
            self.log(&error);
            RelayError::new(
                Code::DatabaseFailed,
                format!(
                    "It is not certain that the reply was stored: the next prompt may not have it as context. {}",
                    error.for_client()
                ),
            )
        });
        relay.finish(&last, not_stored.as_ref()).await;
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

    /// Stores the reply, if there is one, and ends the turn's lease.
    async fn commit(
        &mut self,
        reply: Option<(String, ReplyStatus)>,
        ticker: &mut Ticker,
    ) -> Result<(), StoreError> {
        let stored = match reply {
            None => Ok(false),
            Some((text, status)) => {
                let reply = Reply {
                    id: self.reply_id,
                    turn: self.window.turn,
                    start: self.start,
                    app_id: self.window.app_id.clone(),
                    text,
                    status,
                    leased: self.lease.is_some(),
                };
                let commit = async |store: &Database| store.commit_reply(&reply).await;
                let limit = self.config.timeouts.database;
                self.store.retry(ticker, limit, commit).await
            }
        };
        match (self.lease.take(), &stored) {
            (None, _) | (_, Ok(true)) => {}
            (Some(lease), Ok(false)) => lease.end().await,
            (Some(lease), Err(_)) => lease.end_later(),
        }
        stored.map(drop)
    }

    fn log(&self, error: &impl fmt::Display) {
        log::line(format_args!("turn {}: {error}", self.window.turn));
    }
}
