//! A small host for one Spin HTTP component, on wasmtime alone.
//!
//! It is for development, for tests, and for people who have no Spin: one component, on one machine.
//! It reads the same `spin.toml`, build profiles included, takes the same variables, enforces the same
//! `allowed_outbound_hosts` and implements the same interfaces, under the names of WASI 0.3.0 and of its release
//! candidate. It knows Spin and WASI, and nothing
//! of what the component does. Everything beyond that is Spin.
//!
//! Where it can, it does better than Spin: TCP_NODELAY on both sides; statements of PostgreSQL stay
//! prepared; a pool of database clients grows slowly, and cleaning a client shares the round trip of
//! its next statement; SQLite's writers queue up instead of polling; the head of an outbound request
//! is sent with its body, chunks that arrived together are read as one, and dropping a response
//! closes its connection at once; threads share nothing, one for each core; a stop waits for open
//! requests and the work that they started; a response whose instance failed breaks off instead of
//! looking complete.
//!
//! What it does not have: several components, triggers other than HTTP, named segments in routes,
//! component dependencies, static files, key-value stores, `spin:llm` and the other interfaces of
//! Spin, chaining to `self`, decimals, ranges and intervals in PostgreSQL, a runtime configuration,
//! TLS towards clients, HTTP/2, telemetry.
//!
//! ```text
//! manifest ─ build ──▶ component ──▶ server ──▶ one instance for many requests
//!   spin.toml           compiled,     accept,       │
//!                       linked        limits,       ├─ variables
//!                                     drain         ├─ outbound   HTTP, allowed hosts
//!                                                   ├─ postgres   spin:postgres, pooled
//!                                                   └─ sqlite     spin:sqlite
//! ```
//!
//! | module | its one job |
//! | --- | --- |
//! | `manifest` | what `spin.toml` says about the component; its build command |
//! | `component` | engine, compilation and its cache on disk, linker |
//! | `server` | connections, requests, instances, and how they end |
//! | [`runtime`] | the threads that all of this runs on |
//! | `output` | where the component's stdout and stderr go |
//! | [`variables`], `outbound`, `postgres`, `sqlite` | one capability each |
//! | `instance` | the data of one store: those capabilities together |
//! | `rows` | the rows of a query as a stream and its outcome as a future |

mod component;
mod instance;
mod manifest;
mod outbound;
mod output;
mod postgres;
mod rows;
pub mod runtime;
mod server;
mod sqlite;
pub mod variables;

pub use component::Program;
pub use manifest::Manifest;
pub use outbound::allowed::may_call;
pub use output::Output;
pub use server::{Host, InstanceLimits, Options, Remains, ResponseLimits};
pub use sqlite::sqlite_file;
pub use variables::Variables;
