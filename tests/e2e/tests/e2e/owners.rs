//! Whose a conversation is: by the key of a request, by a gateway's header, or nobody's in particular.

use anyhow::{Result, ensure};
use llmchat_testkit::{Answer, Backend, Event, TestApp, on_both_stores, prompt, within};
use ollama_stand_in::{Gate, Script};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANN: &str = "Bearer secret-of-ann";
const BOB: &str = "Bearer secret-of-bob";
const KEYS: &str = "ann:secret-of-ann bob:secret-of-bob";

/// Sends requests with a header that tells who sends them.
struct Sender<'a> {
    app: &'a TestApp,
    header: (&'a str, &'a str),
}

impl<'a> Sender<'a> {
    fn with_key(app: &'a TestApp, key: &'a str) -> Self {
        let header = ("authorization", key);
        Self { app, header }
    }

    async fn request(&self, method: &str, path: &str) -> Result<Answer> {
        let client = self.app.client;
        client.request_with(method, path, &[self.header], "").await
    }

    async fn prompt(&self, content: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let headers = [&[self.header], headers].concat();
        self.app
            .client
            .prompt_with(&headers, &prompt("app", content))
            .await
    }

    /// A turn of the conversation `app`; returns its path.
    async fn turn(&self, content: &str, reply: &str) -> Result<String> {
        self.app.ollama.push(Script::reply([reply]));
        let answer = self.prompt(content, &[]).await?;
        let path = answer.turn()?;
        let events = answer.read().await?;
        ensure!(ended_well(&events), "{events:?}");
        Ok(path)
    }

    /// What the conversation `app` holds.
    async fn contents(&self) -> Result<Vec<String>> {
        let page = self.request("GET", "/llmchat/app").await?.json(200).await?;
        let messages = page["messages"].as_array().cloned().unwrap_or_default();
        let content = |message: &Value| message["content"].as_str().map(str::to_owned);
        Ok(messages.iter().filter_map(content).collect())
    }
}

fn ended_well(events: &[Event]) -> bool {
    matches!(events.last(), Some(Event::Data(line)) if line.contains("\"done\":true"))
}

