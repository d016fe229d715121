//! What llmchat adds to a model's reply, beside the least that any server in the middle adds.
//!
//! ```text
//! cargo run --release -p llmchat-bench
//!
//!  load ──▶ direct ─────────────────────────▶ stand-in for Ollama
//!  (this    pass-through (bytes, no parsing) ─▶    (a process)
//!  process) llmchat on SQLite, on PostgreSQL ─▶
//!           any other server (--against) ─────▶
//! ```
//!
//! All servers share one stand-in and its replies. A figure is measured in rounds, each of which
//! measures every server once, so that a machine that slows down slows all of them. What counts
//! is the difference from `direct`, or the ratio to `pass-through`, within a round, and the median
//! over the rounds.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`run`] | one run: its configuration, its rounds, the failures on the way |
//! | [`servers`] | what is measured: child processes, and what they run on |
//! | [`load`] | the client: prompts, and when each token arrived |
//! | [`figures`] | one module for each group of figures, with the goals |
//! | [`report`] | figures and goals, as Markdown tables and as JSON |
//! | [`stats`], [`process`] | percentiles and medians; CPU time and memory from `/proc` |
//!
//! The pure path alone, which runs once a token, has micro-benchmarks in `benches/reply.rs`.

#![allow(
    unreachable_pub,
    reason = "nothing outside uses a program's items; `pub` is what a module shows its siblings"
)]

mod cli;
mod figures;
mod load;
mod process;
mod report;
mod run;
mod servers;
mod stats;

use anyhow::Result;
use clap::Parser;

use cli::Arguments;

fn main() -> Result<()> {
    let Arguments { serve, options } = Arguments::parse();
    match serve {
        None => run::run(&options),
        Some(serve) => servers::serve::run(serve),
    }
}
