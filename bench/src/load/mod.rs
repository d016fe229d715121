//! The client: load of several shapes, and what each turn of it was like.
//!
//! [`closed`]: each client sends its next prompt when it has its reply, for throughput, and for the
//! latency that one user sees. [`open`]: prompts are due at fixed moments, and a client that is late
//! since its last reply was slow counts from when the prompt was due, so that a server that stalls
//! does not hide what it kept waiting. [`burst`]: many streams, each once. [`paced`]: when each
//! token came, beside when the model sent it.

mod connection;
mod events;
mod target;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use connection::{Connection, Turn};
pub use target::{Prompts, Target, new_conversation, seeds};

/// Between two connections of one client. Each leaves its port in `TIME_WAIT` for a minute, and
/// there are 28,000.
const RECONNECT: Duration = Duration::from_millis(2);

/// No turn here takes as long.
const TURN_LIMIT: Duration = Duration::from_secs(40);

/// What is sent, and to whom.
#[derive(Clone)]
pub struct Load {
    /// The server.
    pub target: Target,
    /// Its prompts.
    pub prompts: Prompts,
    /// Whether a turn has a connection of its own.
    pub fresh_connections: bool,
    /// How many tokens a reply has that arrived whole; `None` where any reply is as good.
    pub tokens: Option<usize>,
}

/// A turn that worked.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// From the prompt (or, if that is to be made first, its connection) to the first token.
    pub first_token: Duration,
    /// To the end of the reply.
    pub whole: Duration,
    /// Tokens in it.
    pub tokens: usize,
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Run {
    /// The turns that worked.
    pub samples: Vec<Sample>,
    /// What went wrong with the others.
    pub failures: Vec<String>,
    /// All of it.
    pub elapsed: Duration,
}

impl Run {
    /// Times to the first token, in milliseconds.
    pub fn first_tokens(&self) -> Vec<f64> {
        let times = self.samples.iter().map(|sample| sample.first_token);
        times.map(|time| time.as_secs_f64() * 1e3).collect()
    }

    /// Turns a second.
    pub fn turns_per_second(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|sample| sample.tokens).sum()
    }

    fn take(&mut self, sample: Result<Sample>) {
        match sample {
            Ok(sample) => self.samples.push(sample),
            Err(failure) => self.failures.push(format!("{failure:#}")),
        }
    }

    fn join(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.failures.extend(other.failures);
    }
}

/// A client, with the connection that it keeps.
struct Client {
    load: Load,
    connection: Option<Connection>,
}

impl Client {
    fn new(load: Load) -> Self {
        Self {
            load,
            connection: None,
        }
    }

    /// One turn, timed from now or from when it was due.
    async fn turn(
        &mut self,
        due: Option<Instant>,
        on_token: &mut impl FnMut(&[u8]),
    ) -> Result<Sample> {
        let turn = timeout(TURN_LIMIT, self.unbounded_turn(due, on_token)).await;
        let turn = turn.context("no end of the turn came").flatten();
        if turn.is_err() {
            self.connection = None;
        }
        turn
    }

    async fn unbounded_turn(
        &mut self,
        due: Option<Instant>,
        on_token: &mut impl FnMut(&[u8]),
    ) -> Result<Sample> {
        let body = self.load.prompts.next();
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let start = Instant::now();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.load.target).await?,
        };
        let path = &self.load.target.path;
        let Turn {
            first_token,
            tokens,
            is_done,
        } = connection.turn(path, body, on_token).await?;
        let end = Instant::now();
        if let Some(expected) = self.load.tokens {
            ensure!(is_done, "the reply ended without being done");
            ensure!(tokens == expected, "{tokens} tokens came of {expected}");
        }
        if !self.load.fresh_connections {
            self.connection = Some(connection);
        }
        let start = due.unwrap_or(start);
        Ok(Sample {
            first_token: first_token.duration_since(start),
            whole: end.duration_since(start),
            tokens,
        })
    }
}

/// A number of turns, one after the other.
pub async fn turns(load: &Load, count: usize) -> Run {
    let start = Instant::now();
    let mut client = Client::new(load.clone());
    let mut run = Run::default();
    for _ in 0..count {
        run.take(client.turn(None, &mut |_| ()).await);
    }
    run.elapsed = start.elapsed();
    run
}

/// `clients` that each send their next prompt when they have their reply.
pub async fn closed(load: &Load, clients: usize, window: Duration) -> Run {
    all(clients, |_| {
        let mut client = Client::new(load.clone());
        async move {
            let start = Instant::now();
            let mut run = Run::default();
            while start.elapsed() < window {
                run.take(client.turn(None, &mut |_| ()).await);
                if client.load.fresh_connections {
                    sleep(RECONNECT).await;
                }
            }
            run
        }
    })
    .await
}

