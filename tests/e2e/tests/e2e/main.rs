//! The compiled component in the host, from the client's socket to the database's rows.
//!
//! Each test has a program, a database and an Ollama of its own; where the store matters it runs
//! on both. All wait for conditions, none for time to pass, unless time is what it is about.

#![allow(
    clippy::indexing_slicing,
    reason = "a test that is out of bounds fails, as it should"
)]

mod bad_input;
mod busy;
mod clients;
mod conversation;
mod faults;
mod limits;
mod ollama;
mod relay;
mod schema;
mod secrets;
mod stopping;
mod threads;
