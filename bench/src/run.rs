//! The whole benchmark, from the first process to the page of results.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::cli::Options;
use crate::contestants::{Contestant, Reply, Role, Stage};
use crate::figures::Part;
use crate::load::{self, Load, Prompts, Run};
use crate::micro::{self, Micro};
use crate::plan::Plan;
use crate::process;
use crate::report::{Competitor, Figure, Goal, Relation, Results};

/// Contestants on their marks, and what they have reached so far.
pub struct Bench {
    /// How long, how often, how many.
    pub plan: Plan,
    /// Starts and instructs processes.
    pub stage: Stage,
    /// Those that run all the time.
    pub contestants: Vec<Contestant>,
    /// What went wrong.
    pub complaints: Complaints,
    /// What has to be said.
    pub notes: Vec<String>,
    figures: Vec<Figure>,
    micro: Vec<Micro>,
}

/// The load average of a machine with something else to do.
const BUSY: f64 = 0.7;

/// What one contestant has reached, round by round: `N` figures a round.
pub type Rounds<const N: usize> = Vec<(Competitor, Vec<[f64; N]>)>;

/// Runs the benchmark and publishes its results.
pub fn run(options: &Options) -> Result<()> {
    process::raise_file_limit()?;
    // The client on one thread: no wake-up between threads lies in what it times.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(options))?.publish(&options.out)
}

async fn measure(options: &Options) -> Result<Results> {
    let before = process::load_average();
    let mut bench = Bench::set_up(options).await?;
    if before.is_some_and(|load| load > BUSY) {
        let note = "the machine was busy before it began: these figures are not the program's";
        bench.notes.push(note.to_owned());
    }
    let begun = Instant::now();
    for part in Part::chosen(&options.only) {
        eprintln!("{:>4} s  {part}", begun.elapsed().as_secs());
        let measured = part.measure(&mut bench).await;
        measured.with_context(|| format!("measuring {part}"))?;
    }
    let postgres = match bench.stage.postgres() {
        Some(postgres) => Some(postgres.description().await?),
        None => None,
    };
    Ok(Results {
        machine: process::machine(),
        commit: process::commit(Path::new(env!("CARGO_MANIFEST_DIR"))),
        profile: match cfg!(debug_assertions) {
            true => "debug",
            false => "release",
        },
        quick: options.quick,
        load_average: [before, process::load_average()],
        postgres,
        seconds: begun.elapsed().as_secs_f64(),
        contestants: bench.contestants.iter().map(Contestant::card).collect(),
        figures: bench.figures,
        micro: bench.micro,
        notes: [bench.complaints.into_notes(), bench.notes].concat(),
    })
}

impl Bench {
    async fn set_up(options: &Options) -> Result<Self> {
        let mut plan = match options.quick {
            true => Plan::quick(),
            false => Plan::full(),
        };
        if let Some(rounds) = options.rounds {
            ensure!(rounds > 0, "at least one round");
            plan.rounds = rounds;
        }
        let stage = Stage::set_up(options.stand_in, !options.without_postgres).await?;
        let mut contestants = Vec::new();
        for role in stage.roles() {
            contestants.push(stage.start(role).await?);
        }
        for against in &options.against {
            contestants.push(Contestant::against(against)?);
        }
        Ok(Self {
            plan,
            stage,
            contestants,
            complaints: Complaints::default(),
            notes: Vec::new(),
            figures: Vec::new(),
            micro: Vec::new(),
        })
    }

