//! Hosts on one database: one is killed, or is thought dead and comes back, and another one goes on.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use llmchat_testkit::{
    Backend, Client, Cluster, Event, Events, Process, Store, messages, on_both_stores, prompt,
    within,
};
use ollama_stand_in::{Ending, Gate, Script, Server, wire};
use tempfile::TempDir;

use super::{Reader, is_replayed, until_orphaned, until_stored};

/// Two processes on one database.
struct Hosts {
    ollama: Server,
    one: Process,
    other: Process,
    store: Store,
    _directory: TempDir,
}

impl Hosts {
    async fn start(backend: Backend) -> Result<Self> {
        let directory = TempDir::with_prefix("llmchat-hosts-")?;
        let path = directory.path();
        let ollama = Server::scripted().await?;
        let mut variables = vec![
            ("ollama_url", ollama.url()),
            ("checkpoint_interval", "100ms".to_owned()),
            ("turn_lease", "2s".to_owned()),
        ];
        let store = match backend {
            Backend::Sqlite => Store::Sqlite(path.join("sqlite_db.db")),
            Backend::Postgres => {
                let database = Cluster::shared().await?.database().await?;
                variables.push(("database_url", database.url_at(database.address())));
                Store::Postgres(database)
            }
        };
        Ok(Self {
            // The first one compiles the component for both.
            one: Process::start(path, path, "one", variables.clone()).await?,
            other: Process::start(path, path, "other", variables).await?,
            ollama,
            store,
            _directory: directory,
        })
    }

    fn one(&self) -> Client {
        Client::of(self.one.address())
    }

    fn other(&self) -> Client {
        Client::of(self.other.address())
    }

    /// A turn of the one host, of which this much has come and is stored.
    async fn begin(&self, text: &str, script: Script) -> Result<(Reader, Events)> {
        self.ollama.push(script);
        let mut reader = Reader::default();
        let mut events = reader.post(&self.one()).await?.events().await?;
        reader.read_until(&mut events, text).await?;
        until_stored(&self.store, text).await?;
        Ok((reader, events))
    }

    async fn sent_to_ollama(&self, nth: usize) -> Result<Vec<(String, String)>> {
        let exchange = within("a chat request", self.ollama.chat(nth)).await?;
        exchange.request().messages()
    }

    async fn ollama_ended(&self, nth: usize) -> Result<Ending> {
        within("the end of Ollama's answer", async {
            self.ollama.chat(nth).await.ended().await
        })
        .await
    }

    async fn conversation(&self) -> Result<Vec<(String, String)>> {
        let rows = self.store.rows("app").await?.into_iter();
        Ok(rows.map(|row| (row.role, row.message)).collect())
    }
}

