//! Statements that a turn sends to PostgreSQL, counted in the server's own log (`log_statement =
//! all`, for these turns only): the component's, and apart from them the pool's clean-up.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::contestants::{Reply, Role, Statement};
use crate::load;
use crate::report::{Bound, Goal, Relation, number};
use crate::run::Bench;

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let reply = Reply::at_full_speed(3);
    bench.stage.reply(reply)?;
    let Some(contestant) = bench
        .contestants
        .iter()
        .find(|contestant| contestant.role == Role::Postgres)
    else {
        return Ok(());
    };
    let (Some(postgres), Some(database)) = (bench.stage.postgres(), &contestant.database) else {
        return Ok(());
    };
    let load = contestant.fresh_load(reply);
    load::turns(&load, 3).await;

    postgres.log_statements(true).await?;
    let before = postgres.statements(database)?.len();
    let run = load::turns(&load, bench.plan.statement_turns).await;
    postgres.log_statements(false).await?;
    let statements = postgres.statements(database)?;

    let statements = statements.get(before..).unwrap_or_default();
    let turns = run.samples.len() as f64;
    let simple = statements.iter().filter(|statement| statement.is_simple);
    let simple = simple.count() as f64;
    let note = format!("PostgreSQL's log, a turn: {}", kinds(statements, turns));
    let values = [(statements.len() as f64 - simple) / turns, simple / turns];
    let rounds = vec![(contestant.card(), vec![values])];
    bench.notes.push(note);
    let goal = Goal {
        role: Role::Postgres,
        bound: Bound::AtMost(2.0),
    };
    for (column, (name, goals)) in [
        ("the component's own", [goal].as_slice()),
        ("the host's pool, cleaning up", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        bench.figure(
            "Statements to PostgreSQL (server's log)",
            name,
            "a turn",
            Relation::None,
            (&rounds, column),
            goals,
        );
    }
    Ok(())
}

/// How often which, by their beginnings.
fn kinds(statements: &[Statement], turns: f64) -> String {
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for statement in statements {
        let start = statement.sql.chars().take(40).collect();
        *counts.entry(start).or_default() += 1.0;
    }
    let counts = counts.into_iter();
    let counts = counts.map(|(start, count)| format!("{} × `{start}…`", number(count / turns)));
    counts.collect::<Vec<_>>().join(", ")
}
