//! The program that users run, as a process of its own: killed, and started again on what it left; or
//! out of descriptors.

use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_testkit::{
    Backend, Client, Cluster, Event, Events, Process, Store, Wire, at_limit, messages,
    on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Gate, Script, Server, wire};
use tempfile::TempDir;

/// `database_timeout`
const LIMIT: Duration = Duration::from_secs(3);

/// A process, with everything around it.
struct World {
    ollama: Server,
    process: Process,
    store: Store,
    network: Option<Wire>,
    _directory: TempDir,
}

impl World {
    async fn start(backend: Backend) -> Result<Self> {
        let directory = TempDir::with_prefix("llmchat-killed-")?;
        let ollama = Server::scripted().await?;
        let mut variables = vec![
            ("ollama_url", ollama.url()),
            ("database_timeout", format!("{}s", LIMIT.as_secs())),
        ];
        let (store, network) = match backend {
            Backend::Sqlite => (Store::Sqlite(directory.path().join("sqlite_db.db")), None),
            Backend::Postgres => {
                let database = Cluster::shared().await?.database().await?;
                let network = Wire::to(database.address()).await?;
                variables.push(("database_url", database.url_at(network.address())));
                (Store::Postgres(database), Some(network))
            }
        };
        Ok(Self {
            process: Process::start(directory.path(), directory.path(), "process", variables)
                .await?,
            ollama,
            store,
            network,
            _directory: directory,
        })
    }

    fn client(&self) -> Client {
        Client::of(self.process.address())
    }

    /// A turn in mid-stream: Ollama answers with `script`, and the first event has come.
    async fn begin(&self, content: &str, script: Script) -> Result<Events> {
        self.ollama.push(script);
        let mut events = self
            .client()
            .prompt(&prompt("app", content))
            .await?
            .events()
            .await?;
        events.next().await?;
        Ok(events)
    }

    async fn turn(&self, content: &str, reply: &str) -> Result<()> {
        let events = self.begin(content, Script::reply([reply])).await?;
        events.rest().await.map(drop)
    }

    async fn conversation(&self) -> Result<Vec<(String, String)>> {
        let rows = self.store.rows("app").await?.into_iter();
        Ok(rows.map(|row| (row.role, row.message)).collect())
    }

    async fn sent_to_ollama(&self, nth: usize) -> Result<Vec<(String, String)>> {
        let exchange = within("a chat request", self.ollama.chat(nth)).await?;
        exchange.request().messages()
    }

    /// Waits until the process waits for the lock that the test holds, or is about to.
    async fn until_it_wants_the_store(&self) -> Result<()> {
        let waiting =
            "SELECT 'waiting' FROM pg_locks JOIN pg_database ON database = pg_database.oid
                       WHERE NOT granted AND datname = current_database()";
        until("a wait for the lock", async || match &self.store {
            // Nobody tells who waits for SQLite's.
            Store::Sqlite(_) => self.process.has_open("sqlite_db.db").await,
            Store::Postgres(database) => Ok(!database.query(waiting).await?.is_empty()),
        })
        .await
    }

    async fn kill_and_start_again(&self) -> Result<()> {
        self.process.kill().await?;
        self.process.up().await
    }

    /// All that it has to open fails from now on.
    async fn take_descriptors(&self) -> Result<()> {
        self.process.limit_descriptors(1).await?;
        // What it has open works on.
        self.network.iter().for_each(Wire::cut);
        Ok(())
    }

    async fn give_descriptors(&self) -> Result<()> {
        self.process.limit_descriptors(1024).await
    }
}

