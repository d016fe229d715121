//! A small host for one Spin HTTP component: what `spin up` does, on wasmtime alone.
//!
//! It reads the same `spin.toml`, takes the same variables, enforces the same
//! `allowed_outbound_hosts` and offers the same interfaces, so that a component can run
//! and be tested where there is no Spin. It knows Spin and WASI, and nothing of what the
//! component does.
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
//! | [`manifest`] | what `spin.toml` says of the component; its build command |
//! | [`component`] | engine, compilation and its cache on disk, the linker |
//! | [`server`] | connections, requests, instances, and how they end |
//! | [`runtime`] | the threads that it all runs on |
//! | [`output`] | where the component's stdout and stderr go |
//! | `variables`, `outbound`, `postgres`, `sqlite` | one capability each |
//! | `instance` | the data of one store: those capabilities together |
//! | `rows` | a query's rows as a stream and its outcome as a future |

pub mod component;
mod instance;
pub mod manifest;
mod outbound;
pub mod output;
mod postgres;
mod rows;
pub mod runtime;
pub mod server;
mod sqlite;
pub mod variables;

pub use component::Program;
pub use manifest::Manifest;
pub use output::Output;
pub use server::{Host, InstanceLimits, Options, Remains};
pub use sqlite::default_path as sqlite_file;
pub use variables::Variables;
