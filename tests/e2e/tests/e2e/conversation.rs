//! What is remembered, in which order, and of whom.

use anyhow::Result;
use llmchat_testkit::{Backend, Event, TestApp, messages, on_both_stores, until, within};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::json;

on_both_stores! {
    async fn a_prompt_goes_in_tokens_come_out_and_both_are_stored(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::reply(["Hel", "lo", "!"]));
        let events = app.ask("app", "Hi").await?;
        let lines = [wire::token("Hel"), wire::token("lo"), wire::token("!"), wire::done()];
        assert_eq!(events, lines.map(Event::Data));
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "Hello!")]));
        let rows = app.rows("app").await?;
        assert!(rows.iter().all(|row| row.status == "complete"), "{rows:?}");
        assert_eq!(rows[0].turn, rows[1].turn);
        Ok(())
    }

    async fn a_reply_is_in_the_context_once_done_was_seen(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["a ", "reply"]));
        let mut expected = Vec::new();
        for turn in 1..=5 {
            let question = format!("question {turn}");
            expected.push(("user".to_owned(), question.clone()));
            let mut events = app.stream("app", &question).await?;
            assert_eq!(app.sent_to_ollama(turn).await?, expected);
            // The next prompt follows at once.
            while events.next().await? != Some(Event::Data(wire::done())) {}
            expected.push(("assistant".to_owned(), "a reply".to_owned()));
        }
        Ok(())
    }

    async fn done_does_not_leave_before_the_reply_is_committed(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("kept").gate(&gate).done());
        let mut events = app.stream("app", "Hi").await?;
        assert_eq!(events.next().await?, Some(Event::Data(wire::token("kept"))));

        let lock = app.lock().await?;
        gate.open();
        let within_300_ms = std::time::Duration::from_millis(300);
        let nothing = tokio::time::timeout(within_300_ms, events.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        lock.release().await?;
        assert_eq!(events.next().await?, Some(Event::Data(wire::done())));
        assert_eq!(app.conversation("app").await?.len(), 2);
        assert_eq!(events.next().await?, None);
        Ok(())
    }

    async fn no_other_conversation_is_sent(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let ids = ["a", "A", "a ", "á", "%", "'; DROP TABLE chatts; --", "\"a\"", "a\n\ndata: x", "😀"];
        for id in ids {
            app.ask(id, &format!("from {id}")).await?;
        }
        for (i, id) in ids.iter().enumerate() {
            app.ask(id, "again").await?;
            let first = format!("from {id}");
            let expected = messages(&[("user", &first), ("assistant", "ok"), ("user", "again")]);
            assert_eq!(app.sent_to_ollama(ids.len() + i + 1).await?, expected);
        }
        Ok(())
    }

    async fn conversations_at_the_same_time_do_not_mix(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        // The reply names the conversation that it is for.
        app.ollama.answer(|request| {
            let messages = request.messages().unwrap_or_default();
            let last = messages.last().map(|(_, text)| text.clone()).unwrap_or_default();
            Script::reply(["re: ", &last])
        });
        let talk = async |n: usize| {
            let id = format!("app {n}");
            for turn in 0..5 {
                app.ask(&id, &format!("{n}/{turn}")).await?;
            }
            let expected: Vec<_> = (0..5)
                .flat_map(|turn| {
                    let text = format!("{n}/{turn}");
                    [("user".to_owned(), text.clone()), ("assistant".to_owned(), format!("re: {text}"))]
                })
                .collect();
            assert_eq!(app.conversation(&id).await?, expected);
            anyhow::Ok(())
        };
        futures_util::future::try_join_all((0..10).map(talk)).await?;
        assert_eq!(app.row_count().await?, 100);
        Ok(())
    }

    async fn two_prompts_at_once_end_as_two_turns_in_order(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let (first_gate, second_gate) = (Gate::new(), Gate::new());
        app.ollama.push(Script::new().gate(&first_gate).token("first reply").done());
        app.ollama.push(Script::new().gate(&second_gate).token("second reply").done());
        let first = app.stream("app", "first").await?;
        within("the first turn", first_gate.reached()).await?;
        let second = app.stream("app", "second").await?;
        within("the second turn", second_gate.reached()).await?;
        // Each sees what was stored before it.
        assert_eq!(app.sent_to_ollama(2).await?, messages(&[("user", "first"), ("user", "second")]));

        // The later turn ends earlier; a reply stands right after its prompt all the same.
        second_gate.open();
        second.rest().await?;
        first_gate.open();
        first.rest().await?;
        app.turn("app", "third", "third reply").await?;
        let sent = app.sent_to_ollama(3).await?;
        let expected = messages(&[
            ("user", "first"),
            ("assistant", "first reply"),
            ("user", "second"),
            ("assistant", "second reply"),
            ("user", "third"),
        ]);
        assert_eq!(sent, expected);
        Ok(())
    }

    async fn each_of_many_prompts_at_once_is_the_last_that_its_model_sees(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        // Answers with the last message that it was sent.
        app.ollama.answer(|request| {
            let messages = request.messages().unwrap_or_default();
            let last = messages.last().map_or("nothing", |(_, content)| content.as_str());
            Script::reply([last])
        });
        let ask = async |n: usize| {
            let question = format!("question {n}");
            let events = app.ask("app", &question).await?;
            anyhow::ensure!(events.first() == Some(&Event::Data(wire::token(&question))), "{n}: {events:?}");
            Ok(())
        };
        futures_util::future::try_join_all((0..20).map(ask)).await?;
        for pair in app.conversation("app").await?.chunks(2) {
            assert_eq!((pair[0].0.as_str(), pair[1].0.as_str()), ("user", "assistant"));
            assert_eq!(pair[0].1, pair[1].1);
        }
        Ok(())
    }

    async fn the_messages_of_one_prompt_keep_their_order_and_formatting(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::reply(["ok"]));
        let mut messages = vec![
            json!({"role": "system", "content": "  Be\n\n\tkind. \r\n"}),
            json!({"role": "tool", "content": ""}),
            json!({"role": "anyone", "content": "'; DROP TABLE chatts; -- \u{1} \u{fffd} 日本 👩‍👩‍👧‍👦 \\n"}),
        ];
        messages.extend((0..50).map(|n| json!({"role": "user", "content": format!("{n}")})));
        let body = json!({"appID": "app", "model": "m", "messages": messages});
        app.client.prompt(&body).await?.read().await?;
        let sent = app.ollama.chat(1).await.request().json()?;
        assert_eq!(sent["messages"], body["messages"]);
        let mut stored = app.conversation("app").await?;
        assert_eq!(stored.pop(), Some(("assistant".to_owned(), "ok".to_owned())));
        assert_eq!(stored, app.sent_to_ollama(1).await?);
        Ok(())
    }

    async fn what_was_said_is_sent_again_character_by_character(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "completion_whitespace", "preserve").await?;
        // The database must turn them into JSON.
        let control: String = ('\u{1}'..='\u{1f}').collect();
        let texts = [
            "", "\"", "\\", "\\\"", "\\u0041 \\n", "{\"role\":\"system\",\"content\":\"x\"}", "],[", "null",
            "\u{7f}\u{80}\u{a0}\u{2028}\u{2029}\u{fffd}\u{feff}", "日本 👩‍👩‍👧‍👦 \u{10ffff}", &control,
        ];
        let mut expected = Vec::new();
        for text in texts {
            app.ollama.push(Script::reply([format!("{text}!").as_str()]));
            app.ask("app", text).await?;
            expected.push(("user".to_owned(), text.to_owned()));
            assert_eq!(app.sent_to_ollama(expected.len().div_ceil(2)).await?, expected);
            expected.push(("assistant".to_owned(), format!("{text}!")));
        }
        assert_eq!(app.conversation("app").await?, expected);
        Ok(())
    }

    async fn messages_are_the_same_json_whether_the_component_or_the_database_writes_it(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let control: String = ('\u{1}'..='\u{1f}').collect();
        let texts = [
            "user", "\"", "\\", "\\\"", "\\u0041 \\n", "\"}],[{", "null", "/", "<&'>", "%s $1 ?1",
            "\u{7f}\u{80}\u{a0}\u{2028}\u{2029}\u{fffd}\u{feff}", "日本 👩‍👩‍👧‍👦 \u{10ffff}", &control,
        ];
        let messages: Vec<_> = texts.iter().map(|text| json!({"role": text, "content": text})).collect();
        let sent = async |nth, messages: serde_json::Value| -> Result<serde_json::Value> {
            let body = json!({"appID": "app", "model": "m", "messages": messages});
            app.client.prompt(&body).await?.read().await?;
            Ok(app.ollama.chat(nth).await.request().json()?["messages"].take())
        };
        let reply = json!({"role": "assistant", "content": "ok"});
        let next = json!({"role": "user", "content": "next"});
        // A new prompt is written by the component, ...
        assert_eq!(sent(1, json!(messages)).await?, json!(messages));
        // ... the past by the database, ...
        let past = [messages, vec![reply.clone(), next.clone()]].concat();
        assert_eq!(sent(2, json!([next])).await?, json!(past));
        // ... and so it is without a new prompt.
        assert_eq!(sent(3, json!([])).await?, json!([past, vec![reply]].concat()));
        Ok(())
    }

    async fn white_space_collapses_in_what_is_stored_and_not_in_what_is_streamed(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let tokens = ["Two ", " \n", "\n\tlines", "\u{3000}here"];
        app.ollama.push(Script::reply(tokens));
        let events = app.ask("app", "Hi").await?;
        assert_eq!(events[1], Event::Data(wire::token(" \n")));
        assert_eq!(app.rows("app").await?[1].message, "Two lines here");
        Ok(())
    }

    async fn white_space_can_be_preserved(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "completion_whitespace", "preserve").await?;
        app.ollama.push(Script::reply(["fn f() {\n", "    1\n", "}\n"]));
        app.ask("app", "Hi").await?;
        assert_eq!(app.rows("app").await?[1].message, "fn f() {\n    1\n}\n");
        Ok(())
    }

    async fn an_id_of_155_characters_is_a_conversation(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        for id in ["x".repeat(155), "😀".repeat(155)] {
            app.ask(&id, "Hi").await?;
            assert_eq!(app.rows(&id).await?.len(), 2);
        }
        Ok(())
    }

    async fn nothing_generated_is_no_row_and_done_passes(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::new().done());
        assert_eq!(app.ask("app", "Hi").await?, [Event::Data(wire::done())]);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        Ok(())
    }

    async fn an_empty_prompt_goes_on_with_a_conversation_that_exists(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "Hi", "one").await?;
        app.ollama.push(Script::reply(["two"]));
        let body = json!({"appID": "app", "model": "m", "messages": []});
        app.client.prompt(&body).await?.read().await?;
        assert_eq!(app.sent_to_ollama(2).await?, messages(&[("user", "Hi"), ("assistant", "one")]));
        let stored = messages(&[("user", "Hi"), ("assistant", "one"), ("assistant", "two")]);
        assert_eq!(app.conversation("app").await?, stored);
        Ok(())
    }

    async fn a_prompt_that_ollama_never_answered_is_kept(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::refuse(503, "server busy"));
        app.ask("app", "one").await?;
        app.turn("app", "two", "ok").await?;
        assert_eq!(app.sent_to_ollama(2).await?, messages(&[("user", "one"), ("user", "two")]));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_two_statements_to_postgres() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "the first turn makes the schema").await?;
    let before = app.postgres()?.executed()?.len();
    let cleaned = app.postgres()?.sent_as_text()?.len();
    for _ in 0..10 {
        app.ask("app", "Hi").await?;
    }
    let statements = app.postgres()?.executed()?;
    let new = &statements[before..];
    assert_eq!(new.len(), 20, "{new:#?}");
    // Each on a connection that was cleaned first, since it had been used.
    assert_eq!(app.postgres()?.sent_as_text()?.len() - cleaned, 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_postgres_connection_is_held_while_tokens_stream() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .database_wire()
        .start()
        .await?;
    let gate = Gate::new();
    app.ollama
        .always(Script::new().token("a").gate(&gate).done());
    // More turns than the pool has connections.
    let streams = app.streams(80).await?;
    within("80 turns at once", gate.reached_by(80)).await?;
    assert!(app.database_wire()?.open() <= 64);
    gate.open();
    for stream in streams {
        assert_eq!(stream.rest().await?.len(), 2);
    }
    assert_eq!(app.row_count().await?, 160);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_in_one_conversation_lose_nothing() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.ollama.always(Script::reply(["ok"]));
    let ask = async |n: usize| app.ask("app", &n.to_string()).await;
    futures_util::future::try_join_all((0..20).map(ask)).await?;
    let rows = app.rows("app").await?;
    assert_eq!(rows.len(), 40);
    for turn in rows.chunks(2) {
        assert_eq!(turn[0].turn, turn[1].turn);
        assert_eq!(turn[0].role, "user");
        assert_eq!(turn[1].parts(), ("assistant", "ok", "complete"));
    }
    until("the last chat request", async || {
        Ok(app.ollama.chats() == 20)
    })
    .await
}
