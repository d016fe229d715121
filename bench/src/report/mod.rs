//! The results: what they are here, how they are shown in [`table`] and [`plot`]; JSON is these
//! structs as they stand.

mod plot;
mod table;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::contestants::Role;
use crate::micro::Micro;
use crate::stats::Summary;
pub use table::{align, number};

/// All that a run has found.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The machine that it ran on.
    pub machine: String,
    /// The commit.
    pub commit: Option<String>,
    /// How this program was compiled.
    pub profile: &'static str,
    /// A smoke run: no figures to be quoted.
    pub quick: bool,
    /// Processes that wanted to run, on average over a minute, before and after.
    pub load_average: [Option<f64>; 2],
    /// PostgreSQL's version and durability.
    pub postgres: Option<String>,
    /// How long the run took.
    pub seconds: f64,
    /// Who took part.
    pub contestants: Vec<Competitor>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// The pure path alone.
    pub micro: Vec<Micro>,
    /// What went wrong, or has to be said.
    pub notes: Vec<String>,
}

/// One of those compared.
#[derive(Clone, Debug, Serialize)]
pub struct Competitor {
    /// What it is called.
    pub name: String,
    /// What it is to the others.
    pub role: Role,
}

/// One figure of all contestants.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What it belongs to: `Time to first token`.
    pub group: &'static str,
    /// The figure itself: `1 client, p50`.
    pub name: String,
    /// Of the values.
    pub unit: &'static str,
    /// What the relative values are.
    pub relation: Relation,
    /// The contestants' values, for those who have one.
    pub values: Vec<Value>,
    /// The goals, and whether they were met.
    pub verdicts: Vec<Verdict>,
}

/// How a contestant is put in relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// What it adds to the value of `direct`.
    AddedToDirect,
    /// How many times the value of `pass-through` it has.
    TimesPassThrough,
    /// The value stands for itself.
    None,
}

/// A contestant's part of a figure.
#[derive(Debug, Serialize)]
pub struct Value {
    /// Whose.
    pub contestant: String,
    /// What it is to the others.
    pub role: Role,
    /// Round by round.
    pub rounds: Vec<f64>,
    /// Their median and extremes.
    pub value: Summary,
    /// The relation, round by round, likewise.
    pub relative: Option<Summary>,
}

/// A goal of the project, beside what was reached.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whose.
    pub contestant: String,
    /// `≤ 0.7`, `≥ 0.5`…
    pub goal: String,
    /// Its number.
    pub limit: f64,
    /// The median that is held against it.
    pub reached: f64,
    /// Whether it was met.
    pub met: bool,
}

/// A goal: a bound on somebody's value, or on its relation where the figure has one.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Whose.
    pub role: Role,
    /// The bound.
    pub bound: Bound,
}

/// A bound.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

impl Goal {
    /// The same bound for llmchat on either database.
    pub fn of_llmchat(bound: Bound) -> Vec<Self> {
        let goal = |role| Self { role, bound };
        vec![goal(Role::Sqlite), goal(Role::Postgres)]
    }
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit}"),
            Self::AtLeast(limit) => format!("≥ {limit}"),
        }
    }
}

impl Figure {
    /// Puts the rounds of all contestants in relation, and holds them against the goals. A round
    /// without a value is `NaN`.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        relation: Relation,
        rounds: Vec<(Competitor, Vec<f64>)>,
        goals: &[Goal],
    ) -> Self {
        let reference = match relation {
            Relation::AddedToDirect => Some(Role::Direct),
            Relation::TimesPassThrough => Some(Role::PassThrough),
            Relation::None => None,
        };
        let reference = rounds
            .iter()
            .find(|(whose, _)| Some(whose.role) == reference)
            .map(|(_, rounds)| rounds.clone());
        let relate = |own: &[f64]| {
            let related = own.iter().zip(reference.as_deref()?);
            let related: Vec<_> = match relation {
                Relation::AddedToDirect => related.map(|(own, floor)| own - floor).collect(),
                _ => related.map(|(own, limit)| own / limit).collect(),
            };
            Summary::of(&related)
        };
        let values: Vec<_> = rounds
            .into_iter()
            .filter_map(|(whose, rounds)| {
                Some(Value {
                    value: Summary::of(&rounds)?,
                    relative: relate(&rounds),
                    contestant: whose.name,
                    role: whose.role,
                    rounds,
                })
            })
            .collect();
        let verdicts = values.iter().flat_map(|value| {
            let goals = goals.iter().filter(|goal| goal.role == value.role);
            goals.filter_map(|goal| {
                let reached = match relation {
                    Relation::None => value.value.median,
                    _ => value.relative?.median,
                };
                Some(Verdict {
                    contestant: value.contestant.clone(),
                    goal: goal.bound.text(),
                    limit: goal.bound.limit(),
                    reached,
                    met: goal.bound.is_met(reached),
                })
            })
        });
        Self {
            group,
            name: name.into(),
            unit,
            relation,
            verdicts: verdicts.collect(),
            values,
        }
    }
}

impl Results {
    /// Prints the page, and writes `results.json` and `results.svg`.
    pub fn publish(&self, directory: &Path) -> Result<()> {
        println!("{}", table::page(self));
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let json = directory.join("results.json");
        std::fs::write(&json, serde_json::to_string_pretty(self)?)?;
        let svg = directory.join("results.svg");
        plot::write(self, &svg)?;
        println!("written: {}, {}", json.display(), svg.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, role: Role) -> Competitor {
        Competitor {
            name: name.to_owned(),
            role,
        }
    }

    #[test]
    fn relations_are_made_round_by_round() {
        let figure = Figure::new(
            "g",
            "n",
            "ms",
            Relation::AddedToDirect,
            vec![
                (of("direct", Role::Direct), vec![1.0, 2.0, 3.0]),
                (of("llmchat", Role::Sqlite), vec![1.5, 2.5, 3.6]),
                (of("other", Role::Other), vec![f64::NAN; 3]),
            ],
            &Goal::of_llmchat(Bound::AtMost(0.5)),
        );
        assert_eq!(figure.values.len(), 2);
        let relative = figure.values[1].relative.expect("a relation");
        assert!((relative.median - 0.5).abs() < 1e-9, "{relative:?}");
        assert!((relative.max - 0.6).abs() < 1e-9, "{relative:?}");
        assert_eq!(figure.verdicts.len(), 1);
        assert!(figure.verdicts[0].met);
    }
}
