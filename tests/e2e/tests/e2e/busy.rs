//! `on_busy = reject`: one turn at a time in a conversation, under a lease that nobody can hold
//! for ever.

use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{
    Backend, Event, Setup, TestApp, messages, on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Ending, Gate, Script};
use serde_json::json;

fn rejecting(backend: Backend) -> Setup {
    TestApp::on(backend).variable("on_busy", "reject")
}

/// Its leases would outlast the test.
fn failing_soon(backend: Backend) -> Setup {
    rejecting(backend)
        .variable("database_timeout", "1s")
        .variable("turn_lease", "10m")
}

/// Waits until the conversation takes a prompt; until then every answer must be a `409`.
async fn until_free(app: &TestApp, app_id: &str) -> Result<()> {
    until("the end of the lease", async || {
        let answer = app.prompt(app_id, "Free?").await?;
        if answer.status() == 409 {
            return Ok(false);
        }
        answer.read().await?;
        Ok(true)
    })
    .await
}

on_both_stores! {
    async fn a_prompt_for_a_conversation_that_is_busy_is_a_409(backend: Backend) -> Result<()> {
        let app = rejecting(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("first").done());
        app.ollama.always(Script::reply(["ok"]));
        let first = app.stream("app", "one").await?;
        within("the first turn", gate.reached()).await?;
        let error = app.prompt("app", "too early").await?.error(409).await?;
        ensure!(error.contains("running"), "{error}");
        assert_eq!(app.ollama.chats(), 1);
        // Other conversations are free.
        app.ask("another", "Hi").await?;

        gate.open();
        first.rest().await?;
        // `done` means this too: the next prompt may follow at once.
        app.ask("app", "two").await?;
        let expected = messages(&[("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, expected);
        Ok(())
    }

    async fn of_many_prompts_at_once_one_runs(backend: Backend) -> Result<()> {
        let app = rejecting(backend).start().await?;
        let gate = Gate::new();
        app.ollama.always(Script::new().gate(&gate).token("ok").done());
        let prompt = async |n: usize| app.prompt("app", &format!("{n}")).await;
        let answers = futures_util::future::try_join_all((0..20).map(prompt)).await?;
        let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
        assert_eq!((taken.len(), refused.len()), (1, 19));
        for answer in refused {
            answer.error(409).await?;
        }
        gate.open();
        for answer in taken {
            answer.read().await?;
        }
        assert_eq!((app.row_count().await?, app.ollama.chats()), (2, 1));
        Ok(())
    }

    async fn of_a_hundred_prompts_at_once_to_two_hosts_one_runs(backend: Backend) -> Result<()> {
        // SQLite lets in one after the other.
        let app = rejecting(backend).variable("database_timeout", "18s").start().await?;
        let another = app.another().await?;
        app.turn("app", "makes the tables", "ok").await?;
        let hosts = [app.client, another.client];
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("ok").done());
        let ask = async |n: usize| hosts[n % 2].prompt(&prompt("app", &n.to_string())).await;
        let answers = futures_util::future::try_join_all((0..100).map(ask)).await?;
        let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
        assert_eq!((taken.len(), refused.len()), (1, 99));
        for answer in refused {
            answer.error(409).await?;
        }
        gate.open();
        for answer in taken {
            answer.read().await?;
        }
        assert_eq!((app.row_count().await?, app.ollama.chats()), (4, 2));
        Ok(())
    }

    async fn of_many_who_find_a_dead_turn_one_runs(backend: Backend) -> Result<()> {
        let mut app = rejecting(backend).variable("turn_lease", "1s").start().await?;
        let dead = app.begin("app", "dead", Script::new().token("lost").hang()).await?.turn().to_owned();
        app.crash().await?;
        app.restart().await?;
        let another = app.another().await?;
        until("the end of the lease", async || {
            Ok(app.client.get(&dead, &[]).await?.json(200).await?["state"] != "running")
        })
        .await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("ok").done());
        let hosts = [app.client, another.client];
        let ask = async |n: usize| hosts[n % 2].prompt(&prompt("app", &n.to_string())).await;
        let answers = futures_util::future::try_join_all((0..20).map(ask)).await?;
        let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
        assert_eq!((taken.len(), refused.len()), (1, 19));
        gate.open();
        for answer in taken {
            answer.read().await?;
        }
        assert_eq!(app.ollama.chats(), 2);
        Ok(())
    }

    async fn however_a_turn_ends_the_conversation_is_free(backend: Backend) -> Result<()> {
        let app = rejecting(backend).variable("ollama_idle_timeout", "500ms").start().await?;
        for script in [
            Script::reply(["ok"]),
            Script::new().done(),
            Script::new(),
            Script::refuse(503, "busy"),
            Script::new().token("a").break_off(),
            Script::new().token("a").hang(),
        ] {
            app.ollama.push(script);
            app.ask("app", "Hi").await?;
        }
        // Nor does a turn that was refused hold it.
        let nothing = json!({"appID": "empty", "model": "m", "messages": []});
        for _ in 0..2 {
            app.client.prompt(&nothing).await?.error(422).await?;
        }
        app.turn("empty", "Hi", "ok").await?;
        Ok(())
    }

    async fn a_client_that_leaves_frees_the_conversation_when_its_turn_ends(backend: Backend) -> Result<()> {
        let app = rejecting(backend)
            .variable("on_disconnect", "cancel")
            .variable("comment_interval", "100ms")
            .start()
            .await?;
        app.ollama.always(Script::reply(["ok"]));
        drop(app.begin("app", "Hi", Script::new().token("a").hang()).await?);
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        until_free(&app, "app").await
    }

    async fn a_turn_that_outlasts_its_lease_keeps_it(backend: Backend) -> Result<()> {
        let app = rejecting(backend).variable("turn_lease", "3s").start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("slow").done());
        let first = app.stream("app", "one").await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        app.prompt("app", "two").await?.error(409).await?;
        gate.open();
        first.rest().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "one"), ("assistant", "slow")]));
        Ok(())
    }

    async fn a_turn_whose_reply_was_not_stored_frees_the_conversation(backend: Backend) -> Result<()> {
        let app = failing_soon(backend).start().await?;
        let gate = Gate::new();
        let events = app.begin("app", "one", Script::new().token("lost").gate(&gate).done()).await?;
        let lock = app.lock().await?;
        gate.open();
        let rest = events.rest().await?;
        ensure!(matches!(&rest[..], [Event::Error { code, .. }] if code == "database_failed"), "{rest:?}");
        lock.release().await?;
        app.ollama.always(Script::reply(["ok"]));
        until_free(&app, "app").await
    }

    async fn a_prompt_that_was_not_stored_frees_the_conversation(backend: Backend) -> Result<()> {
        let app = failing_soon(backend).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "one").await?;
        // The lease is taken, and what comes after it fails for a while.
        app.execute(match backend {
            Backend::Sqlite => "CREATE TRIGGER locked BEFORE INSERT ON chatts
                BEGIN SELECT RAISE(ABORT, 'database is locked'); END",
            Backend::Postgres => "CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'too busy' USING ERRCODE = '53000'; END $$;
                CREATE TRIGGER locked BEFORE INSERT ON chatts EXECUTE FUNCTION locked()",
        })
        .await?;
        app.prompt("app", "two").await?.error(500).await?;
        app.execute(match backend {
            Backend::Sqlite => "DROP TRIGGER locked",
            Backend::Postgres => "DROP TRIGGER locked ON chatts",
        })
        .await?;
        until_free(&app, "app").await
    }

    async fn a_host_that_died_cannot_hold_a_conversation_for_ever(backend: Backend) -> Result<()> {
        let mut app = rejecting(backend).variable("turn_lease", "1s").start().await?;
        app.ollama.always(Script::reply(["ok"]));
        let _events = app.begin("app", "one", Script::new().token("lost").hang()).await?;
        app.crash().await?;
        app.restart().await?;
        until_free(&app, "app").await?;
        let expected = messages(&[("user", "one"), ("user", "Free?"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, expected);
        Ok(())
    }
}
