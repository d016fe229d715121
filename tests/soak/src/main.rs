//! The soak: thousands of turns while everything fails, and an auditor at the end.
//!
//! [`plan`] says what is to happen, [`world`] is what it happens in (with [`hosts`], the processes
//! under test), [`client`] runs a turn, and [`auditor`] compares what was seen with what is stored.
//! [`stalled`] is another program: clients that do not read, and the memory that they cost.

mod auditor;
mod client;
mod hosts;
mod plan;
mod stalled;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use auditor::{End, Evidence, Kind, Seen, Violation};
use plan::{Plan, Turn};
use world::World;

/// Runs turns under faults, then compares what each client saw with what the database holds.
///
/// The seed decides, for every turn of every conversation, what Ollama does, what the client does,
/// which fault falls on which host and when it is set off: the same numbers on the command line
/// give the same decisions. It does not decide how the machine interleaves them: at which token a
/// host is killed, or whether a commit was under way when the wire was cut, differs between runs.
///
/// Ends with 0 if nothing was lost, doubled, out of order, mixed or untrue.
#[derive(Parser)]
#[command(
    name = "llmchat-soak",
    args_conflicts_with_subcommands = true,
    max_term_width = 90
)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    soak: Soak,
}

#[derive(Subcommand)]
enum Other {
    /// Streams whose clients do not read: measures the host's memory against a bound
    Stalled(stalled::Stalled),
}