on_both_stores! {
    async fn where_the_host_dies_before_the_prompt_is_stored_it_is_there_once(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        hosts.ollama.always(Script::reply(["ok"]));
        hosts.other().prompt(&prompt("another", "Hi")).await?.read().await?;
        let lock = hosts.store.lock().await?;
        let client = hosts.one();
        let asking = tokio::spawn(async move { Reader::default().post(&client).await.map(drop) });
        // It has the request, or will never have it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        hosts.one.kill().await?;
        assert!(within("the broken connection", asking).await??.is_err());
        lock.release().await?;

        // The database may have stored it after all, for an attempt that nobody runs.
        Reader::default().persist(&hosts.other()).await?;
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn where_the_host_dies_before_the_reply_began_another_asks(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        hosts.ollama.push(Script::silence());
        let mut reader = Reader::default();
        let answer = reader.post(&hosts.one()).await?;
        within("the chat request", hosts.ollama.chat(1)).await?;
        let mut follower = reader.second();
        let watching = follower.watch(&hosts.other()).await?.events().await?;
        hosts.one.kill().await?;
        // Not a clean end: the client knows that something is missing.
        assert!(answer.bytes().await.is_err());
        follower.read(watching).await?;
        assert_eq!(follower.code(), Some("turn_orphaned"));
        let state = follower.state(&hosts.other()).await?;
        assert_eq!(state, ("failed".to_owned(), Some("turn_orphaned".to_owned())));

        hosts.ollama.push(Script::reply(["who", "le"]));
        reader.persist(&hosts.other()).await?;
        assert_eq!((reader.text.as_str(), hosts.ollama.chats()), ("whole", 2));
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }

    async fn where_the_host_dies_in_mid_reply_another_asks(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let (mut reader, events) = hosts.begin("half", Script::new().token("half").hang()).await?;
        hosts.one.kill().await?;
        assert!(events.rest().await.is_err());

        hosts.ollama.push(Script::reply(["who", "le"]));
        reader.persist(&hosts.other()).await?;
        // It was told to drop what it had of the attempt before.
        assert_eq!((reader.text.as_str(), reader.restarts), ("whole", 1));
        assert_eq!(reader.last, Some(Event::Data(wire::done())));
        // The prompt is asked as it was, and there once.
        assert_eq!(hosts.sent_to_ollama(2).await?, messages(&[("user", "Hi")]));
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }

    async fn where_the_host_dies_while_the_reply_is_being_stored_it_is_there_once(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("reply").gate(&gate).done();
        let (mut reader, events) = hosts.begin("reply", script).await?;
        let lock = hosts.store.lock().await?;
        gate.open();
        hosts.ollama_ended(1).await?;
        hosts.one.kill().await?;
        assert!(events.rest().await.is_err());
        lock.release().await?;

        hosts.ollama.push(Script::reply(["reply"]));
        reader.persist(&hosts.other()).await?;
        assert_eq!(reader.text, "reply");
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "reply")]));
        Ok(())
    }

    async fn where_the_host_dies_after_done_another_replays(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        hosts.ollama.push(Script::reply(["told"]));
        let mut reader = Reader::default();
        reader.persist(&hosts.one()).await?;
        hosts.one.kill().await?;
        let mut second = reader.second();
        let answer = second.post(&hosts.other()).await?;
        assert!(is_replayed(&answer));
        second.read(answer.events().await?).await?;
        assert_eq!((&second.text, &second.last, &second.last_id), (&reader.text, &reader.last, &reader.last_id));
        assert_eq!(hosts.ollama.chats(), 1);
        Ok(())
    }

    async fn of_many_who_repeat_an_orphans_prompt_one_asks_and_the_others_follow(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let (reader, _events) = hosts.begin("half", Script::new().token("half").hang()).await?;
        hosts.one.kill().await?;
        until_orphaned(&hosts.store).await?;
        hosts.one.up().await?;

        let gate = Gate::new();
        hosts.ollama.always(Script::new().token("who").gate(&gate).token("le").done());
        let repeat = async |n: usize| {
            let client = if n.is_multiple_of(2) { hosts.one() } else { hosts.other() };
            let mut reader = Reader { text: reader.text.clone(), last_id: reader.last_id.clone(), ..reader.second() };
            let answer = reader.post(&client).await?;
            anyhow::Ok((reader, answer))
        };
        let repeated = try_join_all((0..6).map(repeat)).await?;
        let asked = repeated.iter().filter(|(_, answer)| !is_replayed(answer)).count();
        assert_eq!(asked, 1);
        gate.open();
        for (mut reader, answer) in repeated {
            reader.read(answer.events().await?).await?;
            assert_eq!((reader.text.as_str(), reader.restarts), ("whole", 1));
            assert_eq!(reader.last, Some(Event::Data(wire::done())));
        }
        assert_eq!(hosts.ollama.chats(), 2);
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }

    async fn whoever_watched_by_way_of_a_host_that_died_goes_on_by_another(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("so far").gate(&gate).token(" good").done();
        let (poster, events) = hosts.begin("so far", script).await?;
        let mut page = poster.second();
        let mut watching = page.watch(&hosts.other()).await?.events().await?;
        page.read_until(&mut watching, "so far").await?;
        hosts.other.kill().await?;
        assert!(watching.rest().await.is_err());
        gate.open();
        drop(events);
        page.read(page.watch(&hosts.one()).await?.events().await?).await?;
        assert_eq!((page.text.as_str(), page.restarts), ("so far good", 0));
        assert_eq!(page.last, Some(Event::Data(wire::done())));
        Ok(())
    }

    async fn whoever_watches_is_told_when_another_attempt_begins(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let (mut poster, _events) = hosts.begin("half", Script::new().token("half").hang()).await?;
        let mut follower = poster.second();
        let mut watching = follower.watch(&hosts.other()).await?.events().await?;
        follower.read_until(&mut watching, "half").await?;

        // What it would be told of the orphan is no matter here.
        hosts.other.freeze().await?;
        hosts.one.kill().await?;
        until_orphaned(&hosts.store).await?;
        hosts.one.up().await?;
        let gate = Gate::new();
        hosts.ollama.push(Script::new().token("who").gate(&gate).token("le").done());
        let events = poster.post(&hosts.one()).await?;
        assert!(!is_replayed(&events));
        until_stored(&hosts.store, "who").await?;
        hosts.other.thaw().await?;
        follower.read_until(&mut watching, "who").await?;
        assert_eq!(follower.restarts, 1);
        gate.open();
        follower.read(watching).await?;
        poster.read(events.events().await?).await?;
        for reader in [&follower, &poster] {
            assert_eq!((reader.text.as_str(), reader.restarts), ("whole", 1));
            assert_eq!(reader.last, Some(Event::Data(wire::done())));
        }
        Ok(())
    }

    async fn a_host_that_was_thought_dead_comes_back_and_stores_its_reply(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("half").gate(&gate).token(" and half").done();
        let (mut poster, events) = hosts.begin("half", script).await?;
        hosts.one.freeze().await?;
        until_orphaned(&hosts.store).await?;
        let state = poster.state(&hosts.other()).await?;
        assert_eq!(state, ("partial".to_owned(), Some("turn_orphaned".to_owned())));
        // The next prompt has what came of it.
        hosts.ollama.push(Script::reply(["ok"]));
        hosts.other().prompt(&prompt("app", "next")).await?.read().await?;
        let sent = messages(&[("user", "Hi"), ("assistant", "half"), ("user", "next")]);
        assert_eq!(hosts.sent_to_ollama(2).await?, sent);

        hosts.one.thaw().await?;
        gate.open();
        poster.read(events).await?;
        assert_eq!((poster.text.as_str(), poster.restarts), ("half and half", 0));
        assert_eq!(poster.last, Some(Event::Data(wire::done())));
        assert_eq!(poster.state(&hosts.other()).await?, ("complete".to_owned(), None));
        let whole = [("user", "Hi"), ("assistant", "half and half"), ("user", "next"), ("assistant", "ok")];
        assert_eq!(hosts.conversation().await?, messages(&whole));
        Ok(())
    }

    async fn a_host_that_comes_back_after_another_took_over_changes_nothing(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let (mut first, events) = hosts.begin("half", Script::new().token("half").hang()).await?;
        hosts.one.freeze().await?;
        until_orphaned(&hosts.store).await?;
        hosts.ollama.push(Script::reply(["new"]));
        let mut second = first.second();
        second.persist(&hosts.other()).await?;
        assert_eq!(second.text, "new");

        hosts.one.thaw().await?;
        first.read(events).await?;
        assert_eq!(first.code(), Some("turn_superseded"));
        // Whoever comes again is told to drop what is not stored.
        assert!(!first.has_outcome());
        assert_eq!(hosts.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "new")]));
        first.persist(&hosts.one()).await?;
        assert_eq!((first.text.as_str(), first.restarts), ("new", 1));
        assert_eq!(hosts.ollama.chats(), 2);
        Ok(())
    }

    async fn a_reply_that_ends_after_another_took_over_is_not_stored(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("half").gate(&gate).done();
        let (mut first, events) = hosts.begin("half", script).await?;
        hosts.one.freeze().await?;
        // Its commit is what the host does first when it comes back.
        gate.open();
        until_orphaned(&hosts.store).await?;
        let gate = Gate::new();
        hosts.ollama.push(Script::new().token("new").gate(&gate).done());
        let mut second = first.second();
        let answer = second.post(&hosts.other()).await?;
        assert!(!is_replayed(&answer));
        hosts.one.thaw().await?;
        first.read(events).await?;
        assert_eq!((first.code(), first.has_outcome()), (Some("turn_superseded"), false));
        gate.open();
        second.read(answer.events().await?).await?;
        assert!(second.is_done());
        assert_eq!(hosts.conversation().await?, messages(&[("user", "Hi"), ("assistant", "new")]));
        Ok(())
    }

    async fn an_orphan_that_was_stopped_stays_so_when_its_host_comes_back(backend: Backend) -> Result<()> {
        let hosts = Hosts::start(backend).await?;
        let (mut poster, events) = hosts.begin("half", Script::new().token("half").hang()).await?;
        hosts.one.freeze().await?;
        until_orphaned(&hosts.store).await?;
        assert_eq!(poster.stop(&hosts.other()).await?, 200);
        hosts.one.thaw().await?;
        poster.read(events).await?;
        assert_eq!(poster.code(), Some("turn_superseded"));
        assert_eq!(hosts.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(poster.state(&hosts.one()).await?, ("stopped".to_owned(), None));
        // All that it had is stored: it goes on to the receipt.
        poster.persist(&hosts.one()).await?;
        assert_eq!((poster.text.as_str(), poster.restarts), ("half", 0));
        assert_eq!(hosts.store.rows("app").await?[1].parts(), ("assistant", "half", "stopped"));
        Ok(())
    }
}

