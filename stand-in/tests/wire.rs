//! The stand-in as its clients see it, over bare sockets.

#![allow(clippy::indexing_slicing, reason = "a missing JSON field is null")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ollama_stand_in::{Config, Ending, Gate, Refused, Script, Server, Unresponsive, wire};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

/// Sends one request; the answer is read from what is returned.
async fn send(
    server: &Server,
    method: &str,
    path: &str,
    body: &str,
    headers: &str,
) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server.address()).await?;
    let host = if headers.contains("Host:") {
        ""
    } else {
        "Host: localhost\r\n"
    };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

async fn chat(server: &Server, body: &Value) -> Result<TcpStream> {
    send(server, "POST", "/api/chat", &body.to_string(), "").await
}

/// Reads until the text ends so.
async fn read_to(stream: &mut TcpStream, end: &str) -> Result<String> {
    let mut text = Vec::new();
    timeout(LONG, async {
        while !text.ends_with(end.as_bytes()) {
            let read = stream.read_buf(&mut text).await?;
            anyhow::ensure!(read > 0, "ended after {:?}", String::from_utf8_lossy(&text));
        }
        Ok(String::from_utf8(text)?)
    })
    .await?
}

/// The objects of a chunked NDJSON answer, each of which must be a chunk of its own.
fn lines(answer: &str) -> Result<Vec<Value>> {
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let mut lines = Vec::new();
    for chunk in body.trim_end().split("\r\n").collect::<Vec<_>>().chunks(2) {
        if let [length, line] = chunk {
            assert_eq!(usize::from_str_radix(length, 16)?, line.len());
            lines.push(serde_json::from_str(line)?);
        }
    }
    Ok(lines)
}

fn content(lines: &[Value]) -> String {
    lines
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect()
}

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
}

