//! Programs of the system that a test runs beside it.

use std::env;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Where a program is, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian's is not in everybody's path.
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Waits for the end of its stdin, which comes with this process however that ends; then all that the program has
/// started goes with it.
const KEEPER: &str = r#""$@" </dev/null & cat >/dev/null; kill -KILL 0"#;

/// A program with all its children, gone when dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    keeper: Child,
}

impl Kept {
    /// Starts it; what it writes goes to the file `log`.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        home: &Path,
        log: &Path,
    ) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(program)
            .args(arguments)
            // What it keeps goes when the test does.
            .env("HOME", home)
            .env("TMPDIR", home)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run sh")?;
        Ok(Self { keeper })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
