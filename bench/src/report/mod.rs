//! Figures, and the goals they are held against: measured values in, Markdown and JSON out.

mod table;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::servers::Kind;
use crate::stats::Summary;

/// All that a run has measured. Its JSON is this struct as it stands.
#[derive(Serialize)]
pub struct Report {
    /// The commit, the machine, PostgreSQL's settings.
    pub about: Vec<String>,
    pub servers: Vec<Kind>,
    pub figures: Vec<Figure>,
    pub failures: Vec<String>,
}

/// One figure of all servers.
#[derive(Serialize)]
pub struct Figure {
    group: &'static str,
    name: String,
    unit: &'static str,
    relation: Relation,
    values: Vec<Value>,
    goals: Vec<Goal>,
}

/// How a server's value is compared.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Relation {
    /// Its difference from the value of `direct`.
    AddedToDirect,
    /// Its ratio to the value of `pass-through`.
    TimesPassThrough,
    None,
}

#[derive(Serialize)]
struct Value {
    server: Kind,
    rounds: Vec<f64>,
    summary: Summary,
    /// Of the relation in each round.
    relative: Option<Summary>,
}

/// A goal of the project, and what was measured.
#[derive(Serialize)]
struct Goal {
    server: Kind,
    bound: String,
    measured: f64,
    met: bool,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// No further from 1.
    AsOne(f64),
}

/// A figure's values for each server: one a round, `NaN` if it has none.
pub type Values = Vec<(Kind, Vec<f64>)>;

impl Figure {
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        relation: Relation,
        values: Values,
    ) -> Self {
        let reference = values.iter().find(|(kind, _)| match relation {
            Relation::AddedToDirect => *kind == Kind::Direct,
            Relation::TimesPassThrough => *kind == Kind::PassThrough,
            Relation::None => false,
        });
        let reference = reference.map(|(_, rounds)| rounds.clone());
        let relate = |own: &[f64]| {
            let pairs = own.iter().zip(reference.as_deref()?);
            let related = pairs.map(|(own, reference)| match relation {
                Relation::AddedToDirect => own - reference,
                _ => own / reference,
            });
            Summary::of(&related.collect::<Vec<_>>())
        };
        let values = values.into_iter().filter_map(|(server, rounds)| {
            Some(Value {
                server,
                summary: Summary::of(&rounds)?,
                relative: relate(&rounds),
                rounds,
            })
        });
        Self {
            group,
            name: name.into(),
            unit,
            relation,
            values: values.collect(),
            goals: Vec::new(),
        }
    }

    /// Holds a server's median (of the relation, if the figure has one) against a goal.
    pub fn goal(mut self, server: Kind, bound: Bound) -> Self {
        let value = self.values.iter().find(|value| value.server == server);
        let summary = value.and_then(|value| match self.relation {
            Relation::None => Some(value.summary),
            _ => value.relative,
        });
        if let Some(summary) = summary {
            let measured = summary.median;
            let (bound, met) = match bound {
                Bound::AtMost(limit) => (format!("≤ {limit}"), measured <= limit),
                Bound::AtLeast(limit) => (format!("≥ {limit}"), measured >= limit),
                Bound::AsOne(limit) => (format!("1 ± {limit}"), (measured - 1.0).abs() <= limit),
            };
            self.goals.push(Goal {
                server,
                bound,
                measured,
                met,
            });
        }
        self
    }

    /// The same goal on either database.
    pub fn goals(self, bound: Bound) -> Self {
        self.goal(Kind::Sqlite, bound).goal(Kind::Postgres, bound)
    }
}

impl Report {
    /// Prints the tables, and writes `results.json`.
    pub fn publish(&self, directory: &Path) -> Result<()> {
        println!("{}", table::page(self));
        std::fs::create_dir_all(directory)?;
        let path = directory.join("results.json");
        std::fs::write(&path, serde_json::to_string_pretty(self)?)?;
        println!("written: {}", path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_compared_round_by_round() {
        let values = vec![
            (Kind::Direct, vec![1.0, 2.0, 3.0]),
            (Kind::Sqlite, vec![1.5, 2.5, 3.6]),
            (Kind::Postgres, vec![f64::NAN; 3]),
        ];
        let figure = Figure::new("g", "n", "ms", Relation::AddedToDirect, values);
        let figure = figure.goals(Bound::AtMost(0.5));
        assert_eq!(figure.values.len(), 2);
        let relative = figure.values[1].relative.expect("a relation");
        assert!((relative.median - 0.5).abs() < 1e-9, "{relative:?}");
        assert!((relative.spread - 0.05).abs() < 1e-9, "{relative:?}");
        assert_eq!(figure.goals.len(), 1);
        assert!(figure.goals[0].met);
    }
}
