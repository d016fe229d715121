//! This program once more, as one contestant. It ends when its stdin does: with us, however we end.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// A contestant's process.
pub struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Child {
    /// Starts `serve` with these arguments; returns when it listens.
    pub fn start(arguments: &[&str], variables: &[(String, String)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args(arguments);
        // Settings of somebody's own, a database's among them, are none of ours.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SPIN_VARIABLE_") {
                command.env_remove(name);
            }
        }
        let mut process = command
            .envs(variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start this program once more")?;
        let stdin = process.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?);
        let address = read_address(&mut stdout);
        let address = address.with_context(|| format!("`serve {}`", arguments.join(" ")))?;
        Ok(Self {
            process,
            stdin,
            stdout,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a line, and waits until it listens again.
    pub fn order(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        self.address = read_address(&mut self.stdout)?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Gone already, or it goes now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read_address(stdout: &mut impl BufRead) -> Result<SocketAddr> {
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    line.trim()
        .parse()
        .context("it ended before it listened: its stderr says why")
}
