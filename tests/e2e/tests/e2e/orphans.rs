//! Attempts that are thought dead: their leases have run out. Some are dead, others come back, and only who takes a turn
//! over ends its attempt.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use llmchat_testkit::{
    Answer, Backend, Client, Event, Setup, TestApp, messages, on_both_stores, prompt, until,
};
use ollama_stand_in::{Ending, Gate, Script, wire};
use serde_json::Value;

const KEY: (&str, &str) = ("idempotency-key", "one");

fn looking_often(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "200ms")
}

async fn post(client: &Client) -> Result<Answer> {
    client.prompt_with(&[KEY], &prompt("app", "Hi")).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed").is_some()
}

async fn shown(app: &TestApp, turn: &str) -> Result<Value> {
    app.client.get(turn, &[]).await?.json(200).await
}

/// The messages that people read: content and status.
async fn page(app: &TestApp) -> Result<Vec<(String, String)>> {
    let page = app.client.get("/llmchat/app", &[]).await?.json(200).await?;
    let messages = page["messages"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(messages
        .map(|it| (text(&it["content"]), text(&it["status"])))
        .collect())
}

async fn until_stored(app: &TestApp, text: &str) -> Result<()> {
    let parts = "SELECT coalesce(content, '') FROM chatts_parts ORDER BY from_content";
    until("a checkpoint", async || {
        Ok(app.query(parts).await?.concat() == text)
    })
    .await
}

/// The attempts that run now have no lease any more, however often their hosts renew it: as after a long pause of a host,
/// or with a lease that is shorter than an outage.
async fn presume_dead(app: &TestApp, backend: Backend) -> Result<()> {
    app.execute(match backend {
        Backend::Sqlite => {
            "CREATE TRIGGER dead AFTER UPDATE OF expires ON chatts_runs WHEN OLD.expires = 1 BEGIN
                UPDATE chatts_runs SET expires = 1 WHERE turn_id = NEW.turn_id AND attempt = NEW.attempt;
            END;
            UPDATE chatts_runs SET expires = 1"
        }
        Backend::Postgres => {
            "CREATE FUNCTION dead() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN NEW.expires := 'epoch'; RETURN NEW; END $$;
            CREATE TRIGGER dead BEFORE UPDATE ON chatts_runs FOR EACH ROW WHEN (OLD.expires = 'epoch')
                EXECUTE FUNCTION dead();
            UPDATE chatts_runs SET expires = 'epoch'"
        }
    })
    .await
}

on_both_stores! {
    async fn of_many_who_repeat_the_prompt_one_asks_anew(backend: Backend) -> Result<()> {
        let mut app = looking_often(backend).start().await?;
        app.ollama.push(Script::new().token("lost").hang());
        let events = post(&app.client).await?.events().await?;
        let turn = events.turn().to_owned();
        until_stored(&app, "lost").await?;
        app.crash().await?;
        app.restart().await?;
        let another = app.another().await?;
        presume_dead(&app, backend).await?;

        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("found").done());
        let hosts = [app.client, another.client];
        let answers = try_join_all((0..20).map(|n| post(&hosts[n % 2]))).await?;
        assert_eq!(answers.iter().filter(|answer| !is_replayed(answer)).count(), 1);
        gate.open();
        for answer in answers {
            assert_eq!(answer.turn()?, turn);
            let events = answer.read().await?;
            assert_eq!(events.last(), Some(&Event::Data(wire::done())), "{events:?}");
        }
        assert_eq!(app.ollama.chats(), 2);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "found")]));
        Ok(())
    }

    async fn an_attempt_that_comes_back_is_committed_if_nobody_took_it_over(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().tokens(["so", "  far"]).gate(&gate).token(", so good").done());
        let events = post(&app.client).await?.events().await?;
        let turn = events.turn().to_owned();
        until_stored(&app, "so  far").await?;
        presume_dead(&app, backend).await?;
        let orphan = shown(&app, &turn).await?;
        assert_eq!((&orphan["state"], &orphan["code"]), (&"partial".into(), &"turn_orphaned".into()));
        let partial = ("so  far".to_owned(), "partial".to_owned());
        assert_eq!(page(&app).await?[1], partial);
        // A read writes nothing; the next prompt takes the text into the conversation, and leaves the attempt alone.
        assert_eq!(app.rows("app").await?.len(), 1);
        app.turn("app", "next", "ok").await?;
        let sent = [("user", "Hi"), ("assistant", "so far"), ("user", "next")];
        assert_eq!(app.sent_to_ollama(2).await?, messages(&sent));
        assert_eq!(page(&app).await?[1], partial);

        gate.open();
        assert_eq!(events.rest().await?.last(), Some(&Event::Data(wire::done())));
        assert_eq!(shown(&app, &turn).await?["state"], "complete");
        let now = messages(&[("user", "Hi"), ("assistant", "so far, so good"), ("user", "next"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, now);
        // Whoever repeats the prompt gets what was committed.
        assert!(is_replayed(&post(&app.client).await?));
        Ok(())
    }

    async fn an_attempt_that_was_taken_over_stores_nothing(backend: Backend) -> Result<()> {
        // A checkpoint tells it, or its commit.
        for (interval, by) in [("200ms", "a checkpoint"), ("1h", "a commit")] {
            let app = TestApp::on(backend).variable("checkpoint_interval", interval).start().await?;
            let another = app.another().await?;
            let (first, second) = (Gate::new(), Gate::new());
            app.ollama.push(Script::new().token("one").gate(&first).done());
            let old = post(&app.client).await?.events().await?;
            let turn = old.turn().to_owned();
            presume_dead(&app, backend).await?;
            app.ollama.push(Script::new().token("two").gate(&second).done());
            let new = post(&another.client).await?;
            assert!(!is_replayed(&new));
            if by == "a commit" {
                first.open();
            }
            let mut rest = old.rest().await?;
            assert_eq!(rest.pop().as_ref().and_then(Event::code), Some("turn_superseded"), "{by}");
            if by == "a checkpoint" {
                assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
            }
            assert_eq!(shown(&app, &turn).await?["state"], "running", "{by}");
            second.open();
            assert_eq!(new.read().await?.last(), Some(&Event::Data(wire::done())));
            assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "two")]), "{by}");
            assert_eq!(app.query("SELECT appid FROM chatts_runs").await?, [""; 0]);
            assert_eq!(app.query("SELECT appid FROM chatts_parts").await?, [""; 0]);
        }
        Ok(())
    }

    async fn whoever_follows_what_is_taken_over_restarts(backend: Backend) -> Result<()> {
        // Both in one interval: who follows never sees the orphan.
        let app = TestApp::with(backend, "checkpoint_interval", "3s").await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("one").hang());
        let _old = post(&app.client).await?.events().await?;
        until_stored(&app, "one").await?;
        let mut follower = post(&app.client).await?.events().await?;
        let one = follower.next().await?;
        ensure!(matches!(&one, Some(Event::Data(line)) if line.contains(r#""content":"one""#)), "{one:?}");
        presume_dead(&app, backend).await?;
        app.ollama.push(Script::new().token("two").gate(&gate).done());
        let new = post(&app.client).await?;
        assert!(!is_replayed(&new));
        let restart = follower.next().await?;
        ensure!(matches!(&restart, Some(Event::Restart { .. })), "{restart:?}");
        gate.open();
        let rest = follower.rest().await?;
        ensure!(matches!(&rest[0], Event::Data(line) if line.contains(r#""content":"two""#)), "{rest:?}");
        assert_eq!(rest.last(), Some(&Event::Data(wire::done())));
        Ok(())
    }

    async fn beside_an_older_reply_what_an_orphan_has_is_never_shown(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        app.ollama.push(Script::new().token("half").hang());
        let _events = app.client.request("POST", &format!("{turn}/again"), "").await?;
        until_stored(&app, "half").await?;
        presume_dead(&app, backend).await?;
        app.turn("app", "next", "ok").await?;
        let sent = [("user", "Hi"), ("assistant", "old"), ("user", "next")];
        assert_eq!(app.sent_to_ollama(3).await?, messages(&sent));
        let seen: Vec<_> = page(&app).await?.into_iter().map(|(content, _)| content).collect();
        assert_eq!(seen, ["Hi", "old", "next", "ok"]);
        // Asked again, it is taken over: nothing of it is left.
        app.ollama.push(Script::reply(["new"]));
        app.client.request("POST", &format!("{turn}/again"), "").await?.read().await?;
        let now = messages(&[("user", "Hi"), ("assistant", "new"), ("user", "next"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, now);
        Ok(())
    }

    async fn a_deletion_ends_an_attempt_that_comes_back(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("so far").gate(&gate).done());
        let events = post(&app.client).await?.events().await?;
        until_stored(&app, "so far").await?;
        presume_dead(&app, backend).await?;
        // Its text is in the conversation by then.
        app.turn("app", "next", "ok").await?;
        app.client.delete(events.turn()).await?;
        gate.open();
        let mut rest = events.rest().await?;
        assert_eq!(rest.pop().as_ref().and_then(Event::code), Some("turn_deleted"));
        assert_eq!(app.conversation("app").await?, messages(&[("user", "next"), ("assistant", "ok")]));
        Ok(())
    }
}
