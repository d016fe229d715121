//! The relay of one reply: Ollama's chunks go through the [`Pipeline`] and leave as events, all that one
//! chunk completes in one write. In silence a comment line is sent now and then, which is also how a
//! client that has left is noticed.
//!
//! Decides what ends the waiting; what the bytes mean is [`crate::reply`]'s.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;

use crate::clock::{Deadline, Ticker};
use crate::config::{Config, OnDisconnect};
use crate::error::{Code, RelayError};
use crate::http::EventStream;
use crate::ollama::call::{self, Answer, Piece};
use crate::ollama::refusal;
use crate::reply::sse::COMMENT;
use crate::reply::{self, End, Last, Pipeline};

/// Bytes read from Ollama at once: many lines while it is fast, one while it is not.
const CHUNK: usize = 16 * 1024;
/// Bytes read of the body of a refusal.
const REFUSAL_MAX: usize = 64 * 1024;

/// The way from Ollama to the client.
pub(super) struct Relay {
    client: EventStream,
    pub(super) ticker: Ticker,
    config: Rc<Config>,
    /// When the turn must have ended.
    turn_deadline: Deadline,
    /// When the client is sent a comment, unless an event is sent before.
    comment_due: Deadline,
    /// Framed events to be sent; the buffer is reused.
    events: Vec<u8>,
}

impl Relay {
    pub(super) fn new(client: EventStream, ticker: Ticker, config: Rc<Config>) -> Self {
        Self {
            client,
            turn_deadline: ticker.deadline_from_start(config.timeouts.turn),
            comment_due: ticker.about(config.timeouts.comment_interval),
            ticker,
            config,
            events: Vec::new(),
        }
    }

    /// Relays the reply to `body` until it ends or fails.
    pub(super) async fn run(&mut self, pipeline: &mut Pipeline, body: Vec<u8>) -> End {
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
        if answer.status != StatusCode::OK {
            return Err(self.refused(answer).await?);
        }

        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let reading = answer.read(chunk);
            let (bytes, is_last) =
                match self.wait(reading, timeouts.ollama_idle, call::idle).await? {
                    Piece::Bytes(bytes) => (bytes, false),
                    Piece::Last(bytes) => (bytes, true),
                };
            let flow = pipeline.feed(&bytes, &mut self.events);
            self.send().await?;
            if flow.is_break() {
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
        // Only after a clean end is the rest a line; otherwise it is a fragment of one.
        pipeline.finish(&mut self.events);
        self.send().await
    }

    /// Reads the body of an answer with another status than 200.
    async fn refused(&mut self, mut answer: Answer) -> Result<End, End> {
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
        Ok(End::Failed(refusal::refused(answer.status, &body)))
    }

    /// Waits for Ollama, for `limit` at most, and sends comments meanwhile.
    async fn wait<T>(
        &mut self,
        work: impl Future<Output = T>,
        limit: Duration,
        too_long: fn() -> RelayError,
    ) -> Result<T, End> {
        let mut work = pin!(work);
        let deadline = self.ticker.deadline(limit);
        loop {
            let output = self.ticker.or_tick(work.as_mut()).await;
            if self.ticker.is_past(self.turn_deadline) {
                return Err(End::Failed(RelayError::new(
                    Code::TurnTimeout,
                    "the turn took longer than the operator allows (turn_timeout); what came of the reply is kept",
                )));
            }
            if let Some(output) = output {
                return Ok(output);
            }
            if self.ticker.is_past(deadline) {
                return Err(End::Failed(too_long()));
            }
            if self.ticker.is_past(self.comment_due) {
                self.events.extend_from_slice(COMMENT);
                self.send().await?;
            }
        }
    }

    /// Sends the pending events. Fails only where a client that has left ends the turn.
    async fn send(&mut self) -> Result<(), End> {
        let timeouts = &self.config.timeouts;
        if !self.events.is_empty() {
            let stall = timeouts.client_stall;
            self.client
                .send(&mut self.events, &mut self.ticker, stall)
                .await;
            self.comment_due = self.ticker.about(timeouts.comment_interval);
        }
        if !self.client.is_open() && self.config.on_disconnect == OnDisconnect::Cancel {
            return Err(End::ClientLeft);
        }
        Ok(())
    }

    /// Sends the last events and ends the client's stream.
    pub(super) async fn finish(mut self, last: &Last, not_stored: Option<&RelayError>) {
        reply::write_last(last, not_stored, &mut self.events);
        if self.send().await.is_ok() {
            self.client.close().await;
        }
    }
}
