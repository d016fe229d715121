//! This program as a child process that serves one address, so that CPU time and memory are the
//! server's alone.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{self, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

pub struct Child {
    /// It ends when our end of its stdin closes, however we end.
    process: process::Child,
    /// Kept open: what the server prints later is not an error.
    _stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
    pub pid: i32,
}

impl Child {
    /// Starts it with these arguments; returns when it listens.
    pub fn start(arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        Self::start_program(&std::env::current_exe()?, arguments)
    }

    /// The same with another build of this program.
    pub fn start_program(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().parse();
        Ok(Self {
            address: address.context("a server ended before it listened: see its stderr")?,
            pid: process.id().try_into()?,
            process,
            _stdout: stdout,
        })
    }

    /// Ends it, and waits until it has released its address and removed its state.
    pub fn stop(&mut self) {
        drop(self.process.stdin.take());
        // An error would mean that it has ended already.
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}
