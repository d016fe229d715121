//! The hosts: processes of the program that users run, to be killed, stopped and started again.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use llmchat_host::Manifest;
use llmchat_host::variables::environment_name;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The package, and its program.
const HOST: &str = "llmchat-runner";
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spin.toml");

/// Longer than any turn of a soak takes.
const DRAIN: Duration = Duration::from_secs(30);
/// The first start compiles the component.
const START: Duration = Duration::from_secs(120);

/// Values for variables of the manifest.
pub(crate) type Variables = Vec<(&'static str, String)>;

/// A host whose address and settings stay while its process comes and goes.
#[derive(Debug)]
pub(crate) struct Host {
    address: SocketAddr,
    program: PathBuf,
    variables: Variables,
    state: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Host {
    /// Starts the first process. What it writes goes to `<name>.log` in `directory`.
    pub(crate) async fn start(
        program: &Path,
        directory: &Path,
        name: &str,
        variables: Variables,
    ) -> Result<Self> {
        let host = Self {
            // Free now; each process binds it.
            address: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?,
            program: program.to_owned(),
            variables,
            state: directory.join("state"),
            log: directory.join(format!("{name}.log")),
            process: Mutex::default(),
        };
        host.up().await?;
        Ok(host)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a process; returns when it listens.
    pub(crate) async fn up(&self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let variables = self.variables.iter();
        let mut child = Command::new(&self.program)
            .args(["--no-build", "--manifest", MANIFEST])
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
            .with_context(|| format!("cannot run {}", self.program.display()))?;
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
    pub(crate) async fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.process.lock().await.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(&self) -> Result<()> {
        let Some(mut child) = self.process.lock().await.take() else {
            return Ok(());
        };
        let pid = child.id().context("a host has ended unasked")?;
        let mut kill = Command::new("kill");
        let sent = kill.args(["-TERM", &pid.to_string()]).status().await?;
        ensure!(sent.success(), "cannot send SIGTERM");
        let ended = timeout(DRAIN * 2, child.wait()).await;
        let status = ended.context("a host does not stop")??;
        ensure!(status.success(), "a host that was stopped: {status}");
        Ok(())
    }

    /// The process that runs now.
    pub(crate) async fn pid(&self) -> Result<u32> {
        let process = self.process.lock().await;
        let pid = process.as_ref().and_then(Child::id);
        pid.context("the host does not run")
    }

    /// What all its processes have written.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }
}

/// Builds the component, and the host too if cargo runs us. Returns the host's program.
pub(crate) async fn build() -> Result<PathBuf> {
    let manifest = Manifest::load(MANIFEST)?;
    tokio::task::spawn_blocking(move || manifest.build()).await??;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "--package", HOST])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.status().await?;
        ensure!(built.success(), "the host could not be built");
    }
    let program = std::env::current_exe()?.with_file_name(HOST);
    ensure!(
        program.is_file(),
        "there is no {HOST} beside this program: build it first"
    );
    Ok(program)
}
