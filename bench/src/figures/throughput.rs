//! Turns and tokens a second with the model at full speed, and the CPU time that they cost.
//!
//! Client, stand-in and contestant share the machine, so a rate is the machine's and not the
//! contestant's alone: its own CPU time is the figure that carries over to other machines.

use anyhow::Result;

use crate::contestants::{Reply, Role};
use crate::load;
use crate::report::{Bound, Goal, Relation};
use crate::run::Bench;

const RATES: &str = "Throughput, full speed";
const COSTS: &str = "CPU time";

/// Clients for the turns of one token: enough for commits to share a write to the disk.
const TURN_CLIENTS: usize = 16;

/// Clients for the long replies.
const TOKEN_CLIENTS: usize = 4;

const LONG_REPLY: usize = 2_000;

pub async fn measure(bench: &mut Bench) -> Result<()> {
    turns(bench).await?;
    tokens(bench, 100).await?;
    tokens(bench, LONG_REPLY).await
}

async fn turns(bench: &mut Bench) -> Result<()> {
    let window = bench.plan.window;
    // Read while the bench is lent to the rounds: a family's time by its first process.
    let postmaster = bench.stage.postgres().map(|postgres| postgres.pid());
    let reply = Reply::at_full_speed(1);
    let rounds = bench
        .rounds(reply, async |contestant, complaints| {
            let load = contestant.fresh_load(reply);
            let database = |contestant: &crate::contestants::Contestant| {
                let pid = postmaster.filter(|_| contestant.role == Role::Postgres)?;
                crate::process::cpu_time_of_family(pid).ok()
            };
            let (cpu, database_before) = (contestant.cpu_seconds(), database(contestant));
            let run = complaints.of(contestant, load::closed(&load, TURN_CLIENTS, window).await);
            let thousands = run.samples.len() as f64 / 1e3;
            let of_database = match (database_before, database(contestant)) {
                (Some(before), Some(after)) => after.saturating_sub(before).as_secs_f64(),
                _ => f64::NAN,
            };
            Ok([
                run.turns_per_second(),
                (contestant.cpu_seconds() - cpu) / thousands,
                of_database / thousands,
            ])
        })
        .await?;
    for (column, (group, name, unit, relation)) in [
        (
            RATES,
            format!("replies of 1 token, {TURN_CLIENTS} clients"),
            "turns/s",
            Relation::TimesPassThrough,
        ),
        (
            COSTS,
            "1,000 turns of 1 token".to_owned(),
            "s",
            Relation::TimesPassThrough,
        ),
        (
            COSTS,
            "the same, PostgreSQL's own".to_owned(),
            "s",
            Relation::None,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        bench.figure(group, name, unit, relation, (&rounds, column), &[]);
    }
    Ok(())
}

async fn tokens(bench: &mut Bench, length: usize) -> Result<()> {
    let window = bench.plan.window;
    let reply = Reply::at_full_speed(length);
    let rounds = bench
        .rounds(reply, async |contestant, complaints| {
            let load = contestant.fresh_load(reply);
            let cpu = contestant.cpu_seconds();
            let run = complaints.of(contestant, load::closed(&load, TOKEN_CLIENTS, window).await);
            Ok([
                run.tokens() as f64 / run.elapsed.as_secs_f64(),
                (contestant.cpu_seconds() - cpu) / (run.tokens() as f64 / 1e6),
            ])
        })
        .await?;
    let goals = match length {
        LONG_REPLY => Goal::of_llmchat(Bound::AtLeast(0.5)),
        _ => Vec::new(),
    };
    let replies = format!("replies of {length} tokens");
    bench.figure(
        RATES,
        format!("{replies}, {TOKEN_CLIENTS} clients"),
        "tokens/s",
        Relation::TimesPassThrough,
        (&rounds, 0),
        &goals,
    );
    bench.figure(
        COSTS,
        format!("a million tokens, {replies}"),
        "s",
        Relation::TimesPassThrough,
        (&rounds, 1),
        &[],
    );
    Ok(())
}
