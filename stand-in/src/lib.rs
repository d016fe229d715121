//! A stand-in for Ollama: its wire format to the byte, and no model.
//!
//! It has three users: people who try llmchat without a model and the benchmark take its built-in
//! reply ([`Server::start`]); tests decide what is sent and when ([`Server::scripted`]).
//!
//! | module | what it does |
//! | --- | --- |
//! | `server` | listens, holds the scripts, keeps the requests for the test |
//! | `connection` | one connection: reads requests, writes answers, notices that the client left |
//! | `http` | as much of HTTP/1.1 as that takes |
//! | `ollama` | Ollama's routes and the built-in reply |
//! | [`wire`] | the bytes of Ollama's lines |
//! | `script` | what a test makes it answer: [`Script`], [`Gate`] |
//! | `exchange` | what a test sees of a request and its answer: [`Exchange`] |
//! | `unreachable` | addresses at which no server answers: [`Refused`], [`Unresponsive`] |

mod connection;
mod exchange;
mod http;
mod ollama;
mod script;
mod server;
mod unreachable;
pub mod wire;

pub use exchange::{Ending, Exchange, Request};
pub use script::{Gate, Script};
pub use server::{Config, Server};
pub use unreachable::{Refused, Unresponsive};
