//! What an instance may take, and what becomes of those that are too many or too large.

use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, messages, on_both_stores, until, within};
use ollama_stand_in::{Gate, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bad_input::send_slowly;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_needs_too_much_memory_ends_and_the_host_goes_on() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .variable("max_body_bytes", 64 << 20)
        .instance_memory(16 << 20)
        .start()
        .await?;
    // However the client is told: the instance that would have told it is gone.
    let _ = app.prompt("app", &"x".repeat(32 << 20)).await;
    let log = app.log()?;
    ensure!(log.contains("--max-instance-memory"), "{log}");
    app.turn("app", "Hi", "ok").await?;
    assert_eq!(app.row_count().await?, 2);
    Ok(())
}

/// Enough of a body that the host gives it an instance.
const BEGINNING: usize = 100_000;

/// A request that an instance has, with `length` bytes of its body; the declared rest has not been sent.
async fn sending(app: &TestApp, declared: usize, length: usize) -> Result<TcpStream> {
    let before = app.open_requests()?;
    let mut socket = TcpStream::connect(app.address()).await?;
    let head = format!("POST /llmchat/ HTTP/1.1\r\nHost: a\r\nContent-Length: {declared}\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(&vec![b' '; length]).await?;
    until("the request", async || Ok(app.open_requests()? > before)).await?;
    Ok(socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_takes_what_has_come_of_it_and_not_what_it_declares() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "max_body_bytes", 2_000_000_000).await?;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(sending(&app, 60_000_000, BEGINNING).await?);
    }
    app.turn("app", "Hi", "ok").await?;
    assert_eq!((app.instances()?, app.row_count().await?), (1, 2));

    // What the operator allows is more than an instance has.
    let mut socket = sending(&app, 1_900_000_000, BEGINNING).await?;
    let mut answer = vec![0; 4096];
    let length = within("the refusal", socket.read(&mut answer)).await??;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
    ensure!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("67108864"),
        "{answer}"
    );
    drop(others);
    until("their end", async || Ok(app.open_requests()? <= 1)).await?;
    app.turn("app", "Hi", "ok").await?;
    ensure!(!app.log()?.contains("instance"), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_fill_an_instance_and_one_that_finds_it_full_is_told_to_wait() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "max_body_bytes", 2_000_000_000).await?;
    let mut first = sending(&app, 60_000_000, BEGINNING).await?;
    let mut second = sending(&app, 60_000_000, BEGINNING).await?;
    assert_eq!(app.instances()?, 1);

    let most = vec![b' '; 50_000_000];
    within("the first", first.write_all(&most)).await??;
    // Further requests go elsewhere.
    app.turn("app", "Hi", "ok").await?;
    assert_eq!(app.instances()?, 2);
    // The second is there already.
    within("the second", second.write_all(&most)).await??;
    let mut answer = vec![0; 4096];
    let length = within("the refusal", second.read(&mut answer)).await??;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
    ensure!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"),
        "{answer}"
    );
    ensure!(answer.contains("\"code\":\"overloaded\""), "{answer}");

    // Room is given back.
    drop((first, second));
    until("their end", async || Ok(app.open_requests()? == 0)).await?;
    app.turn("app", "Again", "ok").await?;
    ensure!(!app.log()?.contains("instance"), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_of_a_client_that_never_stops_sending_ends() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "max_body_bytes", BEGINNING).await?;
    let mut socket = TcpStream::connect(app.address()).await?;
    let head = "POST /llmchat/ HTTP/1.1\r\nHost: a";
    let sending = send_slowly(&mut socket, head, usize::MAX, Duration::ZERO);
    assert!(within("the end of the connection", sending).await?.is_err());
    until("its end", async || Ok(app.open_requests()? == 0)).await
}

on_both_stores! {
    async fn an_instance_that_traps_breaks_its_streams_off_and_their_prompts_are_kept(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend)
            .variable("max_body_bytes", 64 << 20)
            .instance_memory(16 << 20)
            .start()
            .await?;
        let neighbour = app.begin("neighbour", "Hi", Script::new().token("lost").hang()).await?;
        assert_eq!(app.instances()?, 1);
        let _ = app.prompt("app", &"x".repeat(32 << 20)).await;
        // Not a clean end: the client knows that something is missing.
        assert!(neighbour.rest().await.is_err());
        app.turn("neighbour", "Again", "ok").await?;
        let expected = messages(&[("user", "Hi"), ("user", "Again"), ("assistant", "ok")]);
        assert_eq!(app.conversation("neighbour").await?, expected);
        assert_eq!(app.row_count().await?, 3);
        Ok(())
    }

    async fn more_turns_than_one_instance_takes_run_all_the_same(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_concurrent_turns", 2).await?;
        let gate = Gate::new();
        app.ollama.always(Script::new().gate(&gate).token("ok").done());
        let streams = app.streams(12).await?;
        within("all turns at once", gate.reached_by(12)).await?;
        ensure!(app.instances()? >= 6, "{} instances", app.instances()?);
        gate.open();
        for stream in streams {
            assert_eq!(stream.rest().await?.len(), 2);
        }
        assert_eq!(app.row_count().await?, 24);
        Ok(())
    }

    async fn a_past_larger_than_the_host_hands_out_is_an_error_that_says_what_to_do(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend).max_row_bytes(4 << 10).start().await?;
        app.turn("app", &"x".repeat(5 << 10), "ok").await?;
        let error = app.prompt("app", "next").await?.error(500).await?;
        anyhow::ensure!(error.contains("max_history_bytes"), "{error}");
        Ok(())
    }
}
