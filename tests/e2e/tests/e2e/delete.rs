//! Deletions: of a turn, a reply, a turn and all later ones, a conversation; when they are over, after they ended,
//! and while they run.

use anyhow::Result;
use llmchat_testkit::{
    Backend, Event, Events, Setup, TestApp, messages, on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Ending, Gate, Script};
use serde_json::json;

const STREAM: (&str, &str) = ("accept", "text/event-stream");
const KEY: (&str, &str) = ("idempotency-key", "one");

fn looking_often(backend: Backend) -> Setup {
    TestApp::on(backend).variable("checkpoint_interval", "200ms")
}

/// The tables that have anything of the conversation, each as often as it has rows.
async fn left(app: &TestApp) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for table in ["chatts", "chatts_turns", "chatts_runs", "chatts_parts"] {
        let of_it = format!("SELECT '{table}' FROM {table} WHERE appid = 'app'");
        left.extend(app.query(&of_it).await?);
    }
    Ok(left)
}

/// The last event of a stream must tell that the turn was deleted, and have no id.
async fn told(mut events: Events) -> Result<()> {
    let before = events.last_id().to_owned();
    let mut last = None;
    while let Some(event) = events.next().await? {
        last = Some(event);
    }
    let code = last.as_ref().and_then(Event::code);
    assert_eq!(code, Some("turn_deleted"), "{last:?}");
    assert!(
        !events.last_id().ends_with(".end"),
        "{before} {}",
        events.last_id()
    );
    Ok(())
}

/// Nobody knows the turn any more.
async fn is_gone(app: &TestApp, turn: &str) -> Result<()> {
    for (method, path, headers) in [
        ("GET", turn.to_owned(), &[][..]),
        ("GET", turn.to_owned(), &[STREAM]),
        ("POST", format!("{turn}/stop"), &[]),
        ("POST", format!("{turn}/again"), &[]),
    ] {
        let answer = app.client.request_with(method, &path, headers, "").await?;
        assert_eq!(answer.refusal(404).await?, "not_found", "{method} {path}");
    }
    Ok(())
}

/// Stores that many rows of turns of `rows` rows each, in the past, in the order of their numbers.
fn insert(backend: Backend, turns: usize, rows: usize) -> String {
    let (id, start, numbers, turn) = match backend {
        Backend::Sqlite => (
            "printf('%08x-0000-4000-8000-%012x', t, r)",
            "(1700000000 + t) * 1000000",
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < MOST - 1)",
            "printf('01900000-0000-7000-8000-%012x', t)",
        ),
        Backend::Postgres => (
            "(lpad(to_hex(t), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(r), 12, '0'))::uuid",
            "to_timestamp(1700000000 + t)",
            "WITH n (i) AS (SELECT generate_series(0, MOST - 1))",
            "('01900000-0000-7000-8000-' || lpad(to_hex(t), 12, '0'))::uuid",
        ),
    };
    let numbers = numbers.replace("MOST", &(turns * rows).to_string());
    format!(
        "{numbers} INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
         SELECT 'user', 'old', {id}, CURRENT_TIMESTAMP, 'app', {turn}, {start}
         FROM (SELECT i / {rows} AS t, i % {rows} AS r FROM n) AS numbers"
    )
}

fn inserted(turn: usize) -> String {
    format!("/llmchat/app/turns/01900000-0000-7000-8000-{turn:012x}")
}

