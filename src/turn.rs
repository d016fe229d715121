//! One chat turn from start to end: order and policy.
//!
//! 1. The request is read and checked; nothing is stored for one that is refused.
//! 2. The prompt is stored and the conversation read, in one step (or refused, where the operator
//!    wants one turn at a time in a conversation and one is running). From here on the turn exists:
//!    the head of the answer leaves, and whatever fails is told in the stream.
//! 3. Ollama is asked; its lines leave as events as they come. In silence a comment line leaves
//!    now and then, which is also how a client that has left is noticed.
//! 4. The reply is stored, and only then the last event leaves: `done` is a receipt.
//!
//! The task outlives its client: a reply that nobody reads any more is finished and stored too
//! (or, if the operator so wishes, cut short and stored as far as it came).

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use spin_sdk::wasip3::http::types::{Request, Response};
use spin_sdk::wasip3::spawn;
use uuid::Uuid;

use crate::clock::{self, Ticker};
use crate::config::{self, Config, OnDisconnect};
use crate::conversation::{AppId, ReplyStatus};
use crate::error::{Code, Rejection, RelayError};
use crate::http::{self, EventStream};
use crate::ids::Ids;
use crate::instance::Place;
use crate::log;
use crate::ndjson::More;
use crate::ollama::body::ChatBody;
use crate::ollama::call::{self, Answer, Piece};
use crate::ollama::wire;
use crate::pipeline::{self, Pipeline};
use crate::request::{ChatRequest, InvalidRequest};
use crate::sse::COMMENT;
use crate::store::postgres::Postgres;
use crate::store::sqlite::Sqlite;
use crate::store::{Begun, Database, NewTurn, Reply, Store, StoreError, TurnStart, retry};
use crate::transcode::{End, Last, Outcome};

/// Bytes read from Ollama at once: many lines where it is fast, one where it is not.
const CHUNK: usize = 16 * 1024;
/// Bytes read of the body of a refusal.
const REFUSAL_MAX: usize = 64 * 1024;

/// Answers a request: with a stream of events, or with a status and a JSON error.
pub async fn handle(request: Request) -> Response {
    match begin(request).await {
        Ok(response) => response,
        Err(rejection) => {
            if !rejection.detail.is_empty() {
                log::line(format_args!(
                    "{}: {} {}",
                    rejection.status, rejection.error, rejection.detail
                ));
            }
            http::rejection(&rejection)
        }
    }
}

async fn begin(request: Request) -> Result<Response, Rejection> {
    http::check_route(&request)?;
    let config = config::load().await?;
    let place = Place::take(config.max_concurrent_turns);
    let mut ticker = Ticker::new(config.timeouts.tick());
    let stall = config.timeouts.client_stall;
    let body = http::read_body(request, config.max_body_bytes, &mut ticker, stall).await?;
    let request = ChatRequest::parse(&body)?;
    drop(body);
    if request.messages.len() > config.max_messages {
        let why = format_args!(
            "{} of them, the operator's limit is {} (max_messages)",
            request.messages.len(),
            config.max_messages
        );
        return Err(InvalidRequest::of("messages", why).into());
    }
    let store = match &config.database_url {
        Some(url) => Database::Postgres(Postgres::new(url.clone())),
        None => Database::Sqlite(Sqlite),
    };
    start(store, request, config, place, ticker).await
}

/// Stores the prompt and sets the rest of the turn going.
async fn start(
    store: Database,
    request: ChatRequest,
    config: Rc<Config>,
    place: Place,
    mut ticker: Ticker,
) -> Result<Response, Rejection> {
    let mut ids = Ids::draw();
    let new = NewTurn::new(&mut ids, request.app_id, request.messages, config.lease);
    let mut history = ChatBody::new(&request.model);
    let limit = config.timeouts.database;
    let start = match retry::begin_turn(&store, &new, &mut history, &mut ticker, limit).await {
        Ok(Begun::Started(start)) => start,
        Err(error) => {
            if new.lease.is_some() {
                // It may have been taken before something failed; if this fails too, it runs out.
                spawn(async move {
                    let _ = retry::end_lease(&store, &new.app_id, new.id, &mut ticker, limit).await;
                });
            }
            return Err(error.into());
        }
        Ok(Begun::Busy) => {
            return Err(Rejection::new(
                409,
                "A turn of this conversation is running: send the next prompt when it has ended.",
            ));
        }
    };
    if history.is_empty() {
        if new.lease.is_some() {
            retry::end_lease(&store, &new.app_id, new.id, &mut ticker, limit).await?;
        }
        let why = "nothing to send: the array is empty, and so is the conversation";
        return Err(InvalidRequest::of("messages", why).into());
    }
    let body = history.finish(request.stream, &request.fields);
    let (response, client) = http::event_stream();
    let turn = Turn {
        id: new.id,
        reply_id: ids.take(),
        app_id: new.app_id,
        start,
        relay: Relay {
            client,
            last_sent: ticker.now(),
            ticker,
            events: Vec::new(),
            config,
        },
        store,
        _place: place,
    };
    spawn(turn.run(body));
    Ok(response)
}

