//! The stand-in as its clients see it, over bare sockets.

#![allow(clippy::indexing_slicing, reason = "a missing JSON field is null")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ollama_stand_in::{Config, Ending, Gate, Refused, Script, Server, Unresponsive, wire};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const CHAT: &str = "POST /api/chat";
const LOCAL: &str = "Host: localhost\r\n";
/// The end of a streamed answer.
const LAST_CHUNK: &str = "\r\n0\r\n\r\n";

/// Starts a server that answers with its built-in reply.
async fn started(rate: Option<f64>, tokens: Option<usize>) -> Result<Server> {
    Server::start(Config {
        rate,
        tokens,
        ..Config::default()
    })
    .await
}

/// Starts a server with one script, and sends it a chat request.
async fn scripted(script: Script) -> Result<(Server, TcpStream)> {
    let server = Server::scripted().await?;
    server.push(script);
    let stream = chat(&server, &hello()).await?;
    Ok((server, stream))
}

/// Sends a request; its answer can be read from the returned stream.
async fn send(server: &Server, target: &str, headers: &str, body: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server.address()).await?;
    let length = body.len();
    let request = format!("{target} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

async fn chat(server: &Server, body: &Value) -> Result<TcpStream> {
    send(server, CHAT, LOCAL, &body.to_string()).await
}

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
}

/// Reads until the text ends with `end`.
async fn read_to(stream: &mut TcpStream, end: &str) -> Result<String> {
    let mut text = Vec::new();
    timeout(LONG, async {
        while !text.ends_with(end.as_bytes()) {
            let read = stream.read_buf(&mut text).await?;
            ensure!(read > 0, "ended after {:?}", String::from_utf8_lossy(&text));
        }
        Ok(String::from_utf8(text)?)
    })
    .await?
}

/// The objects of a chunked NDJSON answer, each of which must be a chunk of its own.
fn lines(answer: &str) -> Result<Vec<Value>> {
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let parts: Vec<_> = body.trim_end().split("\r\n").collect();
    let line = |chunk: &[&str]| {
        assert_eq!(usize::from_str_radix(chunk[0], 16)?, chunk[1].len());
        Ok(serde_json::from_str(chunk[1])?)
    };
    parts.chunks_exact(2).map(line).collect()
}

#[tokio::test]
async fn behind_a_guard_only_requests_with_the_prefix_and_the_key_are_answered() -> Result<()> {
    let server = Server::scripted_as(Config {
        prefix: "/behind/it".to_owned(),
        key: Some("the-key".to_owned()),
        ..Config::default()
    })
    .await?;
    server.always(Script::reply(["ok"]));
    server.answer_at("/api/tags", Script::body(200, "application/json", "{}"));
    let key = format!("{LOCAL}Authorization: Bearer the-key\r\n");
    let wrong = format!("{LOCAL}Authorization: Bearer the-keys\r\n");
    for (target, headers, status) in [
        ("POST /behind/it/api/chat", &*key, "200"),
        ("GET /behind/it/api/tags", &key, "200"),
        ("GET /behind/it/api/version?a", &key, "200"),
        ("POST /api/chat", &key, "404"),
        ("GET /api/tags", &key, "404"),
        ("POST /behind/it/api/chat", &wrong, "401"),
        ("POST /behind/it/api/chat", LOCAL, "401"),
        ("GET /behind/it/api/tags", LOCAL, "401"),
    ] {
        let mut stream = send(&server, target, headers, &hello().to_string()).await?;
        let mut start = [0; 12];
        timeout(LONG, stream.read_exact(&mut start)).await??;
        let start = String::from_utf8_lossy(&start);
        assert_eq!(start, format!("HTTP/1.1 {status}"), "{target} {headers}");
    }
    Ok(())
}

