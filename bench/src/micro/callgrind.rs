//! Instruction counts: this program once more, under valgrind.
//!
//! A case is run for a few passes and for more; the difference is that of the passes alone,
//! whatever the start of the program takes.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::cases::{Case, Tokens};

const FEW: u64 = 1;
const MORE: u64 = 6;

/// Whether there is a valgrind to run.
pub fn is_installed() -> bool {
    let version = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// Instructions of one pass.
pub fn instructions_a_pass(case: Case, tokens: Tokens) -> Result<f64> {
    let few = instructions(case, tokens, FEW)?;
    let more = instructions(case, tokens, MORE)?;
    Ok(more.saturating_sub(few) as f64 / (MORE - FEW) as f64)
}

fn instructions(case: Case, tokens: Tokens, passes: u64) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let mut argument = std::ffi::OsString::from("--callgrind-out-file=");
    argument.push(&out);
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(argument)
        .arg(std::env::current_exe()?)
        .args(["micro-case", &case.name(tokens), &passes.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "valgrind failed on {}", case.name(tokens));
    let counts = std::fs::read_to_string(&out)?;
    total(&counts).context("callgrind wrote no total")
}

/// The line `totals:` (or, of an older version, `summary:`) of callgrind's output.
fn total(counts: &str) -> Option<u64> {
    let line = counts
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals:"))
        .or_else(|| {
            let mut lines = counts.lines();
            lines.find_map(|line| line.strip_prefix("summary:"))
        })?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        assert_eq!(total("events: Ir\nfn=(1)\n1 2\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("summary: 77\n"), Some(77));
        assert_eq!(total("nothing"), None);
    }
}
