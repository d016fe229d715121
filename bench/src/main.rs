//! The measuring stick: what llmchat adds, beside the least that anything in the middle can add.
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
//! All contestants share one stand-in and its replies. A figure is taken in rounds, each of them in
//! turn in every round, so that a machine that slows down slows all of them; what counts is each
//! one's relation to `direct` or `pass-through` within a round, and the median of the rounds.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`plan`] | how long, how often, how many |
//! | [`contestants`] | what is measured, each a process of its own |
//! | [`load`] | the client: turns, and the moment at which each token came |
//! | [`figures`] | one module a figure |
//! | [`micro`] | the pure path alone: times, instructions, allocations |
//! | [`stats`], [`process`] | percentiles and medians; CPU time and memory from `/proc` |
//! | [`report`] | the results as JSON, a table and a plot |

#![allow(
    unreachable_pub,
    reason = "a program has no outside; `pub` says what a module shows to its siblings"
)]

mod cli;
mod contestants;
mod figures;
mod load;
mod micro;
mod plan;
mod process;
mod report;
mod run;
mod stats;

use anyhow::Result;
use clap::Parser;

use cli::{Arguments, Command};

#[global_allocator]
static ALLOCATOR: micro::allocations::Counting = micro::allocations::Counting;

fn main() -> Result<()> {
    let Arguments { command, options } = Arguments::parse();
    match command {
        None => run::run(&options),
        Some(Command::Micro(options)) => micro::run(&options),
        Some(Command::MicroCase { case, passes }) => micro::run_case(&case, passes),
        Some(Command::Serve { what }) => contestants::serve::run(what),
    }
}
