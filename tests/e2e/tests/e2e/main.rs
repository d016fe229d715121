//! The compiled component in a host, from the client's socket to the database's rows: our host, or the Spin
//! that `LLMCHAT_SPIN` names.
//!
//! Each test has its own program, database and Ollama; where the store matters it runs on both. Tests
//! wait for conditions, and let time pass only where time is what they are about.

#![allow(
    clippy::indexing_slicing,
    reason = "a test that is out of bounds fails, as it should"
)]

mod again;
mod bad_input;
mod browsers;
mod busy;
mod clients;
mod context;
mod conversation;
mod delete;
mod disk;
mod docs;
mod faults;
mod guarded;
mod handover;
mod health;
#[cfg(target_os = "linux")]
mod killed;
mod limits;
mod models;
mod native;
mod neighbours;
mod older;
mod ollama;
mod origins;
mod orphans;
mod owners;
mod page;
mod pooler;
mod proxies;
mod races;
mod rates;
mod relay;
mod schema;
mod secrets;
mod turns;