    /// Sets the model's reply, warms every contestant up, and has each take its turn in each round.
    pub async fn rounds<const N: usize>(
        &mut self,
        reply: Reply,
        mut turn: impl AsyncFnMut(&Contestant, &mut Complaints) -> Result<[f64; N]>,
    ) -> Result<Rounds<N>> {
        self.stage.reply(reply)?;
        let mut complaints = Complaints::default();
        for contestant in &self.contestants {
            let load = contestant.fresh_load(reply);
            let warm_up = match reply.rate > 0.0 {
                // The model takes its time.
                true => load::burst(&load, 2, std::time::Duration::ZERO).await,
                false => load::turns(&load, self.plan.warm_up).await,
            };
            // Connections to the stand-in that was may have broken; that nothing works is no wonder
            // to be waited out.
            if let (true, Some(failure)) = (warm_up.samples.is_empty(), warm_up.failures.first()) {
                bail!("{} does not work: {failure}", contestant.name);
            }
        }
        let mut all: Rounds<N> = Vec::new();
        for round in 0..self.plan.rounds {
            for (place, contestant) in self.contestants.iter().enumerate() {
                let reached = turn(contestant, &mut complaints).await;
                let reached = reached.with_context(|| contestant.name.clone())?;
                if round == 0 {
                    all.push((contestant.card(), Vec::new()));
                }
                if let Some((_, rounds)) = all.get_mut(place) {
                    rounds.push(reached);
                }
            }
        }
        self.complaints.join(complaints);
        Ok(all)
    }

    /// Adds column `column` of what was measured to the results.
    pub fn figure<const N: usize>(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        relation: Relation,
        (rounds, column): (&Rounds<N>, usize),
        goals: &[Goal],
    ) {
        let rounds = rounds
            .iter()
            .map(|(whose, rounds)| {
                let values = rounds.iter().map(|round| round.get(column).copied());
                let values = values.map(|value| value.unwrap_or(f64::NAN)).collect();
                (whose.clone(), values)
            })
            .collect();
        let figure = Figure::new(group, name, unit, relation, rounds, goals);
        self.figures.push(figure);
    }

    /// Runs the micro-benchmarks.
    pub fn micro(&mut self) -> Result<()> {
        self.micro = micro::measure(self.plan.quick_micro)?;
        Ok(())
    }
}

impl Contestant {
    /// Its name and role.
    pub fn card(&self) -> Competitor {
        Competitor {
            name: self.name.clone(),
            role: self.role,
        }
    }

    /// Load on it by prompts that each begin a conversation, on kept connections.
    pub fn fresh_load(&self, reply: Reply) -> Load {
        self.load(Prompts::fresh(&self.target), reply)
    }

    /// Load on it, on kept connections.
    pub fn load(&self, prompts: Prompts, reply: Reply) -> Load {
        Load {
            target: self.target.clone(),
            prompts,
            fresh_connections: false,
            // Another server may have other ways to send a reply.
            tokens: (self.role != Role::Other).then_some(reply.tokens),
        }
    }
}

/// Turns that failed, by contestant: how many, and what the first said.
#[derive(Debug, Default)]
pub struct Complaints(BTreeMap<String, (usize, String)>);

impl Complaints {
    /// Notes failures, if there are any.
    pub fn hear(&mut self, contestant: &Contestant, failures: &[String]) {
        if let Some(first) = failures.first() {
            self.add(&contestant.name, failures.len(), first);
        }
    }

    /// Hands a run on, and notes its failures.
    pub fn of(&mut self, contestant: &Contestant, run: Run) -> Run {
        self.hear(contestant, &run.failures);
        run
    }

    /// Those of another as well.
    pub fn join(&mut self, other: Self) {
        for (name, (count, first)) in other.0 {
            self.add(&name, count, &first);
        }
    }

    fn add(&mut self, name: &str, count: usize, first: &str) {
        match self.0.get_mut(name) {
            Some((sum, _)) => *sum += count,
            None => {
                eprintln!("        {name}: a turn failed: {first}");
                self.0.insert(name.to_owned(), (count, first.to_owned()));
            }
        }
    }

    fn into_notes(self) -> Vec<String> {
        let note = |(name, (count, first))| {
            format!("{name}: {count} turns failed, the first of them with: {first}")
        };
        self.0.into_iter().map(note).collect()
    }
}
