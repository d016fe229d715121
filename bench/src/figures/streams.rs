//! Many streams at once: whether each ends in time, and what one costs in memory while it is open.
//!
//! Each contestant is started anew, so that its memory is that of the streams and not of what it
//! did before. The streams begin within two fifths of their length, and then once more all in the same moment.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::contestants::{Contestant, Reply, Role};
use crate::load::{self, Load, Run};
use crate::report::{Bound, Goal, Relation};
use crate::run::{Bench, Complaints, Rounds};

/// Tokens a second of each stream.
const RATE: f64 = 20.0;

/// Longer than the model takes, at most.
const OVER: f64 = 10.0;

const MEMORY_GOAL: f64 = 100.0;

const GROUP: &str = "Many streams at once";

/// The time within which the streams begin: all of them are open at once for a while.
fn spread(length: Duration) -> Duration {
    length.mul_f64(0.4)
}

/// What is read off: late streams, worst lateness, for both ways to begin; memory; connections.
type Values = [f64; 6];

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let (streams, length) = (bench.plan.streams, bench.plan.stream_length);
    let reply = Reply {
        tokens: (length.as_secs_f64() * RATE) as usize,
        rate: RATE,
    };
    let mut rounds: Rounds<6> = bench
        .contestants
        .iter()
        .map(|contestant| (contestant.card(), Vec::new()))
        .collect();
    let mut complaints = Complaints::default();
    for _ in 0..bench.plan.stream_rounds {
        for (contestant, (_, values)) in bench.contestants.iter().zip(&mut rounds) {
            let new = match contestant.role {
                Role::Direct | Role::Other => None,
                role => Some(bench.stage.start(role).await?),
            };
            let contestant = new.as_ref().unwrap_or(contestant);
            bench.stage.reply(reply)?;
            values.push(one(bench, contestant, reply, streams, &mut complaints).await?);
        }
    }
    bench.complaints.join(complaints);

    let seconds = length.as_secs_f64();
    let begun = spread(length).as_secs_f64();
    let none_late = Goal::of_llmchat(Bound::AtMost(0.0));
    let memory = Goal::of_llmchat(Bound::AtMost(MEMORY_GOAL));
    let name = |what: &str| format!("{streams} of {seconds} s{what}");
    for (column, name, unit, relation, goals) in [
        (
            0,
            name(&format!(
                ", begun within {begun} s: not complete within +10 %"
            )),
            "streams",
            Relation::None,
            none_late.as_slice(),
        ),
        (
            1,
            name(&format!(", begun within {begun} s: the last one over by")),
            "%",
            Relation::None,
            &[],
        ),
        (
            2,
            name(", begun at once: not complete within +10 %"),
            "streams",
            Relation::None,
            &none_late,
        ),
        (
            3,
            name(", begun at once: the last one over by"),
            "%",
            Relation::None,
            &[],
        ),
        (4, name(": memory a stream"), "KiB", Relation::None, &memory),
        (
            5,
            name(": connections to PostgreSQL meanwhile"),
            "open",
            Relation::None,
            &[],
        ),
    ] {
        // Memory has a goal of its own: it is not put in relation.
        bench.figure(GROUP, name, unit, relation, (&rounds, column), goals);
    }
    Ok(())
}

async fn one(
    bench: &Bench,
    contestant: &Contestant,
    reply: Reply,
    streams: usize,
    complaints: &mut Complaints,
) -> Result<Values> {
    let mut load = contestant.fresh_load(reply);
    load.fresh_connections = true;
    // As many at once as leave no doubt that all is loaded and the schema is there.
    load::burst(&load, 8, Duration::ZERO).await;
    let idle = contestant.memory();
    let length = bench.plan.stream_length;
    let spread = spread(length);
    let (run, full, connections) = watched(bench, contestant, &load, streams, spread).await?;
    let run = complaints.of(contestant, run);
    let (late, over) = lateness(&run, length);
    let burst = load::burst(&load, streams, Duration::ZERO).await;
    let burst = complaints.of(contestant, burst);
    let (burst_late, burst_over) = lateness(&burst, length);
    Ok([
        late,
        over,
        burst_late,
        burst_over,
        (full - idle) / streams as f64,
        connections,
    ])
}

/// The streams, and the most memory and connections to the database seen meanwhile.
async fn watched(
    bench: &Bench,
    contestant: &Contestant,
    load: &Load,
    streams: usize,
    spread: Duration,
) -> Result<(Run, f64, f64)> {
    let mut run = std::pin::pin!(load::burst(load, streams, spread));
    let (mut memory, mut connections) = (0.0_f64, f64::NAN);
    loop {
        tokio::select! {
            run = run.as_mut() => return Ok((run, memory, connections)),
            () = sleep(Duration::from_millis(100)) => {
                memory = memory.max(contestant.memory());
                if let (Some(postgres), Some(database)) = (bench.stage.postgres(), &contestant.database) {
                    connections = connections.max(postgres.connections(database).await?);
                }
            }
        }
    }
}

/// How many streams failed or took more than a tenth longer than the model, and how much longer the
/// slowest took, in percent.
fn lateness(run: &Run, length: Duration) -> (f64, f64) {
    // The model sends its first token at once: one step less.
    let model = length.as_secs_f64() - 1.0 / RATE;
    let over = run
        .samples
        .iter()
        .map(|sample| (sample.whole.as_secs_f64() / model - 1.0) * 100.0);
    let late = over.clone().filter(|&over| over > OVER).count();
    (
        (late + run.failures.len()) as f64,
        over.fold(f64::NAN, f64::max),
    )
}
