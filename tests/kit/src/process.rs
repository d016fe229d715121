//! The program that users run, as a process: to be killed, stopped, starved and started again.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use llmchat_host::variables::environment_name;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use crate::app;

/// The package, and its program.
const RUNNER: &str = "llmchat-runner";
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spin.toml");

/// Longer than any turn of a test or a soak takes.
const DRAIN: Duration = Duration::from_secs(30);
/// The first start compiles the component.
const START: Duration = Duration::from_secs(120);

/// Values for variables of the manifest.
pub type Variables = Vec<(&'static str, String)>;

/// A server whose address and settings stay while its process comes and goes.
#[derive(Debug)]
pub struct Process {
    address: SocketAddr,
    variables: Variables,
    state: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Process {
    /// Starts the first process. What it writes goes to `<name>.log` in `directory`; SQLite's file is
    /// in `state`.
    pub async fn start(
        directory: &Path,
        state: &Path,
        name: &str,
        variables: Variables,
    ) -> Result<Self> {
        let process = Self {
            // Free now; each process binds it.
            address: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?,
            variables,
            state: state.to_owned(),
            log: directory.join(format!("{name}.log")),
            process: Mutex::default(),
        };
        process.up().await?;
        Ok(process)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a process; returns when it listens.
    pub async fn up(&self) -> Result<()> {
        let program = program().await?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let variables = self.variables.iter();
        let mut child = Command::new(program)
            .args(["--no-build", "--manifest", MANIFEST])
            .args(app::profile().map(|name| format!("--profile={name}")))
            .args(["--listen", &self.address.to_string()])
            .args(["--drain", &DRAIN.as_secs().to_string()])
            .arg("--state-dir")
            .arg(&self.state)
            .envs(variables.map(|(name, value)| (environment_name(name), value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let listening = async {
            while TcpStream::connect(self.address).await.is_err() {
                if let Some(status) = child.try_wait()? {
                    bail!("a host ended at once ({status}):\n{}", self.log()?);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let listening = timeout(START, listening).await;
        listening.context("a host does not listen")??;
        *self.process.lock().await = Some(child);
        Ok(())
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.process.lock().await.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&self) -> Result<()> {
        let Some(mut child) = self.process.lock().await.take() else {
            return Ok(());
        };
        let pid = child.id().context("a host has ended unasked")?;
        run("kill", &["-TERM", &pid.to_string()]).await?;
        let ended = timeout(DRAIN * 2, child.wait()).await;
        let status = ended.context("a host does not stop")??;
        ensure!(status.success(), "a host that was stopped: {status}");
        Ok(())
    }

    /// From now on it can open nothing whose descriptor would be `limit` or more (Linux).
    pub async fn limit_descriptors(&self, limit: u32) -> Result<()> {
        let (pid, limit) = (self.pid().await?, format!("--nofile={limit}:"));
        run("prlimit", &["--pid", &pid.to_string(), &limit]).await
    }

    /// Whether it holds a file open whose path ends like this (Linux).
    pub async fn has_open(&self, suffix: &str) -> Result<bool> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid().await?))?;
        // One may be closed meanwhile.
        let mut paths = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        Ok(paths.any(|path| path.to_string_lossy().ends_with(suffix)))
    }

    /// The most memory that it has used, in bytes (Linux).
    pub async fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().await?))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmHWM in /proc")?.parse::<u64>()? << 10)
    }

    /// The process that runs now.
    pub async fn pid(&self) -> Result<u32> {
        let process = self.process.lock().await;
        let pid = process.as_ref().and_then(Child::id);
        pid.context("the host does not run")
    }

    /// What all its processes have written.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().await;
    let status = status.with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// The runner's program, built once, with the component; the runner only if cargo runs us.
async fn program() -> Result<&'static PathBuf> {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    PROGRAM.get_or_try_init(build).await
}

async fn build() -> Result<PathBuf> {
    let manifest = app::manifest()?;
    tokio::task::spawn_blocking(move || manifest.build()).await??;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "--package", RUNNER])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.status().await?;
        ensure!(built.success(), "the host could not be built");
    }
    let this = std::env::current_exe()?;
    // Tests are one level deeper.
    let beside = this.ancestors().skip(1).take(2);
    let found = beside
        .map(|directory| directory.join(RUNNER))
        .find(|program| program.is_file());
    found.with_context(|| format!("there is no {RUNNER} beside this program: build it first"))
}
