//! One module a figure: what is done to the contestants, what is read off, and the goal beside it.

mod first_token;
mod gaps;
mod growth;
mod start_up;
mod statements;
mod streams;
mod throughput;

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;

use crate::run::Bench;

/// A part of the benchmark, in the order of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Time to the first token.
    FirstToken,
    /// Time between two tokens.
    Gaps,
    /// Turns and tokens a second, and the CPU time that they cost.
    Throughput,
    /// First token and turns a second in conversations that are long already.
    Growth,
    /// Many streams at once: whether they end in time, and their memory.
    Streams,
    /// Statements sent to PostgreSQL in a turn.
    Statements,
    /// Start-up time of host and instance, size of the component.
    StartUp,
    /// The pure path alone.
    Micro,
}

impl Part {
    /// Those asked for; all if none was.
    pub fn chosen(only: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|part| only.is_empty() || only.contains(part))
            .collect()
    }

    /// Measures it, and adds its figures to the results.
    pub async fn measure(self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::FirstToken => first_token::measure(bench).await,
            Self::Gaps => gaps::measure(bench).await,
            Self::Throughput => throughput::measure(bench).await,
            Self::Growth => growth::measure(bench).await,
            Self::Streams => streams::measure(bench).await,
            Self::Statements => statements::measure(bench).await,
            Self::StartUp => start_up::measure(bench).await,
            Self::Micro => bench.micro(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => f.write_str(value.get_name()),
            None => Ok(()),
        }
    }
}
