//! What older releases and servers left, and the previous release beside this one on one database.

use anyhow::Result;
use llmchat_testkit::{Backend, Client, Event, TestApp, messages, on_both_stores, prompt, until};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::{Value, json};

/// The rows of an older server, which are turns of their own: two with one id, and one without a time.
const OLD_ROWS: &str = "
    INSERT INTO chatts (name, message, id, time, appid) VALUES
        ('user', 'first', '00000000-0000-4000-8000-000000000001', '2024-05-01 12:00:00+00:00', 'app'),
        ('assistant', 'second', '00000000-0000-4000-8000-000000000002', '2024-05-01 12:00:05+00:00', 'app'),
        ('user', 'twice', '00000000-0000-4000-8000-000000000003', '2024-05-01 12:01:00+00:00', 'app'),
        ('assistant', 'twice', '00000000-0000-4000-8000-000000000003', '2024-05-01 12:01:05+00:00', 'app'),
        ('user', 'no time', '00000000-0000-4000-8000-000000000004', NULL, 'app');";

/// The path of an old row.
fn old(n: usize) -> String {
    format!("/llmchat/app/turns/00000000-0000-4000-8000-{n:012}")
}

async fn with_old_rows(backend: Backend) -> Result<TestApp> {
    let app = TestApp::start(backend).await?;
    app.execute(
        "CREATE TABLE chatts (name text, message text, id uuid, time timestamptz, appid varchar(155))",
    )
    .await?;
    app.execute(OLD_ROWS).await?;
    app.ollama.always(Script::reply(["new"]));
    Ok(app)
}

async fn page(app: &TestApp, query: &str) -> Result<Value> {
    let path = format!("/llmchat/app{query}");
    app.client.get(&path, &[]).await?.json(200).await
}

fn contents(page: &Value) -> Vec<&str> {
    let messages = page["messages"].as_array().into_iter().flatten();
    messages.filter_map(|it| it["content"].as_str()).collect()
}

/// Sends a prompt to the conversation `app`; its events.
async fn ask(client: &Client, content: &str) -> Result<Vec<Event>> {
    client.prompt(&prompt("app", content)).await?.read().await
}

