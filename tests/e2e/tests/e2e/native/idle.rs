//! Instances that have nothing to do, by Spin 4.0's rule: no client reads a response.

use std::time::Duration;

use anyhow::Result;
use llmchat_testkit::{Backend, TestApp, messages, until};
use ollama_stand_in::{Ending, Gate, Script};

#[tokio::test]
async fn on_spin_4_0_a_reply_whose_client_left_is_lost_with_the_idle_instance() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite).as_spin_4_0().start().await?;
    let script = Script::new().token("lost").hang();
    drop(app.begin("app", "Hi", script).await?);
    until("the instance's end", async || Ok(app.instances()? == 0)).await?;
    assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
    assert_eq!(app.rows("app").await?.len(), 1);
    // The prompt is there, and the conversation can go on.
    app.turn("app", "Again", "ok").await?;
    let sent = messages(&[("user", "Hi"), ("user", "Again")]);
    assert_eq!(app.sent_to_ollama(2).await?, sent);
    Ok(())
}

#[tokio::test]
async fn on_spin_4_0_a_reply_whose_client_left_is_kept_while_others_read() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite).as_spin_4_0().start().await?;
    let gate = Gate::new();
    let other = Script::new().token("other").gate(&gate).done();
    let reading = app.begin("other", "Hi", other).await?;
    let left = Gate::new();
    let script = Script::new().token("not ").gate(&left).token("lost").done();
    drop(app.begin("app", "Hi", script).await?);
    assert_eq!(app.instances()?, 1);
    // Longer than the idle time, which must not have begun.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    left.open();
    app.until_rows("app", 2).await?;
    let rows = app.rows("app").await?;
    assert_eq!(rows[1].parts(), ("assistant", "not lost", "complete"));
    gate.open();
    assert_eq!(reading.rest().await?.len(), 1);
    Ok(())
}
