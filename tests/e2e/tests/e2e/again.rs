//! `POST …/turns/{turn}/again`: another reply to the same prompt. The old one is there until a better one is.

use anyhow::{Result, ensure};
use llmchat_testkit::{
    Answer, Backend, Event, Events, Setup, TestApp, messages, on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Ending, Gate, Script, wire};
use serde_json::{Value, json};

const STREAM: (&str, &str) = ("accept", "text/event-stream");

fn looking_often(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "200ms")
}

async fn again(app: &TestApp, turn: &str, fields: &str) -> Result<Answer> {
    let path = format!("{turn}/again");
    app.client.request("POST", &path, fields.to_owned()).await
}

/// Asks a turn again, with this answer of Ollama's; returns with the stream after the first event.
async fn begin_again(app: &TestApp, turn: &str, script: Script) -> Result<Events> {
    app.ollama.push(script);
    let mut events = again(app, turn, "").await?.events().await?;
    events.next().await?;
    Ok(events)
}

/// What people see of the conversation, and of a turn of it.
async fn seen(app: &TestApp, turn: &str) -> Result<(Value, Value)> {
    let page = app.client.get("/llmchat/app", &[]).await?.json(200).await?;
    let turn = app.client.get(turn, &[]).await?.json(200).await?;
    Ok((page, turn))
}

/// The last event, and the last id.
async fn end(mut events: Events) -> Result<(Event, String)> {
    let mut last = None;
    while let Some(event) = events.next().await? {
        last = Some(event);
    }
    ensure!(last.is_some(), "no event");
    Ok((
        last.unwrap_or(Event::Data(String::new())),
        events.last_id().to_owned(),
    ))
}

/// The code of the last event, whose outcome is not the turn's: it has no id of its own.
async fn ends_unstored(events: Events) -> Result<String> {
    let (last, id) = end(events).await?;
    ensure!(!id.ends_with(".end"), "{last:?} has an id: {id}");
    Ok(last.code().unwrap_or("none").to_owned())
}