/// A turn whose prompt is stored.
struct Turn {
    id: Uuid,
    reply_id: Uuid,
    app_id: AppId,
    start: TurnStart,
    relay: Relay,
    store: Database,
    _place: Place,
}

impl Turn {
    async fn run(self, body: Vec<u8>) {
        let (store, app_id, id) = (self.store.clone(), self.app_id.clone(), self.id);
        let lease = self.relay.config.lease;
        let running = self.relay_and_store(body);
        match lease {
            None => running.await,
            Some(lease) => clock::alongside(running, renew(&store, &app_id, id, lease)).await,
        }
    }

    async fn relay_and_store(mut self, body: Vec<u8>) {
        let config = self.relay.config.clone();
        let mut pipeline = Pipeline::new(
            config.max_line_bytes,
            config.max_completion_bytes,
            config.completion_whitespace,
        );
        let end = self.relay.run(&mut pipeline, body).await;
        let Outcome { reply, last } = pipeline.end(end);
        if let Last::Error(error) = &last {
            self.log(error);
        }
        let not_stored = self.store_reply(reply, &config).await.err().map(|error| {
            self.log(&error);
            RelayError::new(
                Code::DatabaseFailed,
                format!(
                    "It is not certain that the reply was stored: the next prompt may not have it as context. {}",
                    error.for_client()
                ),
            )
        });
        self.relay.finish(&last, not_stored.as_ref()).await;
    }

    /// Stores the reply, if there is one, and ends the turn's lease.
    async fn store_reply(
        &mut self,
        reply: Option<(String, ReplyStatus)>,
        config: &Config,
    ) -> Result<(), StoreError> {
        let ticker = &mut self.relay.ticker;
        let limit = config.timeouts.database;
        let is_leased = config.lease.is_some();
        if let Some((text, status)) = reply {
            let reply = Reply {
                id: self.reply_id,
                turn: self.id,
                start: self.start,
                app_id: self.app_id.clone(),
                text,
                status,
                leased: is_leased,
            };
            return retry::commit_reply(&self.store, &reply, ticker, limit).await;
        }
        if is_leased
            && let Err(error) =
                retry::end_lease(&self.store, &self.app_id, self.id, ticker, limit).await
        {
            // It runs out by itself.
            self.log(&error);
        }
        Ok(())
    }

    fn log(&self, error: &impl std::fmt::Display) {
        log::line(format_args!("turn {}: {error}", self.id));
    }
}

/// Renews a turn's lease for as long as it runs, well before it would run out.
async fn renew(store: &Database, app_id: &AppId, turn: Uuid, lease: Duration) {
    loop {
        clock::sleep(lease / 4).await;
        let mut ticker = Ticker::new(lease / 4);
        let renewing = store.renew_lease(app_id, turn, lease);
        let renewed = ticker.timeout_at(Duration::ZERO, renewing).await;
        if let Some(Err(error)) = renewed {
            log::line(format_args!(
                "turn {turn}: the lease was not renewed: {error}"
            ));
        }
    }
}

/// From Ollama to the client.
struct Relay {
    client: EventStream,
    ticker: Ticker,
    /// When the client was last sent something, by the ticker.
    last_sent: Duration,
    /// Framed events on their way to the client; the buffer is used again and again.
    events: Vec<u8>,
    config: Rc<Config>,
}

