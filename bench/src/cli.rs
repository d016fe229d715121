//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::figures::Part;

/// Measures llmchat beside its model alone and a proxy that copies bytes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// One of the parts; the whole benchmark without.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run the whole benchmark.
    #[command(flatten)]
    pub options: Options,
}

/// How to run the whole benchmark.
#[derive(Debug, Args)]
pub struct Options {
    /// A smoke run: every figure, in less than a minute, from few samples.
    #[arg(long)]
    pub quick: bool,

    /// Another server to put beside them, which takes `--stand-in` for its Ollama:
    /// http://HOST:PORT/PATH=NAME, and @PID where its CPU time and memory are to be read.
    #[arg(long, value_name = "URL=NAME[@PID]")]
    pub against: Vec<Against>,

    /// Where the stand-in for Ollama listens; by default at a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub stand_in: SocketAddr,

    /// Only this part; may be given more than once.
    #[arg(long, value_name = "PART")]
    pub only: Vec<Part>,

    /// Rounds of each figure.
    #[arg(long)]
    pub rounds: Option<usize>,

    /// Leave PostgreSQL out.
    #[arg(long)]
    pub without_postgres: bool,

    /// Where results.json and results.svg are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub out: PathBuf,
}

/// The parts that can be run alone.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The pure path alone: times, instructions (where valgrind is installed), allocations.
    Micro(MicroOptions),

    /// One case of `micro`, to be counted by a tool from outside.
    #[command(hide = true)]
    MicroCase {
        /// Its name.
        case: String,
        /// How often its input is run through.
        passes: usize,
    },

    /// A contestant, as a process of its own that ends with its stdin.
    #[command(hide = true)]
    Serve {
        /// Which.
        #[command(subcommand)]
        what: Serve,
    },
}

/// How to run the micro-benchmarks.
#[derive(Clone, Copy, Debug, Args)]
pub struct MicroOptions {
    /// Times from few passes, and no instruction counts.
    #[arg(long)]
    pub quick: bool,
}

/// A contestant's process.
#[derive(Debug, Subcommand)]
pub enum Serve {
    /// The stand-in for Ollama; takes a line `TOKENS RATE` on stdin (rate 0: full speed).
    StandIn {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// The proxy that copies bytes.
    PassThrough {
        /// The stand-in.
        upstream: SocketAddr,
    },
    /// llmchat on the host; its variables come by the environment, as in production.
    Llmchat {
        /// Its spin.toml.
        manifest: PathBuf,
        /// Where SQLite's file lives.
        state: PathBuf,
        /// Requests in one instance's life.
        #[arg(long)]
        requests: Option<usize>,
    },
}

/// Another server.
#[derive(Clone, Debug)]
pub struct Against {
    /// `HOST:PORT`
    pub authority: String,
    /// Where it takes prompts.
    pub path: String,
    /// What the results call it.
    pub name: String,
    /// Its process, if it is one of this machine.
    pub pid: Option<u32>,
}

impl FromStr for Against {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (url, name) = text.rsplit_once('=').context("URL=NAME is wanted")?;
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("the URL must begin with http://");
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "llmchat/"));
        let authority = match authority.rsplit_once(':') {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:80"),
        };
        let (name, pid) = match name.rsplit_once('@') {
            Some((name, pid)) => (name, Some(pid.parse().context("the PID is no number")?)),
            None => (name, None),
        };
        Ok(Self {
            authority,
            path: format!("/{path}"),
            name: name.to_owned(),
            pid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_a_url_and_a_name() -> Result<()> {
        let against: Against = "http://127.0.0.1:3001/llmchat/=python@17".parse()?;
        assert_eq!(
            (
                against.authority.as_str(),
                against.path.as_str(),
                against.name.as_str(),
                against.pid
            ),
            ("127.0.0.1:3001", "/llmchat/", "python", Some(17))
        );
        assert!("127.0.0.1:3001".parse::<Against>().is_err());
        Ok(())
    }
}
