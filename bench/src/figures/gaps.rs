//! Time between two tokens, when the model sends one every 20 ms: whether the reply flows.
//!
//! The stand-in writes into each line when it sent it, so a token's delay on its way is known, and
//! a gap is longer than the model's by what the later token was delayed more than the earlier.

use std::time::Duration;

use anyhow::Result;

use crate::contestants::Reply;
use crate::load;
use crate::report::{Bound, Goal, Relation};
use crate::run::Bench;
use crate::stats::percentile;

const GROUP: &str = "Between tokens, one every 20 ms";

const STEP: Duration = Duration::from_millis(20);

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let reply = Reply {
        tokens: 25,
        rate: 1.0 / STEP.as_secs_f64(),
    };
    for streams in [1, 32] {
        let window = bench.plan.window;
        let rounds = bench
            .rounds(reply, async |contestant, complaints| {
                let load = contestant.fresh_load(reply);
                let mut arrivals = load::paced(&load, streams, STEP, window).await;
                complaints.hear(contestant, &arrivals.failures);
                let at = |times: &mut Vec<f64>, share| percentile(times, share).unwrap_or(f64::NAN);
                Ok([
                    at(&mut arrivals.gaps, 0.5),
                    at(&mut arrivals.gaps, 0.99),
                    at(&mut arrivals.delays, 0.5),
                    at(&mut arrivals.delays, 0.99),
                ])
            })
            .await?;
        let who = match streams {
            1 => "1 stream".to_owned(),
            _ => format!("{streams} streams"),
        };
        for (column, (what, has_goal)) in [
            ("gap longer by, p50", false),
            ("gap longer by, p99", true),
            ("token delayed by, p50", false),
            ("token delayed by, p99", false),
        ]
        .into_iter()
        .enumerate()
        {
            let goals = match has_goal {
                true => Goal::of_llmchat(Bound::AtMost(1.0)),
                false => Vec::new(),
            };
            bench.figure(
                GROUP,
                format!("{who}: {what}"),
                "ms",
                Relation::AddedToDirect,
                (&rounds, column),
                &goals,
            );
        }
    }
    Ok(())
}
