//! `llmchat-runner`: builds the component, runs it on the host, and stops it gracefully.
//!
//! Takes flags and the environment, prints what a person needs to know. How a component is
//! run is the business of `llmchat-host`; what this program knows of the component, two names
//! of variables and one request to paste, is in [`banner`].

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use llmchat_host::{Host, InstanceLimits, Manifest, Options, Output, Program, Variables, runtime};

mod banner;
mod cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    runtime::return_large_blocks();
    let result = runtime::new()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Output::default().line(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: cli::Cli) -> Result<()> {
    let manifest = Manifest::load_profile(cli.manifest()?, cli.profile.as_deref())?;
    let mut variables = cli.variables(&manifest);
    let stand_in = match cli.stand_in() {
        Some(config) => Some(
            ollama_stand_in::Server::start(config)
                .await
                .context("cannot start the stand-in")?,
        ),
        None => None,
    };
    if let Some(stand_in) = &stand_in {
        for name in [banner::OLLAMA_URL, banner::OLLAMA_HOST] {
            if manifest.variables().contains_key(name) {
                variables.insert(name.to_owned(), stand_in.url());
            }
        }
    }
    // Report a wrong name before the build, which takes a while.
    Variables::resolve(&manifest, &variables)?;
    for warning in cli.warnings(&manifest) {
        Output::default().line(format_args!("warning: {warning}"));
    }
    if !cli.no_build {
        manifest.build()?;
    }
    let program = Program::load(&manifest)?;
    let options = Options {
        listen: cli.listen,
        variables,
        state_dir: cli.state_dir.clone(),
        allowed_hosts: cli.allowed_hosts(),
        drain: cli.drain,
        threads: cli.threads.unwrap_or_else(runtime::default_threads),
        instances: InstanceLimits {
            memory: cli.max_instance_memory,
            ..InstanceLimits::default()
        },
        responses: cli.response_limits(),
        ..Options::default()
    };
    // From here on a signal stops the host gracefully.
    let mut signals = Signals::new()?;
    let host = Host::start(&program, options.clone())
        .await
        .map_err(explain_address_in_use)?;
    banner::check(host.address()).await?;
    banner::print(&manifest, &options, host.address(), stand_in.is_some()).await?;

    signals.next().await;
    stop(host, signals, cli.drain).await;
    Ok(())
}

fn explain_address_in_use(error: anyhow::Error) -> anyhow::Error {
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref());
    match io_errors
        .map(io::Error::kind)
        .any(|kind| kind == io::ErrorKind::AddrInUse)
    {
        true => error.context("is another one running? `--listen 127.0.0.1:0` takes a free port"),
        false => error,
    }
}

/// Writes to stdout; `println!` would panic once that is closed.
fn say(text: impl std::fmt::Display) {
    let _ = io::stdout().write_all(format!("{text}\n").as_bytes());
}

async fn stop(host: Host, mut signals: Signals, drain: Duration) {
    let output = Output::default();
    match host.open_requests() {
        0 => say("stopping"),
        open => say(format_args!(
            "stopping: {open} {} being finished first, for {} s at most (the same signal again stops at once)",
            if open == 1 { "reply is" } else { "replies are" },
            drain.as_secs(),
        )),
    }
    tokio::select! {
        cut = host.stop() => {
            if cut > 0 {
                output.line(format_args!("{cut} cut off: not finished within {} s (--drain)", drain.as_secs()));
            }
        }
        () = signals.next() => {
            output.line("stopped at once");
            std::process::exit(1);
        }
    }
}

/// The signals that ask this program to stop.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    /// The terminal has gone; not there under `nohup`.
    #[cfg(unix)]
    hangup: Option<tokio::signal::unix::Signal>,
}

/// Whether `nohup` or the like had the signal ignored: to listen for it would undo that.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The mask's first bit is signal 1, SIGHUP. Where it is not known, all stays as it was.
    ignored.is_none_or(|mask| mask & 1 != 0)
}

impl Signals {
    #[cfg(unix)]
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: match ignores_hangup() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
