//! `llmchat-host`: builds the component, runs it, says what it runs with, stops it gently.
//!
//! Thin wiring around the library. What this program knows of the component, two names of
//! variables and one request to paste, is in [`report`].

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use llmchat_host::{Host, Manifest, Options, Program, Variables, runtime};

mod cli;
mod report;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = runtime::new()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: cli::Cli) -> Result<()> {
    let manifest = Manifest::load(cli.manifest()?)?;
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
        variables.insert(report::OLLAMA_URL.to_owned(), stand_in.url());
    }
    // A wrong name is better heard of before the build than after it.
    Variables::resolve(&manifest, &variables)?;
    if !cli.no_build {
        manifest.build()?;
    }
    let program = Program::load(&manifest)?;
    let options = Options {
        listen: cli.listen,
        variables,
        state_dir: cli.state_dir.clone(),
        drain: cli.drain,
        threads: cli.threads.unwrap_or_else(runtime::default_threads),
        ..Options::default()
    };
    // A signal from here on stops it gently.
    let mut signals = Signals::new()?;
    let host = Host::start(&program, options.clone())
        .await
        .map_err(|error| {
            let in_use = error.chain().any(|cause| {
                let cause = cause.downcast_ref::<std::io::Error>();
                cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::AddrInUse)
            });
            match in_use {
                true => error
                    .context("is another one running? `--listen 127.0.0.1:0` takes a free port"),
                false => error,
            }
        })?;
    report::print(&manifest, &options, host.address(), stand_in.is_some()).await?;

    signals.next().await;
    stop(host, signals, cli.drain).await;
    Ok(())
}

async fn stop(host: Host, mut signals: Signals, drain: std::time::Duration) {
    match host.open_turns() {
        0 => println!("stopping"),
        open => println!(
            "stopping: {open} {} being finished first, for {} s at most (the same signal again stops at once)",
            if open == 1 { "reply is" } else { "replies are" },
            drain.as_secs(),
        ),
    }
    tokio::select! {
        cut = host.stop() => {
            if cut > 0 {
                eprintln!("{cut} cut off: not finished within {} s (--drain)", drain.as_secs());
            }
        }
        () = signals.next() => {
            eprintln!("stopped at once");
            std::process::exit(1);
        }
    }
}

/// What asks this program to stop.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
