//! The host's server, whatever its clients do: connections, half requests, framing, names.

use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, prompt, until_refused, within};
use ollama_stand_in::{Gate, Script, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Opens a connection and sends these bytes.
async fn send(app: &TestApp, bytes: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(app.address()).await?;
    stream.write_all(bytes.as_bytes()).await?;
    Ok(stream)
}

/// All that comes until the connection ends; an error if it ends in a reset.
async fn read(mut stream: TcpStream) -> Result<String> {
    let mut bytes = Vec::new();
    within("the end of a connection", stream.read_to_end(&mut bytes)).await??;
    Ok(String::from_utf8(bytes)?)
}

async fn read_until(stream: &mut TcpStream, text: &str) -> Result<()> {
    let mut bytes = Vec::new();
    within("the beginning of an answer", async {
        while !String::from_utf8_lossy(&bytes).contains(text) {
            ensure!(stream.read_buf(&mut bytes).await? > 0, "it ended");
        }
        Ok(())
    })
    .await?
}

/// A prompt with this start line and these headers.
fn request(version: &str, headers: &str) -> String {
    let body = prompt("app", "Hi").to_string();
    let length = body.len();
    format!("POST /llmchat/ {version}\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn every_refusal_of_the_host_is_json_with_a_code_and_a_length() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let close = "connection: close\r\n";
    for (headers, status, code) in [
        ("", 400, "invalid_host"),
        ("host: a\r\nhost: a\r\n", 400, "invalid_host"),
        ("host: a\r\nhost: b\r\n", 400, "invalid_host"),
        ("host:\r\n", 400, "invalid_host"),
        ("host: a b\r\n", 400, "invalid_host"),
    ] {
        let answer =
            read(send(&app, &request("HTTP/1.1", &format!("{headers}{close}"))).await?).await?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{headers:?}: {answer}"
        );
        ensure!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{headers:?}: {answer}"
        );
        ensure!(
            answer.contains("content-type: application/json"),
            "{answer}"
        );
        ensure!(answer.contains("content-length: "), "{answer}");
    }
    ensure!(app.row_count().await? == 0, "something was stored");
    Ok(())
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_a_408_and_takes_no_instance() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .request_timeout(Duration::from_secs(1))
        .start()
        .await?;
    let start = "POST /llmchat/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(send(&app, start).await?);
    }
    for stream in streams {
        let answer = read(stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        ensure!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    }
    ensure!(app.instances()? == 0, "{} instances", app.instances()?);
    Ok(())
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_in_time() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .request_timeout(Duration::from_secs(1))
        .start()
        .await?;
    for start in ["", "POST /llmchat/ HTTP/1.1\r\nhost: a"] {
        let answer = read(send(&app, start).await?).await?;
        ensure!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_a_stop() -> Result<()> {
    let mut app = TestApp::start(Backend::Sqlite).await?;
    let mut open = vec![
        send(&app, "").await?,
        send(&app, "POST /llmchat/ HTTP/1.1\r\nhost: a").await?,
        send(
            &app,
            "POST /llmchat/ HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{",
        )
        .await?,
    ];
    // One that is kept after a response.
    let mut idle = send(&app, "GET /llmchat/ HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    read_until(&mut idle, "}").await?;
    open.push(idle);
    ensure!(
        within("the stop", app.stop()).await?? == 0,
        "something was cut off"
    );
    Ok(())
}

#[tokio::test]
async fn a_reply_that_is_cut_does_not_look_whole_to_a_client_of_http_1_0() -> Result<()> {
    let mut app = TestApp::on(Backend::Sqlite)
        .drain(Duration::ZERO)
        .start()
        .await?;
    app.ollama.push(Script::new().token("a").hang());
    let mut stream = send(&app, &request("HTTP/1.0", "")).await?;
    read_until(&mut stream, &wire::token("a")).await?;
    app.stop().await?;
    ensure!(read(stream).await.is_err(), "it ended like a whole one");
    Ok(())
}

#[tokio::test]
async fn a_whole_reply_ends_cleanly_for_a_client_of_http_1_0() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["a", "b"]));
    for headers in ["", "host: localhost\r\n", "connection: keep-alive\r\n"] {
        let answer = read(send(&app, &request("HTTP/1.0", headers)).await?).await?;
        ensure!(answer.contains(&wire::done()), "{answer}");
        ensure!(!answer.contains("transfer-encoding"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stop_lets_a_reply_end_beside_half_a_request() -> Result<()> {
    let mut app = TestApp::start(Backend::Sqlite).await?;
    let gate = Gate::new();
    let events = app
        .begin("app", "Hi", Script::new().token("a").gate(&gate).done())
        .await?;
    let half = send(&app, "POST /llmchat/ HTTP/1.1\r\n").await?;
    let address = app.address();
    let (stopped, rest) = tokio::join!(within("the stop", app.stop()), async {
        until_refused(address).await?;
        ensure!(
            read(half).await.unwrap_or_default().is_empty(),
            "half a request was answered"
        );
        gate.open();
        events.rest().await
    });
    ensure!(stopped?? == 0, "something was cut off");
    ensure!(rest?.len() == 1, "the reply has no end");
    Ok(())
}
