//! The README's statements give conversations from before there were owners to an owner.

use anyhow::Result;
use llmchat_testkit::{Backend, TestApp, on_both_stores, prompt, until};
use ollama_stand_in::{Gate, Script};

use crate::origins::blocks;

const ANN: (&str, &str) = ("authorization", "Bearer s3cret");

on_both_stores! {
    async fn a_conversation_is_handed_over_with_all_that_belongs_to_it(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "100ms").await?;
        let key = ("idempotency-key", "one");
        app.ollama.push(Script::reply(["yours"]));
        app.client.prompt_with(&[key], &prompt("first", "mine")).await?.read().await?;
        app.turn("second", "another's", "ok").await?;
        // As a host leaves one that dies: with an attempt, and what came of its reply.
        let gate = Gate::new();
        let half = app.begin("first", "go on", Script::new().token("half").gate(&gate).done()).await?;
        let is_stored = async || Ok(!app.query("SELECT turn_id FROM chatts_parts").await?.is_empty());
        until("a checkpoint", is_stored).await?;

        app.execute(&blocks("README.md", "sql", "UPDATE chatts ")?).await?;

        let another = app.another_with(&[("api_keys", "ann:s3cret")]).await?;
        let with_keys = another.client;
        let contents = async |app_id: &str| {
            let page = with_keys.get(&format!("/llmchat/{app_id}"), &[ANN]).await?.json(200).await?;
            let messages = page["messages"].as_array().cloned().unwrap_or_default();
            let contents = messages.iter().filter_map(|it| it["content"].as_str().map(str::to_owned));
            anyhow::Ok(contents.collect::<Vec<_>>())
        };
        assert_eq!(contents("first").await?, ["mine", "yours", "go on"]);
        assert_eq!(contents("second").await?, [""; 0]);
        let repeated = with_keys.prompt_with(&[ANN, key], &prompt("first", "mine")).await?;
        assert_eq!(repeated.header("idempotency-replayed"), Some("true"));
        repeated.read().await?;
        let stream = [ANN, ("accept", "text/event-stream")];
        let mut watched = with_keys.get(half.turn(), &stream).await?.events().await?;
        assert!(format!("{:?}", watched.next().await?).contains("half"));
        assert_eq!(app.ollama.chats(), 3);
        // Nobody finds it under no name.
        let page = app.client.get("/llmchat/first", &[]).await?.json(200).await?;
        assert_eq!(page["messages"].as_array().map(Vec::len), Some(0));
        gate.open();
        Ok(())
    }
}
