//! What is measured, one module for each group of figures: the load, the values taken from it,
//! and the goals.

mod checkpoints;
mod component;
mod first_token;
mod gaps;
mod growth;
mod keys;
mod streams;
mod throughput;
mod turns;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::load::prompts::{self, Prompts};
use crate::load::{Connection, Run, Schedule};
use crate::report::Relation::{self, AddedToDirect, TimesPassThrough};
use crate::report::{Bound, Figure, Values};
use crate::run::{Bench, repeat};
use crate::servers::{Kind, Reply, Server, manifest};
use crate::stats::percentile;

/// A part of the benchmark, in the order of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Time to the first token.
    FirstToken,
    /// Gaps between tokens.
    Gaps,
    /// Turns and tokens a second, and the CPU time that they cost.
    Throughput,
    /// First token and turns a second in conversations that are long already.
    Growth,
    /// Many streams at once: whether they end in time, and their memory.
    Streams,
    /// Checkpoints, going on after a lost connection, stopping.
    Turns,
    /// Whether refusals tell keys apart by their time; what keys and limits cost a turn.
    Keys,
    /// Statements of a turn, start of an instance, size of the component.
    Component,
}

impl Part {
    /// Those in `only`, or all if it is empty.
    pub fn selected(only: &[Self]) -> impl Iterator<Item = Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(move |part| only.is_empty() || only.contains(part))
    }

    pub async fn measure(self, bench: &Bench) -> Result<Vec<Figure>> {
        match self {
            Self::FirstToken => first_token::measure(bench).await,
            Self::Gaps => gaps::measure(bench).await,
            Self::Throughput => throughput::measure(bench).await,
            Self::Growth => growth::measure(bench).await,
            Self::Streams => streams::measure(bench).await,
            Self::Turns => turns::measure(bench).await,
            Self::Keys => keys::measure(bench).await,
            Self::Component => component::measure(bench).await,
        }
    }
}
