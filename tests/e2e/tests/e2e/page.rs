//! `GET /llmchat/{appID}`: a conversation in pages, as people read it.

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, on_both_stores, until};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::{Value, json};

/// The page at the path of a conversation, with what follows it.
async fn page(app: &TestApp, query: &str) -> Result<Value> {
    let path = format!("/llmchat/app{query}");
    app.client.get(&path, &[]).await?.json(200).await
}

/// The fields of a page's messages, one after the other.
fn each<'a>(page: &'a Value, field: &'a str) -> Vec<&'a Value> {
    let messages = page["messages"].as_array();
    messages
        .into_iter()
        .flatten()
        .map(|it| &it[field])
        .collect()
}

fn contents(page: &Value) -> Vec<&str> {
    let contents = each(page, "content").into_iter();
    contents.filter_map(Value::as_str).collect()
}

on_both_stores! {
    async fn a_conversation_is_read_backwards_in_pages(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let nobodys = page(&app, "").await?;
        let empty = json!({"appID": "app", "system": null, "running": null, "messages": [], "more": false});
        assert_eq!(nobodys, empty);
        for n in 1..=4 {
            app.turn("app", &format!("prompt {n}"), &format!("reply {n}")).await?;
        }
        app.turn("another", "not here", "nor this").await?;
        let whole = page(&app, "").await?;
        let all = [
            "prompt 1", "reply 1", "prompt 2", "reply 2", "prompt 3", "reply 3", "prompt 4", "reply 4",
        ];
        assert_eq!((contents(&whole), &whole["more"]), (all.to_vec(), &json!(false)));
        assert_eq!(page(&app, "?limit=1000000").await?, whole);

        // Each page goes on where the one before began, whatever their sizes.
        for limit in 1..=9 {
            let (mut read, mut before) = (Vec::new(), String::new());
            loop {
                let page = page(&app, &format!("?limit={limit}{before}")).await?;
                let messages = page["messages"].as_array().cloned().unwrap_or_default();
                ensure!((1..=limit).contains(&messages.len()), "{page}");
                before = format!("&before={}", messages[0]["id"].as_str().unwrap_or_default());
                read.splice(0..0, messages);
                assert_eq!(page["more"], json!(read.len() < all.len()), "{page}");
                if read.len() == all.len() {
                    break;
                }
            }
            assert_eq!(json!(read), whole["messages"], "{limit}");
            assert_eq!(page(&app, &format!("?limit={limit}{before}")).await?, empty);
        }
        // A turn that comes meanwhile shifts nothing.
        let third = each(&whole, "id")[2].as_str().unwrap_or_default();
        app.turn("app", "prompt 5", "reply 5").await?;
        let older = page(&app, &format!("?before={third}")).await?;
        assert_eq!((contents(&older), &older["more"]), (all[..2].to_vec(), &json!(false)));
        Ok(())
    }

    async fn a_message_names_its_turn_its_time_and_its_usage(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::reply(["ok"]));
        let answer = app.prompt("app", "Hi").await?;
        let turn = answer.turn()?;
        answer.read().await?;
        let page = page(&app, "").await?;
        for message in page["messages"].as_array().into_iter().flatten() {
            let id = message["turn"].as_str().unwrap_or_default();
            assert!(turn.ends_with(id) && id.len() == 36, "{message}");
            assert_eq!(message["id"].as_str().map(str::len), Some(36));
            // RFC 3339 in UTC, with six digits.
            let time = message["time"].as_str().unwrap_or_default();
            assert!(time.len() == 27 && time.starts_with("20") && time.ends_with('Z'), "{time}");
            assert_eq!(message.get("status"), None, "complete ones have none");
        }
        assert_eq!(each(&page, "role"), ["user", "assistant"]);
        let done: Value = serde_json::from_str(&wire::done())?;
        assert_eq!(page["messages"][1]["usage"]["eval_count"], done["eval_count"]);
        assert_eq!(page["messages"][0].get("usage"), None);
        Ok(())
    }

    async fn people_read_what_was_generated_and_the_model_what_was_collapsed(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let code = "fn f() {\n    1\n}\n";
        app.ollama.push(Script::reply(["fn f() {\n", "    1\n", "}\n"]));
        app.ask("app", "Hi\n\n there").await?;
        assert_eq!(contents(&page(&app, "").await?), ["Hi\n\n there", code]);
        assert_eq!(app.rows("app").await?[1].message, "fn f() { 1 } ");
        app.turn("app", "Thanks", "ok").await?;
        let sent = app.sent_to_ollama(2).await?;
        assert_eq!(sent[1].1, "fn f() { 1 } ");
        Ok(())
    }

    async fn a_message_says_how_its_turn_ended_and_what_was_thought(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "200ms").await?;
        let thought = r#"{"model":"m","message":{"role":"assistant","content":"","thinking":"Hm."},"done":false}"#;
        let call = r#"{"function":{"name":"f","arguments":{"a": 1}}}"#;
        let called =
            format!(r#"{{"model":"m","message":{{"role":"assistant","content":"","tool_calls":[{call}]}},"done":false}}"#);
        app.ollama.push(Script::new().line(thought).line(&called).done());
        app.ask("app", "one").await?;
        app.ollama.push(Script::new().token("broke").break_off());
        app.ask("app", "two").await?;
        app.ollama.push(Script::new().token("so far").hang());
        let answer = app.prompt("app", "three").await?;
        let stop = format!("{}/stop", answer.turn()?);
        let mut events = answer.events().await?;
        events.next().await?;
        app.client.request("POST", &stop, "").await?.json(202).await?;
        events.rest().await?;
        app.ollama.push(Script::refuse(503, "busy"));
        app.ask("app", "four").await?;

        let page = page(&app, "").await?;
        let none = &json!(null);
        assert_eq!(contents(&page), ["one", "", "two", "broke", "three", "so far", "four"]);
        let (partial, stopped) = (&json!("partial"), &json!("stopped"));
        assert_eq!(each(&page, "status"), [none, none, none, partial, none, stopped, none]);
        assert_eq!(page["messages"][1]["thinking"], "Hm.");
        assert_eq!(page["messages"][1]["tool_calls"], json!([serde_json::from_str::<Value>(call)?]));
        Ok(())
    }

    async fn a_turn_that_runs_is_named_and_its_reply_comes_when_it_ended(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("slow").gate(&gate).done());
        let older = app.prompt("app", "older").await?;
        app.ollama.push(Script::new().token("slow").gate(&gate).done());
        let newer = app.prompt("app", "newer").await?;
        let turn = newer.turn()?;
        let now = page(&app, "").await?;
        assert_eq!(contents(&now), ["older", "newer"]);
        assert!(turn.ends_with(now["running"].as_str().unwrap_or("none")), "the newest: {now}");
        gate.open();
        older.read().await?;
        newer.read().await?;
        let now = page(&app, "").await?;
        assert_eq!(contents(&now), ["older", "slow", "newer", "slow"]);
        assert_eq!(now["running"], json!(null));
        Ok(())
    }

    async fn what_a_dead_host_left_is_shown_in_its_place(backend: Backend) -> Result<()> {
        let setup = TestApp::on(backend).variable("turn_lease", "1s").variable("checkpoint_interval", "200ms");
        let mut app = setup.start().await?;
        let _events = app.begin("app", "one", Script::new().tokens(["so\n\n", "far"]).hang()).await?;
        until("a checkpoint", async || {
            Ok(!app.query("SELECT 'a part' FROM chatts_parts").await?.is_empty())
        })
        .await?;
        app.crash().await?;
        app.restart().await?;
        until("the end of the lease", async || Ok(page(&app, "").await?["running"].is_null())).await?;
        let before = page(&app, "").await?;
        assert_eq!(contents(&before), ["one", "so\n\nfar"]);
        assert_eq!(before["messages"][1]["status"], "partial");
        let id = before["messages"][1]["id"].as_str().unwrap_or_default();
        assert_eq!(contents(&page(&app, &format!("?before={id}")).await?), ["one"]);
        assert_eq!(contents(&page(&app, "?limit=1").await?), ["so\n\nfar"]);

        // The next prompt takes it into the conversation: its id, and so its cursor, stays.
        app.turn("app", "two", "ok").await?;
        assert_eq!(app.sent_to_ollama(2).await?[1].1, "so far");
        let after = page(&app, "").await?;
        assert_eq!(contents(&after), ["one", "so\n\nfar", "two", "ok"]);
        assert_eq!(after["messages"][1]["id"], before["messages"][1]["id"]);
        assert_eq!(after["messages"][1]["status"], "partial");
        Ok(())
    }

    async fn a_page_ends_at_max_history_bytes_but_has_a_message(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_history_bytes", 100).await?;
        let (long, longer) = ("x".repeat(97), "y".repeat(300));
        app.turn("app", "one", "1").await?;
        app.turn("app", &long, &longer).await?;
        app.turn("app", "three", "3").await?;
        let mut query = String::new();
        for expected in [vec!["three", "3"], vec![&longer], vec!["1", &long], vec!["one"]] {
            let page = page(&app, &query).await?;
            assert_eq!(contents(&page), expected);
            assert_eq!(page["more"], json!(expected != ["one"]), "{page}");
            query = format!("?before={}", page["messages"][0]["id"].as_str().unwrap_or_default());
        }
        Ok(())
    }

    async fn a_cursor_that_is_gone_is_told_and_what_is_malformed_refused(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("app", "one", "1").await?;
        app.turn("another", "elsewhere", "2").await?;
        let gone = id_of(&app, "1").await?;
        let turn = page(&app, "").await?["messages"][1]["turn"].as_str().unwrap_or_default().to_owned();
        app.client.delete(&format!("/llmchat/app/turns/{turn}/reply")).await?;
        for id in [&gone, &id_of(&app, "elsewhere").await?, &turn] {
            let answer = app.client.get(&format!("/llmchat/app?before={id}"), &[]).await?;
            assert_eq!(answer.refusal(422).await?, "cursor_gone", "{id}");
        }
        for query in ["limit=0", "limit=-1", "limit=", "limit=ten", "limit=1.5", "before=", "before=first", "before=0"] {
            let answer = app.client.get(&format!("/llmchat/app?{query}"), &[]).await?;
            assert_eq!(answer.refusal(422).await?, "invalid_request", "{query}");
        }
        Ok(())
    }
}

/// The id of the message with this text.
async fn id_of(app: &TestApp, content: &str) -> Result<String> {
    let of_it = format!("SELECT CAST(id AS text) FROM chatts WHERE message = '{content}'");
    Ok(app.query(&of_it).await?.concat())
}
