//! Time to the first token: what a user waits before anything shows.
//!
//! One client sends its next prompt when it has its reply. 32 clients are due at fixed moments, all
//! of them together no more than a part of what the slowest can take, so that what is measured is
//! the wait and not the queue.

use std::time::Duration;

use anyhow::Result;

use crate::contestants::{Reply, Role};
use crate::load;
use crate::report::{Bound, Goal, Relation};
use crate::run::Bench;
use crate::stats::percentile;

const GROUP: &str = "Time to first token";

const CLIENTS: usize = 32;

/// Each of them: 107 turns a second in all.
const INTERVAL: Duration = Duration::from_millis(300);

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let reply = Reply::at_full_speed(1);
    for (clients, fresh) in [(1, false), (1, true), (CLIENTS, false), (CLIENTS, true)] {
        let window = match clients {
            1 => bench.plan.window,
            _ => bench.plan.window.max(INTERVAL * 2),
        };
        let rounds = bench
            .rounds(reply, async |contestant, complaints| {
                let mut load = contestant.fresh_load(reply);
                load.fresh_connections = fresh;
                let run = match clients {
                    1 => load::closed(&load, 1, window).await,
                    _ => load::open(&load, clients, INTERVAL, window).await,
                };
                let mut times = complaints.of(contestant, run).first_tokens();
                let mut at = |share| percentile(&mut times, share).unwrap_or(f64::NAN);
                Ok([at(0.5), at(0.99)])
            })
            .await?;
        let who = match clients {
            1 => "1 client".to_owned(),
            _ => format!("{clients} clients"),
        };
        let how = if fresh { "fresh" } else { "kept alive" };
        for (column, share) in ["p50", "p99"].into_iter().enumerate() {
            let goal = |role, limit| Goal {
                role,
                bound: Bound::AtMost(limit),
            };
            let goals = match (clients, fresh, column) {
                (1, false, 0) => vec![goal(Role::Sqlite, 0.5), goal(Role::Postgres, 0.7)],
                _ => Vec::new(),
            };
            bench.figure(
                GROUP,
                format!("{who}, {how}, {share}"),
                "ms",
                Relation::AddedToDirect,
                (&rounds, column),
                &goals,
            );
        }
    }
    Ok(())
}
