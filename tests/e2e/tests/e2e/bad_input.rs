//! What is refused: with its status and a JSON error that names the field; nothing is stored and
//! Ollama is not called.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use llmchat_testkit::{Answer, Backend, Event, TestApp, messages, on_both_stores, prompt, within};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod keys;
mod paths;
mod positions;

/// The message of a refusal with this status and code; an error if the answer is another.
async fn refused(answer: Answer, status: u16, code: &str) -> Result<String> {
    let (came, error) = answer.refused(status).await?;
    ensure!(came == code, "{came} instead of {code}: {error}");
    Ok(error)
}

/// A good prompt with one change.
fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut body = prompt("app", "Hi");
    change(&mut body);
    body.to_string()
}

/// JSON objects with one thing wrong, and what their refusal must name.
fn bad_objects() -> Vec<(String, &'static str)> {
    let mut bodies = Vec::new();
    for field in ["appID", "model", "messages"] {
        let body = changed(|body| drop(body.as_object_mut().and_then(|body| body.remove(field))));
        bodies.push((body, field));
    }
    for (field, value) in [
        ("appID", Value::Null),
        ("appID", json!("")),
        ("appID", json!(7)),
        ("appID", json!("x".repeat(156))),
        ("appID", json!("😀".repeat(156))),
        ("appID", json!("a\0b")),
        ("model", Value::Null),
        ("model", json!(["m"])),
        ("messages", Value::Null),
        ("messages", json!({})),
        ("messages", json!("Hi")),
        ("messages", json!([])),
        ("stream", json!("true")),
        ("stream", json!(1)),
        ("stream", Value::Null),
    ] {
        bodies.push((changed(|body| body[field] = value), field));
    }
    for (field, value) in [
        ("role", json!("")),
        ("role", json!("x".repeat(1000))),
        ("role", json!("us\0er")),
        ("content", Value::Null),
        ("content", json!(["Hi"])),
        ("content", json!("a\0b")),
        ("images", json!(["aGk="])),
        (
            "tool_calls",
            json!([{"function": {"name": "f", "arguments": {}}}]),
        ),
        ("thinking", json!("Hm")),
    ] {
        bodies.push((changed(|body| body["messages"][0][field] = value), field));
    }
    for (message, named) in [
        (json!("Hi"), "messages[0]"),
        (json!(["user", "Hi"]), "messages[0]"),
        (json!({"content": "Hi"}), "role"),
        (json!({"role": "user"}), "content"),
    ] {
        bodies.push((changed(|body| body["messages"][0] = message), named));
    }
    bodies
}