impl Relay {
    /// Relays the reply to `body`, up to its end or its failure.
    async fn run(&mut self, pipeline: &mut Pipeline, body: Vec<u8>) -> End {
        match self.relay(pipeline, body).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn relay(&mut self, pipeline: &mut Pipeline, body: Vec<u8>) -> Result<(), End> {
        let config = self.config.clone();
        let timeouts = &config.timeouts;
        let sending = call::send(&config.ollama_url, body, timeouts);
        let mut answer = self
            .wait(sending, timeouts.ollama_first_byte, call::no_first_byte)
            .await?
            .map_err(End::Failed)?;
        if answer.status != 200 {
            return Err(End::Failed(self.refusal(answer).await?));
        }

        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let reading = answer.read(chunk);
            let (bytes, is_last) =
                match self.wait(reading, timeouts.ollama_idle, call::idle).await? {
                    Piece::Bytes(bytes) => (bytes, false),
                    Piece::Last(bytes) => (bytes, true),
                };
            let more = pipeline.feed(&bytes, &mut self.events);
            self.send().await?;
            if more == More::No {
                return Ok(());
            }
            if is_last {
                break;
            }
            chunk = bytes;
            chunk.clear();
        }

        self.wait(answer.end(), timeouts.ollama_idle, call::idle)
            .await?
            .map_err(End::Failed)?;
        // Only after a proper end is the rest a line; otherwise it is a piece of one.
        pipeline.finish(&mut self.events);
        self.send().await
    }

    /// Reads a refusal: any status but 200.
    async fn refusal(&mut self, mut answer: Answer) -> Result<RelayError, End> {
        let status = answer.status;
        let idle = self.config.timeouts.ollama_idle;
        let mut body = Vec::with_capacity(1024);
        while body.len() < REFUSAL_MAX {
            if body.len() == body.capacity() {
                body.reserve(1024);
            }
            match self.wait(answer.read(body), idle, call::idle).await? {
                Piece::Bytes(bytes) => body = bytes,
                Piece::Last(bytes) => {
                    body = bytes;
                    break;
                }
            }
        }
        let text = match wire::refusal_text(&body) {
            Some(words) => format!("Ollama refused the request with status {status}: {words}"),
            None => format!("Ollama refused the request with status {status} and gave no reason"),
        };
        Ok(RelayError::new(Code::OllamaRefused, text))
    }

    /// Waits for Ollama, for `limit` at most, with a comment line now and then.
    async fn wait<T>(
        &mut self,
        work: impl Future<Output = T>,
        limit: Duration,
        too_long: fn() -> RelayError,
    ) -> Result<T, End> {
        let mut work = pin!(work);
        let since = self.ticker.now();
        loop {
            let done = self.ticker.or_tick(work.as_mut()).await;
            let timeouts = self.config.timeouts;
            if self.ticker.is_past(Duration::ZERO, timeouts.turn) {
                return Err(End::Failed(RelayError::new(
                    Code::TurnTimeout,
                    "the turn took longer than the operator allows (turn_timeout); what came of the reply is kept",
                )));
            }
            if let Some(value) = done {
                return Ok(value);
            }
            if self.ticker.is_past(since, limit) {
                return Err(End::Failed(too_long()));
            }
            if self.ticker.now().saturating_sub(self.last_sent) >= timeouts.comment_interval {
                self.events.extend_from_slice(COMMENT);
                self.send().await?;
            }
        }
    }

    /// Sends the events that are waiting. Fails only where a client that has left is reason
    /// enough to stop.
    async fn send(&mut self) -> Result<(), End> {
        if !self.events.is_empty() {
            let events = std::mem::take(&mut self.events);
            let stall = self.config.timeouts.client_stall;
            self.events = self.client.send(events, &mut self.ticker, stall).await;
            self.last_sent = self.ticker.now();
        }
        if !self.client.is_open() && self.config.on_disconnect == OnDisconnect::Cancel {
            return Err(End::ClientLeft);
        }
        Ok(())
    }

    /// Says the last words and ends the client's stream.
    async fn finish(mut self, last: &Last, not_stored: Option<&RelayError>) {
        pipeline::last_words(last, not_stored, &mut self.events);
        if self.send().await.is_ok() {
            self.client.close().await;
        }
    }
}
