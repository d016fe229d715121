//! The soak: thousands of turns while everything fails, and an audit at the end.
//!
//! [`plan`] decides what is to happen, [`text`] what is said, [`world`] is the environment and makes the faults
//! happen. [`client`] runs a turn, on a [`device`] that puts the reply together, and [`auditor`] compares the
//! [`evidence`]: what was seen with what is stored. [`stalled`] is a second command: clients that do not read, and
//! the memory that they cost.

mod auditor;
mod client;
mod device;
mod evidence;
mod plan;
mod stalled;
mod text;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use clap::{Parser, Subcommand};
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use strum::VariantArray;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use evidence::{Evidence, Kind, Outcome, Seen, Sweep};
use plan::{Plan, Turn};
use text::ConversationId;
use world::World;

/// Runs turns under faults, then compares what each client saw with what the database holds.
///
/// The seed decides, for every turn of every conversation, what Ollama does, what the client does,
/// which fault befalls which host and when it begins: the same options give the same decisions. It
/// does not decide how the machine interleaves them: at which token a host is killed, or whether a
/// commit was in progress when a connection was cut, differs between runs.
///
/// Most clients come back, with their key and the id of their last event, until they are told the outcome; some of
/// them stop the reply, have the model asked again, or delete. What each has put together must be what is stored.
///
/// All owners have the same appIDs and Idempotency-Keys, and try to reach each other's turns: none may be shown,
/// change or have a model sent what is another's.
///
/// Exits with 0 if nothing was lost, doubled, out of order, mixed, another's or untrue.
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
    /// Decides everything; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Prompts in all
    #[arg(long, default_value_t = 400)]
    turns: usize,
    /// Who send them, each with a key; 0: nobody needs one
    #[arg(long, default_value_t = 5)]
    owners: usize,
    /// Conversations of each owner, with the same appIDs; they share the prompts
    #[arg(long, default_value_t = 8)]
    conversations: usize,
    /// Conversations that are active at the same time
    #[arg(long, default_value_t = 24)]
    at_once: usize,
    /// Host processes
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Turns for each fault of a host, the database or the network; they last up to 1.5 s each
    #[arg(long, default_value_t = 30)]
    turns_a_fault: usize,
    /// Where conversations are stored; SQLite takes one host
    #[arg(long, default_value = "postgres", value_parser = ["postgres", "sqlite"])]
    store: String,
    /// Minutes after which no new prompts are sent
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// The component's variable of this name
    #[arg(long, default_value = "finish", value_parser = ["finish", "cancel"])]
    on_disconnect: String,
    /// The component's variable of this name
    #[arg(long, default_value = "interleave", value_parser = ["interleave", "reject"])]
    on_busy: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let work = async {
        match cli.other {
            Some(Other::Stalled(stalled)) => stalled.run().await,
            None => cli.soak.run().await,
        }
    };
    tokio::select! {
        result = work => result,
        // Dropping the work ends the hosts too.
        stopped = stop_signal() => stopped.and_then(|()| bail!("stopped")),
    }
}

async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

impl Soak {
    async fn run(self) -> Result<()> {
        let seed = self.seed.unwrap_or_else(new_seed);
        println!("seed {seed}");
        let has_postgres = self.store == "postgres";
        ensure!(
            has_postgres || self.hosts == 1,
            "SQLite takes one host: --hosts 1"
        );
        ensure!(
            self.hosts
                .min(self.conversations)
                .min(self.at_once)
                .min(self.turns_a_fault)
                > 0,
            "zero is too few"
        );
        let plan = Plan {
            seed,
            turns: self.turns,
            owners: self.owners,
            conversations: self.conversations,
            hosts: self.hosts,
            has_postgres,
            turns_a_fault: self.turns_a_fault,
        };
        let variables = vec![
            ("on_disconnect", self.on_disconnect.clone()),
            ("on_busy", self.on_busy.clone()),
        ];
        let (world, mut faults) = World::start(plan, &variables).await?;
        let begun = Instant::now();
        let limit = Duration::from_secs_f64(self.minutes * 60.0);
        let enough = Notify::new();
        let conversations = async {
            let seen = self.converse(&world, limit, |c| plan.rounds(c), true).await;
            enough.notify_one();
            seen
        };
        let failing = async {
            // A fault that has begun is repaired; those still in the queue are dropped.
            loop {
                tokio::select! {
                    biased;
                    () = enough.notified() => return Ok(()),
                    Some(planned) = faults.recv() => world.fail(planned).await?,
                }
            }
        };
        let ((mut seen, sweeps), ()) = tokio::try_join!(conversations, failing)?;
        let elapsed = begun.elapsed();
        println!(
            "{} turns in {:.0} s; one more prompt each, then the audit",
            seen.len(),
            elapsed.as_secs_f64()
        );

        // What clients have left behind ends, and leases expire.
        tokio::time::sleep(Duration::from_secs(5)).await;
        // With all faults repaired, the service has to recover; and the last replies are now in a
        // context too.
        let closing = |conversation| vec![vec![plan.closing(conversation)]];
        let limit = Duration::from_secs(600);
        seen.extend(self.converse(&world, limit, closing, false).await?.0);
        let mut pages = BTreeMap::new();
        for conversation in plan.all() {
            pages.insert(conversation, client::pages(&world, conversation).await?);
        }
        world.stop().await?;
        let evidence = Evidence {
            seen,
            sweeps,
            calls: world.calls().await?,
            stored: world.stored().await?,
            pages,
            first_closing: plan.turns,
            kills: world.history().kills.clone(),
            log: world.log()?,
            leaving_cancels: self.on_disconnect == "cancel",
            history: world::HISTORY,
        };
        report(&world, &evidence, elapsed)
    }