#[tokio::test]
async fn it_streams_by_default_and_says_what_it_is() -> Result<()> {
    for rate in [None, Some(1000.0)] {
        let server = started(rate, None).await?;
        let mut stream = chat(&server, &hello()).await?;
        let answer = read_to(&mut stream, LAST_CHUNK).await?;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n";
        assert!(answer.starts_with(head), "{answer}");
        let lines = lines(&answer)?;
        let contents = lines.iter().map(|line| &line["message"]["content"]);
        let content: String = contents.filter_map(Value::as_str).collect();
        assert!(content.contains("no model is behind these words"));
        assert!(content.ends_with("Your conversation has 1 message; the last one was: Hello"));
        let last = lines.last().context("no line")?;
        assert_eq!(last["done"], true);
        assert_eq!(last["done_reason"], "stop");
        assert_eq!(last["prompt_eval_count"], wire::tokens_in("Hello".len()));
        assert_eq!(last["eval_count"], wire::tokens_in(content.len()));
        // The connection is kept: the same socket answers again.
        let next = format!("GET /api/version HTTP/1.1\r\n{LOCAL}\r\n");
        stream.write_all(next.as_bytes()).await?;
        read_to(&mut stream, "-stand-in\"}").await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_streaming_it_answers_one_object() -> Result<()> {
    let server = started(None, None).await?;
    let messages = [
        json!({"role": "user", "content": "One"}),
        json!({"role": "assistant", "content": "Two"}),
        json!({"role": "user", "content": "Three, »please«"}),
    ];
    let request = json!({"model": "m", "messages": messages, "stream": false});
    let answer = read_to(&mut chat(&server, &request).await?, "}").await?;
    assert!(answer.contains("application/json"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let body: Value = serde_json::from_str(body)?;
    assert_eq!(body["done"], true);
    assert_eq!(
        body["message"]["content"],
        "I am the stand-in for Ollama: no model is behind these words. \
         Your conversation has 3 messages; the last one was: Three, »please«"
    );
    Ok(())
}

#[tokio::test]
async fn it_refuses_as_ollama_does() -> Result<()> {
    let server = started(None, None).await?;
    let check = async |target, headers: &str, body, status: u16, end| -> Result<()> {
        let mut stream = send(&server, target, headers, body).await?;
        let answer = read_to(&mut stream, end).await?;
        let status = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&status), "{target}: {answer}");
        Ok(())
    };
    check("GET /nowhere", LOCAL, "", 404, "404 page not found").await?;
    check("GET /api/chat", LOCAL, "", 405, "405 method not allowed").await?;
    check(CHAT, LOCAL, "", 400, r#"{"error":"missing request body"}"#).await?;
    check(CHAT, LOCAL, "{}", 400, r#"{"error":"model is required"}"#).await?;
    let no_body = "Content-Length: 0\r\n\r\n";
    check("GET /", "Host: example.com\r\n", "", 403, no_body).await?;
    let foreign = format!("{LOCAL}Origin: https://example.com\r\n");
    check("GET /", &foreign, "", 403, no_body).await?;
    let local = format!("{LOCAL}Origin: http://localhost:3000\r\n");
    check("GET /", &local, "", 200, "no model is here").await
}

#[tokio::test]
async fn no_messages_load_the_model() -> Result<()> {
    let server = started(None, None).await?;
    let request = json!({"model": "m", "messages": []});
    let answer = read_to(&mut chat(&server, &request).await?, "load\"}").await?;
    assert!(
        answer.ends_with(r#""done":true,"done_reason":"load"}"#),
        "{answer}"
    );
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
    }
    read_to(&mut stream, LAST_CHUNK).await?;
    assert_eq!(server.chat(1).await.request().json()?, json!({"a": 1}));
    Ok(())
}

#[tokio::test]
async fn nothing_leaves_before_the_gate_is_open_not_even_a_head() -> Result<()> {
    let gate = Gate::new();
    let script = Script::new().gate(&gate).token("a").done();
    let (server, mut stream) = scripted(script).await?;
    timeout(LONG, gate.reached()).await?;
    let exchange = server.chat(1).await;
    assert_eq!(exchange.bytes_sent(), 0);
    gate.open();
    let answer = read_to(&mut stream, LAST_CHUNK).await?;
    assert_eq!(lines(&answer)?.len(), 2);
    assert!(answer.contains(&wire::token("a")), "{answer}");
    assert!(answer.contains(&wire::done()), "{answer}");
    assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::Complete);
    assert_eq!(exchange.bytes_sent(), answer.len() as u64);
    Ok(())
}

#[tokio::test]
async fn the_client_that_leaves_is_noticed() -> Result<()> {
    for script in [
        Script::silence(),
        Script::new().token("a").hang(),
        Script::new().endless("x"),
    ] {
        let (server, stream) = scripted(script).await?;
        let exchange = timeout(LONG, server.chat(1)).await?;
        assert_eq!(exchange.ending(), None);
        drop(stream);
        assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::ClientLeft);
    }
    Ok(())
}

#[tokio::test]
async fn it_tells_how_each_connection_ended() -> Result<()> {
    for (is_reset, told) in [
        (false, "closed by the client"),
        (true, "reset by the client"),
    ] {
        let (server, stream) = scripted(Script::silence()).await?;
        let exchange = timeout(LONG, server.chat(1)).await?;
        if is_reset {
            stream.set_zero_linger()?;
        }
        drop(stream);
        assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::ClientLeft);
        assert_eq!(exchange.was_reset(), is_reset);
        let line = format!("POST /api/chat: {told}, 0 bytes sent");
        assert_eq!(exchange.to_string(), line);
    }
    let (server, mut stream) = scripted(Script::reply(["a"])).await?;
    let sent = read_to(&mut stream, LAST_CHUNK).await?.len();
    let exchange = server.chat(1).await;
    timeout(LONG, exchange.ended()).await?;
    let line = format!("POST /api/chat: complete, {sent} bytes sent");
    assert_eq!(exchange.to_string(), line);
    Ok(())
}

#[tokio::test]
async fn the_client_that_stops_reading_is_noticed() -> Result<()> {
    let (server, _stream) = scripted(Script::new().endless("x".repeat(1000))).await?;
    let exchange = timeout(LONG, server.chat(1)).await?;
    let sent = timeout(LONG, exchange.stalled(Duration::from_millis(300))).await?;
    assert_eq!(exchange.bytes_sent(), sent);
    Ok(())
}

#[tokio::test]
async fn a_body_can_break_off_and_a_connection_can_be_reset() -> Result<()> {
    let (_server, mut stream) = scripted(Script::new().token("a").break_off()).await?;
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await??;
    assert!(answer.contains(&wire::token("a")), "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");

    let (server, mut stream) = scripted(Script::new().token("a").reset()).await?;
    let reset = timeout(LONG, stream.read_to_end(&mut Vec::new())).await?;
    assert!(reset.is_err(), "{reset:?}");
    assert_eq!(server.chat(1).await.ending(), Some(Ending::BrokenOff));
    Ok(())
}

#[tokio::test]
async fn a_request_without_a_script_gets_an_error() -> Result<()> {
    let server = Server::scripted().await?;
    let answer = read_to(&mut chat(&server, &hello()).await?, "}").await?;
    assert!(answer.contains("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("no script"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_refused_address_refuses() -> Result<()> {
    let refused = Refused::new()?;
    let connected = TcpStream::connect(refused.address()).await;
    let error = connected.err().context("connected")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    Ok(())
}

#[tokio::test]
async fn an_unresponsive_address_neither_accepts_nor_refuses() -> Result<()> {
    let nobody = Unresponsive::new().await?;
    let connecting = TcpStream::connect(nobody.address());
    let connected = timeout(Duration::from_millis(500), connecting).await;
    assert!(connected.is_err());
    Ok(())
}

#[tokio::test]
async fn a_stopped_stand_in_cuts_its_connections() -> Result<()> {
    let (server, mut stream) = scripted(Script::silence()).await?;
    let exchange = timeout(LONG, server.chat(1)).await?;
    drop(server);
    let _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await?;
    assert_eq!(timeout(LONG, exchange.ended()).await?, Ending::Stopped);
    Ok(())
}

#[tokio::test]
async fn a_rate_is_kept_over_many_streams() -> Result<()> {
    let server = started(Some(100.0), Some(21)).await?;
    let begun = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(chat(&server, &hello()).await?);
    }
    for mut stream in streams {
        read_to(&mut stream, LAST_CHUNK).await?;
    }
    // 20 gaps of 10 ms. No upper bound that a busy machine could break.
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(200), "{elapsed:?}");
    Ok(())
}
