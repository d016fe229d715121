//! `Idempotency-Key`: what is one, and when a request is the same.

use super::*;

const KEY: &str = "idempotency-key";

/// Sends a prompt with this key, byte for byte; the answer as text.
async fn prompt_with_bytes(app: &TestApp, key: &[u8]) -> Result<String> {
    let body = prompt("app", "Hi").to_string();
    let (address, length) = (app.address(), body.len());
    let mut request = format!(
        "POST /llmchat/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\nIdempotency-Key: "
    )
    .into_bytes();
    request.extend_from_slice(key);
    request.extend_from_slice(b"\r\n\r\n");
    request.extend_from_slice(body.as_bytes());
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(&request).await?;
    let mut answer = String::new();
    within("the answer", socket.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// The turn of a prompt that was answered by a stream, read to its end, and whether it was replayed.
async fn turn_of(answer: Answer) -> Result<(String, bool)> {
    let turn = answer.header("x-turn-id").context("no x-turn-id")?;
    let turn = turn.to_owned();
    let is_replayed = answer.header("idempotency-replayed") == Some("true");
    let events = answer.read().await?;
    ensure!(
        events.last() == Some(&Event::Data(wire::done())),
        "{events:?}"
    );
    Ok((turn, is_replayed))
}

on_both_stores! {
    async fn what_is_no_key_is_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let (long, quoted) = ("k".repeat(256), format!("\"{}\"", "k".repeat(256)));
        for keys in [
            &[""][..],
            &["\"\""],
            &[&*long],
            &[&*quoted],
            &["a", "b"],
            &["a", "a"],
            &["a, b"],
            &["\"a\", \"b\""],
            &["a b"],
            &["a;b"],
            &["a\\b"],
            &["\"a"],
            &["a\"b"],
            &["\"a\"b"],
        ] {
            let headers: Vec<_> = keys.iter().map(|key| (KEY, *key)).collect();
            let answer = app.client.prompt_with(&headers, &prompt("app", "Hi")).await?;
            let error = refused(answer, 422, "invalid_request").await.with_context(|| format!("{keys:?}"))?;
            ensure!(error.contains("Idempotency-Key"), "{keys:?}: {error}");
        }
        for key in ["é".as_bytes(), b"\"\xc3\xa9\"", "🔑".as_bytes()] {
            is_refused(&app, key).await?;
        }
        left_no_trace(&app).await
    }

    async fn the_shortest_and_the_longest_key_are_keys(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let long = "k".repeat(255);
        let quoted = format!("\"{}\"", "\\\"".repeat(255));
        for (n, key) in ["k", "\" \"", &long, &quoted].into_iter().enumerate() {
            let body = prompt(&format!("app {n}"), "Hi");
            let (turn, is_replayed) = turn_of(app.client.prompt_with(&[(KEY, key)], &body).await?).await?;
            ensure!(!is_replayed, "{key}");
            let again = turn_of(app.client.prompt_with(&[(KEY, key)], &body).await?).await?;
            assert_eq!(again, (turn, true), "{key}");
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (4, 8));
        Ok(())
    }

    async fn a_request_is_the_same_in_whatever_order_and_spelling(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::reply(["ok"]));
        let first = r#"{"appID":"app","model":"m","messages":[{"role":"user","content":"Hi"}],"options":{"a":1,"b":2}}"#;
        let answer = app.client.request_with("POST", "/llmchat/", &[(KEY, "3f8a")], first).await?;
        let (turn, is_replayed) = turn_of(answer).await?;
        ensure!(!is_replayed);
        for (key, body) in [
            ("3f8a", first),
            ("\"3f8a\"", first),
            (" 3f8a\t", first),
            ("3f8a", r#"{"options":{"a":1,"b":2},"messages":[{"content":"Hi","role":"user"}],"model":"m","appID":"app"}"#),
            ("3f8a", "\u{feff} { \"model\" : \"m\",\n\"appID\":\"app\", \"messages\":[ {\"role\":\"user\",\r\n\"content\":\"Hi\"} ],\"options\":{\"a\":1,\"b\":2} }\n"),
            ("3f8a", r#"{"appID":"\u0061pp","model":"m","messages":[{"role":"user","content":"\u0048i"}],"options":{"a":1,"b":2}}"#),
            ("3f8a", r#"{"appID":"app","model":"m","stream":true,"tools":[],"format":null,"think":"","messages":[{"role":"user","content":"Hi","images":null,"thinking":""}],"options":{"a":1,"b":2}}"#),
        ] {
            let answer = app.client.request_with("POST", "/llmchat/", &[(KEY, key)], body).await?;
            let again = turn_of(answer).await.with_context(|| format!("{key} {body}"))?;
            assert_eq!(again, (turn.clone(), true), "{key} {body}");
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn a_key_that_comes_with_another_request_is_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let body = |change: &dyn Fn(&mut Value)| {
            let mut body = prompt("app", "Hi");
            body["options"] = json!({"a": 1, "b": 2});
            change(&mut body);
            body.to_string()
        };
        let others = [
            body(&|body| body["messages"][0]["content"] = json!("Hi!")),
            body(&|body| body["messages"][0]["content"] = json!("Hi ")),
            body(&|body| body["messages"][0]["role"] = json!("system")),
            body(&|body| body["messages"] = json!([{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}])),
            body(&|body| body["messages"] = json!([])),
            body(&|body| body["model"] = json!("another")),
            body(&|body| body["stream"] = json!(false)),
            body(&|body| body["keep_alive"] = json!(0)),
            body(&|body| body["options"] = json!({"a": 1})),
            // Values below the first level are as they were written.
            body(&|_| {}).replace(r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#),
        ];
        let send = async |body: String| app.client.request_with("POST", "/llmchat/", &[(KEY, "3f8a")], body).await;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("ok").gate(&gate).done());
        let mut events = send(body(&|_| {})).await?.events().await?;
        assert_eq!(events.next().await?, Some(Event::Data(wire::token("ok"))));
        // While it runs, and when it has ended.
        for _ in 0..2 {
            for other in &others {
                let refused = refused(send(other.clone()).await?, 422, "idempotency_key_reused").await;
                let error = refused.with_context(|| other.clone())?;
                ensure!(error.contains("new one"), "{error}");
            }
            gate.open();
            while events.next().await?.is_some() {}
        }
        assert_eq!(app.ollama.chats(), 1);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn a_key_belongs_to_its_conversation(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let mut turns = Vec::new();
        for app_id in ["one", "another"] {
            let answer = app.client.prompt_with(&[(KEY, "3f8a")], &prompt(app_id, "Hi")).await?;
            let (turn, is_replayed) = turn_of(answer).await?;
            ensure!(!is_replayed && !turns.contains(&turn), "{turn}");
            turns.push(turn);
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (2, 4));
        Ok(())
    }
}

async fn is_refused(app: &TestApp, key: &[u8]) -> Result<()> {
    let answer = prompt_with_bytes(app, key).await?;
    let is_refused = answer.starts_with("HTTP/1.1 422 ") && answer.contains("Idempotency-Key");
    ensure!(is_refused, "{key:?}: {answer}");
    Ok(())
}

/// Spin answers itself, with a bare 500.
mod native {
    use super::*;

    on_both_stores! {
        async fn a_key_that_is_no_text_is_a_422(backend: Backend) -> Result<()> {
            let app = TestApp::start(backend).await?;
            is_refused(&app, b"a\xff").await?;
            left_no_trace(&app).await
        }
    }
}
