//! The first token and the turns a second in conversations that are long already.
//!
//! `direct` and `pass-through` have no memory: there the client sends the conversation whole, so
//! that what the model's side takes to read it is in the floor too.

use anyhow::{Context, Result, bail};

use crate::contestants::{Contestant, Reply};
use crate::load::{Connection, Prompts, closed, new_conversation, seeds};
use crate::report::Relation;
use crate::run::Bench;
use crate::stats::percentile;

const GROUP: &str = "Growth: conversations that are long already";

/// Clients for the turns a second.
const CLIENTS: usize = 8;

/// A conversation grows by two messages a turn: short ones are many, so that they stay short.
fn conversations(length: usize) -> usize {
    (2_000 / length).clamp(4, 200)
}

pub async fn measure(bench: &mut Bench) -> Result<()> {
    for &length in bench.plan.growth {
        let reply = Reply::at_full_speed(1);
        bench.stage.reply(reply)?;
        let mut prompts = Vec::new();
        for contestant in &bench.contestants {
            let seeded = seed(contestant, length).await;
            prompts.push((
                contestant.name.clone(),
                seeded.with_context(|| format!("{length} messages for {}", contestant.name))?,
            ));
        }
        let window = bench.plan.window / 2;
        let rounds = bench
            .rounds(reply, async |contestant, complaints| {
                let own = prompts.iter().find(|(name, _)| *name == contestant.name);
                let (_, prompts) = own.context("no conversations")?;
                let load = contestant.load(prompts.clone(), reply);
                let run = complaints.of(contestant, closed(&load, 1, window).await);
                let mut times = run.first_tokens();
                let mut at = |share| percentile(&mut times, share).unwrap_or(f64::NAN);
                let (p50, p99) = (at(0.5), at(0.99));
                let run = complaints.of(contestant, closed(&load, CLIENTS, window).await);
                Ok([
                    p50,
                    p99,
                    run.turns_per_second(),
                    contestant.memory() / 1024.0,
                ])
            })
            .await?;
        for (column, (what, unit, relation)) in [
            ("first token, p50", "ms", Relation::AddedToDirect),
            ("first token, p99", "ms", Relation::AddedToDirect),
            ("8 clients", "turns/s", Relation::TimesPassThrough),
            ("memory afterwards", "MiB", Relation::None),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("{length} messages: {what}");
            bench.figure(GROUP, name, unit, relation, (&rounds, column), &[]);
        }
    }
    Ok(())
}

/// Puts conversations of `length` messages into a server, by its own front door.
async fn seed(contestant: &Contestant, length: usize) -> Result<Prompts> {
    let target = &contestant.target;
    if !target.remembers {
        return Ok(Prompts::with_history(target, length));
    }
    let names: Vec<_> = (0..conversations(length))
        .map(|_| new_conversation())
        .collect();
    let mut connection = Connection::open(target).await?;
    for name in &names {
        for body in seeds(target, name, length) {
            // The model was stopped and started just now: a connection to it may have broken.
            let mut tries = 0;
            while let Err(error) = once(&mut connection, contestant, body.clone()).await {
                tries += 1;
                if tries == 3 {
                    bail!(error);
                }
                connection = Connection::open(target).await?;
            }
        }
    }
    Ok(Prompts::in_conversations(target, &names))
}

async fn once(
    connection: &mut Connection,
    contestant: &Contestant,
    body: bytes::Bytes,
) -> Result<()> {
    connection.ready().await?;
    connection
        .turn(&contestant.target.path, body, &mut |_| ())
        .await?;
    Ok(())
}