/// `clients` that each send a prompt every `interval`, whatever became of the one before.
pub async fn open(load: &Load, clients: usize, interval: Duration, window: Duration) -> Run {
    all(clients, |number| {
        let mut client = Client::new(load.clone());
        let share = number as f64 / clients.max(1) as f64;
        let mut due = Instant::now() + interval.mul_f64(share);
        let end = Instant::now() + window;
        async move {
            let mut run = Run::default();
            while due < end {
                let late = Instant::now().checked_duration_since(due);
                if late.is_none() {
                    tokio::time::sleep_until(due.into()).await;
                }
                // That a timer wakes late is our doing and nobody's latency.
                run.take(client.turn(late.map(|_| due), &mut |_| ()).await);
                due += interval;
            }
            run
        }
    })
    .await
}

/// `streams` clients with one turn each, that begin within `spread`.
pub async fn burst(load: &Load, streams: usize, spread: Duration) -> Run {
    all(streams, |number| {
        let mut client = Client::new(load.clone());
        async move {
            sleep(spread.mul_f64(number as f64 / streams as f64)).await;
            let mut run = Run::default();
            run.take(client.turn(None, &mut |_| ()).await);
            run
        }
    })
    .await
}

async fn all<F: Future<Output = Run> + Send + 'static>(
    clients: usize,
    mut client: impl FnMut(usize) -> F,
) -> Run {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(client(number));
    }
    let mut run = Run::default();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(part) => run.join(part),
            Err(panic) => run.failures.push(panic.to_string()),
        }
    }
    run.elapsed = start.elapsed();
    run
}

/// When tokens came.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// From the model's sending of a token to its arrival, in milliseconds.
    pub delays: Vec<f64>,
    /// How much longer the time between two tokens was than the model's, in milliseconds.
    pub gaps: Vec<f64>,
    /// The turns they were in.
    pub failures: Vec<String>,
}

/// `streams` clients in turn after turn, their starts spread over one of the model's `steps`.
pub async fn paced(load: &Load, streams: usize, step: Duration, window: Duration) -> Arrivals {
    let mut tasks = JoinSet::new();
    for number in 0..streams {
        let mut client = Client::new(load.clone());
        tasks.spawn(async move {
            let start = Instant::now();
            let mut arrivals = Arrivals::default();
            sleep(step.mul_f64(number as f64 / streams as f64)).await;
            while start.elapsed() < window {
                let mut last = None;
                let mut on_token = |token: &[u8]| arrivals.take(token, &mut last);
                if let Err(failure) = client.turn(None, &mut on_token).await {
                    arrivals.failures.push(format!("{failure:#}"));
                }
            }
            arrivals
        });
    }
    let mut arrivals = Arrivals::default();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(part) => {
                arrivals.delays.extend(part.delays);
                arrivals.gaps.extend(part.gaps);
                arrivals.failures.extend(part.failures);
            }
            Err(panic) => arrivals.failures.push(panic.to_string()),
        }
    }
    arrivals
}

impl Arrivals {
    /// `last` holds the delay of the token before.
    fn take(&mut self, token: &[u8], last: &mut Option<f64>) {
        let now = SystemTime::now();
        let Some(sent) = created_at(token) else {
            return;
        };
        let delay = match now.duration_since(sent) {
            Ok(delay) => delay.as_secs_f64() * 1e3,
            Err(ahead) => -ahead.duration().as_secs_f64() * 1e3,
        };
        self.delays.push(delay);
        // Between two tokens: what the later one was delayed more than the earlier.
        if let Some(last) = last.replace(delay) {
            self.gaps.push(delay - last);
        }
    }
}

/// When the stand-in sent a line, which every contestant hands on as it came.
fn created_at(token: &[u8]) -> Option<SystemTime> {
    const FIELD: &[u8] = br#""created_at":""#;
    let start = memchr::memmem::find(token, FIELD)? + FIELD.len();
    let time = token.get(start..)?;
    let end = memchr::memchr(b'"', time)?;
    humantime::parse_rfc3339(std::str::from_utf8(time.get(..end)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_a_token_was_delayed_more_than_the_one_before() {
        let sent = |at: SystemTime| {
            format!(
                "{{\"created_at\":\"{}\"}}",
                humantime::format_rfc3339_nanos(at)
            )
        };
        let mut arrivals = Arrivals::default();
        let mut last = None;
        let now = SystemTime::now();
        for ago in [1_000, 3_000] {
            let token = sent(now - Duration::from_millis(ago));
            arrivals.take(token.as_bytes(), &mut last);
        }
        assert_eq!(arrivals.delays.len(), 2);
        assert!((arrivals.gaps[0] - 2_000.0).abs() < 100.0);
    }
}