on_both_stores! {
    async fn what_is_anothers_does_not_exist(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "api_keys", KEYS).await?;
        let (ann, bob) = (Sender::with_key(&app, ANN), Sender::with_key(&app, BOB));
        let anns = ann.turn("Ann's prompt", "Ann's reply").await?;
        assert_eq!(bob.contents().await?, [""; 0]);
        bob.turn("Bob's prompt", "Bob's reply").await?;
        let sent = app.sent_to_ollama(2).await?;
        assert_eq!(sent, [("user".to_owned(), "Bob's prompt".to_owned())]);

        for (method, what) in [("GET", ""), ("POST", "/stop"), ("POST", "/again")] {
            let answer = bob.request(method, &format!("{anns}{what}")).await?;
            assert_eq!(answer.refusal(404).await?, "not_found", "{method} {what}");
        }
        let stream = [bob.header, ("accept", "text/event-stream")];
        assert_eq!(app.client.get(&anns, &stream).await?.refusal(404).await?, "not_found");
        let id = anns.rsplit('/').next().unwrap_or_default();
        for path in [
            anns.clone(),
            format!("{anns}/reply"),
            format!("/llmchat/app/turns?from={id}"),
            "/llmchat/app".to_owned(),
        ] {
            let deleted = bob.request("DELETE", &path).await?;
            assert_eq!(deleted.status(), 204, "{path}");
            assert_eq!(ann.contents().await?, ["Ann's prompt", "Ann's reply"], "{path}");
        }
        assert_eq!(bob.contents().await?, [""; 0]);
        assert_eq!(app.ollama.chats(), 2);
        Ok(())
    }

    async fn the_same_idempotency_key_of_another_is_another(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "api_keys", KEYS).await?;
        let key = [("idempotency-key", "the-same")];
        for (who, content) in [(ANN, "Ann's"), (BOB, "Bob's")] {
            app.ollama.push(Script::reply([content]));
            let answer = Sender::with_key(&app, who).prompt(content, &key).await?;
            assert_eq!(answer.header("idempotency-replayed"), None);
            answer.read().await?;
        }
        for (who, content) in [(ANN, "Ann's"), (BOB, "Bob's")] {
            let sender = Sender::with_key(&app, who);
            let answer = sender.prompt(content, &key).await?;
            assert_eq!(answer.header("idempotency-replayed"), Some("true"));
            let text = answer.text().await?;
            ensure!(text.contains(content), "{text}");
            assert_eq!(sender.contents().await?, [content, content]);
        }
        assert_eq!(app.ollama.chats(), 2);
        Ok(())
    }

    async fn each_may_have_a_turn_where_a_conversation_has_one_at_a_time(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend).variable("api_keys", KEYS).variable("on_busy", "reject").start().await?;
        let gate = Gate::new();
        app.ollama.always(Script::new().token("a").gate(&gate).token("b").done());
        let (ann, bob) = (Sender::with_key(&app, ANN), Sender::with_key(&app, BOB));
        let anns = ann.prompt("Ann's", &[]).await?;
        let bobs = bob.prompt("Bob's", &[]).await?;
        gate.reached_by(2).await;
        assert_eq!(ann.prompt("again", &[]).await?.refusal(409).await?, "busy");
        // The checkpoints and commits of both, which one instance may make together, are told apart.
        gate.open();
        for answer in [anns, bobs] {
            let events = answer.read().await?;
            assert!(ended_well(&events), "{events:?}");
        }
        assert_eq!(ann.contents().await?, ["Ann's", "ab"]);
        assert_eq!(bob.contents().await?, ["Bob's", "ab"]);
        Ok(())
    }

    async fn a_request_without_a_right_key_leaves_no_trace(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "api_keys", KEYS).await?;
        let long = format!("Bearer {}", "x".repeat(10_000));
        let turn = format!("/llmchat/app/turns/{}", "0199f3a1-5c00-7000-8000-000000000001");
        let paths = [
            ("POST", "/llmchat/".to_owned()),
            ("GET", "/llmchat/app".to_owned()),
            ("DELETE", "/llmchat/app".to_owned()),
            ("GET", turn.clone()),
            ("POST", format!("{turn}/stop")),
            ("POST", format!("{turn}/again")),
            ("DELETE", turn.clone()),
            ("GET", "/nowhere".to_owned()),
        ];
        let mut words = Vec::new();
        for authorization in [
            &[][..],
            &["Bearer secret-of-an"],
            &["Bearer secret-of-annn"],
            &["Bearer ann:secret-of-ann"],
            &["Bearer"],
            &["Bearer secret-of-ann x"],
            &["Basic c2VjcmV0LW9mLWFubg=="],
            &[ANN, ANN],
            &[ANN, BOB],
            &["Bearer sécret"],
            &[&long],
        ] {
            let headers: Vec<_> = authorization.iter().map(|it| ("authorization", *it)).collect();
            for (method, path) in &paths {
                let body = prompt("app", "Hi").to_string();
                let answer = app.client.request_with(method, path, &headers, body).await?;
                let challenge = answer.header("www-authenticate").map(str::to_owned);
                assert_eq!(challenge.as_deref(), Some("Bearer realm=\"llmchat\""));
                words.push(answer.refused(401).await?);
            }
        }
        words.dedup();
        assert_eq!((words.len(), words[0].0.as_str()), (1, "unauthorized"), "{words:?}");
        assert_eq!((app.ollama.chats(), app.row_count().await?), (0, 0));
        for text in [words[0].1.clone(), app.log()?] {
            ensure!(!text.contains("secret-of"), "{text}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_failure_shows_a_key_and_ollama_never_sees_one() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .variable("api_keys", KEYS)
        .variable("database_timeout", "1s")
        .database_wire()
        .start()
        .await?;
    let ann = Sender::with_key(&app, ANN);
    app.ollama.push(Script::reply(["ok"]));
    app.ollama.push(Script::refuse(401, "unauthorized"));
    app.ollama.push(Script::new().token("a").break_off());
    let mut printed = String::new();
    for prompt in ["1", "2", "3"] {
        printed += &ann.prompt(prompt, &[]).await?.text().await?;
        let nth = app.ollama.chats();
        let exchange = app.ollama.chat(nth).await;
        assert_eq!(exchange.request().header("authorization"), None);
    }
    let bad = [ann.header, ("content-length", "x")];
    if let Ok(answer) = app.client.get("/llmchat/app", &bad).await {
        printed += &answer.text().await?;
    }
    printed += &app
        .client
        .request_with("POST", "/llmchat/", &[ann.header], "{")
        .await?
        .text()
        .await?;
    app.database_wire()?.take_down();
    let answer = ann.prompt("4", &[]).await?;
    printed += &format!("{answer:?}");
    printed += &answer.error(500).await?;
    printed += &app.log()?;
    ensure!(!printed.contains("secret-of"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_asked_for_before_the_body_is_read() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "api_keys", KEYS).await?;
    let host = app.address();
    let mut socket = TcpStream::connect(host).await?;
    let head =
        format!("POST /llmchat/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    // As much as our host waits for. The rest never comes.
    socket.write_all(&[b' '; 64 * 1024]).await?;
    let mut answer = [0; 12];
    within("the answer", socket.read_exact(&mut answer)).await??;
    assert_eq!(&answer, b"HTTP/1.1 401");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheme_in_any_case_and_any_of_ones_keys_will_do() -> Result<()> {
    let keys = "ann:old\n\tann:new bob:secret:with:colons";
    let app = TestApp::with(Backend::Sqlite, "api_keys", keys).await?;
    Sender::with_key(&app, "Bearer old").turn("1", "2").await?;
    for key in ["bearer new", "BEARER  old"] {
        assert_eq!(Sender::with_key(&app, key).contents().await?, ["1", "2"]);
    }
    let bob = Sender::with_key(&app, "Bearer secret:with:colons");
    assert_eq!(bob.contents().await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateways_header_names_the_owner() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "owner_header", "X-User").await?;
    let ann = Sender {
        app: &app,
        header: ("x-user", "ann"),
    };
    ann.turn("1", "2").await?;
    for (name, found) in [
        ("ann", 2),
        ("Ann", 0),
        ("ann\u{a0}", 0),
        ("cn=ann, dc=org", 0),
        ("Änn", 0),
    ] {
        let sender = Sender {
            app: &app,
            header: ("X-User", name),
        };
        assert_eq!(sender.contents().await?.len(), found, "{name}");
    }
    let long = "x".repeat(156);
    for values in [&[][..], &[""], &["ann", "ann"], &["ann", "bob"], &[&long]] {
        let headers: Vec<_> = values.iter().map(|it| ("x-user", *it)).collect();
        let answer = app
            .client
            .prompt_with(&headers, &prompt("app", "Hi"))
            .await?;
        let (code, error) = answer.refused(401).await?;
        assert_eq!(code, "unauthorized", "{values:?}");
        ensure!(error.contains("`owner_header`"), "{error}");
    }
    assert_eq!(app.ollama.chats(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_keys_and_a_header_a_request_needs_both() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .variable("api_keys", "gateway:secret")
        .variable("owner_header", "x-user")
        .start()
        .await?;
    let (key, user) = (("authorization", "Bearer secret"), ("x-user", "ann"));
    for headers in [&[key][..], &[user], &[("authorization", "Bearer x"), user]] {
        let answer = app.client.get("/llmchat/app", headers).await?;
        assert_eq!(answer.refusal(401).await?, "unauthorized", "{headers:?}");
    }
    let page = app.client.get("/llmchat/app", &[key, user]).await?;
    assert_eq!(page.json(200).await?["messages"], json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_is_told_without_its_text() -> Result<()> {
    for (variable, value, told) in [
        ("api_keys", "s3cret", "entry 1 has no colon"),
        ("api_keys", "a:1 :s3cret", "entry 2 has a name"),
        (
            "api_keys",
            "a:s3cret b:s3cret",
            "entry 2 has the token of entry 1",
        ),
        ("owner_header", "x user", "the name of a header"),
        ("owner_header", "Authorization", "not with a secret"),
    ] {
        let app = TestApp::with(Backend::Sqlite, variable, value).await?;
        for key in ["Bearer s3cret", "Bearer 1"] {
            let answer = Sender::with_key(&app, key).prompt("Hi", &[]).await?;
            let (code, error) = answer.refused(500).await?;
            assert_eq!(code, "misconfigured", "{value}");
            ensure!(error.contains(variable) && error.contains(told), "{error}");
            for text in [error, app.log()?] {
                ensure!(!text.contains("s3cret"), "{text}");
            }
        }
        assert_eq!(app.ollama.chats(), 0);
    }
    Ok(())
}
