//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser};

use crate::figures::Part;
use crate::servers::serve::Serve;

/// Measures llmchat beside its model alone and a proxy that copies bytes.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub serve: Option<Serve>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct Options {
    /// A smoke run: every figure, in less than a minute, from few samples.
    #[arg(long)]
    pub quick: bool,

    /// Another server to compare, which uses `--stand-in` as its Ollama:
    /// http://HOST:PORT/PATH=NAME, and @PID if its CPU time and memory are to be read.
    #[arg(long, value_name = "URL=NAME[@PID]")]
    pub against: Vec<String>,

    /// Another build of this program, whose llmchat is compared on both databases: the state before a change.
    /// Its component must have been built too.
    #[arg(long, value_name = "LLMCHAT-BENCH")]
    pub before: Option<PathBuf>,

    /// Where the stand-in for Ollama listens; by default on a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub stand_in: SocketAddr,

    /// Only this part; may be given more than once.
    #[arg(long, value_name = "PART")]
    pub only: Vec<Part>,

    /// Rounds of each figure.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,

    /// Leave PostgreSQL out.
    #[arg(long)]
    pub without_postgres: bool,

    /// Where results.json is written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub out: PathBuf,
}
