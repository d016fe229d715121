//! One connection: requests in, answers out, and an eye on whether the client is still there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::tcp::WriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::exchange::{Ending, Exchange};
use crate::ollama::{self, Answer, Reply};
use crate::script::{Script, Step};
use crate::wire::LineStart;
use crate::{Shared, http, wire};

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json; charset=utf-8";

/// A reply without a rate leaves in pieces of about this size: one system call a line would
/// measure the system calls. Each line is a chunk of its own all the same.
const SLAB: usize = 16 << 10;

/// Accepts until it is dropped, and takes its connections with it.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let number = shared.accepted.fetch_add(1, Ordering::Relaxed) + 1;
                shared.open.fetch_add(1, Ordering::Relaxed);
                let open = Open(shared.clone());
                // A client that breaks the protocol loses its connection, and that is all.
                connections.spawn(async move { converse(stream, number, &open.0).await.ok() });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts an open connection until it is dropped.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Notes that an exchange was left unfinished, unless it was finished.
struct Unfinished(Exchange);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.end(Ending::Stopped);
    }
}

async fn converse(mut stream: TcpStream, number: u64, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(4 << 10);
    loop {
        let (mut read, mut write) = stream.split();
        let request = http::read_request(&mut read, &mut write, &mut buffer).await?;
        let Some(request) = request else {
            return Ok(());
        };
        let exchange = Exchange::new(request, number);
        let _unfinished = Unfinished(exchange.clone());
        shared.record(&exchange);
        let outcome = tokio::select! {
            outcome = answer(&mut write, &exchange, shared) => outcome,
            () = http::client_left(&mut read, &mut buffer) => Ok(Outcome::ClientLeft),
        };
        match outcome {
            Ok(Outcome::Complete) => exchange.end(Ending::Complete),
            Ok(Outcome::ClientLeft) | Err(_) => {
                exchange.end(Ending::ClientLeft);
                return Ok(());
            }
            Ok(Outcome::BreakOff) => {
                exchange.end(Ending::BrokenOff);
                return Ok(());
            }
            Ok(Outcome::Reset) => {
                exchange.end(Ending::BrokenOff);
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
        }
    }
}

enum Outcome {
    Complete,
    ClientLeft,
    BreakOff,
    Reset,
}

async fn answer(
    socket: &mut WriteHalf<'_>,
    exchange: &Exchange,
    shared: &Shared,
) -> io::Result<Outcome> {
    let request = exchange.request();
    let (status, content_type, body) = match ollama::route(request, &shared.config) {
        Answer::Chat => {
            if let Some(script) = shared.script_for(request) {
                return play(socket, exchange, script).await;
            }
            match Reply::to(&request.body, shared.config.tokens) {
                Ok(reply) if reply.stream => {
                    return stream(socket, exchange, &reply, shared.config.rate).await;
                }
                Ok(reply) => (200, Some(JSON), reply.whole()),
                Err((status, words)) => (status, Some(JSON), wire::error(&words)),
            }
        }
        Answer::Whole {
            status,
            content_type,
            body,
        } => (status, content_type, body),
    };
    let mut out = http::head(status, content_type, Some(body.len()));
    if request.method != "HEAD" {
        out.extend_from_slice(body.as_bytes());
    }
    http::write(socket, &out, exchange).await?;
    Ok(Outcome::Complete)
}

/// The stand-in's own reply: paced, a write a line and each at its time; or in slabs.
async fn stream(
    socket: &mut WriteHalf<'_>,
    exchange: &Exchange,
    reply: &Reply,
    rate: Option<f64>,
) -> io::Result<Outcome> {
    let start = LineStart::new(&reply.model);
    let mut out = http::head(200, Some(NDJSON), None);
    match rate {
        Some(rate) => {
            let begun = Instant::now();
            for (i, token) in reply.tokens.iter().enumerate() {
                // From the beginning, not from the last token: a late one delays no other.
                sleep_until(begun + Duration::from_secs_f64(i as f64 / rate)).await;
                ollama::push_token(&mut out, &start, &wire::now(), token);
                http::write(socket, &out, exchange).await?;
                exchange.sent_chunks(1);
                out.clear();
            }
        }
        None => {
            let mut created_at = wire::now();
            let mut lines = 0;
            for token in &reply.tokens {
                ollama::push_token(&mut out, &start, &created_at, token);
                lines += 1;
                if out.len() >= SLAB {
                    http::write(socket, &out, exchange).await?;
                    exchange.sent_chunks(lines);
                    out.clear();
                    lines = 0;
                    created_at = wire::now();
                }
            }
            exchange.sent_chunks(lines);
        }
    }
    out.extend_from_slice(&reply.end());
    http::write(socket, &out, exchange).await?;
    exchange.sent_chunks(1);
    Ok(Outcome::Complete)
}

/// A test's script.
async fn play(
    socket: &mut WriteHalf<'_>,
    exchange: &Exchange,
    script: Script,
) -> io::Result<Outcome> {
    // What is to leave with the next write: the head goes with the first chunk.
    let mut out = Vec::new();
    let mut head_sent = false;
    for step in script.steps {
        match step {
            Step::Head {
                status,
                content_type,
            } => {
                out = http::head(status, Some(&content_type), None);
                head_sent = true;
                http::write(socket, &out, exchange).await?;
            }
            Step::Whole {
                status,
                content_type,
                body,
            } => {
                out = http::head(status, Some(&content_type), Some(body.len()));
                out.extend_from_slice(&body);
                http::write(socket, &out, exchange).await?;
                return Ok(Outcome::Complete);
            }
            Step::Chunk(bytes) => {
                out.clear();
                if !std::mem::replace(&mut head_sent, true) {
                    out = http::head(200, Some(NDJSON), None);
                }
                chunk(&mut out, &bytes);
                http::write(socket, &out, exchange).await?;
                exchange.sent_chunks(1);
            }
            Step::Raw(bytes) => {
                head_sent = true;
                http::write(socket, &bytes, exchange).await?;
            }
            Step::Gate(gate) => gate.pass().await,
            Step::Delay(duration) => sleep(duration).await,
            Step::Endless(line) => {
                out.clear();
                if !head_sent {
                    http::write(socket, &http::head(200, Some(NDJSON), None), exchange).await?;
                }
                chunk(&mut out, &line);
                loop {
                    http::write(socket, &out, exchange).await?;
                    exchange.sent_chunks(1);
                    // A reader that keeps up must not keep the runtime's other tasks waiting.
                    tokio::task::yield_now().await;
                }
            }
            Step::Hang => return std::future::pending().await,
            Step::BreakOff => return Ok(Outcome::BreakOff),
            Step::Reset => return Ok(Outcome::Reset),
        }
    }
    out.clear();
    if !head_sent {
        out = http::head(200, Some(NDJSON), None);
    }
    out.extend_from_slice(http::LAST_CHUNK);
    http::write(socket, &out, exchange).await?;
    Ok(Outcome::Complete)
}

fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    // An empty chunk would be the last.
    if !bytes.is_empty() {
        http::open_chunk(out, bytes.len());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }
}