#[tokio::test]
async fn it_streams_by_default_and_says_what_it_is() -> Result<()> {
    for rate in [None, Some(1000.0)] {
        let server = Server::start(Config {
            rate,
            ..Config::default()
        })
        .await?;
        let mut stream = chat(&server, &hello()).await?;
        let answer = read_to(&mut stream, "\r\n0\r\n\r\n").await?;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"),
            "{answer}"
        );
        let lines = lines(&answer)?;
        assert!(content(&lines).contains("no model is behind these words"));
        assert!(
            content(&lines).ends_with("Your conversation has 1 message; the last one was: Hello")
        );
        let last = lines.last().context("no line")?;
        assert_eq!(
            (&last["done"], &last["done_reason"]),
            (&json!(true), &json!("stop"))
        );
        assert_eq!(last["eval_count"], lines.len() - 1);
        // The connection is kept: the same socket answers again.
        stream
            .write_all(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        read_to(&mut stream, "-stand-in\"}").await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_streaming_it_answers_one_object() -> Result<()> {
    let server = Server::start(Config {
        tokens: Some(3),
        ..Config::default()
    })
    .await?;
    let mut request = hello();
    request["stream"] = json!(false);
    let mut stream = chat(&server, &request).await?;
    let answer = read_to(&mut stream, "}").await?;
    assert!(
        answer.contains("application/json") && answer.contains("\"done\":true"),
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn it_refuses_as_ollama_does() -> Result<()> {
    let server = Server::start(Config::default()).await?;
    for (method, path, body, headers, status, words) in [
        ("GET", "/nowhere", "", "", 404, "404 page not found"),
        ("GET", "/api/chat", "", "", 405, "405 method not allowed"),
        (
            "POST",
            "/api/chat",
            "",
            "",
            400,
            "{\"error\":\"missing request body\"}",
        ),
        (
            "POST",
            "/api/chat",
            "{}",
            "",
            400,
            "{\"error\":\"model is required\"}",
        ),
        (
            "GET",
            "/",
            "",
            "Host: example.com\r\n",
            403,
            "Content-Length: 0\r\n\r\n",
        ),
        (
            "GET",
            "/",
            "",
            "Origin: https://example.com\r\n",
            403,
            "Content-Length: 0\r\n\r\n",
        ),
        (
            "GET",
            "/",
            "",
            "Origin: http://localhost:3000\r\n",
            200,
            "no model is here",
        ),
    ] {
        let mut stream = send(&server, method, path, body, headers).await?;
        let answer = read_to(&mut stream, words).await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {path}: {answer}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn no_messages_load_the_model() -> Result<()> {
    let server = Server::start(Config::default()).await?;
    let mut stream = chat(&server, &json!({"model": "m", "messages": []})).await?;
    let answer = read_to(&mut stream, "}").await?;
    assert!(answer.contains("\"done_reason\":\"load\""), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_chunked_request_is_read_whole() -> Result<()> {
    let server = Server::scripted().await?;
    server.push(Script::reply(["ok"]));
    let mut stream = TcpStream::connect(server.address()).await?;
    for part in [
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"a\"",
        "\r\n3;x=y\r\n:1}\r\n0",
        "\r\n\r\n",
    ] {
        stream.write_all(part.as_bytes()).await?;
        stream.flush().await?;
    }
    read_to(&mut stream, "\r\n0\r\n\r\n").await?;
    assert_eq!(server.chat(1).await.request().json()?, json!({"a": 1}));
    Ok(())
}

#[tokio::test]
async fn nothing_leaves_before_the_gate_is_open_not_even_a_head() -> Result<()> {
    let server = Server::scripted().await?;
    let gate = Gate::new();
    server.push(Script::new().gate(&gate).token("a").done());
    let mut stream = chat(&server, &hello()).await?;
    timeout(LONG, gate.reached()).await?;
    assert_eq!(server.chat(1).await.bytes_sent(), 0);
    gate.open();
    let answer = read_to(&mut stream, "\r\n0\r\n\r\n").await?;
    assert!(
        answer.contains(&wire::token("a")) && answer.contains(&wire::done()),
        "{answer}"
    );
    assert_eq!(
        timeout(LONG, server.chat(1).await.ended()).await?,
        Ending::Complete
    );
    assert_eq!(server.chat(1).await.chunks_sent(), 2);
    Ok(())
}

#[tokio::test]
async fn the_client_that_leaves_is_seen() -> Result<()> {
    let server = Server::scripted().await?;
    for script in [
        Script::silence(),
        Script::new().token("a").hang(),
        Script::new().endless("x"),
    ] {
        server.push(script);
        let stream = chat(&server, &hello()).await?;
        let exchange = timeout(LONG, server.chat(server.chats() + 1)).await?;
        assert_eq!(exchange.ending(), None);
        drop(stream);
        assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::ClientLeft);
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_stops_is_seen() -> Result<()> {
    let server = Server::scripted().await?;
    server.push(Script::new().endless("x".repeat(1000)));
    let _stream = chat(&server, &hello()).await?;
    let exchange = timeout(LONG, server.chat(1)).await?;
    let sent = timeout(LONG, exchange.stalled(Duration::from_millis(300))).await?;
    assert_eq!(exchange.bytes_sent(), sent);
    Ok(())
}

#[tokio::test]
async fn a_body_can_break_off_and_a_connection_can_be_cut() -> Result<()> {
    let server = Server::scripted().await?;
    server.push(Script::new().token("a").break_off());
    let mut stream = chat(&server, &hello()).await?;
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await??;
    assert!(
        answer.contains(&wire::token("a")) && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );

    server.push(Script::new().token("a").reset());
    let mut stream = chat(&server, &hello()).await?;
    let cut = timeout(LONG, stream.read_to_end(&mut Vec::new())).await?;
    assert!(cut.is_err(), "{cut:?}");
    assert_eq!(server.chat(2).await.ending(), Some(Ending::BrokenOff));
    Ok(())
}

#[tokio::test]
async fn a_test_that_forgot_its_script_is_told() -> Result<()> {
    let server = Server::scripted().await?;
    let mut stream = chat(&server, &hello()).await?;
    let answer = read_to(&mut stream, "}").await?;
    assert!(
        answer.contains("HTTP/1.1 500 ") && answer.contains("no script"),
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_listens_at_a_refused_address() -> Result<()> {
    let refused = Refused::new()?;
    let error = TcpStream::connect(refused.address())
        .await
        .err()
        .context("connected")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    Ok(())
}

#[tokio::test]
async fn an_unresponsive_address_leaves_one_waiting() -> Result<()> {
    let nobody = Unresponsive::new().await?;
    let connecting = timeout(
        Duration::from_millis(500),
        TcpStream::connect(nobody.address()),
    );
    assert!(connecting.await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_stopped_stand_in_cuts_its_connections() -> Result<()> {
    let server = Server::scripted().await?;
    server.push(Script::silence());
    let mut stream = chat(&server, &hello()).await?;
    let exchange = timeout(LONG, server.chat(1)).await?;
    drop(server);
    let _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await?;
    assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::Stopped);
    Ok(())
}

#[tokio::test]
async fn a_rate_is_kept_over_many_streams() -> Result<()> {
    let config = Config {
        rate: Some(100.0),
        tokens: Some(21),
        ..Config::default()
    };
    let server = Server::start(config).await?;
    let begun = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(chat(&server, &hello()).await?);
    }
    for mut stream in streams {
        read_to(&mut stream, "\r\n0\r\n\r\n").await?;
    }
    // 20 gaps of 10 ms. No upper bound that a busy machine could break.
    assert!(
        begun.elapsed() >= Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    Ok(())
}
