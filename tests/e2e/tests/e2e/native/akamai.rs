//! As deployed to Akamai Functions: no SQLite, and responses that are broken off at a time and a size.

use std::time::Duration;

use anyhow::Result;
use llmchat_testkit::{Event, TestApp, messages};
use ollama_stand_in::{Script, wire};

/// Longer than the turn, its commit and its last events; shorter than the silence would last.
const LIMIT: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_ends_with_an_error_before_the_platform_breaks_it_off() -> Result<()> {
    let app = TestApp::on_akamai(LIMIT)
        .variable("turn_timeout", "1s")
        .start()
        .await?;
    app.ollama.push(Script::new().token("so far").hang());
    let events = app.ask("app", "Hi").await?;
    assert_eq!(events[0], Event::Data(wire::token("so far")));
    assert_eq!(events[1].code(), Some("turn_timeout"));
    assert_eq!(
        app.rows("app").await?[1].parts(),
        ("assistant", "so far", "partial")
    );

    app.turn("app", "Go on", "ok").await?;
    let sent = [("user", "Hi"), ("assistant", "so far"), ("user", "Go on")];
    assert_eq!(app.sent_to_ollama(2).await?, messages(&sent));
    assert!(!app.log()?.contains("broken off: it"), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_breaks_a_turn_off_leaves_no_clean_end_and_the_reply_is_stored()
-> Result<()> {
    let limit = Duration::from_secs(1);
    let app = TestApp::on_akamai(limit)
        .variable("turn_timeout", "3s")
        .start()
        .await?;
    let events = app
        .begin("app", "Hi", Script::new().token("so far").hang())
        .await?;
    assert!(events.rest().await.is_err());
    assert!(app.log()?.contains("broken off: it took longer than 1s"));
    // Here the work goes on; the platform may end it, too.
    app.until_rows("app", 2).await?;
    assert_eq!(
        app.rows("app").await?[1].parts(),
        ("assistant", "so far", "partial")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_an_error_before_the_platform_breaks_it_off() -> Result<()> {
    let app = TestApp::on_akamai(Duration::from_secs(60)).start().await?;
    // A token with log probabilities: thousands of bytes of an event for a few of the completion.
    let logprobs = "x".repeat(100_000);
    let line = format!(r#"{{"message":{{"content":"a"}},"logprobs":"{logprobs}","done":false}}"#);
    app.ollama.push(Script::new().endless(line));
    let events = app.ask("app", "Hi").await?;
    assert_eq!(
        events.last().and_then(Event::code),
        Some("completion_too_long")
    );
    assert!(events.len() > 80, "{}", events.len());
    assert!(!app.log()?.contains("broken off: it"), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_sqlite_and_a_database_must_be_named() -> Result<()> {
    let app = TestApp::on_akamai(LIMIT)
        .variable("database_url", "")
        .start()
        .await?;
    let answer = app.prompt("app", "Hi").await?;
    assert_eq!(answer.status().as_u16(), 500);
    let body = answer.text().await?;
    assert!(
        body.contains("misconfigured") && body.contains("has no SQLite"),
        "{body}"
    );
    Ok(())
}
