//! The host stops: it accepts no new connections and lets running turns end. Or it crashes.

use std::time::Duration;

use anyhow::Result;
use llmchat_testkit::{
    Backend, Client, Event, TestApp, messages, on_both_stores, prompt, until, until_refused, within,
};
use ollama_stand_in::{Gate, Script, wire};

on_both_stores! {
    async fn a_stop_lets_running_turns_end(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("a").gate(&gate).token("b").done();
        let events = app.begin("app", "Hi", script).await?;
        let address = app.address();
        let (stopped, rest) = tokio::join!(within("the stop", app.stop()), async {
            // It accepts no new connections, and still runs.
            until_refused(address).await?;
            gate.open();
            events.rest().await
        });
        assert_eq!(stopped??, 0);
        assert_eq!(rest?, [wire::token("b"), wire::done()].map(Event::Data));
        assert_eq!(app.rows("app").await?[1].message, "ab");
        Ok(())
    }

    async fn a_stop_lets_a_turn_end_whose_client_has_left(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("a").gate(&gate).token("b").done();
        drop(app.begin("app", "Hi", script).await?);
        let address = app.address();
        let (stopped, opened) = tokio::join!(within("the stop", app.stop()), async {
            until_refused(address).await?;
            gate.open();
            anyhow::Ok(())
        });
        opened?;
        assert_eq!(stopped??, 0);
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "ab", "complete"));
        Ok(())
    }

    async fn a_stop_cuts_what_takes_too_long_and_the_prompt_stays(backend: Backend) -> Result<()> {
        let mut app = TestApp::on(backend).drain(Duration::from_millis(300)).start().await?;
        let events = app.begin("app", "Hi", Script::new().token("a").hang()).await?;
        assert_eq!(within("the stop", app.stop()).await??, 1);
        // Not a clean end: the client knows that something is missing.
        assert!(events.rest().await.is_err());
        assert_eq!(app.conversation("app").await?[0], ("user".to_owned(), "Hi".to_owned()));
        Ok(())
    }

    async fn a_crash_leaves_the_prompt_and_the_conversation_goes_on(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        app.turn("app", "one", "kept").await?;
        let events = app.begin("app", "two", Script::new().token("lost").hang()).await?;
        app.crash().await?;
        // Not a clean end: the client knows that something is missing.
        assert!(events.rest().await.is_err());

        app.restart().await?;
        app.turn("app", "three", "ok").await?;
        let sent = app.sent_to_ollama(3).await?;
        let expected = [("user", "one"), ("assistant", "kept"), ("user", "two"), ("user", "three")];
        assert_eq!(sent, messages(&expected));
        Ok(())
    }

    async fn a_crash_while_the_prompt_is_being_stored_leaves_it_once_or_not_at_all(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "one").await?;
        let lock = app.lock().await?;
        let client = Client::of(app.address());
        let asking = tokio::spawn(async move { client.prompt(&prompt("app", "two")).await });
        until("the turn", async || Ok(app.open_requests()? > 0)).await?;
        app.crash().await?;
        // No `200` has said that it is stored.
        let asked = within("the broken connection", asking).await??;
        assert!(asked.is_err() || asked.is_ok_and(|answer| answer.status() == 500));
        lock.release().await?;

        app.restart().await?;
        app.ask("app", "three").await?;
        let conversation = app.conversation("app").await?;
        let without = messages(&[("user", "one"), ("assistant", "ok"), ("user", "three"), ("assistant", "ok")]);
        let mut with = without.clone();
        with.insert(2, ("user".to_owned(), "two".to_owned()));
        assert!([with, without].contains(&conversation), "{conversation:?}");
        Ok(())
    }

    async fn a_crash_while_the_reply_is_being_stored_leaves_it_once_or_not_at_all(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("reply").gate(&gate).done();
        let events = app.begin("app", "one", script).await?;
        let lock = app.lock().await?;
        gate.open();
        app.ollama_ended(1).await?;
        app.crash().await?;
        // No `done` has said that it is stored.
        assert!(events.rest().await.is_err());
        lock.release().await?;

        app.restart().await?;
        app.turn("app", "two", "ok").await?;
        let conversation = app.conversation("app").await?;
        let without = messages(&[("user", "one"), ("user", "two"), ("assistant", "ok")]);
        let mut with = without.clone();
        with.insert(1, ("assistant".to_owned(), "reply".to_owned()));
        assert!([with, without].contains(&conversation), "{conversation:?}");
        Ok(())
    }

    async fn a_stop_without_turns_is_at_once(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        app.turn("app", "Hi", "ok").await?;
        assert_eq!(within("the stop", app.stop()).await??, 0);
        Ok(())
    }
}