on_both_stores! {
    async fn a_turn_goes_with_its_reply_and_the_others_stay(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "one", "1").await?;
        let second = app.turn("app", "two", "2").await?;
        app.turn("app", "three", "3").await?;
        app.client.delete(&second).await?;
        is_gone(&app, &second).await?;
        let rest = [("user", "one"), ("assistant", "1"), ("user", "three"), ("assistant", "3")];
        assert_eq!(app.conversation("app").await?, messages(&rest));
        // Whoever repeats it, or deletes what never was, is told the same.
        app.client.delete(&second).await?;
        app.client.delete("/llmchat/app/turns/0199f3a1-5c00-7000-8000-000000000001").await?;
        // The model sees it no more.
        app.turn("app", "four", "4").await?;
        let seen = [&rest[..], &[("user", "four")]].concat();
        assert_eq!(app.sent_to_ollama(4).await?, messages(&seen));
        Ok(())
    }

    async fn a_reply_goes_and_its_prompt_stays(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let first = app.turn("app", "one", "1").await?;
        app.turn("app", "two", "2").await?;
        for _ in 0..2 {
            app.client.delete(&format!("{first}/reply")).await?;
            let rest = [("user", "one"), ("user", "two"), ("assistant", "2")];
            assert_eq!(app.conversation("app").await?, messages(&rest));
            let turn = app.client.get(&first, &[]).await?.json(200).await?;
            assert_eq!((&turn["state"], &turn["code"]), (&json!("failed"), &json!("turn_deleted")));
            assert_eq!(turn["usage"], json!(null));
        }
        Ok(())
    }

    async fn a_turn_and_all_later_ones_go(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        app.turn("app", "one", "1").await?;
        let second = app.turn("app", "two", "2").await?;
        app.turn("app", "three", "3").await?;
        let events = app.begin("app", "four", Script::new().token("4").hang()).await?;
        let fourth = events.turn().to_owned();
        let id = second.rsplit('/').next().unwrap_or_default();
        // Never all, for want of a name.
        for path in ["/llmchat/app/turns", "/llmchat/app/turns?from=", "/llmchat/app/turns?from=all"] {
            let answer = app.client.request("DELETE", path, "").await?;
            assert_eq!(answer.refusal(422).await?, "invalid_request", "{path}");
        }
        for _ in 0..2 {
            app.client.delete(&format!("/llmchat/app/turns?from={id}")).await?;
        }
        told(events).await?;
        assert_eq!(app.ollama_ended(4).await?, Ending::ClientLeft);
        is_gone(&app, &second).await?;
        is_gone(&app, &fourth).await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "one"), ("assistant", "1")]));
        assert_eq!(left(&app).await?, ["chatts", "chatts", "chatts_turns"]);
        Ok(())
    }

    async fn a_conversation_goes_with_all_that_runs_in_it(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        app.turn("another", "Hi", "stays").await?;
        app.turn("app", "one", "1").await?;
        let two = app.begin("app", "two", Script::new().token("2").hang()).await?;
        let second = two.turn().to_owned();
        app.ollama.push(Script::silence());
        let three = app.stream("app", "three").await?;
        app.sent_to_ollama(4).await?;
        for _ in 0..2 {
            app.client.delete("/llmchat/app").await?;
        }
        told(two).await?;
        told(three).await?;
        for nth in [3, 4] {
            assert_eq!(app.ollama_ended(nth).await?, Ending::ClientLeft);
        }
        is_gone(&app, &second).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        let page = app.client.get("/llmchat/app", &[]).await?.json(200).await?;
        assert_eq!((&page["messages"], &page["running"]), (&json!([]), &json!(null)));
        assert_eq!(app.rows("another").await?.len(), 2);
        // It begins anew.
        app.turn("app", "four", "4").await?;
        assert_eq!(app.sent_to_ollama(5).await?, messages(&[("user", "four")]));
        Ok(())
    }

    async fn a_turn_that_waits_for_ollama_is_deleted(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        app.ollama.push(Script::silence());
        let answer = app.prompt("app", "Hi").await?;
        let turn = answer.turn()?;
        app.sent_to_ollama(1).await?;
        app.client.delete(&turn).await?;
        told(answer.events().await?).await?;
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        is_gone(&app, &turn).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn a_turn_in_mid_stream_is_deleted_and_all_who_watch_are_told(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let script = Script::new().tokens(["so", " far"]).hang();
        let events = app.begin("app", "Hi", script).await?;
        let turn = events.turn().to_owned();
        until("a checkpoint", async || Ok(left(&app).await?.contains(&"chatts_parts".to_owned()))).await?;
        let mut follower = app.client.get(&turn, &[STREAM]).await?.events().await?;
        follower.next().await?;
        app.client.delete(&turn).await?;
        told(events).await?;
        told(follower).await?;
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        is_gone(&app, &turn).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn a_reply_in_mid_stream_is_deleted_and_its_prompt_stays(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let events = app.begin("app", "Hi", Script::new().token("gone").hang()).await?;
        let turn = events.turn().to_owned();
        until("a checkpoint", async || Ok(left(&app).await?.contains(&"chatts_parts".to_owned()))).await?;
        let mut follower = app.client.get(&turn, &[STREAM]).await?.events().await?;
        follower.next().await?;
        app.client.delete(&format!("{turn}/reply")).await?;
        told(events).await?;
        told(follower).await?;
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        let turn = app.client.get(&turn, &[]).await?.json(200).await?;
        assert_eq!((&turn["state"], &turn["code"]), (&json!("failed"), &json!("turn_deleted")));
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        assert_eq!(left(&app).await?, ["chatts", "chatts_turns"]);
        Ok(())
    }

    async fn of_a_turn_with_a_key_a_refusal_stays_for_a_day(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let repeat = async || app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await;
        for deleted in ["turn", "conversation"] {
            app.ollama.push(Script::reply(["ok"]));
            let answer = repeat().await?;
            let turn = answer.turn()?;
            answer.read().await?;
            app.client.delete(if deleted == "turn" { &turn } else { "/llmchat/app" }).await?;
            // A client that repeats by itself must not undo it, nor is it another request for another body.
            assert_eq!(repeat().await?.refusal(410).await?, "turn_deleted");
            let another = app.client.prompt_with(&[KEY], &prompt("app", "Hello")).await?;
            assert_eq!(another.refusal(410).await?, "turn_deleted");
            is_gone(&app, &turn).await?;
            assert_eq!(left(&app).await?, ["chatts_turns"]);
            let bare = "SELECT state FROM chatts_turns WHERE coalesce(body_hash, model, request, final, code, error,
                usage, CAST(reply_id AS text), CAST(attempt AS text), CAST(committed AS text), CAST(started AS text),
                CAST(ended AS text), CAST(stream AS text), CAST(sent_bytes AS text)) IS NULL";
            assert_eq!(app.query(bare).await?, ["deleted"]);
            let day = match backend {
                Backend::Sqlite => "SELECT 'a day' FROM chatts_turns
                    WHERE expires / 1000000 - unixepoch() BETWEEN 86300 AND 86400",
                Backend::Postgres => "SELECT 'a day' FROM chatts_turns
                    WHERE expires - now() BETWEEN interval '86300 s' AND interval '86400 s'",
            };
            assert_eq!(app.query(day).await?, ["a day"]);

            // A day later it is forgotten, and goes with the next begin of any turn.
            app.execute(match backend {
                Backend::Sqlite => "UPDATE chatts_turns SET expires = 1",
                Backend::Postgres => "UPDATE chatts_turns SET expires = 'epoch'",
            })
            .await?;
            app.turn("app", "the next begin", "ok").await?;
            assert_eq!(app.query("SELECT state FROM chatts_turns").await?, ["complete"]);
            app.client.delete("/llmchat/app").await?;
        }
        Ok(())
    }

    async fn a_key_whose_turn_runs_is_deleted_with_it(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        app.ollama.push(Script::new().token("gone").hang());
        let answer = app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await?;
        let turn = answer.turn()?;
        let mut events = answer.events().await?;
        events.next().await?;
        app.client.delete(&turn).await?;
        let repeated = app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await?;
        assert_eq!(repeated.refusal(410).await?, "turn_deleted");
        told(events).await?;
        assert_eq!(left(&app).await?, ["chatts_turns"]);
        assert_eq!(app.ollama.chats(), 1);
        Ok(())
    }

    async fn what_is_more_than_a_statement_deletes_goes_in_pieces(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "makes the tables", "ok").await?;
        app.client.delete("/llmchat/app").await?;
        // Of turns of many rows, and of one that is larger than a piece.
        for (turns, rows) in [(4_000, 3), (1, 12_000)] {
            app.execute(&insert(backend, turns, rows)).await?;
            let before = statements(&app)?;
            app.client.delete("/llmchat/app").await?;
            assert_eq!(left(&app).await?, [""; 0]);
            if let (Some(before), Some(after)) = (before, statements(&app)?) {
                assert_eq!(after - before, 3, "statements");
            }
        }
        app.execute(&insert(backend, 4_000, 3)).await?;
        let from = inserted(1_000);
        let from = from.rsplit('/').next().unwrap_or_default();
        app.client.delete(&format!("/llmchat/app/turns?from={from}")).await?;
        assert_eq!(left(&app).await?.len(), 3_000);
        app.client.delete("/llmchat/app").await?;
        app.execute(&insert(backend, 1, 12_000)).await?;
        app.client.delete(&inserted(0)).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn turns_that_begin_during_a_deletion_are_whole_or_gone(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "makes the tables", "ok").await?;
        app.execute(&insert(backend, 20_000, 2)).await?;
        app.ollama.always(Script::reply(["reply"]));
        let client = app.client;
        let deleting = tokio::spawn(async move { client.delete("/llmchat/app").await });
        let mut asked = 0;
        while !deleting.is_finished() {
            app.ask("app", "prompt").await?;
            asked += 1;
        }
        within("the deletion", deleting).await???;
        app.ask("app", "prompt").await?;
        let rows = app.conversation("app").await?;
        assert!(rows.len() >= 2 && rows.len() <= 2 * (asked + 1), "{asked}: {rows:?}");
        for turn in rows.chunks(2) {
            assert_eq!(turn, messages(&[("user", "prompt"), ("assistant", "reply")]));
        }
        Ok(())
    }

    async fn a_deletion_while_the_reply_is_being_stored_leaves_nothing(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        for what in ["", "/reply"] {
            let gate = Gate::new();
            let events = app.begin("app", "Hi", Script::new().token("reply").gate(&gate).done()).await?;
            let turn = events.turn().to_owned();
            let lock = app.lock().await?;
            gate.open();
            app.ollama_ended(app.ollama.chats()).await?;
            until_waiting(&app, backend, 1).await?;
            let (client, path) = (app.client, format!("{turn}{what}"));
            let deleting = tokio::spawn(async move { client.delete(&path).await });
            until_waiting(&app, backend, 2).await?;
            lock.release().await?;
            within("the deletion", deleting).await???;
            // The commit came before it, or found nothing to commit to.
            let last = events.rest().await?.pop();
            let code = last.as_ref().and_then(Event::code);
            assert!(matches!((&last, code), (Some(Event::Data(_)), _) | (_, Some("turn_deleted"))), "{last:?}");
            if what.is_empty() {
                is_gone(&app, &turn).await?;
                assert_eq!(left(&app).await?, [""; 0]);
            } else {
                assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
                assert_eq!(left(&app).await?, ["chatts", "chatts_turns"]);
            }
        }
        Ok(())
    }

    async fn a_client_that_leaves_during_a_deletion_can_repeat_it(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let turn = app.turn("app", "Hi", "ok").await?;
        let lock = app.lock().await?;
        let (client, path) = (app.client, turn.clone());
        let deleting = tokio::spawn(async move { client.delete(&path).await });
        until_waiting(&app, backend, 1).await?;
        deleting.abort();
        lock.release().await?;
        app.client.delete(&turn).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn a_database_that_stays_locked_is_a_500_and_the_repetition_deletes(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "database_timeout", "3s").await?;
        let turn = app.turn("app", "Hi", "ok").await?;
        let lock = app.lock().await?;
        for path in [&turn, "/llmchat/app"] {
            let answer = app.client.request("DELETE", path, "").await?;
            assert_eq!(answer.refusal(500).await?, "database_failed");
        }
        lock.release().await?;
        app.client.delete(&turn).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn a_host_that_dies_during_a_deletion_leaves_it_to_its_repetition(backend: Backend) -> Result<()> {
        let mut app = TestApp::start(backend).await?;
        let turn = app.turn("app", "Hi", "ok").await?;
        let lock = app.lock().await?;
        let (client, path) = (app.client, turn.clone());
        let deleting = tokio::spawn(async move { client.delete(&path).await });
        until_waiting(&app, backend, 1).await?;
        app.crash().await?;
        assert!(within("the broken connection", deleting).await??.is_err());
        lock.release().await?;
        app.restart().await?;
        app.client.delete(&turn).await?;
        assert_eq!(left(&app).await?, [""; 0]);
        Ok(())
    }

    async fn another_host_deletes_what_runs_though_its_client_has_left(backend: Backend) -> Result<()> {
        let app = looking_often(backend).start().await?;
        let another = app.another().await?;
        for client_leaves in [false, true] {
            let events = app.begin("app", "Hi", Script::new().token("gone").hang()).await?;
            let turn = events.turn().to_owned();
            let events = (!client_leaves).then_some(events);
            another.client.delete(&turn).await?;
            if let Some(events) = events {
                told(events).await?;
            }
            assert_eq!(app.ollama_ended(app.ollama.chats()).await?, Ending::ClientLeft);
            assert_eq!(left(&app).await?, [""; 0]);
        }
        Ok(())
    }

    async fn what_a_host_left_that_died_is_deleted(backend: Backend) -> Result<()> {
        let mut app = looking_often(backend).variable("turn_lease", "1s").start().await?;
        for is_expired in [true, false] {
            let events = app.begin("app", "Hi", Script::new().token("so far").hang()).await?;
            let turn = events.turn().to_owned();
            until("a checkpoint", async || Ok(left(&app).await?.contains(&"chatts_parts".to_owned()))).await?;
            app.crash().await?;
            app.restart().await?;
            if is_expired {
                until("the end of the lease", async || {
                    let turn = app.client.get(&turn, &[]).await?.json(200).await?;
                    Ok(turn["state"] == "partial" && turn["code"] == "turn_orphaned")
                })
                .await?;
            }
            app.client.delete(&turn).await?;
            is_gone(&app, &turn).await?;
            assert_eq!(left(&app).await?, [""; 0]);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_during_a_deletion_delays_it_or_is_a_500() -> Result<()> {
    let setup = looking_often(Backend::Postgres).variable("database_timeout", "3s");
    let app = setup.database_wire().start().await?;
    let events = app
        .begin("app", "Hi", Script::new().token("gone").hang())
        .await?;
    let deleted = events.turn().to_owned();
    app.database_wire()?.take_down();
    let answer = app.client.request("DELETE", &deleted, "").await?;
    assert_eq!(answer.refusal(500).await?, "database_failed");
    assert_eq!(left(&app).await?.len(), 3);
    let (answer, restored) = tokio::join!(app.client.request("DELETE", &deleted, ""), async {
        let tried = app.database_wire()?.accepted();
        until("another try", async || {
            Ok(app.database_wire()?.accepted() > tried)
        })
        .await?;
        app.database_wire()?.restore();
        anyhow::Ok(())
    });
    restored?;
    assert_eq!(answer?.status(), 204);
    told(events).await?;
    assert_eq!(left(&app).await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_whose_commit_was_not_heard_of_is_done() -> Result<()> {
    let setup = looking_often(Backend::Postgres).variable("database_timeout", "5s");
    let app = setup.database_wire().start().await?;
    let deleted = app.turn("app", "Hi", "ok").await?;
    app.turn("app", "stays", "ok").await?;
    let lock = app.lock().await?;
    let (answer, restored) = tokio::join!(app.client.delete(&deleted), async {
        until_waiting(&app, Backend::Postgres, 1).await?;
        app.database_wire()?.swallow_answers();
        lock.release().await?;
        until("the deletion", async || Ok(left(&app).await?.len() == 3)).await?;
        app.database_wire()?.cut();
        app.database_wire()?.restore();
        anyhow::Ok(())
    });
    restored?;
    answer?;
    is_gone(&app, &deleted).await?;
    assert_eq!(
        app.conversation("app").await?,
        messages(&[("user", "stays"), ("assistant", "ok")])
    );
    Ok(())
}

/// Statements that PostgreSQL has executed for the component.
fn statements(app: &TestApp) -> Result<Option<usize>> {
    let executed = app.postgres().ok().map(|database| database.executed());
    Ok(executed.transpose()?.map(|statements| statements.len()))
}

/// Waits until that many sessions wait for a lock. Nobody tells who waits for SQLite's, and Spin not even what it was
/// asked: there the request may come when the lock is gone.
async fn until_waiting(app: &TestApp, backend: Backend, sessions: usize) -> Result<()> {
    if backend == Backend::Sqlite {
        if app.open_requests().is_err() {
            return Ok(());
        }
        return until("the request", async || Ok(app.open_requests()? > 0)).await;
    }
    let waiting = "SELECT DISTINCT l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
        WHERE NOT granted AND datname = current_database()";
    until("sessions that wait", async || {
        Ok(app.query(waiting).await?.len() >= sessions)
    })
    .await
}
