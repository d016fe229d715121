//! The program that users run, as a process: to be killed, stopped, starved and started again. It is
//! our runner, or Spin.

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

use crate::component::{Platform, profile};
use crate::{spin, until};

/// The package, and its program.
const RUNNER: &str = "llmchat-runner";

/// Longer than any turn of a test or a soak takes.
const DRAIN: Duration = Duration::from_secs(30);
/// The first start compiles the component; a debug build of Spin is slow at it.
const START: Duration = Duration::from_secs(120);

/// Values for variables of the manifest.
pub type Variables = Vec<(&'static str, String)>;

/// A server whose address and settings stay while its process comes and goes.
#[derive(Debug)]
pub struct Process {
    address: SocketAddr,
    variables: Vec<(String, String)>,
    /// A file with certificates that it trusts.
    trusted: Option<PathBuf>,
    state: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Running>>,
}

impl Process {
    /// Starts the first process. What it writes goes to `<name>.log` in `directory`; SQLite's file is
    /// in `state`.
    pub async fn start(
        directory: &Path,
        state: &Path,
        name: &str,
        variables: impl IntoIterator<Item = (impl Into<String>, String)>,
    ) -> Result<Self> {
        Self::trusting(None, directory, state, name, variables).await
    }

    /// Like [`Process::start`], with a file of certificates that are trusted besides those of the public.
    pub async fn trusting(
        trusted: Option<PathBuf>,
        directory: &Path,
        state: &Path,
        name: &str,
        variables: impl IntoIterator<Item = (impl Into<String>, String)>,
    ) -> Result<Self> {
        let variables = variables.into_iter();
        let process = Self {
            // Free now; each process binds it.
            address: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?,
            variables: variables
                .map(|(name, value)| (name.into(), value))
                .collect(),
            trusted,
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
        let mut command = command().await?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let variables = self.variables.iter();
        command
            .args(["--listen", &self.address.to_string()])
            .arg("--state-dir")
            .arg(&self.state)
            .envs(variables.map(|(name, value)| (environment_name(name), value)))
            .envs(self.trusted.iter().map(|file| ("SSL_CERT_FILE", file)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut process = Running::spawn(command)?;
        let listening = async {
            while TcpStream::connect(self.address).await.is_err() {
                if let Some(status) = process.leader.try_wait()? {
                    bail!("a host ended at once ({status}):\n{}", self.log()?);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let listening = timeout(START, listening).await;
        listening.context("a host does not listen")??;
        *self.process.lock().await = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        if let Some(mut process) = self.process.lock().await.take() {
            run("kill", &["-KILL", &process.server()?.to_string()]).await?;
            process.leader.wait().await?;
        }
        Ok(())
    }

    /// SIGSTOP: from now on it does nothing, and its connections stay open (Linux).
    pub async fn freeze(&self) -> Result<()> {
        let pid = self.pid().await?;
        run("kill", &["-STOP", &pid.to_string()]).await?;
        until("the standstill of a process", async || {
            let mut threads = fs::read_dir(format!("/proc/{pid}/task"))?;
            threads.try_fold(true, |all, thread| {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                // The state comes after the name, which is in parentheses.
                Ok(all
                    && stat
                        .rsplit_once(") ")
                        .is_some_and(|(_, it)| it.starts_with('T')))
            })
        })
        .await
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub async fn thaw(&self) -> Result<()> {
        run("kill", &["-CONT", &self.pid().await?.to_string()]).await
    }

    /// Whether a stop lets running turns end; Spin's cuts them off.
    pub fn drains() -> bool {
        spin::program().is_none()
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&self) -> Result<()> {
        let Some(mut process) = self.process.lock().await.take() else {
            return Ok(());
        };
        let leader = &mut process.leader;
        let pid = leader.id().context("a host has ended unasked")?;
        run("kill", &["-TERM", &pid.to_string()]).await?;
        let ended = timeout(DRAIN * 2, leader.wait()).await;
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

    /// The process that serves now.
    pub async fn pid(&self) -> Result<u32> {
        let process = self.process.lock().await;
        let process = process.as_ref().context("the host does not run")?;
        process.server()
    }

    /// What all its processes have written.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }
}

/// A process that ends with this value. If it is `spin up`, a child of it serves.
#[derive(Debug)]
struct Running {
    leader: Child,
}

impl Running {
    fn spawn(mut command: Command) -> Result<Self> {
        let leader = command.spawn();
        let program = command.as_std().get_program().display();
        let leader = leader.with_context(|| format!("cannot run {program}"))?;
        Ok(Self { leader })
    }

    /// The process that serves (with Spin: Linux).
    fn server(&self) -> Result<u32> {
        let pid = self.leader.id().context("the host has ended unasked")?;
        if spin::program().is_none() {
            return Ok(pid);
        }
        // A child is listed with the thread that has started it.
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            if let Some(child) = children.split_whitespace().next() {
                return Ok(child.parse()?);
            }
        }
        bail!("`spin up` has no child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.leader.id() {
            // Spin ends at once, and its child too if it is asked to.
            let signal = spin::program().map_or("-KILL", |_| "-TERM");
            let mut kill = std::process::Command::new("kill");
            let _ = kill.args([signal, &pid.to_string()]).status();
        }
    }
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().await;
    let status = status.with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// Starts the program on the manifest, whose component is built.
async fn command() -> Result<Command> {
    let manifest = Platform::Spin.manifest().await?.path();
    let mut command;
    if let Some(spin) = spin::program() {
        command = Command::new(spin);
        command.args(["up", "--from"]).arg(manifest);
        let runtime_config = manifest.with_file_name("runtime-config.toml");
        command.arg("--runtime-config-file").arg(runtime_config);
    } else {
        static RUNNER: OnceCell<PathBuf> = OnceCell::const_new();
        command = Command::new(RUNNER.get_or_try_init(runner).await?);
        command.args(["--no-build", "--manifest"]).arg(manifest);
        command.args(["--drain", &DRAIN.as_secs().to_string()]);
    }
    if let Some(profile) = profile() {
        command.arg("--profile").arg(profile);
    }
    Ok(command)
}

/// The runner's program, built if cargo runs us.
async fn runner() -> Result<PathBuf> {
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
