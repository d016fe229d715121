//! A prompt is posted again with its `Idempotency-Key`.

use anyhow::Result;
use futures_util::future::try_join_all;
use llmchat_testkit::{
    Backend, Event, Setup, TestApp, messages, on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Gate, Script, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{KEY, Outage, Reader, is_replayed, until_orphaned, until_stored};

fn setup(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "100ms")
}

/// The same, with leases that run out within the test, should nobody renew them.
fn forgetful(backend: Backend) -> Setup {
    setup(backend).variable("turn_lease", "1s")
}

on_both_stores! {
    async fn a_request_that_broke_off_begins_its_turn_when_it_comes_again(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::reply(["ok"]));
        let mut socket = TcpStream::connect(app.address()).await?;
        let head = format!("POST /llmchat/ HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {KEY}\r\n");
        let half = &prompt("app", "Hi").to_string()[..20];
        socket.write_all(format!("{head}Content-Length: 1000\r\n\r\n{half}").as_bytes()).await?;
        socket.shutdown().await?;
        // It may be answered, with an error, or not.
        let _ = within("the end", socket.read_to_end(&mut Vec::new())).await?;

        let mut reader = Reader::default();
        let answer = reader.post(&app.client).await?;
        assert!(!is_replayed(&answer));
        reader.read(answer.events().await?).await?;
        assert!(reader.is_done() && reader.has_outcome());
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn whoever_left_before_the_reply_began_gets_it(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).tokens(["Hel", "lo"]).done());
        let mut reader = Reader::default();
        let answer = reader.post(&app.client).await?;
        assert!(!is_replayed(&answer));
        within("the chat request", gate.reached()).await?;
        drop(answer);

        let answer = reader.post(&app.client).await?;
        assert!(is_replayed(&answer));
        gate.open();
        let events = reader.read(answer.events().await?).await?;
        assert_eq!((reader.text.as_str(), reader.restarts), ("Hello", 0));
        assert_eq!(events.last(), Some(&Event::Data(wire::done())));
        assert!(reader.has_outcome());
        assert_eq!(app.ollama.chats(), 1);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "Hello")]));
        Ok(())
    }

    async fn whoever_left_in_mid_stream_gets_the_whole(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("Hel").gate(&gate).token("lo").done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "Hel").await?;
        drop(events);

        // One that has forgotten what it had.
        let mut reader = reader.second();
        let answer = reader.post(&app.client).await?;
        assert!(is_replayed(&answer));
        let mut events = answer.events().await?;
        reader.read_until(&mut events, "Hel").await?;
        gate.open();
        let rest = reader.read(events).await?;
        assert_eq!((reader.text.as_str(), reader.restarts), ("Hello", 0));
        assert_eq!(rest.last(), Some(&Event::Data(wire::done())));
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn whoever_left_while_the_reply_was_being_stored_gets_the_receipt(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("kept").gate(&gate).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "kept").await?;
        let lock = app.lock().await?;
        gate.open();
        app.ollama_ended(1).await?;
        drop(events);

        // It may have to wait for the commit.
        let (answer, ()) = tokio::try_join!(reader.post(&app.client), lock.release())?;
        assert!(is_replayed(&answer));
        let events = reader.read(answer.events().await?).await?;
        assert_eq!(events, [Event::Data(wire::done())]);
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn what_was_answered_is_replayed_byte_for_byte(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let last = r#"{"model":"m","x":1.50, "message":{"role":"assistant","content":"!"},"done":true}"#;
        app.ollama.push(Script::new().tokens(["Hel", "lo"]).line(last));
        let mut first = Reader::default();
        let answer = first.post(&app.client).await?;
        first.read(answer.events().await?).await?;
        for _ in 0..2 {
            let mut reader = first.second();
            let answer = reader.post(&app.client).await?;
            assert!(is_replayed(&answer));
            let events = reader.read(answer.events().await?).await?;
            // What was missed is one event, and the last line's own content is not sent twice.
            assert_eq!((events.len(), reader.text.as_str()), (2, "Hello!"));
            assert_eq!(events.last(), Some(&Event::Data(last.to_owned())));
            assert_eq!(reader.last_id, first.last_id);
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn of_many_posts_at_once_one_asks_and_the_others_follow(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        let other = app.another().await?;
        let gate = Gate::new();
        app.ollama.always(Script::new().token("Hel").gate(&gate).token("lo").done());
        let post = async |n: usize| {
            let client = if n.is_multiple_of(2) { &app.client } else { &other.client };
            let mut reader = Reader::default();
            let answer = reader.post(client).await?;
            anyhow::Ok((reader, answer))
        };
        let readers = try_join_all((0..20).map(post)).await?;
        let asked = readers.iter().filter(|(_, answer)| !is_replayed(answer)).count();
        assert_eq!(asked, 1);
        gate.open();
        let turn = readers[0].0.turn.clone();
        for (mut reader, answer) in readers {
            let events = reader.read(answer.events().await?).await?;
            assert_eq!((&reader.turn, reader.text.as_str(), reader.restarts), (&turn, "Hello", 0));
            assert_eq!(events.last(), Some(&Event::Data(wire::done())));
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn whoever_repeats_is_never_told_that_the_conversation_is_busy(backend: Backend) -> Result<()> {
        let app = setup(backend).variable("on_busy", "reject").start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).token("ok").done());
        let mut reader = Reader::default();
        let first = reader.post(&app.client).await?;
        let again = reader.post(&app.client).await?;
        assert!(is_replayed(&again));
        app.prompt("app", "too early").await?.error(409).await?;
        gate.open();
        reader.read(first.events().await?).await?;
        reader.second().read(again.events().await?).await?;

        let next = app.begin("app", "next", Script::new().token("next").hang()).await?;
        let answer = reader.second().post(&app.client).await?;
        assert!(is_replayed(&answer));
        assert_eq!(answer.read().await?.len(), 2);
        drop(next);
        Ok(())
    }

    async fn a_reply_that_broke_off_is_asked_for_again_and_replaced(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.turn("app", "before", "ok").await?;
        app.ollama.push(Script::new().token("half").break_off());
        let mut reader = Reader::default();
        let answer = reader.post(&app.client).await?;
        reader.read(answer.events().await?).await?;
        assert_eq!(reader.code(), Some("ollama_broke_off"));
        assert!(reader.has_outcome());
        app.turn("app", "after", "ok").await?;

        for (script, text, status) in [
            (Script::new().token("more than half").break_off(), "more than half", "partial"),
            // Nothing came: what is there stays.
            (Script::new().break_off(), "more than half", "partial"),
            (Script::reply(["whole"]), "whole", "complete"),
        ] {
            app.ollama.push(script);
            let answer = reader.post(&app.client).await?;
            assert!(!is_replayed(&answer));
            reader.read(answer.events().await?).await?;
            // In its turn's place.
            let rows = app.rows("app").await?;
            let rows: Vec<_> = rows.iter().map(|row| row.parts()).collect();
            let expected = [
                ("user", "before", "complete"),
                ("assistant", "ok", "complete"),
                ("user", "Hi", "complete"),
                ("assistant", text, status),
                ("user", "after", "complete"),
                ("assistant", "ok", "complete"),
            ];
            assert_eq!(rows, expected);
        }
        assert!(reader.is_done());
        // Told each time to drop what it had.
        assert_eq!((reader.text.as_str(), reader.restarts), ("whole", 3));
        // What stood before the turn, then its prompt.
        let sent = messages(&[("user", "before"), ("assistant", "ok"), ("user", "Hi")]);
        assert_eq!(app.sent_to_ollama(6).await?, sent);
        assert_eq!(reader.state(&app.client).await?, ("complete".to_owned(), None));
        Ok(())
    }

    async fn a_turn_that_failed_is_asked_again(backend: Backend) -> Result<()> {
        let app = setup(backend).start().await?;
        app.ollama.push(Script::refuse(503, "server busy"));
        app.ollama.push(Script::reply(["ok"]));
        let mut reader = Reader::default();
        let answer = reader.post(&app.client).await?;
        reader.read(answer.events().await?).await?;
        assert_eq!(reader.code(), Some("ollama_refused"));
        assert!(reader.has_outcome());
        let state = reader.state(&app.client).await?;
        assert_eq!(state, ("failed".to_owned(), Some("ollama_refused".to_owned())));

        let answer = reader.post(&app.client).await?;
        assert!(!is_replayed(&answer));
        reader.read(answer.events().await?).await?;
        assert!(reader.is_done());
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn where_ollama_is_down_at_the_next_attempt_the_turn_is_what_it_was(backend: Backend) -> Result<()> {
        let app = setup(backend).ollama_wire().start().await?;
        app.ollama.push(Script::new().token("half").break_off());
        let mut reader = Reader::default();
        let answer = reader.post(&app.client).await?;
        reader.read(answer.events().await?).await?;
        let shown = reader.shown(&app.client).await?;
        assert_eq!(shown["code"], "ollama_broke_off");

        app.ollama_wire()?.take_down();
        let answer = reader.post(&app.client).await?;
        assert!(!is_replayed(&answer));
        let mut events = reader.second();
        events.read(answer.events().await?).await?;
        assert!(events.code().is_some_and(|code| code.starts_with("ollama_")), "{events:?}");
        // Nothing was stored that this tells.
        assert_eq!(events.last_id, "");
        assert_eq!(reader.shown(&app.client).await?, shown);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "half")]));

        app.ollama_wire()?.restore();
        app.ollama.push(Script::reply(["whole"]));
        reader.persist(&app.client).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "whole")]));
        Ok(())
    }

    async fn what_our_own_bounds_ended_is_replayed(backend: Backend) -> Result<()> {
        for (variable, value, code) in [
            ("max_completion_bytes", "3", "completion_too_long"),
            ("turn_timeout", "1s", "turn_timeout"),
        ] {
            let app = setup(backend).variable(variable, value).start().await?;
            app.ollama.push(Script::new().token("cut").token("off").hang());
            let mut reader = Reader::default();
            let answer = reader.post(&app.client).await?;
            let told = reader.read(answer.events().await?).await?;
            assert_eq!(reader.code(), Some(code));

            let mut second = reader.second();
            let answer = second.post(&app.client).await?;
            assert!(is_replayed(&answer));
            let replayed = second.read(answer.events().await?).await?;
            assert_eq!(replayed.last(), told.last());
            assert_eq!((&second.text, &second.last_id), (&reader.text, &reader.last_id));
            assert_eq!(app.ollama.chats(), 1);
        }
        Ok(())
    }

    async fn a_replay_asks_nobody(backend: Backend) -> Result<()> {
        let app = setup(backend).ollama_wire().start().await?;
        app.ollama.push(Script::reply(["kept"]));
        let mut reader = Reader::default();
        reader.persist(&app.client).await?;
        app.ollama_wire()?.take_down();
        let before = app.ollama_wire()?.accepted();
        let mut reader = reader.second();
        reader.persist(&app.client).await?;
        assert_eq!((reader.text.as_str(), app.ollama_wire()?.accepted()), ("kept", before));
        Ok(())
    }

    async fn a_prompt_that_could_not_be_stored_is_there_once_when_it_comes_again(backend: Backend) -> Result<()> {
        let app = forgetful(backend).variable("database_timeout", "3s").start().await?;
        app.turn("another", "Hi", "ok").await?;
        app.ollama.always(Script::reply(["ok"]));
        let lock = app.lock().await?;
        let mut reader = Reader::default();
        reader.post(&app.client).await?.error(500).await?;
        lock.release().await?;
        // The database may have stored it after all, for an attempt that nobody runs.
        reader.persist(&app.client).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn a_reply_that_could_not_be_stored_is_asked_for_again(backend: Backend) -> Result<()> {
        let app = forgetful(backend).variable("database_timeout", "3s").start().await?;
        let gate = Gate::new();
        app.ollama.always(Script::new().token("reply").gate(&gate).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "reply").await?;
        let mut follower = reader.second();
        let watching = follower.watch(&app.client).await?.events().await?;
        let lock = app.lock().await?;
        gate.open();
        reader.read(events).await?;
        assert_eq!(reader.code(), Some("database_failed"));
        // Whoever comes again goes on from the last token.
        assert!(!reader.has_outcome());
        lock.release().await?;
        // The database may have stored it after all.
        follower.read(watching).await?;
        assert!(follower.is_done() || follower.code() == Some("turn_orphaned"), "{follower:?}");
        reader.persist(&app.client).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "reply")]));
        Ok(())
    }

    async fn a_checkpoint_that_fails_costs_nothing(backend: Backend) -> Result<()> {
        let app = setup(backend).variable("database_timeout", "3s").database_wire().start().await?;
        let gates = [Gate::new(), Gate::new()];
        let script = Script::new().token("Hel").gate(&gates[0]).token("lo").gate(&gates[1]).token("!").done();
        app.ollama.push(script);
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "Hel").await?;
        until_stored(app.store(), "Hel").await?;

        let outage = Outage::begin(&app).await?;
        gates[0].open();
        // Tokens go on.
        reader.read_until(&mut events, "Hello").await?;
        until("a checkpoint that fails", async || Ok(app.log()?.contains("a checkpoint was not stored"))).await?;
        outage.end(&app).await?;
        until_stored(app.store(), "Hello").await?;
        gates[1].open();
        reader.read(events).await?;
        assert!(reader.is_done());
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "Hello!")]));
        Ok(())
    }

    async fn a_database_that_is_away_for_longer_than_the_lease_costs_nothing(backend: Backend) -> Result<()> {
        let app = forgetful(backend).database_wire().start().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("kept").gate(&gate).done());
        let mut reader = Reader::default();
        let mut events = reader.post(&app.client).await?.events().await?;
        reader.read_until(&mut events, "kept").await?;
        let outage = Outage::begin(&app).await?;
        until_orphaned(app.store()).await?;
        outage.end(&app).await?;
        gate.open();
        reader.read(events).await?;
        assert!(reader.is_done() && reader.has_outcome());
        let mut second = reader.second();
        second.persist(&app.client).await?;
        assert_eq!((second.text.as_str(), app.ollama.chats()), ("kept", 1));
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "kept")]));
        Ok(())
    }
}
