//! A process' CPU time and memory, from `/proc`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// The unit of CPU time in `/proc/<pid>/stat`: `sysconf(_SC_CLK_TCK)`, 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that a process has used, in user and kernel mode, by all its threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = Stat::of(pid)?;
    Ok(stat.own)
}

/// CPU time of a process and all its children, those included that have ended and were waited for.
pub fn cpu_time_of_family(parent: u32) -> Result<Duration> {
    let stat = Stat::of(parent)?;
    let children = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Stat::of(pid).ok())
        .filter(|child| child.parent == parent);
    Ok(stat.own + stat.ended_children + children.map(|child| child.own).sum::<Duration>())
}

/// The process that started this one.
pub fn parent(pid: u32) -> Result<u32> {
    Ok(Stat::of(pid)?.parent)
}

/// Resident memory now, in KiB.
pub fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = field(&status, "VmRSS:").context("no VmRSS")?;
    Ok(value.trim_end_matches("kB").trim().parse()?)
}

/// The machine, in a line.
pub fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&cpu, "model name").map_or("CPU unknown", |value| value);
    let model = model.trim_start_matches([':', ' ', '\t']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes: u64 = field(&memory, "MemTotal:")
        .and_then(|value| value.trim_end_matches("kB").trim().parse().ok())
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores of {model}, {} GiB, Linux {}",
        kilobytes >> 20,
        kernel.trim()
    )
}

/// The processes that ran or wanted to, on average over the last minute.
pub fn load_average() -> Option<f64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}

/// Lets this process, and those it starts, have as many files open as it may.
pub fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// The commit that is measured, if git can tell.
pub fn commit(directory: &Path) -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10"])
        .current_dir(directory)
        .output()
        .ok()?;
    let name = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| name.trim().to_owned())
}

struct Stat {
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        Self::parse(&stat).with_context(|| format!("/proc/{pid}/stat cannot be read"))
    }

    /// proc(5): the command is in brackets and may hold anything, so count from the last one.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split(' ').collect();
        let time = |first: usize| {
            let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
            Some(Duration::from_secs_f64(
                (ticks(first)? + ticks(first + 1)?) / TICKS_PER_SECOND,
            ))
        };
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: time(11)?,
            ended_children: time(13)?,
        })
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.get(name.len()..).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194304 1 2 3 4 150 50 20 5 20 0 1 0";
        let stat = Stat::parse(stat).expect("a stat line");
        assert_eq!(stat.parent, 3);
        assert_eq!(stat.own, Duration::from_secs(2));
        assert_eq!(stat.ended_children, Duration::from_millis(250));
    }

    #[test]
    fn this_process_uses_memory_and_time() -> Result<()> {
        assert!(memory(std::process::id())? > 100);
        cpu_time_of_family(std::process::id())?;
        Ok(())
    }
}
