//! The component's build commands, preceded by a check that their target is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// What components are compiled for.
const TARGET: &str = "wasm32-wasip2";

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Build {
    command: Commands,
    #[serde(default)]
    workdir: PathBuf,
}

/// One command, or several that run one after the other.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Commands {
    One(String),
    Several(Vec<String>),
}

impl Build {
    /// With a profile's commands, in the directory of the others.
    pub(super) fn with(command: Commands, default: Option<Self>) -> Self {
        let workdir = default.map(|build| build.workdir).unwrap_or_default();
        Self { command, workdir }
    }

    /// Runs the commands; `workdir` is relative to `dir`.
    pub(super) fn run(&self, dir: &Path) -> Result<()> {
        let dir = dir.join(&self.workdir);
        let commands = match &self.command {
            Commands::One(command) => std::slice::from_ref(command),
            Commands::Several(commands) => commands,
        };
        if commands.iter().any(|command| command.contains(TARGET)) {
            install_target(&dir)?;
        }
        for command in commands {
            let status = in_dir(if cfg!(windows) { "cmd" } else { "sh" }, &dir)
                .args([if cfg!(windows) { "/C" } else { "-c" }, command])
                .status()
                .with_context(|| format!("cannot run the build command `{command}`"))?;
            ensure!(
                status.success(),
                "the build command `{command}` failed ({status})"
            );
        }
        Ok(())
    }
}

/// Without the target, cargo's own message is about a missing crate `core`.
fn install_target(dir: &Path) -> Result<()> {
    if is_target_installed(dir) {
        return Ok(());
    }
    let rustup = in_dir("rustup", dir)
        .args(["target", "add", TARGET])
        .status();
    match rustup {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("`rustup target add {TARGET}` failed ({status})"),
        Err(_) => bail!(
            "the Rust target {TARGET} is not installed, and there is no rustup to add it: \
             install rustup, or your distribution's package of the standard library for {TARGET}"
        ),
    }
}

/// Asks rustc, which also knows for installations without rustup.
fn is_target_installed(dir: &Path) -> bool {
    let output = in_dir("rustc", dir)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        let libdir = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(libdir.trim()).is_dir()
    })
}

fn in_dir(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    // A manifest named without a directory has an empty one, which cannot be changed to.
    if !dir.as_os_str().is_empty() {
        command.current_dir(dir);
    }
    command
}