#[derive(clap::Args)]
struct Soak {
    /// Decides everything; a new one each time if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Prompts in all
    #[arg(long, default_value_t = 400)]
    turns: usize,
    /// Conversations that they are spread over
    #[arg(long, default_value_t = 40)]
    conversations: usize,
    /// Prompts that are under way at the same time, at most
    #[arg(long, default_value_t = 24)]
    at_once: usize,
    /// Host processes
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Where conversations are kept; SQLite has one host
    #[arg(long, value_enum, default_value = "postgres")]
    store: StoreKind,
    /// No new prompts after so many minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// The component's variable of this name
    #[arg(long, default_value = "finish", value_parser = ["finish", "cancel"])]
    on_disconnect: String,
    /// The component's variable of this name
    #[arg(long, default_value = "interleave", value_parser = ["interleave", "reject"])]
    on_busy: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreKind {
    Postgres,
    Sqlite,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            let work = async {
                match cli.other {
                    Some(Other::Stalled(stalled)) => stalled.run().await,
                    None => cli.soak.run().await,
                }
            };
            let mut terminate = signal(SignalKind::terminate())?;
            // Both ways the hosts go with us.
            tokio::select! {
                result = work => result,
                _ = terminate.recv() => anyhow::bail!("stopped"),
                _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped"),
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Soak {
    async fn run(self) -> Result<()> {
        let seed = self.seed.unwrap_or_else(new_seed);
        println!("seed {seed}");
        let has_postgres = self.store == StoreKind::Postgres;
        ensure!(
            has_postgres || self.hosts == 1,
            "SQLite has one host: --hosts 1"
        );
        ensure!(
            self.hosts > 0 && self.conversations > 0 && self.at_once > 0,
            "none is too few"
        );
        let plan = Plan {
            seed,
            turns: self.turns,
            conversations: self.conversations,
            hosts: self.hosts,
            has_postgres,
        };
        let variables = [
            ("on_disconnect".to_owned(), self.on_disconnect.clone()),
            ("on_busy".to_owned(), self.on_busy.clone()),
            ("busy_lease".to_owned(), "3s".to_owned()),
        ];
        let (world, mut waiting) = World::start(plan, &variables).await?;
        let begun = Instant::now();

        let until = begun + Duration::from_secs_f64(self.minutes * 60.0);
        let at_once = Arc::new(Semaphore::new(self.at_once));
        let mut conversations = JoinSet::new();
        for conversation in 0..self.conversations {
            let rounds = plan.rounds(conversation);
            conversations.spawn(converse(world.clone(), at_once.clone(), rounds, until));
        }
        let enough = Notify::new();
        let turning = async {
            let seen = join(conversations).await;
            enough.notify_one();
            seen
        };
        let failing = async {
            // A fault that has begun is mended; those still in the line are dropped.
            loop {
                tokio::select! {
                    biased;
                    () = enough.notified() => return Ok(()),
                    Some(planned) = waiting.recv() => world.fail(planned).await?,
                }
            }
        };
        let (mut seen, ()) = tokio::try_join!(turning, failing)?;
        let elapsed = begun.elapsed();

        println!(
            "{} turns in {:.0} s; one more prompt each, then the audit",
            seen.len(),
            elapsed.as_secs_f64()
        );
        seen.extend(self.closing_prompts(&world, &at_once).await?);
        world.stop().await?;
        let (rows, total) = world.rows().await?;
        let evidence = Evidence {
            seen,
            asked: world.asked().await?,
            rows,
            kills: world.kills(),
            log: world.log()?,
            leaving_cancels: self.on_disconnect == "cancel",
        };
        let mut violations = auditor::audit(&evidence);
        violations.extend(strays(&evidence, total));
        violations.extend(unanswered(&evidence, plan.turns));
        report(&world, &evidence, elapsed, total, &violations)
    }

    /// With all faults mended, one more prompt each: the service has recovered, and the last
    /// replies are in a context too.
    async fn closing_prompts(
        &self,
        world: &Arc<World>,
        at_once: &Arc<Semaphore>,
    ) -> Result<Vec<Seen>> {
        // What clients have left behind ends, and leases run out.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut conversations = JoinSet::new();
        for conversation in 0..self.conversations {
            let rounds = vec![vec![world.plan.closing(conversation)]];
            let until = Instant::now() + Duration::from_secs(600);
            conversations.spawn(converse(world.clone(), at_once.clone(), rounds, until));
        }
        join(conversations).await
    }
}

/// One conversation: round after round, the prompts of a round at once.
async fn converse(
    world: Arc<World>,
    at_once: Arc<Semaphore>,
    rounds: Vec<Vec<Turn>>,
    until: Instant,
) -> Result<Vec<Seen>> {
    let mut all = Vec::new();
    for round in rounds {
        let permit = at_once.acquire().await?;
        if Instant::now() > until {
            break;
        }
        let turns = round.into_iter().map(|turn| client::run(&world, turn));
        let seen = futures_util::future::try_join_all(turns).await?;
        drop(permit);
        all.extend(seen);
    }
    Ok(all)
}

async fn join(mut tasks: JoinSet<Result<Vec<Seen>>>) -> Result<Vec<Seen>> {
    let mut all = Vec::new();
    while let Some(seen) = tasks.join_next().await {
        all.extend(seen??);
    }
    Ok(all)
}

/// Rows of conversations that there are not.
fn strays(evidence: &Evidence, total: usize) -> Option<Violation> {
    let known: usize = evidence.rows.values().map(Vec::len).sum();
    (known != total).then(|| Violation {
        kind: Kind::Mixed,
        conversation: 0,
        what: format!("{total} rows in all, {known} in the conversations"),
    })
}

/// Closing prompts that were not answered in full, though nothing failed any more.
fn unanswered(evidence: &Evidence, first_closing: usize) -> impl Iterator<Item = Violation> {
    let closing = evidence
        .seen
        .iter()
        .filter(move |seen| seen.turn.id.turn >= first_closing);
    closing.filter(|seen| !seen.done).map(|seen| Violation {
        kind: Kind::Untrue,
        conversation: seen.turn.id.conversation,
        what: format!("nothing failed any more, and the closing prompt was not answered: {seen:?}"),
    })
}

/// Prints what happened; an error if there was a violation.
fn report(
    world: &World,
    evidence: &Evidence,
    elapsed: Duration,
    total: usize,
    violations: &[Violation],
) -> Result<()> {
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for seen in &evidence.seen {
        let end = match &seen.end {
            End::Clean if seen.done => "done".to_owned(),
            End::Clean => "error event".to_owned(),
            End::Refused(status) => format!("status {status}"),
            End::NoAnswer => "no head (client left, or host gone)".to_owned(),
            End::Broken => "stream cut".to_owned(),
            End::Left => "client left in mid-stream".to_owned(),
        };
        *ends.entry(end).or_default() += 1;
    }
    let stats = |title: &str, counts: &mut dyn Iterator<Item = (&str, usize)>| {
        println!("\n{title}");
        counts.for_each(|(name, count)| println!("  {count:>6}  {name}"));
    };
    println!(
        "\n{} turns in {} conversations, {:.0} s; Ollama was asked {} times; {total} rows",
        evidence.seen.len(),
        world.plan.conversations,
        elapsed.as_secs_f64(),
        evidence.asked.len(),
    );
    stats(
        "What clients saw",
        &mut ends.iter().map(|(name, count)| (name.as_str(), *count)),
    );
    stats("Faults", &mut world.faults().into_iter());
    let count = |kind| {
        violations
            .iter()
            .filter(|violation| violation.kind == kind)
            .count()
    };
    println!("\nAuditor");
    Kind::ALL
        .into_iter()
        .for_each(|kind| println!("  {:>6}  {kind}", count(kind)));
    if violations.is_empty() {
        return Ok(());
    }
    println!();
    for violation in violations.iter().take(40) {
        println!(
            "{}, conversation {}: {}",
            violation.kind, violation.conversation, violation.what
        );
    }
    let logs = world.keep_logs()?;
    anyhow::bail!(
        "{} violations; seed {}; the hosts' logs are in {}",
        violations.len(),
        world.plan.seed,
        logs.display()
    )
}

fn new_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Short enough to be typed again.
    now.as_nanos() as u64 % 1_000_000_000
}
