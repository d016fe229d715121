//! One run of the benchmark: from starting the servers to the report.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::Options;
use crate::figures::Part;
use crate::load::{Run, Schedule};
use crate::process;
use crate::report::{Report, Values};
use crate::servers::{Environment, Kind, Reply, Server};

pub struct Bench {
    /// A smoke run: few samples.
    pub quick: bool,
    /// How often each server is measured.
    pub rounds: u64,
    /// How long one server is under load in one round.
    pub window: Duration,
    pub environment: Environment,
    /// Those that llmchat is measured on.
    pub databases: Vec<Kind>,
    pub servers: Vec<Server>,
    failures: RefCell<Vec<String>>,
}

/// Runs the benchmark, prints its report and writes it as JSON.
pub fn run(options: &Options) -> Result<()> {
    process::raise_file_limit()?;
    // The client on a single thread: no wake-up between threads is part of what it times.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(options))?.publish(&options.out)
}

async fn measure(options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let machine = process::machine()?;
    let bench = Bench::start(options).await?;
    let mut figures = Vec::new();
    for part in Part::selected(&options.only) {
        eprintln!("{:>4} s  {part:?}", begun.elapsed().as_secs());
        let measured = part.measure(&bench).await;
        figures.extend(measured.with_context(|| format!("measuring {part:?}"))?);
    }
    let build = match options.quick || cfg!(debug_assertions) {
        true => "a smoke run or a debug build: do not quote its figures",
        false => "release build",
    };
    let commit = process::commit().unwrap_or("unknown".to_owned());
    let mut about = vec![format!("commit {commit}, {build}"), machine];
    if let Some(postgres) = &bench.environment.postgres {
        about.push(postgres.description().await?);
    }
    about.push(format!("{} s", begun.elapsed().as_secs()));
    Ok(Report {
        about,
        servers: bench.servers.iter().map(|s| s.kind.clone()).collect(),
        figures,
        failures: bench.failures.into_inner(),
    })
}

impl Bench {
    async fn start(options: &Options) -> Result<Self> {
        let (rounds, window) = match options.quick {
            true => (1, 250),
            false => (5, 1_500),
        };
        let others = options.against.iter().map(|text| Server::running(text));
        let others = others.collect::<Result<Vec<_>>>()?;
        let environment = Environment::start(options).await?;
        let mut databases = vec![Kind::Sqlite];
        databases.extend(environment.postgres.as_ref().map(|_| Kind::Postgres));
        let mut servers = Vec::new();
        for kind in [&[Kind::Direct, Kind::PassThrough], &*databases].concat() {
            servers.push(environment.start_server(kind, &[]).await?);
        }
        if let Some(program) = &options.before {
            for kind in &databases {
                servers.push(environment.start_other(program, kind).await?);
            }
        }
        servers.extend(others);
        Ok(Self {
            quick: options.quick,
            rounds: options.rounds.unwrap_or(rounds),
            window: Duration::from_millis(window),
            environment,
            databases,
            servers,
            failures: RefCell::default(),
        })
    }

    /// Sets the stand-in's reply and warms each server up.
    pub async fn set_reply(&self, reply: Reply) -> Result<()> {
        self.environment.set_reply(reply)?;
        for server in &self.servers {
            let load = server.load(reply);
            let warm_up = match reply.rate > 0.0 {
                // Such a reply takes its time.
                true => load.run(2, Duration::ZERO, Schedule::Count(1)).await,
                false => load.sequence(if self.quick { 3 } else { 20 }).await,
            };
            // Some may fail: connections to the stand-in broke when it was restarted.
            if warm_up.durations.is_empty() {
                bail!("{} does not work: {:?}", server.kind, warm_up.failures);
            }
        }
        Ok(())
    }

    /// Sets the stand-in's reply, and measures `N` figures of each server in each round.
    pub async fn rounds<const N: usize>(
        &self,
        reply: Reply,
        measure: impl AsyncFn(&Server) -> Result<[f64; N]>,
    ) -> Result<[Values; N]> {
        self.set_reply(reply).await?;
        repeat(self.rounds, &self.servers, measure).await
    }

    /// Passes a run on, and records its failures.
    pub fn checked(&self, server: &Server, run: Run) -> Run {
        let (kind, count) = (&server.kind, run.failures.len());
        if let Some(first) = run.failures.first() {
            let failure = format!("{kind}: {count} prompts failed, the first with: {first}");
            eprintln!("        {failure}");
            self.failures.borrow_mut().push(failure);
        }
        run
    }
}

/// Measures `N` figures of each server, `rounds` times.
pub async fn repeat<const N: usize>(
    rounds: u64,
    servers: &[Server],
    measure: impl AsyncFn(&Server) -> Result<[f64; N]>,
) -> Result<[Values; N]> {
    let mut measured = vec![Vec::new(); servers.len()];
    for _ in 0..rounds {
        for (server, rounds) in servers.iter().zip(&mut measured) {
            let values = measure(server).await;
            rounds.push(values.with_context(|| server.kind.to_string())?);
        }
    }
    Ok(std::array::from_fn(|figure| {
        let values = servers.iter().zip(&measured).map(|(server, rounds)| {
            let values = rounds.iter().filter_map(|values| values.get(figure));
            (server.kind.clone(), values.copied().collect())
        });
        values.collect()
    }))
}
