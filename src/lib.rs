//! An LLM with a memory behind one URL: a Spin HTTP component.
//!
//! `POST /llmchat/` stores a prompt, sends its conversation to Ollama, relays the reply as server-sent
//! events, and stores it. Other routes go on with a turn, stop it, ask for another reply, delete, and read: all from
//! the database, so that any instance of any host can. The modules, from the request to the database:
//!
//! | module | its one job | does not know |
//! | --- | --- | --- |
//! | [`service`] | which route; checks that all share; a failure becomes an answer | SQL, Ollama |
//! | [`api`] | the routes besides the prompt: a turn and a conversation as JSON, stop, deletions, the models, health | SQL, SSE |
//! | [`http`] | paths and bytes in (bounded), answers and event streams out | routes, chat |
//! | [`access`] | whose a request is: keys, and the header of a gateway | routes, WASI |
//! | [`request`] | JSON to [`request::ChatRequest`]; all limits on a request | database, Ollama |
//! | [`idempotency`] | what makes a repeated request the same: its key, and its body's hash | HTTP, database |
//! | [`turn`] | a stored turn: its order and policy; the relay while it lasts, its checkpoints, those who follow it | SQL, JSON, framing |
//! | [`ollama`] | the calls of Ollama's API: headers, bodies, refusals | database, SSE |
//! | [`reply`] | the pure path: bytes to lines to events with ids, the text to store, and what a client has missed of it | sockets, clock, Spin |
//! | [`store`] | all SQL, and with it the order of a conversation; the port and its two adapters, retries, migrations | HTTP, SSE, Ollama |
//!
//! Shared by all: [`conversation`] (the vocabulary, and the JSON of messages), [`error`] (who learns what),
//! [`config`] (the operator's settings), [`upstream`] (where Ollama is), [`secret`] (what is told to nobody else),
//! [`clock`] (deadlines), [`ids`], [`permit`] (what an instance has room for), [`log`], [`spin`] (its SDK).

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is built with private items"
)]

pub mod conversation;
pub mod error;
pub mod idempotency;
pub mod ollama;
pub mod reply;
pub mod request;
pub mod secret;
pub mod service;

mod access;
mod api;
mod clock;
mod config;
mod http;
mod ids;
mod log;
mod permit;
mod spin;
mod store;
mod turn;
mod upstream;

/// The wasm entry point. Elsewhere it would not link: the crate is a `cdylib` and an `rlib`.
#[cfg(target_arch = "wasm32")]
mod component {
    use crate::spin::wasip3;
    use crate::spin::wasip3::http::types::{ErrorCode, Request, Response};

    struct Component;
    wasip3::http::service::export!(Component);

    impl wasip3::exports::http::handler::Guest for Component {
        async fn handle(request: Request) -> Result<Response, ErrorCode> {
            Ok(crate::service::handle(request).await)
        }
    }
}
