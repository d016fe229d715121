//! One connection: requests are read, answers written one after the other, and meanwhile it is
//! watched for the client's leaving.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::{Instant, sleep, sleep_until};

use crate::exchange::{Ending, Exchange};
use crate::ollama::{self, Reply};
use crate::script::{Script, Step};
use crate::server::Shared;
use crate::{http, wire};

/// A reply without a rate leaves in pieces of about this size: with one system call per line, a
/// benchmark would measure system calls. Each line is a chunk of its own all the same.
const PIECE: usize = 16 << 10;

/// Serves a connection until its client leaves or a script ends it.
pub(crate) async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut socket) = stream.split();
    let mut reader = http::Reader::new(reader);
    while let Some(request) = reader.request(&mut socket).await? {
        let exchange = Arc::new(Exchange::new(request));
        shared.record(&exchange);
        let mut answer = Answer {
            socket: &mut socket,
            exchange: &exchange,
            out: Vec::new(),
        };
        let ending = tokio::select! {
            ending = answer.send(&shared) => ending.unwrap_or_else(|error| {
                exchange.failed(&error);
                Ending::ClientLeft
            }),
            closed = reader.closed() => {
                closed.unwrap_or_else(|error| exchange.failed(&error));
                Ending::ClientLeft
            }
        };
        exchange.end(ending);
        shared.log(&exchange);
        if ending != Ending::Complete {
            break;
        }
    }
    Ok(())
}

/// The writing side of one exchange.
struct Answer<'a, 's> {
    socket: &'a mut WriteHalf<'s>,
    exchange: &'a Exchange,
    /// What leaves with the next write.
    out: Vec<u8>,
}

impl Drop for Answer<'_, '_> {
    /// The ending when the task is aborted; any other was set before.
    fn drop(&mut self) {
        self.exchange.end(Ending::Stopped);
    }
}

impl Answer<'_, '_> {
    async fn send(&mut self, shared: &Shared) -> io::Result<Ending> {
        let request = self.exchange.request();
        let config = &shared.config;
        let own = config.path(request).filter(|_| config.admits(request));
        if let Some(script) = own.and_then(|path| shared.script_at(path)) {
            return self.play(script).await;
        } else if let Some(answer) = ollama::route(request, config) {
            self.out = answer;
        } else if let Some(script) = shared.script_for(request) {
            return self.play(script).await;
        } else {
            match Reply::to(&request.body, shared.config.tokens) {
                Ok(reply) if reply.stream => self.stream(&reply, shared.config.rate).await?,
                Ok(reply) => self.json(200, &reply.last_line(&reply.tokens.concat())),
                Err(error) => self.json(400, &wire::error(&error.to_string())),
            }
        }
        self.flush().await?;
        Ok(Ending::Complete)
    }

    fn json(&mut self, status: u16, body: &str) {
        self.out = http::whole(status, Some(wire::JSON), body.as_bytes());
    }

    /// Streams the built-in reply: with a rate in one write per line, each at its time.
    async fn stream(&mut self, reply: &Reply, rate: Option<f64>) -> io::Result<()> {
        let piece = if rate.is_some() { 0 } else { PIECE };
        let begun = Instant::now();
        self.out = http::head(200, Some(wire::NDJSON), None);
        // One for all lines of a piece.
        let mut created_at = String::new();
        for (i, token) in reply.tokens.iter().enumerate() {
            if let Some(rate) = rate {
                // Counted from the start: a late token delays no other.
                sleep_until(begun + Duration::from_secs_f64(i as f64 / rate)).await;
            }
            if created_at.is_empty() {
                created_at = wire::now();
            }
            let line = wire::line(&reply.model, &created_at, token, "false}\n");
            http::push_chunk(&mut self.out, &line);
            if self.out.len() >= piece {
                self.flush().await?;
                created_at.clear();
            }
        }
        http::push_chunk(&mut self.out, &[&*reply.last_line(""), "\n"]);
        self.out.extend_from_slice(http::LAST_CHUNK);
        Ok(())
    }

    /// Plays a test's script.
    async fn play(&mut self, script: Script) -> io::Result<Ending> {
        // The usual head leaves with the first chunk, or not at all.
        self.out = http::head(200, Some(wire::NDJSON), None);
        for step in script.steps {
            match step {
                Step::Chunk(bytes) => {
                    http::push_chunk(&mut self.out, &[bytes]);
                    self.flush().await?;
                }
                Step::Raw(bytes) => {
                    self.out = bytes.into();
                    self.flush().await?;
                }
                Step::Gate(gate) => gate.pass().await,
                Step::Delay(duration) => sleep(duration).await,
                Step::Endless(line) => loop {
                    http::push_chunk(&mut self.out, &[&line]);
                    self.flush().await?;
                    // A client that keeps up must not starve the runtime's other tasks.
                    tokio::task::yield_now().await;
                },
                Step::End(ending) => return Ok(ending),
                Step::Reset => {
                    AsRef::<TcpStream>::as_ref(self.socket).set_zero_linger()?;
                    return Ok(Ending::BrokenOff);
                }
            }
        }
        self.out.extend_from_slice(http::LAST_CHUNK);
        self.flush().await?;
        Ok(Ending::Complete)
    }

    /// Writes what is pending, and counts it as the socket accepts it.
    async fn flush(&mut self) -> io::Result<()> {
        let mut pending = self.out.as_slice();
        while !pending.is_empty() {
            let accepted = self.socket.write_buf(&mut pending).await?;
            self.exchange.sent(accepted);
        }
        self.out.clear();
        Ok(())
    }
}
