//! A page of the web makes its own name lead to this machine (DNS rebinding): to its browser, our host is its own server.

use anyhow::Result;
use llmchat_testkit::{Backend, Browser, TestApp};
use ollama_stand_in::Script;
use serde_json::json;

use crate::origins::rebound;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_name_leads_to_this_machine_is_refused() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let app = TestApp::on(Backend::Sqlite)
        .loopback_names()
        .start()
        .await?;
    let turn = app.turn("kept", "mine", "yours").await?;
    let told = rebound(&app, "evil.example", &turn).await?;
    assert_eq!(told, json!(vec!["403 origin_refused"; 5]));
    assert_eq!((app.row_count().await?, app.ollama.chats()), (2, 1));
    // The same under the machine's own name.
    app.ollama.always(Script::reply(["ok"]));
    let told = rebound(&app, "localhost", &turn).await?;
    assert_eq!(told, json!(vec!["ok"; 5]));
    Ok(())
}
