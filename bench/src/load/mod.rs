//! The client: sends prompts to a server on some [`Schedule`], and reports what the replies were
//! like ([`Run`]). It knows where a server listens, not which server it is.

mod connection;
mod events;
pub mod prompts;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

pub use connection::Connection;
use prompts::Prompts;

/// Between two connections of one client. Each leaves its port in `TIME_WAIT` for a minute, and
/// there are 28,000.
const RECONNECT: Duration = Duration::from_millis(2);

/// No reply here takes as long.
const REPLY_TIMEOUT: Duration = Duration::from_secs(40);

/// What is sent, and where.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub path: String,
    pub prompts: Prompts,
    /// Sent with each prompt.
    pub authorization: Option<String>,
    /// The length of a complete reply; `None` accepts any.
    pub tokens: Option<usize>,
    /// Whether each prompt has a connection of its own.
    pub fresh_connections: bool,
    /// Whether the arrival of each token is timed.
    pub time_tokens: bool,
}

/// When a client sends its prompts.
#[derive(Clone, Copy)]
pub enum Schedule {
    /// This many, each after the reply to the one before.
    Count(usize),
    /// For this long, each after the reply to the one before.
    Closed(Duration),
    /// One every `interval`, for `window`. One that is late, since the reply before was slow, is
    /// timed from when it was due: a server that stalls does not hide whom it kept waiting.
    Open {
        interval: Duration,
        window: Duration,
    },
}

#[derive(Debug, Default)]
pub struct Run {
    /// From each prompt (or from opening its connection) to the first token, in milliseconds.
    pub first_tokens: Vec<f64>,
    /// To the end of each reply, in seconds.
    pub durations: Vec<f64>,
    /// In all replies.
    pub tokens: usize,
    /// From the sending of each token to its arrival, in milliseconds, reply by reply.
    pub delays: Vec<Vec<f64>>,
    /// Of prompts without a complete reply.
    pub failures: Vec<String>,
    pub elapsed: Duration,
}

impl Run {
    /// How much longer each gap between two tokens was than when they were sent, in milliseconds.
    pub fn gaps(&self) -> Vec<f64> {
        let pairs = self.delays.iter().flat_map(|delays| delays.array_windows());
        pairs.map(|[one, next]| next - one).collect()
    }

    fn merge(&mut self, other: Self) {
        self.first_tokens.extend(other.first_tokens);
        self.durations.extend(other.durations);
        self.tokens += other.tokens;
        self.delays.extend(other.delays);
        self.failures.extend(other.failures);
    }
}

impl Load {
    /// The prompts of `clients` that start within `spread`.
    pub async fn run(&self, clients: usize, spread: Duration, schedule: Schedule) -> Run {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let client = Client {
                load: self.clone(),
                connection: None,
                run: Run::default(),
            };
            let share = number as f64 / clients as f64;
            tasks.spawn(client.run(start + spread.mul_f64(share), schedule));
        }
        let mut run = Run::default();
        while let Some(client) = tasks.join_next().await {
            match client {
                Ok(client) => run.merge(client),
                Err(panic) => run.failures.push(panic.to_string()),
            }
        }
        run.elapsed = start.elapsed();
        run
    }

    /// One client's `count` prompts.
    pub async fn sequence(&self, count: usize) -> Run {
        self.run(1, Duration::ZERO, Schedule::Count(count)).await
    }
}

struct Client {
    load: Load,
    /// Kept between prompts, unless each has a fresh one.
    connection: Option<Connection>,
    run: Run,
}

impl Client {
    async fn run(mut self, start: Instant, schedule: Schedule) -> Run {
        sleep_until(start.into()).await;
        match schedule {
            Schedule::Count(count) => {
                for _ in 0..count {
                    self.prompt(None).await;
                }
            }
            Schedule::Closed(window) => {
                while start.elapsed() < window {
                    self.prompt(None).await;
                    if self.load.fresh_connections {
                        sleep(RECONNECT).await;
                    }
                }
            }
            Schedule::Open { interval, window } => {
                let mut due = start;
                while due < start + window {
                    let is_late = Instant::now() > due;
                    sleep_until(due.into()).await;
                    // A timer that fires late is this program's delay, not the server's.
                    self.prompt(is_late.then_some(due)).await;
                    due += interval;
                }
            }
        }
        self.run
    }

    /// Sends a prompt and reads its reply, timed from now or from when it was due.
    async fn prompt(&mut self, due: Option<Instant>) {
        let reply = timeout(REPLY_TIMEOUT, self.try_prompt(due)).await;
        if let Err(failure) = reply.context("the reply did not end").flatten() {
            self.run.failures.push(format!("{failure:#}"));
        }
    }

    async fn try_prompt(&mut self, due: Option<Instant>) -> Result<()> {
        let body = (self.load.prompts)();
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let start = due.unwrap_or_else(Instant::now);
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(self.load.address).await?,
        };
        connection
            .authorization
            .clone_from(&self.load.authorization);
        let Load {
            path, time_tokens, ..
        } = &self.load;
        let reply = connection.chat(path, body, *time_tokens).await?;
        let duration = start.elapsed().as_secs_f64();
        if let Some(expected) = self.load.tokens {
            let tokens = reply.tokens;
            ensure!(reply.is_done, "the reply ended without being done");
            ensure!(tokens == expected, "{tokens} tokens arrived of {expected}");
        }
        if !self.load.fresh_connections {
            self.connection = Some(connection);
        }
        let first_token = reply.first_token.context("the reply had no token")?;
        let first_token = first_token.duration_since(start);
        self.run.first_tokens.push(first_token.as_secs_f64() * 1e3);
        self.run.durations.push(duration);
        self.run.tokens += reply.tokens;
        self.run.delays.push(reply.delays);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_a_token_was_delayed_more_than_the_one_before() {
        let run = Run {
            delays: vec![vec![1.0, 3.0], vec![7.0]],
            ..Run::default()
        };
        assert_eq!(run.gaps(), [2.0]);
    }
}
