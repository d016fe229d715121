//! A stored turn from its prompt to its reply: order and policy.
//!
//! 1. **Begin**: the prompt is stored and the conversation read, in one step. Where the operator wants one
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
use crate::conversation::{AppId, ReplyStatus};
use crate::error::{Code, RelayError};
use crate::http::EventStream;
use crate::ids::Ids;
use crate::log;
use crate::ollama::{body, call};
use crate::permit::Permit;
use crate::reply::{Last, Outcome, Pipeline};
use crate::request::ChatRequest;
use crate::store::{Begun, Database, NewTurn, Reply, StoreError, TurnStart};

mod lease;
mod relay;

use lease::Lease;
use relay::Relay;

/// Why a turn did not begin. Nothing was sent to Ollama.
#[derive(Debug, Error)]
pub(crate) enum NotBegun {
    /// Another turn of the conversation is running.
    #[error("the conversation is busy")]
    Busy,
    /// Neither the prompt nor the conversation has a message.
    #[error("there is nothing to send")]
    Empty,
    /// The prompt could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A turn whose prompt is stored.
pub(crate) struct Turn {
    id: Uuid,
    reply_id: Uuid,
    app_id: AppId,
    start: TurnStart,
    /// What Ollama is to be sent.
    body: Vec<u8>,
    store: Database,
    /// Where turns of a conversation may not overlap.
    lease: Option<Lease>,
    config: Rc<Config>,
    _permit: Permit,
}

impl Turn {
    /// Stores the prompt and reads the conversation.
    pub(crate) async fn begin(
        request: ChatRequest,
        store: Database,
        config: Rc<Config>,
        ticker: &mut Ticker,
        permit: Permit,
    ) -> Result<Self, NotBegun> {
        let mut ids = Ids::draw();
        let new = NewTurn::new(&mut ids, request.app_id, request.messages, config.lease);
        let mut messages = body::begin(&request.model);
        let lease = config.lease.map(|length| Lease {
            store: store.clone(),
            app_id: new.app_id.clone(),
            turn: new.id,
            length,
        });
        let limit = config.timeouts.database;
        let begun = store
            .retry(ticker, limit, async |store| {
                messages.clear();
                store.begin_turn(&new, &mut messages).await
            })
            .await;
        let start = match begun {
            Ok(Begun::Started(start)) => start,
            Ok(Begun::Busy) => return Err(NotBegun::Busy),
            Err(error) => {
                // It may have been taken before something failed.
                if let Some(lease) = lease {
                    lease.end_later();
                }
                return Err(error.into());
            }
        };
        if messages.is_empty() {
            if let Some(lease) = lease {
                lease.end().await;
            }
            return Err(NotBegun::Empty);
        }
        Ok(Self {
            id: new.id,
            reply_id: ids.take(),
            app_id: new.app_id,
            start,
            body: body::finish(messages, request.stream, &request.fields),
            store,
            lease,
            config,
            _permit: permit,
        })
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
        let mut pipeline = Pipeline::new(
            self.config.max_line_bytes,
            self.config.max_completion_bytes,
            self.config.completion_whitespace,
        );
        let config = self.config.clone();
        let body = std::mem::take(&mut self.body);
        let sending = call::send(&config.ollama_url, body, &config.timeouts);
        let end = relay.run(&mut pipeline, sending).await;
        let Outcome { reply, last } = pipeline.end(end);
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
                    turn: self.id,
                    start: self.start,
                    app_id: self.app_id.clone(),
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
        log::line(format_args!("turn {}: {error}", self.id));
    }
}
