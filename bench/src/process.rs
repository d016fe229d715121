//! CPU time and memory of processes, and a description of the machine, from `/proc`.

use anyhow::{Context, Result};
use procfs::process::{Process, all_processes};
use procfs::{CpuInfo, Current, LoadAverage};

/// CPU seconds that a process has used, in user and kernel mode, in all its threads.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = Process::new(pid)?.stat()?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// CPU seconds of the process that started this one and of all that it started, those that have ended included.
pub fn family_cpu_seconds(pid: i32) -> Result<f64> {
    let parent = Process::new(pid)?.stat()?.ppid;
    // One that ends meanwhile is left out.
    let stats = all_processes()?.filter_map(|process| process.and_then(|it| it.stat()).ok());
    let ticks = stats.map(|stat| match stat {
        _ if stat.pid == parent => {
            // What it has waited for counts as its own.
            stat.utime + stat.stime + (stat.cutime + stat.cstime).unsigned_abs()
        }
        _ if stat.ppid == parent => stat.utime + stat.stime,
        _ => 0,
    });
    Ok(ticks.sum::<u64>() as f64 / procfs::ticks_per_second() as f64)
}

/// Resident memory in KiB.
pub fn memory(pid: i32) -> Result<u64> {
    Process::new(pid)?.status()?.vmrss.context("no VmRSS")
}

/// The machine and what it is busy with, in a line.
pub fn machine() -> Result<String> {
    let cpu = CpuInfo::current()?;
    Ok(format!(
        "{} cores of {}, Linux {}, load average {:.1} before the run",
        cpu.num_cores(),
        cpu.model_name(0).unwrap_or("an unknown CPU"),
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        LoadAverage::current()?.one
    ))
}

/// Raises the limit of open files to its maximum, for this process and those it starts.
pub fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// The commit that is measured, if git knows it.
pub fn commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let name = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| name.trim().to_owned())
}
