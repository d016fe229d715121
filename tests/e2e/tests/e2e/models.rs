//! `GET /models`: Ollama's list as it is, or why there is none, in bounded time and size.

use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, at_limit, within};
use ollama_stand_in::{Ending, Refused, Script};

const TAGS: &str = "/api/tags";
const JSON: &str = "application/json; charset=utf-8";

/// The code and the words of the refusal that `script` leads to.
async fn refused(script: Script, status: u16) -> Result<(String, String)> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.answer_at(TAGS, script);
    app.client.get("/models", &[]).await?.refused(status).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_is_ollamas_own() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let list = "{\"models\":[{\"name\":\"a:1b\",\"size\": 1e3,\"name\":\"é\"}],\n \"new\":null}";
    app.ollama.answer_at(TAGS, Script::body(200, JSON, list));
    for path in ["/models", "/models/", "/models?a=b"] {
        let answer = app.client.get(path, &[]).await?;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.text().await?, list);
    }
    let head = app.client.request("HEAD", "/models", "").await?;
    assert_eq!(head.status(), 200);
    let (code, _) = app
        .client
        .request("POST", "/models", "{}")
        .await?
        .refused(405)
        .await?;
    assert_eq!(code, "method_not_allowed");
    assert_eq!(app.row_count().await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_whole_and_one_over_the_bound_is_not_read_to_its_end() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let list = format!("{{\"models\":\"{}\"}}", "x".repeat(1_000_000));
    app.ollama
        .answer_at(TAGS, Script::body(200, JSON, list.clone()));
    let answer = app.client.get("/models", &[]).await?;
    ensure!(answer.text().await? == list, "another list");

    let endless = Script::new()
        .bytes("{\"models\":\"")
        .endless("x".repeat(100_000));
    app.ollama.answer_at(TAGS, endless);
    let (code, error) = app.client.get("/models", &[]).await?.refused(502).await?;
    assert_eq!(code, "ollama_refused");
    assert!(error.contains("1048576 bytes"), "{error}");
    let requests = app.ollama.requests(2).await;
    let ended = within("Ollama's end", requests[1].ended()).await?;
    assert_eq!(ended, Ending::ClientLeft);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_list_is_told_in_ollamas_words() -> Result<()> {
    let refuse = |status, words| Script::refuse(status, words);
    for (script, words) in [
        (
            refuse(401, "who are you?"),
            "401: who are you?. Whatever guards",
        ),
        (refuse(500, "out of order"), "status 500: out of order"),
        (
            Script::body(302, "text/html", "<a href=x>Moved</a>"),
            "A redirect is not followed",
        ),
        (
            Script::body(200, "text/html", "<h1>Sign in</h1>"),
            "200: Sign in (text/html)",
        ),
        (Script::body(200, JSON, "[]"), "200: []"),
        (
            Script::body(200, JSON, "{\"models\":["),
            "200: {\"models\":[",
        ),
        (Script::body(200, JSON, ""), "it gave no reason"),
        (
            Script::body(200, JSON, &b"{\"models\":\"\xff\"}"[..]),
            "200: ",
        ),
    ] {
        let (code, error) = refused(script, 502).await?;
        assert_eq!(code, "ollama_refused", "{error}");
        assert!(error.contains(words), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ollama_that_breaks_off_or_is_not_there_is_told() -> Result<()> {
    let half = Script::new().bytes("{\"models\":[").break_off();
    assert_eq!(refused(half, 502).await?.0, "ollama_broke_off");
    assert_eq!(
        refused(Script::new().raw("").reset(), 502).await?.0,
        "ollama_broke_off"
    );
    let nobody = Refused::new()?;
    let app = TestApp::with(Backend::Sqlite, "ollama_url", nobody.url()).await?;
    let (code, _) = app.client.get("/models", &[]).await?.refused(502).await?;
    assert_eq!(code, "ollama_unreachable");
    assert!(app.log()?.contains("ollama_unreachable"), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_does_not_come_or_end_is_given_up_in_time() -> Result<()> {
    let slowly = Script::new().bytes("{\"models\":[").hang();
    for script in [Script::silence(), slowly] {
        let limit = Duration::from_secs(10);
        let (code, error) = at_limit(limit, refused(script, 504)).await??;
        assert_eq!(code, "ollama_timeout");
        assert!(error.contains("within 10s"), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_needs_the_callers_key_and_ollamas_own_and_tells_neither() -> Result<()> {
    const KEY: &str = "sk-0llama-s3cret";
    let app = TestApp::on(Backend::Sqlite)
        .guarded_ollama("/behind/it", KEY)
        .variable("api_keys", "ann:token")
        .start()
        .await?;
    let (code, _) = app.client.get("/models", &[]).await?.refused(401).await?;
    assert_eq!(code, "unauthorized");
    assert_eq!(app.ollama.requests_at(TAGS), 0);
    let own = [("authorization", "Bearer token")];
    app.client.get("/models", &own).await?.json(200).await?;

    app.ollama.answer_at(
        TAGS,
        Script::body(401, JSON, format!("{{\"error\":\"not Bearer {KEY}\"}}")),
    );
    let (_, error) = app.client.get("/models", &own).await?.refused(502).await?;
    assert!(
        error.contains("[ollama_api_key]") && !error.contains("s3cret"),
        "{error}"
    );
    assert!(!app.log()?.contains("s3cret"), "{}", app.log()?);
    Ok(())
}