on_both_stores! {
    async fn rows_of_an_older_server_are_turns_of_their_own(backend: Backend) -> Result<()> {
        let app = with_old_rows(backend).await?;
        app.turn("app", "migrates", "ok").await?;
        for n in 1..=4 {
            let turn = app.client.get(&old(n), &[]).await?.json(200).await?;
            assert_eq!((&turn["state"], &turn["model"]), (&json!("complete"), &json!(null)), "{n}");
            let again = app.client.request("POST", &format!("{}/again", old(n)), "").await?;
            assert_eq!(again.refusal(422).await?, "invalid_request", "{n}");
        }
        let whole = page(&app, "").await?;
        assert_eq!(contents(&whole), ["no time", "first", "second", "twice", "twice", "migrates", "ok"]);
        assert_eq!(whole["messages"][0]["time"], json!(null));
        assert_eq!(whole["messages"][1]["time"], "2024-05-01T12:00:00.000000Z");
        for message in &whole["messages"].as_array().cloned().unwrap_or_default()[..5] {
            assert_eq!(message["id"], message["turn"]);
        }
        // A cursor that occurs twice stands before the older.
        let before = |n: usize| format!("?before=00000000-0000-4000-8000-{n:012}");
        assert_eq!(contents(&page(&app, &before(3)).await?), ["no time", "first", "second"]);
        assert_eq!(contents(&page(&app, &before(4)).await?), [""; 0]);
        let first = page(&app, &format!("{}&limit=1", before(1))).await?;
        assert_eq!((contents(&first), &first["more"]), (vec!["no time"], &json!(false)));
        Ok(())
    }

    async fn a_prompt_of_an_older_server_is_asked_again_with_a_model(backend: Backend) -> Result<()> {
        let app = with_old_rows(backend).await?;
        let path = format!("{}/again", old(1));
        let answer = app.client.request("POST", &path, r#"{"model":"stand-in"}"#).await?;
        answer.read().await?;
        assert_eq!(app.sent_to_ollama(1).await?.last(), Some(&("user".to_owned(), "first".to_owned())));
        let page = page(&app, "").await?;
        assert_eq!(contents(&page)[1..4], ["first", "new", "second"]);
        assert_eq!(page["messages"][2]["turn"], page["messages"][1]["turn"]);
        Ok(())
    }

    async fn rows_of_an_older_server_are_deleted(backend: Backend) -> Result<()> {
        let app = with_old_rows(backend).await?;
        let left = async || Ok::<_, anyhow::Error>(contents(&page(&app, "").await?).join(", "));
        // A reply is a turn of its own: it goes with its turn, and so does it as a reply.
        app.client.delete(&format!("{}/reply", old(2))).await?;
        assert_eq!(left().await?, "no time, first, twice, twice");
        app.client.delete(&old(1)).await?;
        assert_eq!(left().await?, "no time, twice, twice");
        app.client.delete("/llmchat/app/turns?from=00000000-0000-4000-8000-000000000003").await?;
        assert_eq!(left().await?, "no time");
        app.client.delete(&old(4)).await?;
        assert_eq!(left().await?, "");
        app.execute(OLD_ROWS).await?;
        app.client.delete("/llmchat/app").await?;
        assert_eq!(app.rows("app").await?, []);
        until("all tables to be empty", async || {
            Ok(app.query("SELECT appid FROM chatts_turns").await?.is_empty())
        })
        .await
    }
}

/// The indexes of the tables, by name.
async fn indexes(app: &TestApp, backend: Backend) -> Result<Vec<String>> {
    let names = match backend {
        Backend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY name",
        Backend::Postgres => {
            "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname"
        }
    };
    app.query(names).await
}

/// The previous release's component in our host, beside this one.
mod native {
    use super::*;

    on_both_stores! {
        async fn both_releases_read_what_the_other_stored(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            let Some(previous) = app.previous_release(&[]).await? else { return Ok(()) };
            // The tables are the previous release's at first.
            let (mut said, mut had) = (Vec::new(), Vec::new());
            for (nth, content) in ["one", "two", "three", "four", "five"].into_iter().enumerate() {
                let client = if nth % 2 == 0 { &previous.client } else { &app.client };
                app.ollama.push(Script::reply([format!("reply to {content}")]));
                let events = ask(client, content).await?;
                assert_eq!(events.last(), Some(&Event::Data(wire::done())), "{events:?}");
                said.push(("user".to_owned(), content.to_owned()));
                assert_eq!(app.sent_to_ollama(nth + 1).await?, said);
                said.push(("assistant".to_owned(), format!("reply to {content}")));
                if nth == 0 {
                    had = indexes(&app, backend).await?;
                }
            }
            // What the previous release reads by is still there.
            let has = indexes(&app, backend).await?;
            assert!(had.len() > 2 && had.iter().all(|index| has.contains(index)), "{had:?}, {has:?}");
            assert_eq!(app.conversation("app").await?, said);
            let page = page(&app, "").await?;
            let texts: Vec<_> = said.iter().map(|(_, content)| content.as_str()).collect();
            assert_eq!(contents(&page), texts);
            Ok(())
        }

        async fn both_releases_run_turns_of_one_conversation_at_once(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            let Some(previous) = app.previous_release(&[]).await? else { return Ok(()) };
            let gate = Gate::new();
            let begin = async |client: &Client, content: &str| {
                app.ollama.push(Script::new().token(content).gate(&gate).token("!").done());
                let answer = client.prompt(&prompt("app", content)).await?;
                let mut events = answer.events().await?;
                events.next().await?;
                anyhow::Ok(events)
            };
            // The tables change under a turn of the previous release, which ends on the new ones.
            let mut streams = Vec::new();
            for (client, content) in [
                (&previous.client, "a"), (&app.client, "b"), (&previous.client, "c"), (&app.client, "d"),
            ] {
                streams.push(begin(client, content).await?);
            }
            gate.open();
            for stream in streams.into_iter().rev() {
                assert_eq!(stream.rest().await?.last(), Some(&Event::Data(wire::done())));
            }
            let turns = ["a", "b", "c", "d"].map(|it| [("user", it.to_owned()), ("assistant", format!("{it}!"))]);
            let expected = turns.into_iter().flatten().map(|(role, content)| (role.to_owned(), content));
            assert_eq!(app.conversation("app").await?, expected.collect::<Vec<_>>());
            Ok(())
        }

        async fn the_previous_release_works_on_tables_that_this_one_made(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            app.turn("app", "one", "1").await?;
            let had = indexes(&app, backend).await?;
            let Some(previous) = app.previous_release(&[("on_busy", "reject")]).await? else { return Ok(()) };
            let gate = Gate::new();
            app.ollama.push(Script::new().token("2").gate(&gate).done());
            let events = previous.client.prompt(&prompt("app", "two")).await?.events().await?;
            // Its own leases work, and keep out its own.
            let busy = previous.client.prompt(&prompt("app", "too early")).await?;
            assert_eq!(busy.refusal(409).await?, "busy");
            gate.open();
            events.rest().await?;
            app.ollama.push(Script::new().token("3").break_off());
            ask(&previous.client, "three").await?;
            let said = [
                ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three"), ("assistant", "3"),
            ];
            assert_eq!(app.conversation("app").await?, messages(&said));
            let page = page(&app, "").await?;
            assert_eq!(page["messages"][5]["status"], "partial");
            // Neither takes away what the other needs.
            app.turn("app", "four", "4").await?;
            assert_eq!(indexes(&app, backend).await?, had);
            Ok(())
        }

        async fn a_turn_of_the_previous_release_is_read_asked_again_and_deleted(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            let Some(previous) = app.previous_release(&[]).await? else { return Ok(()) };
            app.ollama.push(Script::reply(["1"]));
            ask(&previous.client, "one").await?;
            app.ollama.push(Script::refuse(503, "busy"));
            ask(&previous.client, "two").await?;
            let whole = page(&app, "").await?;
            let path = |n: usize| format!("/llmchat/app/turns/{}", whole["messages"][n]["turn"].as_str().unwrap_or_default());
            let (one, two) = (path(0), path(2));
            for (turn, state) in [(&one, "complete"), (&two, "failed")] {
                let turn = app.client.get(turn, &[]).await?.json(200).await?;
                assert_eq!((&turn["state"], &turn["model"], &turn["attempt"]), (&json!(state), &json!(null), &json!(null)));
                assert!(turn["started"].is_string(), "{turn}");
            }
            let stream = app.client.get(&one, &[("accept", "text/event-stream")]).await?.read().await?;
            assert!(matches!(&stream[0], Event::Data(line) if line.contains(r#""content":"1""#)), "{stream:?}");
            for turn in [&one, &two] {
                let stopped = app.client.request("POST", &format!("{turn}/stop"), "").await?;
                stopped.json(200).await?;
            }

            for (turn, sent) in [(&one, &[("user", "one")][..]), (&two, &[("user", "one"), ("assistant", "anew"), ("user", "two")])] {
                let path = format!("{turn}/again");
                let error = app.client.request("POST", &path, "").await?.error(422).await?;
                assert!(error.contains("model"), "{error}");
                app.ollama.push(Script::reply(["anew"]));
                let answer = app.client.request("POST", &path, r#"{"model":"stand-in"}"#).await?;
                assert_eq!(answer.turn()?, *turn);
                assert_eq!(answer.read().await?.last(), Some(&Event::Data(wire::done())));
                assert_eq!(app.sent_to_ollama(app.ollama.chats()).await?, messages(sent));
            }
            let said = [("user", "one"), ("assistant", "anew"), ("user", "two"), ("assistant", "anew")];
            assert_eq!(app.conversation("app").await?, messages(&said));
            // From now on the model is known, and the previous release goes on with the new replies.
            app.ollama.push(Script::reply(["newer"]));
            app.client.request("POST", &format!("{one}/again"), "").await?.read().await?;
            app.client.delete(&two).await?;
            app.ollama.push(Script::reply(["3"]));
            ask(&previous.client, "three").await?;
            let sent = messages(&[("user", "one"), ("assistant", "newer"), ("user", "three")]);
            assert_eq!(app.sent_to_ollama(app.ollama.chats()).await?, sent);
            Ok(())
        }

        async fn a_turn_of_the_previous_release_is_deleted_while_it_runs_there(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            let Some(previous) = app.previous_release(&[]).await? else { return Ok(()) };
            let gate = Gate::new();
            app.ollama.push(Script::new().token("late").gate(&gate).done());
            let events = previous.client.prompt(&prompt("app", "Hi")).await?.events().await?;
            let turn = page(&app, "").await?["messages"][0]["turn"].as_str().unwrap_or_default().to_owned();
            app.client.delete(&format!("/llmchat/app/turns/{turn}")).await?;
            assert_eq!(app.conversation("app").await?, []);
            // That release knows of no deletion: its reply is stored, alone, and can be deleted in its turn.
            gate.open();
            events.rest().await?;
            assert_eq!(app.conversation("app").await?, messages(&[("assistant", "late")]));
            app.client.delete(&format!("/llmchat/app/turns/{turn}")).await?;
            assert_eq!(app.conversation("app").await?, []);
            Ok(())
        }
    }
}