/// Spin has the machine's clock.
mod native {
    use llmchat_testkit::TestApp;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    on_both_stores! {
        async fn clocks_an_hour_apart_make_no_difference(backend: Backend) -> Result<()> {
            let app = TestApp::on(backend)
                .variable("checkpoint_interval", "100ms")
                .variable("turn_lease", "1m")
                .clock_ahead(HOUR)
                .start()
                .await?;
            let right = app.another().await?;
            for (n, (one, other)) in [(&app.client, &right.client), (&right.client, &app.client)].into_iter().enumerate() {
                let gate = Gate::new();
                app.ollama.push(Script::new().token("Hel").gate(&gate).token("lo").done());
                let headers = [("idempotency-key", if n == 0 { "a" } else { "b" })];
                let body = prompt("app", &format!("{n}"));
                let mut reader = Reader::default();
                let answer = one.prompt_with(&headers, &body).await?;
                // A lease that the one takes is no older or newer to the other.
                let repeated = other.prompt_with(&headers, &body).await?;
                assert!(is_replayed(&repeated));
                let turn = answer.header("x-turn-id").unwrap_or_default();
                turn.clone_into(&mut reader.turn);
                assert_eq!(reader.state(other).await?.0, "running");
                gate.open();
                for answer in [answer, repeated] {
                    let mut reader = reader.second();
                    reader.read(answer.events().await?).await?;
                    assert_eq!((reader.text.as_str(), reader.is_done()), ("Hello", true));
                }
            }
            // And a turn that began later stands later.
            let turns = [("user", "0"), ("assistant", "Hello"), ("user", "1"), ("assistant", "Hello")];
            assert_eq!(app.conversation("app").await?, messages(&turns));
            assert_eq!(app.ollama.chats(), 2);
            Ok(())
        }
    }
}