/// Bodies that are no JSON object, or one that `serde_json` would not write.
fn bad_texts() -> Vec<(String, &'static str)> {
    let good = prompt("app", "Hi").to_string();
    let with_field = |field: &str| format!("{},{field}}}", &good[..good.len() - 1]);
    let (deep, closed) = ("[".repeat(200_000), "]".repeat(200_000));
    let deep_options = with_field(&format!("\"options\":{}", &deep[..1000]));
    vec![
        (String::new(), "empty"),
        ("  \n".to_owned(), "empty"),
        ("hello".to_owned(), "expected value"),
        (good[..40].to_owned(), "EOF"),
        (good.clone() + "{}", "trailing"),
        ("[]".to_owned(), "a JSON object"),
        ("7".to_owned(), "a JSON object"),
        ("\"appID\"".to_owned(), "a JSON object"),
        ("null".to_owned(), "a JSON object"),
        ("{}".to_owned(), "appID"),
        (with_field("\"options\":{\"stop\":\"\\ud800\"}"), "options"),
        (good.replace("Hi", "\\udc00"), "content"),
        (good.replace("app\"", "\\ud800x\""), "appID"),
        (deep_options, "options"),
        (deep.clone(), "a JSON object"),
        ("{\"a\":".repeat(100_000), ""),
        (with_field(&format!("\"format\":{deep}{closed}")), "format"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_has_a_code() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for (method, path, status, code) in [
        ("POST", "/llmchat/", 422, "invalid_request"),
        ("GET", "/llmchat/", 405, "method_not_allowed"),
        ("POST", "/", 404, "not_found"),
    ] {
        let answer = app.client.request(method, path, "").await?;
        refused(answer, status, code).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_body_is_a_415() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let mut socket = TcpStream::connect(app.address()).await?;
    let request = format!(
        "POST /llmchat/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Encoding: gzip\r\n\
         Content-Length: 2\r\n\r\n\u{1f}\u{8}",
        app.address()
    );
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    within("the answer", socket.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
    assert!(
        answer.contains("\"code\":\"unsupported_encoding\""),
        "{answer}"
    );
    left_no_trace(&app).await
}

/// A request that sends `pieces` of 10 kB as chunks, one a `pause`, until its connection breaks.
pub(crate) async fn send_slowly(
    to: &mut TcpStream,
    start: &str,
    pieces: usize,
    pause: Duration,
) -> std::io::Result<()> {
    let head = format!("{start}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    to.write_all(head.as_bytes()).await?;
    let piece = format!("2710\r\n{}\r\n", "x".repeat(10_000));
    for _ in 0..pieces {
        to.write_all(piece.as_bytes()).await?;
        tokio::time::sleep(pause).await;
    }
    to.write_all(b"0\r\n\r\n").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_read_whole_by_a_client_that_is_still_sending() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "max_body_bytes", 100_000).await?;
    for (start, status) in [
        ("POST /llmchat/ HTTP/1.1\r\nHost: a", 413),
        ("PUT /llmchat/ HTTP/1.1\r\nHost: a", 405),
        ("POST /elsewhere HTTP/1.1\r\nHost: a", 404),
        (
            "POST /llmchat/ HTTP/1.1\r\nHost: a\r\nOrigin: http://b",
            403,
        ),
        (
            "POST /llmchat/ HTTP/1.1\r\nHost: a\r\nContent-Encoding: br",
            415,
        ),
    ] {
        let mut socket = TcpStream::connect(app.address()).await?;
        // All of it is sent before anything is read.
        let pause = Duration::from_millis(20);
        let sent = within("the body", send_slowly(&mut socket, start, 30, pause)).await?;
        sent.with_context(|| format!("{status}"))?;
        let mut answer = String::new();
        within("the answer", socket.read_to_string(&mut answer)).await??;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        let (_, json) = answer.split_once("\r\n\r\n").context("a body")?;
        let json: Value = serde_json::from_str(json)?;
        ensure!(json["error"].is_string(), "{json}");
    }
    left_no_trace(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_stops_sending_is_refused_and_cut_off() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "max_body_bytes", 100_000).await?;
    let start = "POST /llmchat/ HTTP/1.1\r\nHost: a";
    for pause in [Duration::ZERO, Duration::from_millis(100)] {
        let mut socket = TcpStream::connect(app.address()).await?;
        let sending = send_slowly(&mut socket, start, usize::MAX, pause);
        let sent = within("the end of the connection", sending).await?;
        assert!(sent.is_err());
    }
    left_no_trace(&app).await
}

/// Nothing was stored, and Ollama was not called.
async fn left_no_trace(app: &TestApp) -> Result<()> {
    ensure!(app.ollama.chats() == 0, "Ollama was called");
    ensure!(app.row_count().await? == 0, "something was stored");
    Ok(())
}

on_both_stores! {
    async fn a_bad_body_is_a_422_that_names_the_field(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for (body, named) in [bad_objects(), bad_texts()].concat() {
            let shown: String = body.chars().take(200).collect();
            let answer = app.client.post(body).await?;
            let error = answer.error(422).await.context(shown.clone())?;
            ensure!(error.starts_with("Deserializing request: "), "{shown}: {error}");
            ensure!(error.contains(named), "{shown}: {error}");
            left_no_trace(&app).await.context(shown)?;
        }
        Ok(())
    }

    async fn bytes_that_are_no_text_are_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let body = [&b"{\"appID\":\"\xff\xfe\",\"model\":\"m\",\"messages\":[]}"[..], b"\0\x01\x02"];
        for body in body {
            app.client.post(body).await?.error(422).await?;
        }
        left_no_trace(&app).await
    }

    async fn a_body_over_the_limit_is_a_413(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_body_bytes", 10_000).await?;
        let long = prompt("app", &"x".repeat(10_000)).to_string();
        let error = app.client.post(long.clone()).await?.error(413).await?;
        assert!(error.contains("10000"), "{error}");
        app.client.post_chunked(&long, 1000).await?.error(413).await?;
        left_no_trace(&app).await?;

        // One that just fits, in chunks as well.
        app.ollama.always(Script::reply(["ok"]));
        let around = prompt("app", "").to_string().len();
        let fits = prompt("app", &"x".repeat(10_000 - around)).to_string();
        app.client.post(fits.clone()).await?.read().await?;
        app.client.post_chunked(&fits, 999).await?.read().await?;
        assert_eq!(app.row_count().await?, 4);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_passes_by_default_and_two_do_not() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.turn("app", &"x".repeat(1_000_000), "ok").await?;
    let answer = app.prompt("app", &"x".repeat(2_000_000)).await?;
    answer.error(413).await?;
    assert_eq!(app.row_count().await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_method_is_a_405_that_allows_post() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/llmchat/", "/llmchat"] {
            let answer = app.client.request(method, path, "").await?;
            assert_eq!(answer.header("allow"), Some("POST"), "{method} {path}");
            answer.error(405).await?;
        }
    }
    let head = app.client.request("HEAD", "/llmchat/", "").await?;
    assert_eq!(head.status(), 405);
    assert_eq!(head.header("allow"), Some("POST"));
    left_no_trace(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_path_is_a_404() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for path in [
        "/",
        "/llm",
        "/llmchatx",
        "/LLMCHAT/",
        "//llmchat/",
        "/api/chat",
        "/llmchat/x/turn",
        "/llmchat/x/TURNS",
        "/llmchat/x/messages/y",
        "/llmchat/x/turns/0199f3a1-5c00-7000-8000-000000000001/replies",
        "/llmchat/x/turns/0199f3a1-5c00-7000-8000-000000000001/stop/now",
    ] {
        for method in ["GET", "POST"] {
            let answer = app.client.request(method, path, "").await?;
            answer.error(404).await.context(path)?;
        }
    }
    left_no_trace(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_no_part_of_the_path() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let path = "/llmchat/?appID=app";
    let answer = app.client.request("POST", path, "").await?;
    let error = answer.error(422).await?;
    assert!(error.contains("empty"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_stores_nothing() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let body = prompt("app", "Hi").to_string();
    let length = body.len();
    for framing in [
        // Whole JSON, and yet not the whole body.
        format!("Content-Length: {}\r\n\r\n{body}", length + 1),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n"),
    ] {
        let mut socket = TcpStream::connect(app.address()).await?;
        let request = format!("POST /llmchat/ HTTP/1.1\r\nHost: localhost\r\n{framing}");
        socket.write_all(request.as_bytes()).await?;
        socket.shutdown().await?;
        let mut answer = Vec::new();
        let _ = within("the end", socket.read_to_end(&mut answer)).await?;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    left_no_trace(&app).await
}
