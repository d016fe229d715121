//! A turn is stopped from another connection.

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{Backend, Event, Setup, TestApp, messages, on_both_stores, within};
use ollama_stand_in::{Ending, Gate, Script, wire};
use serde_json::Value;

use super::{Outage, Reader, is_replayed, until_orphaned, until_stored};

fn setup(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "100ms")
}

/// Checks that the last event is the receipt of a turn that was stopped.
fn ensure_stopped(reader: &Reader) -> Result<()> {
    let Some(Event::Data(line)) = &reader.last else {
        anyhow::bail!("no receipt: {reader:?}");
    };
    let line: Value = serde_json::from_str(line)?;
    let is_receipt = line["done"] == true
        && line["done_reason"] == "stopped"
        && line["model"] == "stand-in"
        && line["message"]["role"] == "assistant"
        && line["message"]["content"] == "";
    ensure!(is_receipt && reader.has_outcome(), "{reader:?}");
    Ok(())
}

on_both_stores! {
    async fn what_came_is_kept_and_all_who_watch_have_a_receipt(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().tokens(["so ", "far"]).hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        let mut follower = poster.second();
        let mut watching = follower.watch(&app.client).await?.events().await?;
        follower.read_until(&mut watching, "so far").await?;

        assert_eq!(poster.stop(&app.client).await?, 202);
        poster.read(events).await?;
        follower.read(watching).await?;
        for reader in [&poster, &follower] {
            ensure_stopped(reader)?;
            assert_eq!((reader.text.as_str(), reader.restarts), ("so far", 0));
        }
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "stopped"));
        assert_eq!(poster.state(&app.client).await?, ("stopped".to_owned(), None));
        // The model is shown it.
        app.turn("app", "next", "ok").await?;
        let sent = messages(&[("user", "Hi"), ("assistant", "so far"), ("user", "next")]);
        assert_eq!(app.sent_to_ollama(2).await?, sent);
        Ok(())
    }

    async fn what_was_stopped_is_replayed(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        poster.stop(&app.client).await?;
        poster.read(events).await?;

        let mut again = poster.second();
        let answer = again.post(&app.client).await?;
        assert!(is_replayed(&answer));
        again.read(answer.events().await?).await?;
        ensure_stopped(&again)?;
        assert_eq!((again.text.as_str(), &again.last_id), ("so far", &poster.last_id));
        for answer in [again.post(&app.client).await?, again.watch(&app.client).await?] {
            assert_eq!(answer.status(), 204);
        }
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn a_reply_that_breaks_off_before_its_host_heard_of_the_stop_is_stopped(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend).variable("checkpoint_interval", "10m").start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("so far").gate(&gate).break_off());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        assert_eq!(poster.stop(&app.client).await?, 202);
        gate.open();
        poster.read(events).await?;
        ensure_stopped(&poster)?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "stopped"));
        assert_eq!(poster.state(&app.client).await?, ("stopped".to_owned(), None));

        let mut again = poster.second();
        let answer = again.post(&app.client).await?;
        assert!(is_replayed(&answer));
        again.read(answer.events().await?).await?;
        ensure_stopped(&again)?;
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn another_host_stops_it(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let other = app.another().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        let mut follower = poster.second();
        let watching = follower.watch(&other.client).await?.events().await?;

        assert_eq!(poster.stop(&other.client).await?, 202);
        poster.read(events).await?;
        follower.read(watching).await?;
        ensure_stopped(&poster)?;
        ensure_stopped(&follower)?;
        assert_eq!((poster.text.as_str(), follower.text.as_str()), ("so far", "so far"));
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        Ok(())
    }

    async fn a_model_that_is_being_loaded_is_stopped(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::silence());
        let mut poster = Reader::default();
        let answer = poster.post(&app.client).await?;
        within("the chat request", app.ollama.chat(1)).await?;
        let mut follower = poster.second();
        let watching = follower.watch(&app.client).await?.events().await?;

        assert_eq!(poster.stop(&app.client).await?, 202);
        let told = poster.read(answer.events().await?).await?;
        ensure_stopped(&poster)?;
        // A receipt, though nothing had come.
        assert_eq!(told.len(), 1);
        follower.read(watching).await?;
        ensure_stopped(&follower)?;
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        assert_eq!(poster.state(&app.client).await?, ("stopped".to_owned(), None));
        let answer = poster.second().post(&app.client).await?;
        assert!(is_replayed(&answer));
        Ok(())
    }

    async fn a_reply_whose_client_has_left_is_stopped(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().token("so far").endless(wire::token("")));
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        drop(events);
        assert_eq!(poster.stop(&app.client).await?, 202);
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "stopped"));
        let answer = poster.post(&app.client).await?;
        assert!(is_replayed(&answer));
        assert_eq!(poster.read(answer.events().await?).await?.len(), 1);
        ensure_stopped(&poster)
    }

    async fn a_stop_that_races_done_tells_what_is_stored(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        for n in 0..10 {
            let gate = Gate::new();
            app.ollama.push(Script::new().token("all").gate(&gate).done());
            let mut poster = Reader::default();
            let headers = [("idempotency-key", format!("{n}"))];
            let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
            let body = llmchat_testkit::prompt("app", "Hi");
            let answer = app.client.prompt_with(&headers, &body).await?;
            answer.header("x-turn-id").context("no turn")?.clone_into(&mut poster.turn);
            let mut events = answer.events().await?;
            poster.read_until(&mut events, "all").await?;
            let (status, _) = tokio::try_join!(poster.stop(&app.client), async {
                // From well before the next checkpoint to well after.
                tokio::time::sleep(std::time::Duration::from_millis(20 * n)).await;
                gate.open();
                Ok(())
            })?;
            assert!([200, 202].contains(&status), "{status}");
            poster.read(events).await?;
            let expected = match &poster.last {
                Some(Event::Data(line)) if *line == wire::done() => "complete",
                _ => {
                    ensure_stopped(&poster)?;
                    "stopped"
                }
            };
            assert!(poster.has_outcome());
            assert_eq!(poster.state(&app.client).await?.0, expected);
            let rows = app.rows("app").await?;
            assert_eq!(rows.last().map(|row| row.parts()), Some(("assistant", "all", expected)));
            assert_eq!(poster.stop(&app.client).await?, 200);
        }
        Ok(())
    }

    async fn a_stop_while_the_reply_is_being_stored_comes_too_late(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("all").gate(&gate).done());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "all").await?;
        let lock = app.lock().await?;
        gate.open();
        app.ollama_ended(1).await?;
        let (status, ()) = tokio::try_join!(poster.stop(&app.client), lock.release())?;
        assert!([200, 202].contains(&status), "{status}");
        let rest = poster.read(events).await?;
        assert_eq!(rest, [Event::Data(wire::done())]);
        assert_eq!(poster.state(&app.client).await?.0, "complete");
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "all", "complete"));
        Ok(())
    }

    async fn a_turn_that_has_ended_stays_as_it_is(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        for (script, state) in [
            (Script::reply(["ok"]), "complete"),
            (Script::new().token("half").break_off(), "partial"),
            (Script::refuse(404, "no such model"), "failed"),
        ] {
            app.ollama.push(script);
            let answer = app.prompt("app", "Hi").await?;
            let turn = answer.header("x-turn-id").context("no turn")?.to_owned();
            let reader = Reader { turn, ..Reader::default() };
            answer.read().await?;
            let (rows, shown) = (app.rows("app").await?, reader.shown(&app.client).await?);
            assert_eq!(shown["state"], state);
            for _ in 0..2 {
                let path = format!("{}/stop", reader.path());
                let told = app.client.request("POST", &path, "").await?.json(200).await?;
                assert_eq!(told, shown);
            }
            assert_eq!(app.rows("app").await?, rows);
        }
        Ok(())
    }

    async fn a_turn_that_nobody_began_is_a_404(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let path = |turn: &str| format!("/llmchat/app/turns/{turn}/stop");
        let unknown = "01990000-0000-7000-8000-000000000001";
        let answer = app.client.request("POST", &path(unknown), "").await?;
        assert_eq!(answer.refusal(404).await?, "not_found");
        app.turn("app", "Hi", "ok").await?;
        let answer = app.client.request("POST", &path(unknown), "").await?;
        assert_eq!(answer.refusal(404).await?, "not_found");
        let answer = app.client.request("POST", &path("1"), "").await?;
        assert_eq!(answer.refusal(422).await?, "invalid_request");
        Ok(())
    }

    async fn an_orphan_is_stopped_at_once(backend: Backend) -> Result<()> {
        let mut app = setup(backend).variable("turn_lease", "1s").start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        until_stored(app.store(), "so far").await?;
        app.crash().await?;
        until_orphaned(app.store()).await?;
        app.restart().await?;

        assert_eq!(poster.stop(&app.client).await?, 200);
        assert_eq!(poster.state(&app.client).await?, ("stopped".to_owned(), None));
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "stopped"));
        let answer = poster.post(&app.client).await?;
        assert!(is_replayed(&answer));
        assert_eq!(poster.read(answer.events().await?).await?.len(), 1);
        ensure_stopped(&poster)?;
        assert_eq!((poster.text.as_str(), app.ollama.chats()), ("so far", 1));
        Ok(())
    }

    async fn an_orphan_of_which_nothing_came_is_stopped_at_once(backend: Backend) -> Result<()> {
        let mut app = setup(backend).variable("turn_lease", "1s").start().await?;
        app.ollama.push(Script::silence());
        let mut poster = Reader::default();
        let _answer = poster.post(&app.client).await?;
        within("the chat request", app.ollama.chat(1)).await?;
        app.crash().await?;
        until_orphaned(app.store()).await?;
        app.restart().await?;
        assert_eq!(poster.stop(&app.client).await?, 200);
        assert_eq!(poster.state(&app.client).await?, ("stopped".to_owned(), None));
        let answer = poster.post(&app.client).await?;
        assert!(is_replayed(&answer));
        poster.read(answer.events().await?).await?;
        ensure_stopped(&poster)?;
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 1));
        Ok(())
    }

    async fn a_stop_before_the_host_died_is_not_forgotten(backend: Backend) -> Result<()> {
        // The checkpoint that would tell the host never comes.
        let slow = TestApp::on(backend).variable("checkpoint_interval", "10s").variable("turn_lease", "2s");
        let mut app = slow.start().await?;
        app.ollama.push(Script::new().token("lost").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "lost").await?;
        assert_eq!(poster.stop(&app.client).await?, 202);
        app.crash().await?;
        until_orphaned(app.store()).await?;
        app.restart().await?;
        // Who repeats a prompt does not ask what was to stop.
        let mut again = poster.second();
        let answer = again.post(&app.client).await?;
        assert!(is_replayed(&answer));
        again.read(answer.events().await?).await?;
        ensure_stopped(&again)?;
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn a_stop_without_the_database_is_a_500_and_can_be_made_again(backend: Backend) -> Result<()> {
        let app = setup(backend).variable("database_timeout", "3s").database_wire().start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        let outage = Outage::begin(&app).await?;
        assert_eq!(poster.stop(&app.client).await?, 500);
        outage.end(&app).await?;
        assert_eq!(poster.stop(&app.client).await?, 202);
        poster.read(events).await?;
        ensure_stopped(&poster)?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "stopped"));
        Ok(())
    }

    async fn a_reply_that_is_stopped_replaces_one_that_broke_off_if_it_has_text(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().token("half").break_off());
        let mut poster = Reader::default();
        poster.read(poster.second().post(&app.client).await?.events().await?).await?;
        for (script, text, status) in [
            (Script::silence(), "half", "partial"),
            (Script::new().token("other").hang(), "other", "stopped"),
        ] {
            app.ollama.push(script);
            let mut poster = Reader::default();
            let answer = poster.post(&app.client).await?;
            assert!(!is_replayed(&answer));
            let mut events = answer.events().await?;
            if status == "stopped" {
                poster.read_until(&mut events, text).await?;
            }
            poster.stop(&app.client).await?;
            poster.read(events).await?;
            assert!(poster.is_done());
            assert_eq!(app.rows("app").await?[1].parts(), ("assistant", text, status));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_reaches_a_host_whose_database_is_back() -> Result<()> {
    let app = setup(Backend::Postgres).database_wire().start().await?;
    let gate = Gate::new();
    let script = Script::new().token("so ").gate(&gate).token("far").hang();
    app.ollama.push(script);
    let mut poster = Reader::default();
    let mut events = poster.post(&app.client).await?.events().await?;
    poster.read_until(&mut events, "so ").await?;
    app.database_wire()?.take_down();
    // What another host's stop leaves in the database.
    app.execute("UPDATE chatts_runs SET stop = true").await?;
    gate.open();
    poster.read_until(&mut events, "so far").await?;
    app.database_wire()?.restore();
    poster.read(events).await?;
    ensure_stopped(&poster)?;
    let row = &app.rows("app").await?[1];
    assert_eq!(row.parts(), ("assistant", "so far", "stopped"));
    Ok(())
}
