//! A client goes on from the last event that it has, or watches a turn of another one.

use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_testkit::{
    Backend, Client, Event, Setup, TestApp, Wire, at_limit, messages, on_both_stores, prompt,
    until, within,
};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::{Value, json};

use super::{KEY, Outage, Reader, is_replayed, lines_of, until_orphaned, until_stored};

fn setup(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "100ms")
}

/// A line with these members of its message.
fn line(message: Value, done: bool) -> String {
    json!({"model": "stand-in", "message": message, "done": done}).to_string()
}

/// What a browser's `EventSource` does: it connects again whenever its stream ends, however it ends, until the answer
/// is no stream. Returns how often it connected.
async fn event_source(reader: &mut Reader, client: &Client) -> Result<usize> {
    let mut connections = 0;
    loop {
        connections += 1;
        // An error is a connection that was cut.
        let Ok(answer) = reader.watch(client).await else {
            continue;
        };
        if answer.status() != 200 {
            assert_eq!(answer.status(), 204);
            return Ok(connections);
        }
        let _ = reader.read(answer.events().await?).await;
    }
}

on_both_stores! {
    async fn a_client_that_was_cut_in_mid_reply_goes_on(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gates = [Gate::new(), Gate::new()];
        let script = Script::new().token("H").gate(&gates[0]).tokens(["él", "lo"]);
        app.ollama.push(script.gate(&gates[1]).tokens([" the", "re"]).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "H").await?;
        drop(events);
        gates[0].open();
        until_stored(app.store(), "Héllo").await?;

        let answer = reader.post(&app.client).await?;
        assert!(is_replayed(&answer));
        let mut events = answer.events().await?;
        // What was missed is one event, in Ollama's shape.
        let missed = events.next().await?.context("nothing came")?;
        let [Value::Object(missed)] = &lines_of(&[missed])?[..] else {
            anyhow::bail!("no line");
        };
        assert_eq!(missed.keys().collect::<Vec<_>>(), ["created_at", "done", "message", "model"]);
        assert_eq!((&missed["model"], &missed["done"]), (&json!("stand-in"), &json!(false)));
        assert_eq!(missed["message"], json!({"role": "assistant", "content": "éllo"}));
        reader.text += "éllo";
        gates[1].open();
        let live = reader.read(events).await?;
        assert_eq!((reader.text.as_str(), reader.restarts), ("Héllo there", 0));
        assert_eq!(live.last(), Some(&Event::Data(wire::done())));
        assert_eq!(app.ollama.chats(), 1);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "Héllo there")]));
        Ok(())
    }

    async fn a_client_that_was_cut_before_done_gets_it(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().tokens(["Hel", "lo"]).gate(&gate).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "Hello").await?;
        drop(events);
        gate.open();
        app.until_rows("app", 2).await?;
        for answer in [reader.post(&app.client).await?, reader.watch(&app.client).await?] {
            // Never a 204: it has all the text, and not the receipt.
            let events = reader.read(answer.events().await?).await?;
            assert_eq!(events, [Event::Data(wire::done())]);
            assert!(reader.has_outcome());
            reader.last_id = reader.last_id.replace("end", "5.0.0");
        }
        Ok(())
    }

    async fn whoever_has_the_outcome_is_sent_nothing(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::reply(["ok"]));
        let mut reader = Reader::default();
        reader.persist(&app.client).await?;
        for answer in [reader.post(&app.client).await?, reader.watch(&app.client).await?] {
            assert_eq!((answer.status().as_u16(), answer.bytes().await?.len()), (204, 0));
        }
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn whoever_watches_before_the_reply_began_gets_it(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).tokens(["Hel", "lo"]).done());
        let mut poster = Reader::default();
        let answer = poster.post(&app.client).await?;
        within("the chat request", gate.reached()).await?;
        let mut follower = poster.second();
        let watching = follower.watch(&app.client).await?.events().await?;
        drop(answer);
        gate.open();
        let events = follower.read(watching).await?;
        assert_eq!((follower.text.as_str(), follower.restarts), ("Hello", 0));
        assert_eq!(events.last(), Some(&Event::Data(wire::done())));
        Ok(())
    }

    async fn an_event_source_watches_to_the_end_and_stops(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let other = app.another().await?;
        let gates = [Gate::new(), Gate::new(), Gate::new()];
        let script = Script::new().token("one ").gate(&gates[0]).token("two ").gate(&gates[1]);
        app.ollama.push(script.token("three").gate(&gates[2]).done());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "one ").await?;

        // A second device, by way of another host and a network that is cut.
        let network = Wire::to(other.client.address()).await?;
        let client = Client::of(network.address());
        let mut page = poster.second();
        let (connections, ()) = tokio::try_join!(event_source(&mut page, &client), async {
            for (n, gate) in gates.iter().enumerate() {
                until("a connection", async || Ok(network.accepted() > n)).await?;
                gate.open();
                network.cut();
            }
            Ok(())
        })?;
        assert!(connections > 3, "{connections}");
        assert_eq!((page.text.as_str(), page.restarts), ("one two three", 0));
        assert_eq!(page.last, Some(Event::Data(wire::done())));
        Ok(())
    }

    async fn an_id_that_cannot_be_gone_on_from_restarts(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().tokens(["a", "é"]).line(line(json!({"content": "!"}), true)));
        let mut reader = Reader::default();
        reader.persist(&app.client).await?;
        let attempt = reader.last_id.replace(".end", "");
        let other = if attempt == "00000000" { "11111111" } else { "00000000" };
        for id in [
            format!("{other}.1.0.0"),
            format!("{other}.end"),
            // Inside a character, beyond what is kept, within the last line.
            format!("{attempt}.2.0.0"),
            format!("{attempt}.9.0.0"),
            format!("{attempt}.4.0.0"),
            format!("{attempt}.1.1.0"),
            format!("{attempt}.1.0.1"),
            "nonsense".to_owned(),
        ] {
            let mut reader = Reader { last_id: id.clone(), text: "a".to_owned(), ..reader.second() };
            for answer in [reader.post(&app.client).await?, reader.watch(&app.client).await?] {
                let text = answer.text().await?;
                let (restart, whole) = text.split_once("\n\n").context("no event")?;
                assert!(restart.contains("event: restart\ndata: {\"turn\":\""), "{id}: {text}");
                // What follows an event of another type says its own, once.
                assert_eq!(whole.matches("event: message\n").count(), 1, "{id}: {text}");
                assert!(whole.starts_with(&format!("id: {attempt}.3.0.0\nevent: message\n")), "{id}: {text}");
            }
            let answer = reader.post(&app.client).await?;
            reader.read(answer.events().await?).await?;
            assert_eq!((reader.text.as_str(), reader.restarts), ("aé!", 1), "{id}");
        }
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn a_stale_id_on_a_turn_that_runs_restarts_and_goes_on(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("Hel").gate(&gate).token("lo").done());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "Hel").await?;
        until_stored(app.store(), "Hel").await?;
        let last_id = format!("{}.2.0.0", if poster.last_id.starts_with('0') { "11111111" } else { "00000000" });
        let mut reader = Reader { last_id, text: "of another attempt".to_owned(), ..poster.second() };
        let mut watching = reader.watch(&app.client).await?.events().await?;
        reader.read_until(&mut watching, "Hel").await?;
        gate.open();
        reader.read(watching).await?;
        assert_eq!((reader.text.as_str(), reader.restarts), ("Hello", 1));
        assert!(reader.is_done());
        Ok(())
    }

    async fn a_client_that_is_ahead_of_the_database_is_waited_for(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gates = [Gate::new(), Gate::new()];
        app.ollama.push(Script::new().token("Hel").gate(&gates[0]).token("lo").gate(&gates[1]).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "Hel").await?;
        until_stored(app.store(), "Hel").await?;
        refuse_checkpoints(&app, backend).await?;
        gates[0].open();
        reader.read_until(&mut events, "Hello").await?;
        drop(events);

        for is_post in [true, false] {
            let answer = match is_post {
                true => reader.post(&app.client).await?,
                false => reader.watch(&app.client).await?,
            };
            let mut events = answer.events().await?;
            // Several times as long as it takes to look.
            let early = tokio::time::timeout(Duration::from_millis(500), events.next()).await;
            assert!(early.is_err(), "{early:?}");
        }
        let events = reader.watch(&app.client).await?.events().await?;
        gates[1].open();
        assert_eq!(reader.read(events).await?, [Event::Data(wire::done())]);
        Ok(())
    }

    async fn the_text_of_the_last_line_is_sent_once(backend: Backend) -> Result<()> {
        let call = json!({"function": {"name": "f", "arguments": {}}});
        for (message, position) in [
            (json!({"role": "assistant", "content": "lo"}), "3.0.0"),
            (json!({"role": "assistant", "content": "", "tool_calls": [call]}), "3.0.0"),
            (json!({"role": "assistant", "content": "lo", "thinking": "hm", "tool_calls": [call, call]}), "3.0.0"),
        ] {
            let app = setup(backend).start().await?;
            let gate = Gate::new();
            let last = line(message, true);
            app.ollama.push(Script::new().token("Hel").gate(&gate).line(&last));
            let mut reader = Reader::default();
            let mut events = reader.post(&app.client).await?.events().await?;
            reader.read_until(&mut events, "Hel").await?;
            drop(events);
            let followed = reader.watch(&app.client).await?.events().await?;
            gate.open();
            assert_eq!(reader.second().read(followed).await?, [Event::Data(last.clone())]);

            for answer in [reader.post(&app.client).await?, reader.watch(&app.client).await?] {
                let rest = reader.second().read(answer.events().await?).await?;
                assert_eq!(rest, [Event::Data(last.clone())]);
            }
            let mut second = reader.second();
            let mut events = second.watch(&app.client).await?.events().await?;
            second.read_until(&mut events, "Hel").await?;
            assert!(second.last_id.ends_with(position), "{}", second.last_id);
            assert_eq!(second.read(events).await?, [Event::Data(last)]);
        }
        Ok(())
    }

    async fn thinking_and_tool_calls_are_gone_on_with(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"n": 1}}});
        let script = Script::new()
            .line(line(json!({"role": "assistant", "content": "", "thinking": "hm"}), false))
            .gate(&gate)
            .line(line(json!({"role": "assistant", "content": "", "thinking": ", so"}), false))
            .line(line(json!({"role": "assistant", "content": "ok", "tool_calls": [call("a"), call("b")]}), false))
            .line(line(json!({"role": "assistant", "content": "", "tool_calls": [call("c")]}), false))
            .done();
        app.ollama.push(script);
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        events.next().await?;
        reader.last_id = events.last_id().to_owned();
        drop(events);
        gate.open();
        app.until_rows("app", 2).await?;

        let events = reader.post(&app.client).await?.read().await?;
        let calls = [call("a"), call("b"), call("c")];
        let missed = json!({"role": "assistant", "content": "ok", "thinking": ", so", "tool_calls": calls});
        assert_eq!(lines_of(&events)?[0]["message"], missed);
        assert_eq!(events[1..], [Event::Data(wire::done())]);
        Ok(())
    }

    async fn of_errors_only_the_last_is_replayed(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::new().token("Hel").line("<html>").token("lo").done());
        let mut reader = Reader::default();
        let told = reader.post(&app.client).await?;
        let told = reader.read(told.events().await?).await?;
        assert_eq!(told[1].code(), Some("invalid_line"));
        let mut second = reader.second();
        let events = second.post(&app.client).await?.events().await?;
        let replayed = second.read(events).await?;
        assert!(replayed.iter().all(|event| event.code().is_none()), "{replayed:?}");
        assert_eq!((second.text.as_str(), replayed.last()), ("Hello", told.last()));
        // A line was left out of the message; the turn is complete.
        assert_eq!(second.state(&app.client).await?, ("complete".to_owned(), None));
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "Hello", "partial"));
        Ok(())
    }

    async fn a_last_line_that_is_too_long_is_replayed_without_its_log_probabilities(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let message = json!({"role": "assistant", "content": "ok"});
        let mut last = json!({"model": "stand-in", "message": message, "done": true});
        let without = last.clone();
        last["logprobs"] = json!([{"token": "x".repeat(70_000)}]);
        app.ollama.push(Script::new().line(last.to_string()));
        let mut reader = Reader::default();
        let events = reader.post(&app.client).await?.events().await?;
        assert_eq!(reader.read(events).await?, [Event::Data(last.to_string())]);
        let replayed = reader.second().post(&app.client).await?.read().await?;
        assert_eq!(lines_of(&replayed)?, [without]);
        Ok(())
    }

    async fn without_streaming_there_is_the_one_event(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let object = line(json!({"role": "assistant", "content": "all"}), true);
        app.ollama.push(Script::body(200, "application/json; charset=utf-8", object.clone()));
        let mut body = prompt("app", "Hi");
        body["stream"] = json!(false);
        let headers = [("idempotency-key", KEY)];
        let answer = app.client.prompt_with(&headers, &body).await?;
        let turn = answer.header("x-turn-id").context("no turn")?.to_owned();
        assert_eq!(answer.read().await?, [Event::Data(object.clone())]);
        for (id, restarts) in [("", 0), ("nonsense", 1)] {
            let headers = [("idempotency-key", KEY), ("last-event-id", id)];
            let reader = Reader { last_id: id.to_owned(), turn: turn.clone(), ..Reader::default() };
            for answer in [app.client.prompt_with(&headers, &body).await?, reader.watch(&app.client).await?] {
                let mut reader = reader.second();
                let events = reader.read(answer.events().await?).await?;
                assert_eq!(events.last(), Some(&Event::Data(object.clone())));
                assert_eq!((events.len(), reader.restarts), (1 + restarts, restarts));
            }
        }
        // `stream` is part of what makes a request the same.
        body["stream"] = json!(true);
        let answer = app.client.prompt_with(&headers, &body).await?;
        assert_eq!(answer.refusal(422).await?, "idempotency_key_reused");
        Ok(())
    }

    async fn whoever_watches_is_told_how_ollama_failed(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("half").gate(&gate).break_off());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "half").await?;
        let mut follower = poster.second();
        let watching = follower.watch(&app.client).await?.events().await?;
        gate.open();
        poster.read(events).await?;
        follower.read(watching).await?;
        assert_eq!((follower.text.as_str(), follower.code()), ("half", Some("ollama_broke_off")));
        assert_eq!((&follower.last, &follower.last_id), (&poster.last, &poster.last_id));
        // The outcome is stored: an `EventSource` stops here.
        assert_eq!(follower.watch(&app.client).await?.status(), 204);
        Ok(())
    }

    async fn whoever_watches_is_told_that_ollama_refused(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        let refusal = "HTTP/1.1 503 x\r\ncontent-length: 16\r\n\r\n{\"error\":\"busy\"}";
        app.ollama.push(Script::new().gate(&gate).raw(refusal).break_off());
        let mut poster = Reader::default();
        let answer = poster.post(&app.client).await?;
        let mut follower = poster.second();
        let watching = follower.watch(&app.client).await?.events().await?;
        gate.open();
        poster.read(answer.events().await?).await?;
        follower.read(watching).await?;
        assert_eq!(follower.code(), Some("ollama_refused"));
        assert_eq!((&follower.last, &follower.last_id), (&poster.last, &poster.last_id));
        assert_eq!(follower.watch(&app.client).await?.status(), 204);
        Ok(())
    }

    async fn whoever_watches_outlasts_the_database(backend: Backend) -> Result<()> {
        let app = setup(backend).variable("database_timeout", "3s").database_wire().start().await?;
        let gates = [Gate::new(), Gate::new()];
        let script = Script::new().token("one ").gate(&gates[0]).token("two ").gate(&gates[1]);
        app.ollama.push(script.token("three").done());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "one ").await?;
        let mut follower = poster.second();
        let mut watching = follower.watch(&app.client).await?.events().await?;
        follower.read_until(&mut watching, "one ").await?;

        let outage = Outage::begin(&app).await?;
        gates[0].open();
        poster.read_until(&mut events, "one two ").await?;
        until("a checkpoint that fails", async || Ok(app.log()?.contains("a checkpoint was not stored"))).await?;
        outage.end(&app).await?;
        follower.read_until(&mut watching, "one two ").await?;
        gates[1].open();
        poster.read(events).await?;
        follower.read(watching).await?;
        assert_eq!((follower.text.as_str(), follower.restarts), ("one two three", 0));
        assert!(follower.is_done());
        Ok(())
    }

    async fn whoever_watches_an_orphan_gets_what_is_stored(backend: Backend) -> Result<()> {
        let mut app = setup(backend).variable("turn_lease", "3s").start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        until_stored(app.store(), "so far").await?;
        app.crash().await?;
        app.restart().await?;
        // One while the lease lasts, one after it.
        for _ in 0..2 {
            let mut follower = poster.second();
            let watching = follower.watch(&app.client).await?.events().await?;
            follower.read(watching).await?;
            assert_eq!((follower.text.as_str(), follower.code()), ("so far", Some("turn_orphaned")));
            // It may go on from here: the next attempt says how it ends.
            assert!(!follower.has_outcome());
            until_orphaned(app.store()).await?;
        }
        let state = poster.state(&app.client).await?;
        assert_eq!(state, ("partial".to_owned(), Some("turn_orphaned".to_owned())));
        // To watch changes nothing.
        assert_eq!(app.query("SELECT 'there' FROM chatts_runs").await?, ["there"]);
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 1));
        Ok(())
    }

    async fn whoever_watches_for_too_long_is_told(backend: Backend) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(2);
        let patient = setup(backend).variable("turn_lease", "10m").variable("turn_timeout", "2s");
        let mut app = patient.start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        until_stored(app.store(), "so far").await?;
        app.crash().await?;
        app.restart().await?;
        let mut follower = poster.second();
        // From the request on: its clock runs before the head is here.
        at_limit(LIMIT, async {
            let watching = follower.watch(&app.client).await?.events().await?;
            follower.read(watching).await
        })
        .await??;
        assert_eq!((follower.text.as_str(), follower.code()), ("so far", Some("turn_timeout")));
        // Not the turn's outcome: it goes on from here.
        assert!(!follower.has_outcome());
        Ok(())
    }

    async fn whoever_watches_a_reply_that_was_cut_short_is_told(backend: Backend) -> Result<()> {
        let cancelling = setup(backend).variable("on_disconnect", "cancel").variable("comment_interval", "100ms");
        let app = cancelling.start().await?;
        app.ollama.push(Script::new().token("so far").hang());
        let mut poster = Reader::default();
        let mut events = poster.post(&app.client).await?.events().await?;
        poster.read_until(&mut events, "so far").await?;
        let mut follower = poster.second();
        let watching = follower.watch(&app.client).await?.events().await?;
        drop(events);
        follower.read(watching).await?;
        assert_eq!((follower.text.as_str(), follower.code()), ("so far", Some("ollama_ended_early")));
        assert!(follower.has_outcome());
        let state = follower.state(&app.client).await?;
        assert_eq!(state, ("partial".to_owned(), Some("ollama_ended_early".to_owned())));

        app.ollama.push(Script::reply(["whole"]));
        poster.persist(&app.client).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }
}

/// Every checkpoint that has something to store fails from now on.
async fn refuse_checkpoints(app: &TestApp, backend: Backend) -> Result<()> {
    app.execute(match backend {
        Backend::Sqlite => {
            "CREATE TRIGGER refused BEFORE INSERT ON chatts_parts
             BEGIN SELECT RAISE(ABORT, 'refused'); END"
        }
        Backend::Postgres => {
            "CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
             CREATE TRIGGER refused BEFORE INSERT ON chatts_parts
             FOR EACH ROW EXECUTE FUNCTION refused()"
        }
    })
    .await
}
