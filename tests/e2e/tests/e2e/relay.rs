//! From Ollama's lines to the client's events: framing, timing, limits.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use llmchat_fixtures::{Fixture, without_ids, without_messages};
use llmchat_testkit::{Backend, Event, TestApp, on_both_stores, prompt, within};
use ollama_stand_in::{Ending, Gate, Script, wire};
use serde_json::{Value, json, value::RawValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NDJSON: &str = "application/x-ndjson";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_that_of_a_stream() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["ok"]));
    for path in ["/llmchat/", "/llmchat"] {
        let body = prompt("an app", "Hi").to_string();
        let answer = app.client.request("POST", path, body).await?;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        assert_eq!(
            answer.header("cache-control"),
            Some("no-cache, no-transform")
        );
        assert_eq!(answer.header("x-accel-buffering"), Some("no"));
        let context = answer.header("x-context").context("no x-context")?;
        assert!(context.starts_with("turns="), "{context}");
        let turn = answer.header("x-turn-id").context("no x-turn-id")?;
        let location = format!("/llmchat/an%20app/turns/{turn}");
        assert_eq!(answer.header("location"), Some(&*location));
        let events = answer.text().await?;

        let turn = app.client.get(&location, &[]).await?.json(200).await?;
        let attempt = turn["attempt"].as_str().and_then(|id| id.get(..8));
        let attempt = attempt.context("no attempt")?;
        let expected = format!(
            ": waiting\nid: {attempt}.2.0.0\ndata: {}\n\nid: {attempt}.end\ndata: {}\n\n",
            wire::token("ok"),
            wire::done()
        );
        assert_eq!(events, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_leaves_before_ollama_answers() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let gate = Gate::new();
    app.ollama
        .push(Script::new().gate(&gate).token("ok").done());
    let answer = app.prompt("app", "Hi").await?;
    assert_eq!(answer.status(), 200);
    // The prompt is stored before the head is sent.
    assert_eq!(app.rows("app").await?.len(), 1);
    within("the chat request", gate.reached()).await?;
    assert_eq!(app.ollama.chat(1).await.bytes_sent(), 0);
    gate.open();
    assert_eq!(answer.read().await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_arrives_before_the_next_line_is_let_out() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let gates: Vec<_> = (0..20).map(|_| Gate::new()).collect();
    let mut script = Script::new();
    for (n, gate) in gates.iter().enumerate() {
        script = script.token(&n.to_string()).gate(gate);
    }
    app.ollama.push(script.done());
    let mut events = app.stream("app", "Hi").await?;
    for (n, gate) in gates.iter().enumerate() {
        let token = Event::Data(wire::token(&n.to_string()));
        assert_eq!(events.next().await?, Some(token));
        gate.open();
    }
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn done_comes_although_ollama_keeps_the_connection_open() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(Script::reply(["ok"]).hang());
    let events = app.ask("app", "Hi").await?;
    assert_eq!(events.last(), Some(&Event::Data(wire::done())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_fields_go_to_ollama_unchanged_and_the_app_id_does_not() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(Script::reply(["ok"]));
    let options = r#"{ "temperature" : 0.10, "seed": 1e3, "num_ctx": 123456789012345678901 }"#;
    let format = r#"{"type":"object","appID":"kept: it is not ours"}"#;
    let tools = r#"[{"type":"function","function":{"name":"f\u0041"}}]"#;
    let fields = [
        ("format", format),
        ("keep_alive", r#""5m""#),
        ("options", options),
        ("think", "true"),
        ("tools", tools),
        ("unheard_of", "null"),
    ];
    let mut body = String::from(r#"{"appID":"app","#);
    for (name, value) in fields {
        body += &format!("\"{name}\":{value},");
    }
    body += r#""model":"a/b:c","messages":[{"role":"user","content":"Hi"}]}"#;
    app.client.post(body).await?.read().await?;

    let exchange = app.ollama.chat(1).await;
    let request = exchange.request();
    let mut sent: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&request.body)?;
    for (name, value) in fields {
        let came = sent.remove(name);
        assert_eq!(came.as_deref().map(RawValue::get), Some(value), "{name}");
    }
    let rest: Vec<_> = sent.keys().collect();
    assert_eq!(rest, ["messages", "model", "stream"]);
    assert_eq!(request.json()?["model"], "a/b:c");
    assert_eq!(request.json()?["stream"], true);
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("origin"), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_host_and_origin_are_not_forwarded() -> Result<()> {
    // The stand-in refuses foreign ones, as a loopback-bound Ollama does.
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(Script::reply(["ok"]));
    let body = prompt("app", "Hi").to_string();
    let mut socket = TcpStream::connect(app.address()).await?;
    let origin = "Host: chat.example.com\r\nOrigin: https://chat.example.com";
    let length = body.len();
    let request = format!(
        "POST /llmchat/ HTTP/1.1\r\n{origin}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    within("the answer", socket.read_to_string(&mut answer)).await??;
    assert!(answer.contains(&wire::done()), "{answer}");
    Ok(())
}

on_both_stores! {
    async fn without_streaming_the_one_object_is_the_one_event(backend: Backend) -> Result<()> {
        // The limit is for a line of many, and log probabilities are much longer than what they are of.
        let app = TestApp::with(backend, "max_line_bytes", 1000).await?;
        let object = json!({
            "model": "m", "created_at": wire::CREATED_AT, "done": true, "done_reason": "stop",
            "logprobs": vec![json!({"token": "All", "logprob": -0.5}); 1000],
            "message": {"role": "assistant", "content": "All  at once"},
        });
        app.ollama.push(Script::body(200, "application/json; charset=utf-8", object.to_string()));
        let mut body = prompt("app", "Hi");
        body["stream"] = json!(false);
        let events = app.client.prompt(&body).await?.read().await?;
        assert_eq!(events, [Event::Data(object.to_string())]);
        assert_eq!(app.ollama.chat(1).await.request().json()?["stream"], false);
        assert_eq!(app.rows("app").await?[1].message, "All at once");
        Ok(())
    }

    async fn every_fixture_becomes_its_events_and_its_row(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let fixtures = llmchat_fixtures::all()?;
        ensure!(fixtures.len() > 10, "the fixtures are missing");
        for Fixture { name, ndjson, sse, ids, reply } in fixtures {
            // In one piece, and in pieces that end anywhere: within a line, a character, a `\r\n`.
            for piece in [usize::MAX, 7] {
                let id = format!("{name} {piece}");
                let script = ndjson.chunks(piece).fold(Script::new().head(200, NDJSON), |script, bytes| {
                    script.bytes(Bytes::copy_from_slice(bytes))
                });
                app.ollama.push(script);
                let body = app.prompt(&id, "Hi").await?.text().await.context(id.clone())?;
                let (events, came) = without_ids(body.strip_prefix(": waiting\n").context(id.clone())?);
                assert_eq!(without_messages(&events), sse, "{id}");
                // All of one attempt, which has a name of its own.
                let attempt = came.get(..12).unwrap_or("id: 00000000");
                assert_eq!(came.replace(attempt, "id: 00000000"), ids, "{id}");
                let rows = app.conversation(&id).await?;
                let stored = rows.get(1).map_or("", |(_, text)| text);
                assert_eq!(stored, reply, "{id}");
            }
        }
        Ok(())
    }

    async fn a_line_over_the_cap_is_left_out_and_the_rest_goes_on(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_line_bytes", 1000).await?;
        let long = wire::token(&"x".repeat(1000));
        let script = Script::new().token("a").line(&long).token("b");
        // Too long in pieces, and without an end for a while.
        let script = script.bytes(vec![b'y'; 900]).bytes(vec![b'y'; 900]).bytes("\n").token("c").done();
        app.ollama.push(script);
        let events = app.ask("app", "Hi").await?;
        let codes: Vec<_> = events.iter().map(Event::code).collect();
        let cut = Some("line_too_long");
        assert_eq!(codes, [None, cut, None, cut, None, None]);
        assert_eq!(app.rows("app").await?[1].message, "abc");
        Ok(())
    }

    async fn a_stream_over_its_cap_ends_and_the_reply_is_kept_as_far_as_it_was_shown(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_stream_bytes", 1000).await?;
        let tokens = vec!["token "; 50];
        app.ollama.push(Script::reply(tokens));
        let stream = app.prompt("app", "Hi").await?.text().await?;
        let mut events: Vec<_> = stream.strip_prefix(": waiting\n").context("no comment")?.split_inclusive("\n\n").collect();
        let last = events.pop().context("no event")?;
        assert!(last.contains("event: error") && last.contains("completion_too_long"), "{last}");
        let shown = events.len();
        let lengths = |events: &[&str]| events.iter().map(|event| event.len()).sum::<usize>();
        // It ends with the event that reaches the limit.
        assert!(lengths(&events) >= 1000 && lengths(&events[..shown - 1]) < 1000, "{stream}");
        let rows = app.rows("app").await?;
        assert_eq!(rows[1].parts(), ("assistant", &*"token ".repeat(shown), "partial"));
        Ok(())
    }

    async fn a_completion_over_the_cap_is_cut_off_and_kept_as_far_as_it_was_shown(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_completion_bytes", 1000).await?;
        app.ollama.push(Script::new().endless(wire::token("0123456789")));
        let events = app.ask("app", "Hi").await?;
        let shown: String = events.iter().filter_map(content).collect();
        assert_eq!(shown.len(), 1000);
        assert_eq!(events.last().and_then(Event::code), Some("completion_too_long"));
        let row = &app.rows("app").await?[1];
        assert_eq!((row.message.as_str(), row.status.as_str()), (shown.as_str(), "partial"));
        // The connection is closed: the rest would be discarded.
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        Ok(())
    }

    async fn a_long_reply_comes_whole(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let tokens: Vec<_> = (0..20_000).map(|n| format!("{n} ")).collect();
        // In one write: it is the length that counts here.
        let lines: String = tokens.iter().map(|token| wire::token(token) + "\n").collect();
        app.ollama.push(Script::new().bytes(lines).done());
        let events = app.ask("app", "Hi").await?;
        assert_eq!(events.len(), 20_001);
        assert_eq!(events.iter().filter_map(content).collect::<String>(), tokens.concat());
        assert_eq!(app.rows("app").await?[1].message, tokens.concat());
        Ok(())
    }
}

/// The `content` of an event's line.
fn content(event: &Event) -> Option<String> {
    let Event::Data(line) = event else {
        return None;
    };
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line.pointer("/message/content")?.as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comment_breaks_the_silence() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "comment_interval", "100ms").await?;
    let (before, between) = (Gate::new(), Gate::new());
    app.ollama
        .push(Script::new().gate(&before).token("a").gate(&between).done());
    let mut answer = app.prompt("app", "Hi").await?;
    let is_comment = |chunk: &Bytes| chunk.chunks(10).all(|line| line == b": waiting\n");
    let mut next = async || answer.chunk().await?.context("the stream ended");
    for gate in [&before, &between] {
        // Two each: comments repeat.
        for _ in 0..2 {
            let chunk = next().await?;
            assert!(is_comment(&chunk), "{chunk:?}");
        }
        gate.open();
        let mut chunk = next().await?;
        while is_comment(&chunk) {
            chunk = next().await?;
        }
        assert!(chunk.starts_with(b"id: "), "{chunk:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_library_does_not_see_comments() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "comment_interval", "50ms").await?;
    let pause = Duration::from_millis(300);
    app.ollama
        .push(Script::new().delay(pause).token("a").delay(pause).done());
    let events = app.ask("app", "Hi").await?;
    assert_eq!(events, [wire::token("a"), wire::done()].map(Event::Data));
    Ok(())
}
