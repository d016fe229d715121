//! Streams whose clients do not read: what they cost the host, and that Ollama is held back.
//!
//! Each client has a small receive buffer, sends its prompt and reads nothing, not even the head,
//! while Ollama replies without end and as fast as it is let. Backpressure has to reach Ollama.
//!
//! It does so only once the kernel's buffers are full, megabytes a stream, and the text of what went
//! into those is the host's to keep, since it is to be stored: with ordinary tokens it is most of
//! what is measured, and bounded by `max_completion_bytes`. With long lines of little text what is
//! left is the cost of streaming.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use llmchat_testkit::prompt;
use ollama_stand_in::{Script, Server, wire};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::hosts::{self, Host};

/// How long nothing may move before it counts as standing.
const QUIET: Duration = Duration::from_secs(2);
/// Hundredths of a second of processor time that a host which stands may take in [`QUIET`]: each
/// turn looks at its clock now and then.
const IDLE_TICKS: u64 = 20;
/// How long it may take until all stand.
const STANDING: Duration = Duration::from_secs(600);
/// The smallest that a kernel gives.
const RECEIVE_BUFFER: u32 = 4096;

/// What to measure.
#[derive(Args)]
pub(crate) struct Stalled {
    /// Streams
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// The bound on the host's peak memory (VmHWM), in MiB
    #[arg(long, default_value_t = 512)]
    bound: u64,
    /// Bytes in each of Ollama's lines that are not text; 0 are ordinary tokens, and then the text
    /// that is kept for storing is most of the memory
    #[arg(long, default_value_t = 4096)]
    padding: usize,
}

impl Stalled {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(
            Path::new("/proc/self/status").exists(),
            "a process' peak memory is read from /proc: Linux only"
        );
        let program = hosts::build().await?;
        let directory = TempDir::with_prefix("llmchat-stalled-")?;
        let ollama = Server::scripted().await?;
        let mut line = wire::token("a token of ordinary length ");
        if self.padding > 0 {
            line.insert_str(1, &format!("\"padding\":\"{}\",", "x".repeat(self.padding)));
        }
        ollama.always(Script::new().endless(line));
        let variables = [
            ("ollama_url", ollama.url()),
            // Longer than the measurement: nobody is taken for gone.
            ("client_stall_timeout", "10m".to_owned()),
            ("database_timeout", "60s".to_owned()),
            // And when they do leave, that is the end of it.
            ("on_disconnect", "cancel".to_owned()),
        ];
        let variables = variables
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        let host = Host::start(&program, directory.path(), "host", variables).await?;
        let idle = memory(host.pid().await?)?;
        println!("idle: {idle}");

        let mut clients = Vec::new();
        for number in 0..self.streams {
            clients.push(ask(host.address(), number).await?);
            // A few at a time: it is the streams that are measured, not the rush.
            let begun = async {
                while ollama.chats() + 16 < number {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), begun)
                .await
                .context("turns do not begin")?;
        }
        let all = ollama.requests(self.streams);
        let all = tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .context("turns do not begin")?;
        let sent = || {
            all.iter()
                .map(|exchange| exchange.bytes_sent())
                .sum::<u64>()
        };
        // Until the host has nothing to do: the kernel's buffers take megabytes a stream, and what
        // is in those towards the host still has to go through it.
        let pid = host.pid().await?;
        let standing = async {
            loop {
                let (before, busy) = (sent(), processor_ticks(pid)?);
                tokio::time::sleep(QUIET).await;
                if sent() == before && processor_ticks(pid)? - busy <= IDLE_TICKS {
                    return anyhow::Ok(before);
                }
            }
        };
        let standing = tokio::time::timeout(STANDING, standing);
        let before = standing
            .await
            .context("Ollama is not held back: it can send on and on")??;
        let peak = memory(host.pid().await?)?;
        tokio::time::sleep(QUIET * 2).await;
        let later = memory(host.pid().await?)?;
        ensure!(sent() == before, "Ollama is not held back: it sent on");
        println!(
            "{} streams stand: {peak}; {QUIET:?} later: {later}",
            self.streams
        );
        let streams = self.streams.max(1) as u64;
        println!(
            "a stream: {} KiB of the host's memory; {} KiB were taken from Ollama, most of it by the kernel's buffers",
            later.peak.saturating_sub(idle.peak) / streams / 1024,
            before / streams / 1024,
        );

        drop(clients);
        for exchange in &all {
            let ended = tokio::time::timeout(Duration::from_secs(60), exchange.ended());
            ended
                .await
                .context("a turn goes on although its client has left")?;
        }
        let last = memory(host.pid().await?)?;
        println!("after the clients have left: {last}");
        host.stop().await?;
        let bound = self.bound << 20;
        ensure!(
            last.peak <= bound,
            "the host's peak is over the bound of {} MiB",
            self.bound
        );
        println!("under the bound of {} MiB", self.bound);
        Ok(())
    }
}

/// Sends a prompt, to read nothing of what it brings.
async fn ask(host: SocketAddr, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let connected = socket.connect(host).await;
    let mut stream =
        connected.context("cannot connect: are there enough file descriptors (`ulimit -n`)?")?;
    let body = prompt(&format!("stalled-{number}"), "Tell me everything.").to_string();
    let request = format!(
        "POST /llmchat/ HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// A process' memory, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    /// In RAM now (`VmRSS`).
    now: u64,
    /// The most that it ever was (`VmHWM`).
    peak: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB, peak {} MiB", self.now >> 20, self.peak >> 20)
    }
}

/// The processor time that a process has had, in ticks.
fn processor_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("no name in /proc")?;
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|ticks| Ok(ticks.parse::<u64>()?)).sum()
}

fn memory(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib
            .with_context(|| format!("no {name} in /proc"))?
            .parse()?;
        Ok::<_, anyhow::Error>(kib << 10)
    };
    Ok(Memory {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}