on_both_stores! {
    async fn another_reply_takes_the_place_and_the_id_of_the_old_one(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "one", "1").await?;
        let turn = app.turn("app", "two", "2").await?;
        app.turn("app", "three", "3").await?;
        let (before, old) = seen(&app, &turn).await?;
        app.ollama.push(Script::reply(["better"]));
        let answer = again(&app, &turn, "").await?;
        assert_eq!(answer.turn()?, turn);
        assert!(turn.ends_with(answer.header("x-turn-id").unwrap_or("none")));
        assert_eq!(answer.header("x-context"), Some("turns=2/2, bytes=7"));
        assert_eq!(answer.header("idempotency-replayed"), None);
        let (last, id) = end(answer.events().await?).await?;
        assert_eq!(last, Event::Data(wire::done()));
        assert!(id.ends_with(".end"), "{id}");
        // What precedes the turn, and its prompt: neither the old reply nor what came later.
        let sent = messages(&[("user", "one"), ("assistant", "1"), ("user", "two")]);
        assert_eq!(app.sent_to_ollama(4).await?, sent);

        let (after, new) = seen(&app, &turn).await?;
        let mut expected = before;
        expected["messages"][3]["content"] = json!("better");
        expected["messages"][3]["time"] = after["messages"][3]["time"].clone();
        assert_eq!(after, expected);
        assert_eq!((&new["state"], &new["started"]), (&json!("complete"), &old["started"]));
        assert!(new["attempt"] != old["attempt"] && id.starts_with(&new["attempt"].as_str().unwrap_or_default()[..8]));
        Ok(())
    }

    async fn a_reply_that_breaks_off_leaves_the_old_one(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "ollama_idle_timeout", "500ms").await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?;
        for (script, code) in [
            (Script::refuse(503, "busy"), "ollama_refused"),
            (Script::new(), "ollama_ended_early"),
            (Script::new().token("new").break_off(), "ollama_broke_off"),
            (Script::new().token("new").reset(), "ollama_broke_off"),
            (Script::new().token("new"), "ollama_ended_early"),
            (Script::new().token("new").hang(), "ollama_timeout"),
            (Script::new().token("new").line(wire::error("out of memory")), "ollama_error"),
        ] {
            app.ollama.push(script);
            let events = again(&app, &turn, "").await?.events().await?;
            assert_eq!(ends_unstored(events).await?, code);
            assert_eq!(seen(&app, &turn).await?, before, "{code}");
        }
        // Nor does the model see anything else.
        app.turn("app", "next", "ok").await?;
        let sent = messages(&[("user", "Hi"), ("assistant", "old"), ("user", "next")]);
        assert_eq!(app.sent_to_ollama(app.ollama.chats()).await?, sent);
        Ok(())
    }

    async fn a_reply_that_broke_off_is_replaced_by_one_that_did_too(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::refuse(503, "busy"));
        let events = app.stream("app", "Hi").await?;
        let turn = events.turn().to_owned();
        events.rest().await?;
        // Nothing stands: whatever comes is the outcome.
        app.ollama.push(Script::new());
        let (last, id) = end(again(&app, &turn, "").await?.events().await?).await?;
        assert_eq!((last.code(), id.ends_with(".end")), (Some("ollama_ended_early"), true));
        assert_eq!(seen(&app, &turn).await?.1["code"], "ollama_ended_early");
        for (script, code, reply, is_outcome) in [
            (Script::new().token("a").break_off(), "ollama_broke_off", "a", true),
            (Script::new().token("b").line(wire::error("no")), "ollama_error", "b", true),
            (Script::refuse(503, "busy"), "ollama_refused", "b", false),
        ] {
            app.ollama.push(script);
            let (last, id) = end(again(&app, &turn, "").await?.events().await?).await?;
            assert_eq!((last.code(), id.ends_with(".end")), (Some(code), is_outcome));
            let (page, turn) = seen(&app, &turn).await?;
            assert_eq!(page["messages"][1]["content"], reply);
            assert_eq!((&page["messages"][1]["status"], &turn["state"]), (&json!("partial"), &json!("partial")));
        }
        app.ollama.push(Script::reply(["whole"]));
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }

    async fn the_old_reply_is_read_until_the_new_one_is_stored(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?.0;
        let gate = Gate::new();
        let events = begin_again(&app, &turn, Script::new().token("new").gate(&gate).done()).await?;
        until("a checkpoint", async || {
            Ok(!app.query("SELECT 'a part' FROM chatts_parts").await?.is_empty())
        })
        .await?;
        let (page, now) = seen(&app, &turn).await?;
        assert_eq!(page["messages"], before["messages"]);
        assert!(turn.ends_with(page["running"].as_str().unwrap_or("none")));
        assert_eq!(now["state"], "running");
        // A prompt that comes meanwhile is asked with it, too.
        app.turn("app", "next", "ok").await?;
        let sent = messages(&[("user", "Hi"), ("assistant", "old"), ("user", "next")]);
        assert_eq!(app.sent_to_ollama(3).await?, sent);
        gate.open();
        events.rest().await?;
        let now = messages(&[("user", "Hi"), ("assistant", "new"), ("user", "next"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, now);
        Ok(())
    }

    async fn a_stopped_reply_replaces_the_old_one_if_it_has_text(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?;
        let stop = format!("{turn}/stop");

        app.ollama.push(Script::silence());
        let events = again(&app, &turn, "").await?.events().await?;
        app.sent_to_ollama(2).await?;
        app.client.request("POST", &stop, "").await?.json(202).await?;
        let (last, id) = end(events).await?;
        ensure!(matches!(&last, Event::Data(line) if line.contains(r#""done_reason":"stopped""#)), "{last:?}");
        assert!(!id.ends_with(".end"), "{id}");
        assert_eq!(app.ollama_ended(2).await?, Ending::ClientLeft);
        assert_eq!(seen(&app, &turn).await?, before);

        let events = begin_again(&app, &turn, Script::new().token("enough").hang()).await?;
        app.client.request("POST", &stop, "").await?.json(202).await?;
        let (last, id) = end(events).await?;
        ensure!(matches!(&last, Event::Data(line) if line.contains(r#""done_reason":"stopped""#)), "{last:?}");
        assert!(id.ends_with(".end"), "{id}");
        let (page, now) = seen(&app, &turn).await?;
        assert_eq!(page["messages"][1]["content"], "enough");
        assert_eq!(page["messages"][1]["id"], before.0["messages"][1]["id"]);
        assert_eq!((&page["messages"][1]["status"], &now["state"]), (&json!("stopped"), &json!("stopped")));
        Ok(())
    }

    async fn fields_of_its_own_replace_those_of_the_turn(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let mut body = prompt("app", "Hi");
        body["options"] = json!({"seed": 1});
        body["think"] = json!(false);
        let events = app.client.prompt(&body).await?.events().await?;
        let turn = events.turn().to_owned();
        events.rest().await?;
        let sent = async |nth| -> Result<[Value; 4]> {
            let mut body = app.ollama.chat(nth).await.request().json()?;
            Ok(["model", "options", "think", "stream"].map(|field| body[field].take()))
        };
        let asked = |model: &str, seed: u32| [json!(model), json!({"seed": seed}), json!(false), json!(true)];
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(sent(2).await?, asked("stand-in", 1));
        again(&app, &turn, r#"{"model":"larger","options":{"seed":2}}"#).await?.read().await?;
        assert_eq!(sent(3).await?, asked("larger", 2));
        // They are the turn's with the reply that they made, ...
        again(&app, &turn, "{}").await?.read().await?;
        assert_eq!(sent(4).await?, asked("larger", 2));
        assert_eq!(seen(&app, &turn).await?.1["model"], "larger");
        // ... and not those of one that failed.
        app.ollama.push(Script::refuse(404, "no such model"));
        again(&app, &turn, r#"{"model":"unknown","options":{"seed":3}}"#).await?.read().await?;
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(sent(6).await?, asked("larger", 2));
        Ok(())
    }

    async fn what_may_not_change_is_refused(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?;
        for (fields, named) in [
            (r#"{"appID":"app"}"#, "appID"),
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"messages":[{"role":"user","content":"Hi"}]}"#, "messages"),
            (r#"{"model":""}"#, "model"),
            (r#"{"model":7}"#, "model"),
            (r#"{"stream":"yes"}"#, "stream"),
            (r#"{"Messages":[]}"#, "Messages"),
            ("[]", "a JSON object"),
            ("{", "EOF"),
            ("null", "a JSON object"),
        ] {
            let error = again(&app, &turn, fields).await?.error(422).await?;
            ensure!(error.contains(named), "{fields}: {error}");
        }
        for nobodys in ["0199f3a1-5c00-7000-8000-000000000001", "another/turns/0199f3a1-5c00-7000-8000-000000000001"] {
            let path = format!("/llmchat/app/turns/{nobodys}").replace("app/turns/another", "another");
            assert_eq!(again(&app, &path, "").await?.refusal(404).await?, "not_found");
        }
        // A turn belongs to its conversation.
        let elsewhere = turn.replace("/app/", "/another/");
        assert_eq!(again(&app, &elsewhere, "").await?.refusal(404).await?, "not_found");
        assert_eq!(again(&app, "/llmchat/app/turns/first", "").await?.refusal(422).await?, "invalid_request");
        assert_eq!((seen(&app, &turn).await?, app.ollama.chats()), (before, 1));
        Ok(())
    }

    async fn while_one_runs_all_follow_it(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let another = app.another().await?;
        let gate = Gate::new();
        let first = app.begin("app", "Hi", Script::new().token("one").gate(&gate).done()).await?;
        let turn = first.turn().to_owned();
        let follow = again(&app, &turn, r#"{"model":"ignored"}"#).await?;
        assert_eq!(follow.header("idempotency-replayed"), Some("true"));
        let path = format!("{turn}/again");
        let from_elsewhere = another.client.request("POST", &path, "").await?;
        gate.open();
        first.rest().await?;
        for follower in [follow, from_elsewhere] {
            let events = follower.read().await?;
            assert_eq!(events.last(), Some(&Event::Data(wire::done())), "{events:?}");
        }
        // Of many at once, one asks.
        let gate = Gate::new();
        app.ollama.push(Script::new().token("two").gate(&gate).done());
        let ask = async |n: usize| match n % 2 {
            0 => again(&app, &turn, "").await,
            _ => another.client.request("POST", &path, "").await,
        };
        let answers = futures_util::future::try_join_all((0..10).map(ask)).await?;
        let asking = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none());
        assert_eq!(asking.count(), 1);
        gate.open();
        for answer in answers {
            let events = answer.read().await?;
            assert_eq!(events.last(), Some(&Event::Data(wire::done())), "{events:?}");
        }
        assert_eq!(app.ollama.chats(), 2);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "two")]));
        Ok(())
    }

    async fn a_conversation_that_is_busy_keeps_its_replies(backend: Backend) -> Result<()> {
        let app = looking_often(backend).variable("on_busy", "reject").start().await?;
        let turn = app.turn("app", "one", "old").await?;
        let gate = Gate::new();
        let events = app.begin("app", "two", Script::new().token("2").gate(&gate).done()).await?;
        let answer = again(&app, &turn, "").await?;
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.refusal(409).await?, "busy");
        gate.open();
        events.rest().await?;
        app.ollama.push(Script::reply(["new"]));
        again(&app, &turn, "").await?.read().await?;
        let now = messages(&[("user", "one"), ("assistant", "new"), ("user", "two"), ("assistant", "2")]);
        assert_eq!(app.conversation("app").await?, now);
        Ok(())
    }

    async fn a_key_replays_the_reply_that_stands(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let repeat = async || app.client.prompt_with(&[("idempotency-key", "k")], &prompt("app", "Hi")).await;
        app.ollama.push(Script::reply(["old"]));
        let events = repeat().await?.events().await?;
        let turn = events.turn().to_owned();
        events.rest().await?;
        for (script, reply) in [
            (Script::reply(["new"]), "new"),
            (Script::new().token("broken").break_off(), "new"),
        ] {
            app.ollama.push(script);
            again(&app, &turn, "").await?.read().await?;
            let chats = app.ollama.chats();
            let answer = repeat().await?;
            assert_eq!(answer.header("idempotency-replayed"), Some("true"));
            let events = answer.read().await?;
            let said = |event: &Event| matches!(event, Event::Data(line) if line.contains(reply));
            ensure!(events.iter().any(said), "{events:?}");
            assert_eq!(events.last(), Some(&Event::Data(wire::done())));
            assert_eq!(app.ollama.chats(), chats);
        }
        Ok(())
    }

    async fn a_client_that_leaves_loses_no_reply(backend: Backend) -> Result<()> {
        for on_disconnect in ["finish", "cancel"] {
            let setup = looking_often(backend).variable("on_disconnect", on_disconnect);
            let app = setup.variable("comment_interval", "100ms").start().await?;
            let turn = app.turn("app", "Hi", "old").await?;
            let before = seen(&app, &turn).await?;
            let gate = Gate::new();
            let script = Script::new().token("new").gate(&gate);
            drop(begin_again(&app, &turn, script.done()).await?);
            if on_disconnect == "finish" {
                gate.open();
                until("the new reply", async || {
                    Ok(seen(&app, &turn).await?.0["messages"][1]["content"] == "new")
                })
                .await?;
            } else {
                assert_eq!(app.ollama_ended(2).await?, Ending::ClientLeft);
                until("the end of the attempt", async || Ok(seen(&app, &turn).await? == before)).await?;
            }
        }
        Ok(())
    }

    async fn a_client_that_leaves_before_anything_came_loses_no_reply(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("new").done());
        drop(again(&app, &turn, "").await?);
        app.sent_to_ollama(2).await?;
        gate.open();
        until("the new reply", async || {
            Ok(seen(&app, &turn).await?.0["messages"][1]["content"] == "new")
        })
        .await
    }

    async fn a_database_that_stays_locked_at_the_beginning_is_a_500(backend: Backend) -> Result<()> {
        let setup = TestApp::on(backend).variable("database_timeout", "3s").variable("turn_lease", "4s");
        let app = setup.start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?.0;
        let held = Held::begins(&app, backend).await?;
        assert_eq!(again(&app, &turn, "").await?.refusal(500).await?, "database_failed");
        held.release(&app).await?;
        // The last try may have begun an attempt after all, which ends with its lease.
        until("what was before", async || Ok(seen(&app, &turn).await?.0 == before)).await?;
        assert_eq!(app.ollama.chats(), 1);
        app.ollama.push(Script::reply(["new"]));
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "new")]));
        Ok(())
    }

    async fn a_reply_that_cannot_be_stored_leaves_the_old_one(backend: Backend) -> Result<()> {
        let setup = looking_often(backend).variable("database_timeout", "3s").variable("turn_lease", "4s");
        let app = setup.start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?.0;
        let gate = Gate::new();
        let events = begin_again(&app, &turn, Script::new().token("new").gate(&gate).done()).await?;
        let held = Held::commits(&app, backend).await?;
        gate.open();
        assert_eq!(ends_unstored(events).await?, "database_failed");
        held.release(&app).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "old")]));
        // Its attempt ends with its lease, and the turn can be asked again.
        until("the end of the lease", async || Ok(seen(&app, &turn).await?.0["running"].is_null())).await?;
        assert_eq!(seen(&app, &turn).await?.0, before);
        app.ollama.push(Script::reply(["newer"]));
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "newer")]));
        Ok(())
    }

    async fn a_host_that_dies_leaves_the_old_reply(backend: Backend) -> Result<()> {
        let mut app = looking_often(backend).variable("turn_lease", "2s").start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        let before = seen(&app, &turn).await?.0;
        // While it waits for Ollama, while tokens stream, while the reply is stored.
        for moment in ["waiting", "streaming", "storing"] {
            let gate = Gate::new();
            let script = match moment {
                "waiting" => Script::silence(),
                "streaming" => Script::new().token("lost").hang(),
                _ => Script::new().token("lost").gate(&gate).done(),
            };
            let nth = app.ollama.chats() + 1;
            app.ollama.push(script);
            let mut events = again(&app, &turn, "").await?.events().await?;
            app.sent_to_ollama(nth).await?;
            let mut held = None;
            if moment == "streaming" {
                events.next().await?;
                until("a checkpoint", async || {
                    Ok(!app.query("SELECT 'a part' FROM chatts_parts").await?.is_empty())
                })
                .await?;
            } else if moment == "storing" {
                events.next().await?;
                held = Some(Held::commits(&app, backend).await?);
                gate.open();
                app.ollama_ended(nth).await?;
            }
            app.crash().await?;
            assert!(events.rest().await.is_err());
            app.restart().await?;
            if let Some(held) = held {
                held.release(&app).await?;
            }
            // Who asks before its lease has run out follows it, to its end.
            let follower = again(&app, &turn, "").await?;
            if follower.header("idempotency-replayed").is_some() {
                assert_eq!(ends_unstored(follower.events().await?).await?, "turn_orphaned");
            }
            until("the end of the lease", async || Ok(seen(&app, &turn).await?.0["running"].is_null())).await?;
            assert_eq!(seen(&app, &turn).await?.0, before, "{moment}");
        }
        app.ollama.push(Script::reply(["new"]));
        again(&app, &turn, "").await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "new")]));
        Ok(())
    }

    async fn what_is_asked_again_is_deleted_meanwhile(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let turn = app.turn("app", "Hi", "old").await?;
        for what in ["/reply", ""] {
            let events = begin_again(&app, &turn, Script::new().token("new").hang()).await?;
            let nth = app.ollama.chats();
            let follower = app.client.get(&turn, &[STREAM]).await?.events().await?;
            app.client.delete(&format!("{turn}{what}")).await?;
            assert_eq!(ends_unstored(events).await?, "turn_deleted");
            assert_eq!(ends_unstored(follower).await?, "turn_deleted");
            assert_eq!(app.ollama_ended(nth).await?, Ending::ClientLeft);
            let stays = if what.is_empty() { &[][..] } else { &[("user", "Hi")] };
            assert_eq!(app.conversation("app").await?, messages(stays));
        }
        assert_eq!(again(&app, &turn, "").await?.refusal(404).await?, "not_found");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_while_tokens_stream_is_not_noticed() -> Result<()> {
    let app = looking_often(Backend::Postgres)
        .database_wire()
        .start()
        .await?;
    let turn = app.turn("app", "Hi", "old").await?;
    let gate = Gate::new();
    let script = Script::new().token("new").gate(&gate).token("er").done();
    let events = begin_again(&app, &turn, script).await?;
    app.database_wire()?.take_down();
    let tried = app.database_wire()?.accepted();
    until("a checkpoint that fails", async || {
        Ok(app.database_wire()?.accepted() > tried)
    })
    .await?;
    gate.open();
    app.ollama_ended(2).await?;
    app.database_wire()?.restore();
    assert_eq!(end(events).await?.0, Event::Data(wire::done()));
    let now = messages(&[("user", "Hi"), ("assistant", "newer")]);
    assert_eq!(app.conversation("app").await?, now);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_not_heard_of_replaces_once() -> Result<()> {
    let app = looking_often(Backend::Postgres)
        .database_wire()
        .start()
        .await?;
    let turn = app.turn("app", "Hi", "old").await?;
    let gate = Gate::new();
    let events = begin_again(&app, &turn, Script::new().token("new").gate(&gate).done()).await?;
    let lock = app.lock().await?;
    gate.open();
    until("a commit that waits", async || {
        let waiting =
            "SELECT 'waiting' FROM pg_locks JOIN pg_database ON database = pg_database.oid
            WHERE NOT granted AND datname = current_database()";
        Ok(!app.query(waiting).await?.is_empty())
    })
    .await?;
    app.database_wire()?.swallow_answers();
    lock.release().await?;
    let now = messages(&[("user", "Hi"), ("assistant", "new")]);
    until("the commit", async || {
        Ok(app.conversation("app").await? == now)
    })
    .await?;
    app.database_wire()?.cut();
    app.database_wire()?.restore();
    assert_eq!(
        within("done", end(events)).await??.0,
        Event::Data(wire::done())
    );
    assert_eq!(app.conversation("app").await?, now);
    Ok(())
}

/// Something that fails for a while, and is tried again.
struct Held(&'static str);

impl Held {
    /// New attempts.
    async fn begins(app: &TestApp, backend: Backend) -> Result<Self> {
        Self::on(app, backend, "INSERT ON chatts_runs").await
    }

    /// New replies over old ones.
    async fn commits(app: &TestApp, backend: Backend) -> Result<Self> {
        Self::on(app, backend, "DELETE ON chatts_runs").await
    }

    async fn on(app: &TestApp, backend: Backend, event: &str) -> Result<Self> {
        let (create, drop) = match backend {
            Backend::Sqlite => (
                format!(
                    "CREATE TRIGGER held BEFORE {event} BEGIN SELECT RAISE(ABORT, 'database is locked'); END"
                ),
                "DROP TRIGGER held",
            ),
            Backend::Postgres => (
                format!(
                    "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
                        $$ BEGIN RAISE EXCEPTION 'too busy' USING ERRCODE = '53000'; END $$;
                     CREATE TRIGGER held BEFORE {event} FOR EACH ROW EXECUTE FUNCTION held()"
                ),
                "DROP TRIGGER held ON chatts_runs; DROP FUNCTION held",
            ),
        };
        app.execute(&create).await?;
        Ok(Self(drop))
    }

    async fn release(self, app: &TestApp) -> Result<()> {
        app.execute(self.0).await
    }
}
