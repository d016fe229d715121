//! Pages of other origins, in Chromium: what they send, and what they get.
//!
//! The scripts of the pages are beside this file. Plain HTTP to a name, unlike to a loopback address, has no
//! `Sec-Fetch-Site`, as behind old browsers: both are tried.

use std::fs;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Browser, Site, TestApp, Wire, prompt, until};
use ollama_stand_in::{Gate, Script};
use serde_json::{Value, json};

/// llmchat as pages reach it: by its address, and by a name.
fn servers(app: &TestApp) -> [String; 2] {
    let port = app.address().port();
    ["127.0.0.1", "chat.example"].map(|name| format!("http://{name}:{port}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_gets_and_changes_nothing() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let app = TestApp::with(Backend::Sqlite, "allowed_origins", "https://other.example").await?;
    let turn = app.turn("kept", "mine", "yours").await?;
    let before = (app.conversation("kept").await?, app.row_count().await?);
    // The second is of the same site as the address.
    for name in ["app.example", "127.0.0.1"] {
        let site = Site::start().await?;
        let origin = site.origin(name);
        let given = json!({ "servers": servers(&app), "turn": turn });
        let mut page = Browser::open(site, &origin, include_str!("origins/refused.js"), &given)?;
        for server in servers(&app) {
            let told = page.told().await?;
            let fetches = "TypeError,TypeError,TypeError";
            let expected = json!({
                "json": "TypeError",
                "with cookies": "TypeError",
                "plain": "TypeError",
                "plain, unread": "opaque 0",
                "beacon": true,
                "read": "TypeError",
                "delete": "TypeError",
                "stop": "opaque 0",
                "watch": "error closed",
                "worker": fetches,
                "sandboxed frame": format!("null,{fetches}"),
                "data: URL": format!("null,{fetches}"),
                "image": "error",
                "image of a stream": "error",
                "script": "error",
                "style": "error",
                "frame of a conversation": "unreadable",
                "frame of a turn": "unreadable",
                "form": "unreadable",
                "socket": "error",
            });
            assert_eq!(told, expected, "a page of {name} and {server}");
        }
    }
    let after = (app.conversation("kept").await?, app.row_count().await?);
    assert_eq!((after, app.ollama.chats()), (before, 1));
    Ok(())
}

/// An app's origin, as its operator may have written it down.
fn listed(origin: &str) -> String {
    format!("https://other.example, {}/", origin.to_uppercase())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_an_allowed_origin_does_all_and_reads_all() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let site = Site::start().await?;
    let origin = site.origin("app.example");
    let app = TestApp::on(Backend::Sqlite)
        .variable("allowed_origins", listed(&origin))
        .variable("api_keys", "page:s3cret")
        .variable("max_turns_per_minute", 1)
        .start()
        .await?;
    // Counts what the browser sends.
    let counted = Site::start().await?;
    counted.lead_to(app.address());
    let gate = Gate::new();
    app.ollama
        .push(Script::new().token("a").gate(&gate).token("b").done());

    let given = json!({ "at": counted.origin("chat.example"), "token": "s3cret" });
    let mut page = Browser::open(site, &origin, include_str!("origins/allowed.js"), &given)?;
    let first = page.told().await?;
    assert_eq!(first["status"], 200, "{first}");
    assert_eq!(
        first["headers"],
        json!(["x-turn-id", "location", "x-context"])
    );
    assert!(
        first["text"].to_string().contains(r#"\"content\":\"a\""#),
        "{first}"
    );
    let limited = json!({ "status": 429, "headers": ["retry-after"], "code": "rate_limited" });
    assert_eq!(first["limited"], limited);
    gate.open();
    let rest = page.told().await?;
    assert!(rest.to_string().contains(r#"\"done\":true"#), "{rest}");

    let mut told = page.told().await?;
    let replay = told["replay"].take();
    assert_eq!(
        replay["headers"],
        json!(["x-turn-id", "location", "idempotency-replayed"])
    );
    assert!(
        replay["text"].to_string().contains(r#"\"content\":\"b\""#),
        "{replay}"
    );
    let refused = |status, code| json!({ "status": status, "headers": [], "code": code });
    let expected = json!({
        "replay": null,
        "page": 2,
        "another path": refused(404, "not_found"),
        "another turn": refused(404, "not_found"),
        "another method": "TypeError",
        "a wrong key": refused(401, "unauthorized"),
        "no key": refused(401, "unauthorized"),
        "malformed": refused(422, "invalid_request"),
        "delete": 204,
    });
    assert_eq!(told, expected);
    assert_eq!((app.row_count().await?, app.ollama.chats()), (0, 1));
    // It asks once for a path, and not at all where it need not.
    let asked = counted
        .passed()
        .into_iter()
        .filter(|it| it == "OPTIONS /llmchat/ 204");
    assert_eq!(asked.count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_an_allowed_origin_watches_with_a_stock_event_source() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    for is_any in [false, true] {
        let site = Site::start().await?;
        // Cookies are those of the host, whatever the port.
        let origin = site.origin("127.0.0.1");
        let allowed = if is_any {
            "*".to_owned()
        } else {
            listed(&origin)
        };
        let app = TestApp::with(Backend::Sqlite, "allowed_origins", allowed).await?;
        let gate = Gate::new();
        let events = app
            .begin("app", "Hi", Script::new().token("a").gate(&gate).done())
            .await?;
        let at = format!("http://{}", app.address());
        let given = json!({ "at": at, "turn": events.turn(), "isAny": is_any });
        let mut page = Browser::open(site, &origin, include_str!("origins/open.js"), &given)?;
        if is_any {
            let told = page.told().await?;
            let expected = json!({ "without": 200, "with": "TypeError", "prompt": "opaque" });
            assert_eq!(told, expected);
            assert_eq!((app.row_count().await?, app.ollama.chats()), (1, 1));
        }
        let told = page.told().await?;
        assert_eq!(told, json!({ "withCredentials": false, "content": "a" }));
        gate.open();
        if !is_any {
            let told = page.told().await?;
            assert_eq!(told, json!({ "withCredentials": true, "content": "a" }));
            assert_eq!(page.told().await?, 200);
        }
        events.rest().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_another_page_leads_to_the_start_and_to_no_conversation() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let app = TestApp::start(Backend::Sqlite).await?;
    for (path, answered) in [
        // There is no page yet.
        ("/", "GET / 404"),
        ("/llmchat/app", "GET /llmchat/app 403"),
    ] {
        let site = Site::start().await?;
        let origin = site.origin("app.example");
        let server = Site::start().await?;
        server.lead_to(app.address());
        let given = json!(server.origin("127.0.0.1") + path);
        let script = r#"await tell("here"); location.href = given;"#;
        let mut page = Browser::open(site, &origin, script, &given)?;
        page.told().await?;
        let is_answered = async || Ok(!server.passed().is_empty());
        until("the end of a link", is_answered).await?;
        assert_eq!(server.passed().first().map(String::as_str), Some(answered));
    }
    Ok(())
}

/// The blocks of a kind in a document that contain this text.
pub(crate) fn blocks(document: &str, kind: &str, text: &str) -> Result<String> {
    let path = format!("{}/../../{document}", env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(path)?;
    let blocks = page.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix(kind));
    let found: String = blocks.filter(|block| block.contains(text)).collect();
    ensure!(!found.is_empty(), "{document} has no {kind} with {text}");
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_client_goes_on_after_a_lost_connection() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let site = Site::start().await?;
    // `crypto.randomUUID` is for pages that came by TLS or from this machine.
    let origin = site.origin("localhost");
    let app = TestApp::on(Backend::Sqlite)
        .variable("allowed_origins", &origin)
        .variable("api_keys", "page:s3cret")
        .variable("checkpoint_interval", "50ms")
        .start()
        .await?;
    let wire = Wire::to(app.address()).await?;
    // More than the client bears without a word in between.
    let gates: Vec<_> = ('a'..='h').map(|word| (word, Gate::new())).collect();
    let script = gates.iter().fold(Script::new(), |script, (word, gate)| {
        script.token(&word.to_string()).gate(gate)
    });
    app.ollama.push(script.token(".").done());

    let client = blocks("docs/api.md", "js", "async function")?;
    let script = r#"
        const reply = await ask(`${given.at}/llmchat/`, "s3cret", given.prompt, (reply) => tell(reply));
        await tell({ reply });
        await ask(`${given.at}/llmchat/`, "wrong", given.prompt).catch(
            ({ code, status, message }) => tell({ code, status, message }));
    "#;
    let given =
        json!({ "at": format!("http://{}", wire.address()), "prompt": prompt("app", "Hi") });
    let mut page = Browser::open(site, &origin, &format!("{client}{script}"), &given)?;
    let mut reply = String::new();
    for (word, gate) in &gates {
        reply.push(*word);
        while page.told().await? != *reply {}
        wire.cut();
        gate.open();
    }
    let mut told = page.told().await?;
    while told.is_string() {
        told = page.told().await?;
    }
    assert_eq!(told, json!({ "reply": "abcdefgh." }));
    let refused = page.told().await?;
    assert_eq!(
        (&refused["code"], &refused["status"]),
        (&json!("unauthorized"), &json!(401))
    );
    assert!(
        refused["message"].to_string().contains("Bearer"),
        "{refused}"
    );
    assert_eq!((app.row_count().await?, app.ollama.chats()), (2, 1));
    Ok(())
}

/// What a page of `name` is answered whose name leads to the server: what it asks, and with which code it is refused.
pub(crate) async fn rebound(app: &TestApp, name: &str, turn: &str) -> Result<Value> {
    let site = Site::start().await?;
    site.lead_to(app.address());
    let origin = site.origin(name);
    let given = json!({ "turn": turn });
    let mut page = Browser::open(site, &origin, include_str!("origins/rebound.js"), &given)?;
    page.told().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_keys_a_page_whose_name_leads_to_the_server_gets_nothing() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let app = TestApp::with(Backend::Sqlite, "api_keys", "ann:s3cret").await?;
    let turn = "/llmchat/kept/turns/0199f3a1-5c00-7000-8000-000000000001";
    let told = rebound(&app, "evil.example", turn).await?;
    assert_eq!(told, json!(vec!["401 unauthorized"; 5]));
    assert_eq!((app.row_count().await?, app.ollama.chats()), (0, 0));
    Ok(())
}
