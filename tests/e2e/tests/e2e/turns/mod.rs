//! Turns that survive: posted again, gone on with and stopped, at any moment, whatever fails.

#[cfg(target_os = "linux")]
mod hosts;
mod repeat;
mod resume;
mod stop;

use anyhow::{Context, Result, bail, ensure};
use llmchat_testkit::{Answer, Client, Event, Events, Lock, Store, TestApp, prompt, until};
use serde_json::Value;

const KEY: &str = "prompt-1";

/// A client that persists: it posts one prompt until it has the reply, or watches it. Here is what it has, by whatever
/// connections.
#[derive(Debug, Default)]
struct Reader {
    turn: String,
    text: String,
    last_id: String,
    /// How often it was told to drop what it had.
    restarts: usize,
    /// The last event of the latest stream.
    last: Option<Event>,
}

impl Reader {
    /// Posts the prompt, or posts it again from where it is.
    async fn post(&mut self, client: &Client) -> Result<Answer> {
        let headers = [
            ("idempotency-key", KEY),
            ("last-event-id", self.last_id.as_str()),
        ];
        let answer = client.prompt_with(&headers, &prompt("app", "Hi")).await?;
        if let Some(turn) = answer.header("x-turn-id") {
            ensure!(self.turn.is_empty() || self.turn == turn, "another turn");
            turn.clone_into(&mut self.turn);
            let location = answer.header("location");
            ensure!(location == Some(&self.path()), "{location:?}");
        }
        Ok(answer)
    }

    /// Watches the turn from where it is.
    async fn watch(&self, client: &Client) -> Result<Answer> {
        let headers = [
            ("accept", "text/event-stream"),
            ("last-event-id", self.last_id.as_str()),
        ];
        client.get(&self.path(), &headers).await
    }

    /// Another one that watches the same turn.
    fn second(&self) -> Self {
        Self {
            turn: self.turn.clone(),
            ..Self::default()
        }
    }

    fn path(&self) -> String {
        format!("/llmchat/app/turns/{}", self.turn)
    }

    /// Reads until it has this text.
    async fn read_until(&mut self, events: &mut Events, text: &str) -> Result<()> {
        while self.text != text {
            let event = events.next().await?;
            let event = event.with_context(|| format!("it ended with {:?}", self.text))?;
            self.take(event, events)?;
        }
        Ok(())
    }

    /// Reads to the clean end; returns the events.
    async fn read(&mut self, mut events: Events) -> Result<Vec<Event>> {
        let mut read = Vec::new();
        while let Some(event) = events.next().await? {
            read.push(event.clone());
            self.take(event, &events)?;
        }
        Ok(read)
    }

    fn take(&mut self, event: Event, events: &Events) -> Result<()> {
        match &event {
            Event::Data(line) => self.text += &content(line)?,
            Event::Restart { turn, .. } => {
                ensure!(*turn == self.turn, "a restart of {turn}");
                self.text.clear();
                self.restarts += 1;
            }
            Event::Error { .. } => {}
        }
        if !events.last_id().is_empty() {
            events.last_id().clone_into(&mut self.last_id);
        }
        self.last = Some(event);
        Ok(())
    }

    /// Posts until it has `done`.
    async fn persist(&mut self, client: &Client) -> Result<()> {
        until("done", async || {
            let answer = self.post(client).await?;
            if answer.status() != 200 {
                return Ok(false);
            }
            // A stream that breaks off is another reason to come again.
            let _ = self.read(answer.events().await?).await;
            Ok(self.is_done())
        })
        .await
    }

    /// Whether it has a receipt.
    fn is_done(&self) -> bool {
        matches!(&self.last, Some(Event::Data(line)) if line.contains("\"done\":true"))
    }

    /// The code of the error that ended the latest stream.
    fn code(&self) -> Option<&str> {
        self.last.as_ref()?.code()
    }

    /// Whether its last id is that of the outcome.
    fn has_outcome(&self) -> bool {
        self.last_id.ends_with(".end")
    }

    /// The turn as JSON.
    async fn shown(&self, client: &Client) -> Result<Value> {
        client.get(&self.path(), &[]).await?.json(200).await
    }

    /// The turn's state and code.
    async fn state(&self, client: &Client) -> Result<(String, Option<String>)> {
        let shown = self.shown(client).await?;
        let text = |field: &str| Some(shown.get(field)?.as_str()?.to_owned());
        Ok((text("state").context("no state")?, text("code")))
    }

    /// The status of a request to stop the turn.
    async fn stop(&self, client: &Client) -> Result<u16> {
        let path = format!("{}/stop", self.path());
        Ok(client.request("POST", &path, "").await?.status().as_u16())
    }
}

/// The content of a line.
fn content(line: &str) -> Result<String> {
    let line: Value = serde_json::from_str(line)?;
    let content = line.pointer("/message/content");
    Ok(content
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned())
}

/// The lines of events that are nothing else.
fn lines_of(events: &[Event]) -> Result<Vec<Value>> {
    let lines = events.iter().map(|event| match event {
        Event::Data(line) => Ok(serde_json::from_str(line)?),
        other => bail!("{other:?}"),
    });
    lines.collect()
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

/// Waits until checkpoints have stored this much of the replies that run.
async fn until_stored(store: &Store, text: &str) -> Result<()> {
    let parts = "SELECT coalesce(content, '') FROM chatts_parts ORDER BY from_content";
    let is_stored = async || Ok(store.query(parts).await?.concat() == text);
    until("a checkpoint", is_stored).await
}

/// Waits until the lease of an attempt has run out.
async fn until_orphaned(store: &Store) -> Result<()> {
    let orphans = match store {
        Store::Sqlite(_) => {
            "SELECT 'orphan' FROM chatts_runs WHERE expires < unixepoch('subsec') * 1000000"
        }
        Store::Postgres(_) => "SELECT 'orphan' FROM chatts_runs WHERE expires < clock_timestamp()",
    };
    let is_orphaned = async || Ok(!store.query(orphans).await?.is_empty());
    until("the end of a lease", is_orphaned).await
}

/// The database is away: PostgreSQL behind its wire, SQLite locked by another process.
struct Outage(Option<Lock>);

impl Outage {
    async fn begin(app: &TestApp) -> Result<Self> {
        Ok(Self(match app.postgres() {
            Ok(_) => {
                app.database_wire()?.take_down();
                None
            }
            Err(_) => Some(app.lock().await?),
        }))
    }

    async fn end(self, app: &TestApp) -> Result<()> {
        if let Some(lock) = self.0 {
            return lock.release().await;
        }
        app.database_wire()?.restore();
        Ok(())
    }
}
