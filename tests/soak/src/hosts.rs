//! The hosts: processes of the program that users run, to be killed, stopped and started again.

use std::fs::{self, File, OpenOptions};
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

/// Longer than any turn of a soak takes.
const DRAIN: Duration = Duration::from_secs(30);
/// The first start compiles the component.
const START: Duration = Duration::from_secs(120);

/// A host's place: its address and settings stay, its process comes and goes.
#[derive(Debug)]
pub(crate) struct Host {
    address: SocketAddr,
    program: PathBuf,
    variables: Vec<(String, String)>,
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
        variables: Vec<(String, String)>,
    ) -> Result<Self> {
        let host = Self {
            // Free now, and bound again by each of its processes.
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

    /// Starts a process, and returns when it listens.
    pub(crate) async fn up(&self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let environment = self
            .variables
            .iter()
            .map(|(name, value)| (environment_name(name), value));
        let mut child = Command::new(&self.program)
            .arg("--no-build")
            .arg("--manifest")
            .arg(manifest_path())
            .args(["--listen", &self.address.to_string()])
            .args(["--drain", &DRAIN.as_secs().to_string()])
            .arg("--state-dir")
            .arg(&self.state)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(File::try_clone(&log)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        tokio::time::timeout(START, async {
            while TcpStream::connect(self.address).await.is_err() {
                if let Some(status) = child.try_wait()? {
                    bail!("a host ended at once ({status}):\n{}", self.log()?);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
        .await
        .context("a host does not listen")??;
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
        let pid = child.id().context("a host ended by itself")?;
        let sent = Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status()
            .await?;
        ensure!(sent.success(), "cannot send SIGTERM");
        let ended = tokio::time::timeout(DRAIN * 2, child.wait()).await;
        let status = ended.context("a host does not stop")??;
        ensure!(
            status.success(),
            "a host that was stopped ended with {status}"
        );
        Ok(())
    }

    /// The process that runs now.
    pub(crate) async fn pid(&self) -> Result<u32> {
        let process = self.process.lock().await;
        process
            .as_ref()
            .and_then(Child::id)
            .context("the host does not run")
    }

    /// What all its processes have written.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }
}

fn manifest_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spin.toml")
}

/// Builds the component, and the host where cargo runs us; the host's program.
pub(crate) async fn build() -> Result<PathBuf> {
    let manifest = Manifest::load(manifest_path())?;
    tokio::task::spawn_blocking(move || manifest.build()).await??;
    let own = std::env::current_exe()?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "--package", "llmchat-host"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        ensure!(
            build.status().await?.success(),
            "the host could not be built"
        );
    }
    let program = own.with_file_name("llmchat-host");
    ensure!(
        program.is_file(),
        "there is no llmchat-host beside this program: build it first"
    );
    Ok(program)
}