    /// All conversations, at most `at_once` at a time, until the limit: round after round, the
    /// prompts of a round concurrently; and what is deleted after a round.
    async fn converse(
        &self,
        world: &Arc<World>,
        limit: Duration,
        rounds: impl Fn(ConversationId) -> Vec<Vec<Turn>>,
        is_swept: bool,
    ) -> Result<(Vec<Seen>, Vec<Sweep>)> {
        let until = Instant::now() + limit;
        let converse = async |conversation: ConversationId| {
            let (mut all, mut sweeps): (Vec<Seen>, Vec<Sweep>) = Default::default();
            let mut beside = None;
            for (number, round) in rounds(conversation).into_iter().enumerate() {
                if Instant::now() > until {
                    break;
                }
                let turns = try_join_all(round.into_iter().map(|turn| client::run(world, turn)));
                let swept = client::sweep(world, conversation, beside.take(), &all, &sweeps);
                let (turns, swept) = tokio::try_join!(turns, swept)?;
                sweeps.extend(swept);
                all.extend(turns);
                let mut planned = world.plan.sweep(conversation, number).filter(|_| is_swept);
                beside = planned.take_if(|planned| planned.beside);
                sweeps.extend(client::sweep(world, conversation, planned, &all, &sweeps).await?);
            }
            anyhow::Ok((all, sweeps))
        };
        let conversations = stream::iter(world.plan.all())
            .map(converse)
            .buffer_unordered(self.at_once);
        let all: Vec<_> = conversations.try_collect().await?;
        let (seen, sweeps): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        Ok((seen.concat(), sweeps.concat()))
    }
}

/// Prints what happened, and what the auditor finds; an error if that is a violation.
fn report(world: &World, evidence: &Evidence, elapsed: Duration) -> Result<()> {
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for seen in &evidence.seen {
        let end = match seen.outcome {
            Outcome::Once => format!(
                "asked once: {:?}",
                seen.connections.first().map(|it| it.end)
            ),
            Outcome::Told if seen.has.reason.as_deref() == Some("stopped") => {
                "told: stopped".to_owned()
            }
            Outcome::Told if seen.has.is_done => "told: done".to_owned(),
            Outcome::Told => "told: broken off by a bound".to_owned(),
            outcome => format!("{outcome:?}"),
        };
        *ends.entry(end).or_default() += 1;
    }
    let connections: usize = evidence
        .seen
        .iter()
        .map(|seen| seen.connections.len())
        .sum();
    println!(
        "\n{} turns in {} conversations of {} owners, {:.0} s; {connections} connections; {} calls of Ollama; {} rows",
        evidence.seen.len(),
        world.plan.all().count(),
        world.plan.owners.max(1),
        elapsed.as_secs_f64(),
        evidence.calls.len(),
        evidence.stored.row_count,
    );
    println!("\nHow clients ended");
    for (end, count) in &ends {
        println!("  {count:>6}  {end}");
    }
    println!("\nFaults and demands");
    for (fault, count) in &world.history().faults {
        println!("  {count:>6}  {fault}");
    }
    let violations = auditor::audit(evidence);
    println!("\nAuditor");
    for kind in Kind::VARIANTS {
        let of_kind = violations.iter().filter(|(found, _)| found == kind);
        println!("  {:>6}  {kind}", of_kind.count());
    }
    if violations.is_empty() {
        return Ok(());
    }
    println!();
    for (kind, what) in violations.iter().take(40) {
        println!("{kind}: {what}");
    }
    let (count, seed) = (violations.len(), world.plan.seed);
    // They outlive the run.
    let logs = std::env::temp_dir().join(format!("llmchat-soak-{seed}.log"));
    let mut log = world.log()?;
    for (at, fault) in &world.history().timeline {
        log += &format!("{at:?}: {fault:?}\n");
    }
    std::fs::write(&logs, log)?;
    bail!(
        "{count} violations; seed {seed}; the hosts' logs are in {}",
        logs.display()
    )
}

fn new_seed() -> u64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    // Short enough to type.
    now.as_nanos() as u64 % 1_000_000_000
}
