//! An LLM with a memory behind one URL: a Spin HTTP component.
//!
//! `POST /llmchat/` stores a prompt, sends the conversation that it belongs to to Ollama, relays
//! the reply as server-sent events, and stores it. Data goes one way:
//!
//! | step | module | takes | gives |
//! | --- | --- | --- | --- |
//! | 1 | [`http`], [`request`] | an HTTP request | [`request::ChatRequest`] |
//! | 2 | [`store`] | the prompt | the conversation, as [`ollama::body::ChatBody`] |
//! | 3 | [`ollama`] | the body of a chat request | chunks of bytes |
//! | 4 | [`ndjson`] | chunks | lines |
//! | 5 | [`transcode`] | lines, read by [`ollama::wire`] | events, and the growing reply |
//! | 6 | [`sse`] | events | bytes for the client |
//! | 7 | [`store`] | the reply | the right to send the last event |
//!
//! [`turn`] puts them in order, [`pipeline`] is steps 4 to 6 in one. [`conversation`] holds the words they share, [`config`] the
//! operator's settings, [`error`] who is told what, [`ids`] the ids of turns and rows, [`clock`] the bounds on waits,
//! [`instance`] the bound on turns, [`log`] what the operator reads.

pub mod clock;
pub mod config;
pub mod conversation;
pub mod error;
pub mod http;
pub mod ids;
pub mod instance;
pub mod log;
pub mod ndjson;
pub mod ollama;
pub mod pipeline;
pub mod request;
pub mod sse;
pub mod store;
pub mod transcode;
pub mod turn;

/// The wasm entry point. Elsewhere it would not link: the crate is a `cdylib` and an `rlib`.
#[cfg(target_arch = "wasm32")]
mod component {
    use spin_sdk::wasip3;
    use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};

    struct Component;
    wasip3::http::service::export!(Component);

    impl wasip3::exports::http::handler::Guest for Component {
        async fn handle(request: Request) -> Result<Response, ErrorCode> {
            Ok(crate::turn::handle(request).await)
        }
    }
}
