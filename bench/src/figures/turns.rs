//! What a client does with a turn besides reading it once: it goes on after a lost connection, and stops it.
//!
//! The model is a script in this process, which holds a reply open and sees when its connection closes. Each request
//! has a connection of its own, as after a loss; its opening is part of the times.

use llmchat_testkit::{Client, Event, Events, prompt};
use ollama_stand_in::{self as stand_in, Ending, Gate, Script};
use tokio::task::JoinSet;

use super::*;

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let ollama = stand_in::Server::scripted().await?;
    let mut servers = Vec::new();
    for kind in bench.databases.clone() {
        let server = bench
            .environment
            .start_server_for(ollama.address(), kind, &[]);
        servers.push(server.await?);
    }
    let mut figures = resume(bench, &ollama, &servers).await?;
    figures.extend(stop(bench, &ollama, &servers).await?);
    figures.extend(checkpoints::measure(bench).await?);
    Ok(figures)
}

const EVENT_STREAM: (&str, &str) = ("accept", "text/event-stream");

/// From a request in mid-reply to the event with all that was missed.
async fn resume(
    bench: &Bench,
    ollama: &stand_in::Server,
    servers: &[Server],
) -> Result<Vec<Figure>> {
    let count = if bench.quick { 3 } else { 20 };
    let mut figures = Vec::new();
    for is_running in [false, true] {
        let [get, post] = repeat(bench.rounds, servers, async |server| {
            let turn = Turn::begin(server.client(), ollama, is_running).await?;
            let (mut get, mut post) = (Vec::new(), Vec::new());
            for _ in 0..count {
                get.push(turn.resume(false).await?);
                post.push(turn.resume(true).await?);
            }
            // Those who follow see the end, and are gone.
            turn.gate.open();
            Ok([get, post].map(|mut times| percentile(&mut times, 0.5)))
        })
        .await?;
        let turn = if is_running {
            "a running turn"
        } else {
            "an ended turn"
        };
        for (request, values) in [("GET", get), ("POST", post)] {
            let name = format!("{turn}, {request}: to the missed text, p50");
            let figure = Figure::new("Going on", name, "ms", Relation::None, values);
            figures.push(figure.goals(Bound::AtMost(5.0)));
        }
    }
    Ok(figures)
}

/// A turn of which a client has the first half, and the database all that came.
struct Turn {
    client: Client,
    path: String,
    key: String,
    body: String,
    /// The id of the last event that the client has.
    last: String,
    missed: String,
    gate: Gate,
}

impl Turn {
    async fn begin(client: Client, ollama: &stand_in::Server, is_running: bool) -> Result<Self> {
        let tokens: Vec<_> = (0..400).map(|number| format!(" w{number}")).collect();
        let (had, missed) = tokens.split_at(tokens.len() / 2);
        let gate = Gate::new();
        let mut script = Script::new().tokens(&tokens);
        if is_running {
            script = script.gate(&gate);
        }
        ollama.always(script.done());
        let key = prompts::new_name();
        let body = prompt(&key, "Hello");
        let answer = client
            .prompt_with(&[("idempotency-key", &key)], &body)
            .await?;
        let path = answer.header("location").context("no location")?.to_owned();
        let mut events = answer.events().await?;
        for _ in had {
            events.next().await?;
        }
        let last = events.last_id().to_owned();
        for _ in missed {
            events.next().await?;
        }
        let end = events.last_id().to_owned();
        if is_running {
            // Who follows sees what is stored.
            let follower = client.get(&path, &[EVENT_STREAM]).await?;
            read_to(&mut follower.events().await?, &end).await?;
        } else {
            events.rest().await?;
        }
        Ok(Self {
            client,
            path,
            key,
            body: body.to_string(),
            last,
            missed: missed.concat(),
            gate,
        })
    }

    /// Milliseconds to what was missed.
    async fn resume(&self, by_post: bool) -> Result<f64> {
        let last = ("last-event-id", self.last.as_str());
        let start = Instant::now();
        let answer = if by_post {
            let headers = [("idempotency-key", self.key.as_str()), last];
            let body = self.body.clone();
            let post = self
                .client
                .request_with("POST", "/llmchat/", &headers, body);
            post.await?
        } else {
            self.client.get(&self.path, &[EVENT_STREAM, last]).await?
        };
        let first = answer.events().await?.next().await?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        let content = format!(r#""content":"{}""#, self.missed);
        ensure!(
            matches!(&first, Some(Event::Data(data)) if data.contains(&content)),
            "not what was missed: {first:?}"
        );
        Ok(took)
    }
}

/// Reads events up to the one with this id.
async fn read_to(events: &mut Events, id: &str) -> Result<()> {
    while events.last_id() != id {
        let event = events.next().await?;
        ensure!(event.is_some(), "the stream ended before {id}");
    }
    Ok(())
}

/// From the request to the end of Ollama's connection.
async fn stop(bench: &Bench, ollama: &stand_in::Server, servers: &[Server]) -> Result<Vec<Figure>> {
    let count = if bench.quick { 5 } else { 100 };
    let most = (CHECKPOINT_INTERVAL + Duration::from_millis(50)).as_secs_f64() * 1e3;
    let mut figures = Vec::new();
    for (when, has_begun) in [("in mid-reply", true), ("while the model loads", false)] {
        let [p50, p99] = repeat(bench.rounds.min(3), servers, async |server| {
            let mut times = stops(server.client(), ollama, has_begun, count).await?;
            Ok([0.5, 0.99].map(|share| percentile(&mut times, share)))
        })
        .await?;
        let figure = |share, values| {
            let name = format!("{when}: Ollama's connection closed, {share}");
            Figure::new("Stop", name, "ms", Relation::None, values)
        };
        figures.extend([
            figure("p50", p50),
            figure("p99", p99).goals(Bound::AtMost(most)),
        ]);
    }
    Ok(figures)
}

/// Begins many turns and stops them, in milliseconds from each request.
async fn stops(
    client: Client,
    ollama: &stand_in::Server,
    has_begun: bool,
    count: usize,
) -> Result<Vec<f64>> {
    ollama.always(match has_begun {
        true => Script::new().token("Hello").hang(),
        false => Script::silence(),
    });
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let nth = ollama.chats() + 1;
        let answer = client
            .prompt(&prompt(&prompts::new_name(), "Hello"))
            .await?;
        let path = answer.header("location").context("no location")?;
        let path = format!("{path}/stop");
        let exchange = llmchat_testkit::within("a request to Ollama", ollama.chat(nth)).await?;
        let mut events = answer.events().await?;
        if has_begun {
            events.next().await?;
        }
        // At all moments of an interval alike.
        let pause = CHECKPOINT_INTERVAL.mul_f64(1.0 + number as f64 / count as f64);
        tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            let closes = async {
                let ending = exchange.ended().await;
                (ending, start.elapsed().as_secs_f64() * 1e3)
            };
            let (stopped, (ending, took)) = tokio::join!(client.request("POST", &path, ""), closes);
            let status = stopped?.status();
            ensure!(status == 202, "status {status} instead of 202");
            ensure!(ending == Ending::ClientLeft, "Ollama's answer: {ending:?}");
            drop(events);
            Ok(took)
        });
    }
    let mut times = Vec::new();
    while let Some(took) = tasks.join_next().await {
        times.push(took??);
    }
    Ok(times)
}
