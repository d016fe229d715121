//! What is refused: with its status and a JSON error that names the field; nothing is stored and
//! Ollama is not called.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::Method;
use llmchat_testkit::{Backend, TestApp, on_both_stores};
use ollama_stand_in::Script;
use serde_json::{Value, json};

/// A body, and what its refusal must name.
fn bodies() -> Vec<(String, &'static str)> {
    let body = |change: fn(&mut Value)| {
        let mut body = llmchat_testkit::prompt("app", "Hi");
        change(&mut body);
        body.to_string()
    };
    let raw = |json: &str| {
        format!(
            "{{\"appID\":\"app\",\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}]{json}}}"
        )
    };
    vec![
        (String::new(), "empty"),
        ("  \n".to_owned(), "empty"),
        ("hello".to_owned(), "expected value"),
        (raw("")[..40].to_owned(), "EOF"),
        (raw("") + "{}", "trailing"),
        ("[]".to_owned(), "appID"),
        ("7".to_owned(), "appID"),
        ("\"appID\"".to_owned(), "appID"),
        ("null".to_owned(), "appID"),
        ("{}".to_owned(), "appID"),
        (body(|b| b["appID"] = Value::Null), "appID"),
        (body(|b| b["appID"] = json!("")), "appID"),
        (body(|b| b["appID"] = json!(7)), "appID"),
        (body(|b| b["appID"] = json!("x".repeat(156))), "appID"),
        (body(|b| b["appID"] = json!("😀".repeat(156))), "appID"),
        (body(|b| b["appID"] = json!("a\0b")), "appID"),
        (
            body(|b| drop(b.as_object_mut().and_then(|b| b.remove("appID")))),
            "appID",
        ),
        (
            body(|b| drop(b.as_object_mut().and_then(|b| b.remove("model")))),
            "model",
        ),
        (body(|b| b["model"] = Value::Null), "model"),
        (body(|b| b["model"] = json!(["m"])), "model"),
        (
            body(|b| drop(b.as_object_mut().and_then(|b| b.remove("messages")))),
            "messages",
        ),
        (body(|b| b["messages"] = Value::Null), "messages"),
        (body(|b| b["messages"] = json!({})), "messages"),
        (body(|b| b["messages"] = json!("Hi")), "messages"),
        (body(|b| b["messages"] = json!([])), "messages"),
        (body(|b| b["messages"][0] = json!("Hi")), "messages[0]"),
        (
            body(|b| b["messages"][0] = json!(["user", "Hi"])),
            "messages[0]",
        ),
        (
            body(|b| b["messages"][0] = json!({"content": "Hi"})),
            "role",
        ),
        (
            body(|b| b["messages"][0] = json!({"role": "user"})),
            "content",
        ),
        (body(|b| b["messages"][0]["role"] = json!("")), "role"),
        (
            body(|b| b["messages"][0]["role"] = json!("x".repeat(1000))),
            "role",
        ),
        (body(|b| b["messages"][0]["role"] = json!("us\0er")), "role"),
        (
            body(|b| b["messages"][0]["content"] = Value::Null),
            "content",
        ),
        (
            body(|b| b["messages"][0]["content"] = json!(["Hi"])),
            "content",
        ),
        (
            body(|b| b["messages"][0]["content"] = json!("a\0b")),
            "content",
        ),
        (
            body(|b| b["messages"][0]["images"] = json!(["aGk="])),
            "images",
        ),
        (
            body(|b| b["messages"][0]["tool_calls"] = json!([])),
            "tool_calls",
        ),
        (body(|b| b["stream"] = json!("true")), "stream"),
        (body(|b| b["stream"] = json!(1)), "stream"),
        (body(|b| b["stream"] = Value::Null), "stream"),
        (raw(",\"options\":{\"stop\":\"\\ud800\"}"), "options"),
        (raw("").replace("Hi", "\\udc00"), "content"),
        (raw("").replace("app\"", "\\ud800x\""), "appID"),
        (
            raw(&format!(",\"options\":{}", "[".repeat(1000))),
            "options",
        ),
        ("[".repeat(200_000), "appID"),
        ("{\"a\":".repeat(100_000), ""),
        (
            raw(&format!(
                ",\"format\":{}{}",
                "[".repeat(200_000),
                "]".repeat(200_000)
            )),
            "format",
        ),
    ]
}

