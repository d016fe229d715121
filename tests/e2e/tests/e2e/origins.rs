//! Pages of other origins, in Chromium: what they send, and what they get.
//!
//! The scripts of the pages are beside this file. Plain HTTP to a name, unlike to a loopback address, has no
//! `Sec-Fetch-Site`, as behind old browsers: both are tried.

use anyhow::Result;
use llmchat_testkit::{Backend, Browser, Site, TestApp};
use serde_json::json;

/// llmchat as pages reach it: by its address, and by a name.
fn servers(app: &TestApp) -> [String; 2] {
    let port = app.address().port();
    ["127.0.0.1", "chat.example"].map(|name| format!("http://{name}:{port}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_gets_and_changes_nothing() -> Result<()> {
    if !Browser::is_installed() {
        return Ok(());
    }
    let app = TestApp::start(Backend::Sqlite).await?;
    let turn = app.turn("kept", "mine", "yours").await?;
    let before = (app.conversation("kept").await?, app.row_count().await?);
    // The second is of the same site as the address.
    for name in ["app.example", "127.0.0.1"] {
        let site = Site::start().await?;
        let origin = site.origin(name);
        let given = json!({ "servers": servers(&app), "turn": turn });
        let mut page = Browser::open(site, &origin, include_str!("origins/refused.js"), &given)?;
        for server in servers(&app) {
            let told = page.told().await?;
            let fetches = "TypeError,TypeError,TypeError";
            let expected = json!({
                "json": "TypeError",
                "with cookies": "TypeError",
                "plain": "TypeError",
                "plain, unread": "opaque 0",
                "beacon": true,
                "read": "TypeError",
                "delete": "TypeError",
                "stop": "opaque 0",
                "watch": "error closed",
                "worker": fetches,
                "sandboxed frame": format!("null,{fetches}"),
                "data: URL": format!("null,{fetches}"),
                "image": "error",
                "image of a stream": "error",
                "script": "error",
                "style": "error",
                "frame of a conversation": "unreadable",
                "frame of a turn": "unreadable",
                "form": "unreadable",
                "socket": "error",
            });
            assert_eq!(told, expected, "a page of {name} and {server}");
        }
    }
    let after = (app.conversation("kept").await?, app.row_count().await?);
    assert_eq!((after, app.ollama.chats()), (before, 1));
    Ok(())
}
