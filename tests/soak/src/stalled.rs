//! Streams whose clients do not read: what they cost the host, and whether backpressure reaches
//! Ollama.
//!
//! Each client has a small receive buffer, sends its prompt and reads nothing, not even the head,
//! while Ollama replies endlessly and as fast as it can.
//!
//! Backpressure reaches Ollama once the kernel's buffers are full, at megabytes a stream. The host
//! keeps the text of all lines that went into them, to store it: with ordinary tokens that text is
//! most of what is measured, and bounded by `max_completion_bytes`. With long lines of little text,
//! the measurement is of streaming itself.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use llmchat_testkit::{Process, prompt};
use ollama_stand_in::{Script, Server, wire};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long nothing may move before the streams count as stalled.
const QUIET: Duration = Duration::from_secs(2);
/// Processor time that a stalled host may use in [`QUIET`], in hundredths of a second: its turns
/// have timers.
const IDLE_TICKS: u64 = 20;
/// How long it may take until all streams are stalled.
const STALLING: Duration = Duration::from_secs(600);
const MINUTE: Duration = Duration::from_secs(60);
/// The smallest that kernels allow.
const RECEIVE_BUFFER: u32 = 4096;

/// What to measure.
#[derive(Args)]
pub(crate) struct Stalled {
    /// Streams
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Bound on the host's peak memory (VmHWM), in MiB
    #[arg(long, default_value_t = 512)]
    bound: u64,
    /// Bytes that are not text in each of Ollama's lines; 0 for ordinary tokens, with which the text
    /// to be stored takes most of the memory
    #[arg(long, default_value_t = 4096)]
    padding: usize,
}

impl Stalled {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(
            Path::new("/proc/self/status").exists(),
            "memory is read from /proc, which only Linux has"
        );
        let directory = TempDir::with_prefix("llmchat-stalled-")?;
        let ollama = Server::scripted().await?;
        let mut line = wire::token("a token of ordinary length ");
        if self.padding > 0 {
            line.insert_str(1, &format!("\"padding\":\"{}\",", "x".repeat(self.padding)));
        }
        ollama.always(Script::new().endless(line));
        let variables = vec![
            ("ollama_url", ollama.url()),
            // Longer than the measurement.
            ("client_stall_timeout", "10m".to_owned()),
            ("database_timeout", "60s".to_owned()),
            // The turns end when the clients leave.
            ("on_disconnect", "cancel".to_owned()),
        ];
        let host = Process::start(directory.path(), directory.path(), "host", variables).await?;
        let pid = host.pid().await?;
        let idle = memory(pid)?;
        println!("idle: {idle}");

        let mut clients = Vec::new();
        for number in 0..self.streams {
            clients.push(send_prompt(host.address(), number).await?);
            // A few at a time: the streams are measured, not their start.
            let begun = async {
                while ollama.chats() + 16 < number {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let begun = timeout(MINUTE, begun).await;
            begun.context("turns do not begin")?;
        }
        let all = timeout(MINUTE, ollama.requests(self.streams)).await;
        let all = all.context("turns do not begin")?;
        let sent = || -> u64 { all.iter().map(|it| it.bytes_sent()).sum() };
        // Until the host is idle: what the kernel's buffers hold on the way to the host, megabytes
        // a stream, still has to pass through it.
        let stalled = async {
            loop {
                let (before, busy) = (sent(), processor_ticks(pid)?);
                tokio::time::sleep(QUIET).await;
                if sent() == before && processor_ticks(pid)? - busy <= IDLE_TICKS {
                    return anyhow::Ok(before);
                }
            }
        };
        let stalled = timeout(STALLING, stalled).await;
        let before = stalled.context("no backpressure: Ollama can send on and on")??;
        let peak = memory(pid)?;
        tokio::time::sleep(QUIET * 2).await;
        let later = memory(pid)?;
        ensure!(sent() == before, "no backpressure: Ollama has sent more");
        let streams = self.streams.max(1) as u64;
        println!("{streams} streams are stalled: {peak}; later: {later}");
        println!(
            "per stream: {} KiB of the host's memory; {} KiB sent by Ollama, most of it in the kernel's buffers",
            later.peak.saturating_sub(idle.peak) / streams / 1024,
            before / streams / 1024,
        );

        drop(clients);
        for exchange in &all {
            let ended = timeout(MINUTE, exchange.ended()).await;
            ended.context("a turn goes on although its client has left")?;
        }
        let last = memory(pid)?;
        println!("after the clients have left: {last}");
        host.stop().await?;
        let bound = self.bound;
        ensure!(last.peak <= bound << 20, "over the bound of {bound} MiB");
        println!("within the bound of {bound} MiB");
        Ok(())
    }
}

/// Sends a prompt, without reading any of the answer.
async fn send_prompt(host: SocketAddr, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let connected = socket.connect(host).await;
    let mut stream = connected.context("cannot connect: is `ulimit -n` too low?")?;
    let body = prompt(&format!("stalled-{number}"), "Tell me everything.").to_string();
    let request = format!(
        "POST /llmchat/ HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    /// In RAM now (`VmRSS`).
    now: u64,
    /// At its peak (`VmHWM`).
    peak: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB, peak {} MiB", self.now >> 20, self.peak >> 20)
    }
}

/// The processor time that a process has used, in ticks.
fn processor_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may contain anything.
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