/// Nothing of it can be seen behind the program.
async fn left_no_trace(app: &TestApp) -> Result<()> {
    ensure!(app.ollama.chats() == 0, "Ollama was called");
    ensure!(app.row_count().await? == 0, "something was stored");
    Ok(())
}

on_both_stores! {
    async fn a_bad_body_is_a_422_that_names_the_field(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for (body, field) in bodies() {
            let shown: String = body.chars().take(200).collect();
            let answer = app.client.post(body).await?;
            let error = answer.error(422).await.context(shown.clone())?;
            ensure!(error.starts_with("Deserializing request: "), "{shown}: {error}");
            ensure!(error.contains(field), "{shown}: {error}");
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
        let app = TestApp::on(backend).variable("max_body_bytes", 10_000).start().await?;
        let long = llmchat_testkit::prompt("app", &"x".repeat(10_000)).to_string();
        let error = app.client.post(long.clone()).await?.error(413).await?;
        assert!(error.contains("10000"), "{error}");
        let chunks = long.as_bytes().chunks(1000).map(Bytes::copy_from_slice).collect();
        app.client.post_chunked(chunks).await?.error(413).await?;
        left_no_trace(&app).await?;

        // One that just fits, in chunks as well.
        app.ollama.always(Script::reply(["ok"]));
        let around = llmchat_testkit::prompt("app", "").to_string().len();
        let fits = llmchat_testkit::prompt("app", &"x".repeat(10_000 - around)).to_string();
        let chunks = fits.as_bytes().chunks(999).map(Bytes::copy_from_slice).collect();
        app.client.post(fits.clone()).await?.events().await?.rest().await?;
        app.client.post_chunked(chunks).await?.events().await?.rest().await?;
        assert_eq!(app.row_count().await?, 4);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_passes_by_default_and_two_do_not() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(Script::reply(["ok"]));
    app.ask("app", &"x".repeat(1_000_000)).await?;
    let answer = app.prompt("app", &"x".repeat(2_000_000)).await?;
    answer.error(413).await?;
    assert_eq!(app.row_count().await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_method_is_a_405_that_allows_post() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for method in [
        Method::GET,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
    ] {
        for path in ["/llmchat/", "/llmchat"] {
            let answer = app.client.request(method.clone(), path).await?;
            assert_eq!(answer.header("allow"), Some("POST"), "{method} {path}");
            answer.error(405).await?;
        }
    }
    let head = app.client.request(Method::HEAD, "/llmchat/").await?;
    assert_eq!(
        (head.status().as_u16(), head.header("allow")),
        (405, Some("POST"))
    );
    left_no_trace(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_path_is_a_404() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for path in [
        "/",
        "/llm",
        "/llmchat/x",
        "/llmchatx",
        "/LLMCHAT/",
        "//llmchat/",
        "/api/chat",
    ] {
        for method in [Method::GET, Method::POST] {
            app.client
                .request(method, path)
                .await?
                .error(404)
                .await
                .context(path)?;
        }
    }
    left_no_trace(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_no_part_of_the_path() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let answer = app
        .client
        .request(Method::POST, "/llmchat/?appID=app")
        .await?;
    let error = answer.error(422).await?;
    assert!(error.contains("empty"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_stores_nothing() -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let app = TestApp::start(Backend::Sqlite).await?;
    let body = llmchat_testkit::prompt("app", "Hi").to_string();
    let length = body.len();
    for framing in [
        // Whole JSON, and yet not the whole body.
        format!("Content-Length: {}\r\n\r\n{body}", length + 1),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n"),
    ] {
        let mut socket = tokio::net::TcpStream::connect(app.address()).await?;
        let head = "POST /llmchat/ HTTP/1.1\r\nHost: localhost\r\n";
        socket
            .write_all(format!("{head}{framing}").as_bytes())
            .await?;
        socket.shutdown().await?;
        let mut answer = Vec::new();
        let _ = llmchat_testkit::within("the end", socket.read_to_end(&mut answer)).await?;
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    left_no_trace(&app).await
}
