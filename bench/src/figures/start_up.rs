//! Start-up: the process to its first token, an instance of the component, and the component's
//! size.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::contestants::{Contestant, Reply, Role, Stage};
use crate::load::{Connection, turns};
use crate::report::{Bound, Competitor, Goal, Relation};
use crate::run::{Bench, Rounds};
use crate::stats::percentile;

const GROUP: &str = "Start-up and size";

pub async fn measure(bench: &mut Bench) -> Result<()> {
    processes(bench).await?;
    instances(bench).await?;
    size(bench)
}

async fn processes(bench: &mut Bench) -> Result<()> {
    let reply = Reply::at_full_speed(1);
    bench.stage.reply(reply)?;
    let mut rounds: Rounds<3> = Vec::new();
    for role in bench.stage.roles() {
        if role == Role::Direct {
            continue;
        }
        let mut values = Vec::new();
        let mut card = None;
        for _ in 0..bench.plan.starts {
            let begun = Instant::now();
            let contestant = bench.stage.start(role).await?;
            let listens = begun.elapsed();
            let first = first_turn(&contestant, reply).await?;
            values.push([milliseconds(listens), milliseconds(first), f64::NAN]);
            card = Some(contestant.card());
        }
        if role == Role::Sqlite
            && bench.plan.cold_start
            && let Some(first) = values.first_mut()
        {
            first[2] = milliseconds(cold_start(&bench.stage).await?);
        }
        rounds.extend(card.map(|card| (card, values)));
    }
    for (column, name) in [
        "process, until it listens",
        "its first turn, the schema included",
        "process, until it listens, component not compiled before",
    ]
    .into_iter()
    .enumerate()
    {
        bench.figure(GROUP, name, "ms", Relation::None, (&rounds, column), &[]);
    }
    Ok(())
}

/// The time to the first token of the very first turn.
async fn first_turn(contestant: &Contestant, reply: Reply) -> Result<Duration> {
    let load = contestant.fresh_load(reply);
    let run = turns(&load, 1).await;
    let sample = run.samples.first();
    let failure = || run.failures.first().cloned().unwrap_or_default();
    Ok(sample.with_context(failure)?.first_token)
}

/// A start from a copy of the component that nobody has compiled yet.
async fn cold_start(stage: &Stage) -> Result<Duration> {
    let manifest = stage.manifest()?;
    let copy = TempDir::with_prefix("llmchat-bench-")?;
    let directory = manifest.path().parent().unwrap_or(Path::new("."));
    let source = manifest.source();
    let place = copy.path().join(source.strip_prefix(directory)?);
    std::fs::create_dir_all(place.parent().context("a file in a directory")?)?;
    std::fs::copy(source, &place)?;
    let manifest_copy = copy.path().join("spin.toml");
    std::fs::copy(manifest.path(), &manifest_copy)?;
    let begun = Instant::now();
    stage.start_from(Role::Sqlite, &manifest_copy, None).await?;
    Ok(begun.elapsed())
}

/// What a request costs more when each has an instance of its own: its start and its end. The
/// request is one that the component itself refuses, with no database and no model in it.
async fn instances(bench: &mut Bench) -> Result<()> {
    let manifest = bench.stage.manifest()?.path().to_owned();
    let shared = bench.stage.start(Role::Sqlite).await?;
    let own = bench
        .stage
        .start_from(Role::Sqlite, &manifest, Some(1))
        .await?;
    let mut values = Vec::new();
    for _ in 0..bench.plan.rounds {
        let difference = refusal(bench, &own).await? - refusal(bench, &shared).await?;
        values.push([difference]);
    }
    let rounds = vec![(shared.card(), values)];
    bench.figure(
        GROUP,
        "an instance, its start and its end",
        "ms",
        Relation::None,
        (&rounds, 0),
        &[Goal {
            role: Role::Sqlite,
            bound: Bound::AtMost(0.05),
        }],
    );
    Ok(())
}

/// The median of the times that a refusal takes, in milliseconds.
async fn refusal(bench: &Bench, contestant: &Contestant) -> Result<f64> {
    let mut connection = Connection::open(&contestant.target).await?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < bench.plan.window / 3 {
        connection.ready().await?;
        let start = Instant::now();
        let status = connection.status("/nothing-is-here").await?;
        times.push(milliseconds(start.elapsed()));
        ensure!(status == 404, "status {status} where nothing is");
    }
    percentile(&mut times, 0.5).context("no time to measure")
}

fn size(bench: &mut Bench) -> Result<()> {
    let bytes = std::fs::metadata(bench.stage.manifest()?.source())?.len();
    let card = Competitor {
        name: "llmchat, SQLite".to_owned(),
        role: Role::Sqlite,
    };
    let rounds = vec![(card, vec![[bytes as f64 / 1024.0]])];
    bench.figure(
        GROUP,
        "the component (.wasm)",
        "KiB",
        Relation::None,
        (&rounds, 0),
        &[Goal {
            role: Role::Sqlite,
            bound: Bound::AtMost(512.0),
        }],
    );
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