on_both_stores! {
    async fn before_the_prompt_is_stored(backend: Backend) -> Result<()> {
        let world = World::start(backend).await?;
        world.turn("one", "ok").await?;
        // The next one has opened nothing yet.
        world.kill_and_start_again().await?;
        let lock = world.store.lock().await?;
        let client = world.client();
        let asking = tokio::spawn(async move { client.prompt(&prompt("app", "two")).await });
        world.until_it_wants_the_store().await?;
        world.process.kill().await?;
        // No `200` has said that it is stored.
        assert!(within("the broken connection", asking).await??.is_err());
        lock.release().await?;

        world.process.up().await?;
        world.turn("three", "ok").await?;
        let conversation = world.conversation().await?;
        let without = messages(&[("user", "one"), ("assistant", "ok"), ("user", "three"), ("assistant", "ok")]);
        let mut with = without.clone();
        with.insert(2, ("user".to_owned(), "two".to_owned()));
        assert!([with, without].contains(&conversation), "{conversation:?}");
        Ok(())
    }

    async fn while_ollama_is_waited_for(backend: Backend) -> Result<()> {
        let world = World::start(backend).await?;
        world.ollama.push(Script::silence());
        let answer = world.client().prompt(&prompt("app", "one")).await?;
        world.sent_to_ollama(1).await?;
        world.kill_and_start_again().await?;
        // Not a clean end: the client knows that something is missing.
        assert!(answer.bytes().await.is_err());
        world.turn("two", "ok").await?;
        assert_eq!(world.sent_to_ollama(2).await?, messages(&[("user", "one"), ("user", "two")]));
        Ok(())
    }

    async fn in_mid_stream(backend: Backend) -> Result<()> {
        let world = World::start(backend).await?;
        world.turn("one", "kept").await?;
        let events = world.begin("two", Script::new().token("lost").hang()).await?;
        world.kill_and_start_again().await?;
        assert!(events.rest().await.is_err());
        world.turn("three", "ok").await?;
        let expected = [("user", "one"), ("assistant", "kept"), ("user", "two"), ("user", "three")];
        assert_eq!(world.sent_to_ollama(3).await?, messages(&expected));
        Ok(())
    }

    async fn while_the_reply_is_being_stored(backend: Backend) -> Result<()> {
        let world = World::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("reply").gate(&gate).done();
        let events = world.begin("one", script).await?;
        let lock = world.store.lock().await?;
        gate.open();
        within("the end of Ollama's answer", async { world.ollama.chat(1).await.ended().await }).await?;
        world.until_it_wants_the_store().await?;
        world.process.kill().await?;
        // No `done` has said that it is stored.
        assert!(events.rest().await.is_err());
        lock.release().await?;

        world.process.up().await?;
        world.turn("two", "ok").await?;
        let conversation = world.conversation().await?;
        let without = messages(&[("user", "one"), ("user", "two"), ("assistant", "ok")]);
        let mut with = without.clone();
        with.insert(1, ("assistant".to_owned(), "reply".to_owned()));
        assert!([with, without].contains(&conversation), "{conversation:?}");
        Ok(())
    }

    async fn after_done(backend: Backend) -> Result<()> {
        let world = World::start(backend).await?;
        let gate = Gate::new();
        let mut events = world.begin("one", Script::new().token("told").gate(&gate).done()).await?;
        gate.open();
        assert_eq!(events.next().await?, Some(Event::Data(wire::done())));
        world.kill_and_start_again().await?;
        world.turn("two", "ok").await?;
        let expected = [("user", "one"), ("assistant", "told"), ("user", "two")];
        assert_eq!(world.sent_to_ollama(2).await?, messages(&expected));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_no_descriptor_is_left_for_is_no_done_and_is_not_lost_to_the_user()
-> Result<()> {
    let world = World::start(Backend::Postgres).await?;
    let gate = Gate::new();
    let last = r#"{"model":"m","message":{"role":"assistant","content":" words"},"done":true}"#;
    let script = Script::new().token("last").gate(&gate).line(last);
    let events = world.begin("one", script).await?;
    world.take_descriptors().await?;
    gate.open();
    let rest = at_limit(LIMIT, events.rest()).await??;
    let failure = rest.first().context("no event")?;
    assert_eq!((rest.len(), failure.code()), (1, Some("database_failed")));
    assert!(matches!(failure, Event::Error { data, .. } if data.contains(" words")));

    world.give_descriptors().await?;
    world.turn("two", "ok").await?;
    let expected = messages(&[("user", "one"), ("user", "two"), ("assistant", "ok")]);
    assert_eq!(world.conversation().await?, expected);
    Ok(())
}

/// Spin ends when it cannot take a connection.
mod native {
    use super::*;

    on_both_stores! {
        async fn a_reply_is_stored_that_ends_while_descriptors_are_short(backend: Backend) -> Result<()> {
            let world = World::start(backend).await?;
            let gate = Gate::new();
            let script = Script::new().token("kept").gate(&gate).done();
            let events = world.begin("one", script).await?;
            world.take_descriptors().await?;
            gate.open();
            world.ollama.push(Script::reply(["ok"]));
            let client = world.client();
            // The kernel takes the connection, and the process cannot.
            let waiting = tokio::spawn(async move { client.prompt(&prompt("app", "two")).await });
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.give_descriptors().await?;
            assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
            within("the answer", waiting).await???.read().await?;
            let expected = [("user", "one"), ("assistant", "kept"), ("user", "two"), ("assistant", "ok")];
            assert_eq!(world.conversation().await?, messages(&expected));
            Ok(())
        }
    }
}
