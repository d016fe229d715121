//! The operator's limits, and settings that cannot be used.

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, on_both_stores};
use ollama_stand_in::Script;
use serde_json::json;

on_both_stores! {
    async fn too_many_messages_are_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_messages", 3).await?;
        app.ollama.always(Script::reply(["ok"]));
        let body = |count| {
            let messages = vec![json!({"role": "user", "content": "Hi"}); count];
            json!({"appID": "app", "model": "m", "messages": messages})
        };
        let error = app.client.prompt(&body(4)).await?.error(422).await?;
        ensure!(error.contains("messages") && error.contains('3'), "{error}");
        assert_eq!((app.ollama.chats(), app.row_count().await?), (0, 0));
        app.client.prompt(&body(3)).await?.read().await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_cannot_be_used_is_named_and_not_repeated() -> Result<()> {
    for (name, value) in [
        ("completion_whitespace", "sometimes"),
        ("on_disconnect", "sometimes"),
        ("on_busy", "sometimes"),
        ("max_body_bytes", "-17"),
        ("max_line_bytes", "sometimes"),
        ("max_turns_per_minute", "-17"),
        ("max_running_turns", "sometimes"),
        ("turn_timeout", "sometimes"),
        ("comment_interval", "17 fortnights"),
    ] {
        let app = TestApp::with(Backend::Sqlite, name, value).await?;
        let error = app.prompt("app", "Hi").await?.error(500).await?;
        ensure!(
            error.contains(name) && !error.contains(value),
            "{name}: {error}"
        );
        assert_eq!((app.ollama.chats(), app.row_count().await?), (0, 0));
    }
    Ok(())
}
