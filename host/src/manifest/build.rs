//! The component's build command, after a look at whether its target is installed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::file::Commands;

/// What components are compiled for.
const TARGET: &str = "wasm32-wasip2";

#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) command: Commands,
    pub(super) dir: PathBuf,
}

impl Build {
    pub(super) fn run(&self) -> Result<()> {
        let commands = match &self.command {
            Commands::One(command) => std::slice::from_ref(command),
            Commands::Several(commands) => commands,
        };
        if commands.iter().any(|command| command.contains(TARGET)) {
            self.install_target()?;
        }
        for command in commands {
            let status = self
                .in_dir(if cfg!(windows) { "cmd" } else { "sh" })
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

    /// Without the target, cargo's own message speaks of a missing crate `core`.
    fn install_target(&self) -> Result<()> {
        if self.target_is_installed() {
            return Ok(());
        }
        let added = self
            .in_dir("rustup")
            .args(["target", "add", TARGET])
            .status();
        match added {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("`rustup target add {TARGET}` failed ({status})"),
            Err(_) => bail!(
                "the Rust target {TARGET} is not installed, and there is no rustup to add it: \
                 install rustup, or your distribution's package of the standard library for {TARGET}"
            ),
        }
    }

    /// Asks rustc, which knows for installations without rustup too.
    fn target_is_installed(&self) -> bool {
        let output = self
            .in_dir("rustc")
            .args(["--print", "target-libdir", "--target", TARGET])
            .stderr(Stdio::null())
            .output();
        output.is_ok_and(|output| {
            let dir = String::from_utf8_lossy(&output.stdout);
            output.status.success() && PathBuf::from(dir.trim()).is_dir()
        })
    }

    fn in_dir(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // A manifest named without a directory has an empty one, which is no place to go to.
        if !self.dir.as_os_str().is_empty() {
            command.current_dir(&self.dir);
        }
        command
    }
}
