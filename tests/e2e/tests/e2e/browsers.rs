//! What a browser may do: a page of another origin reaches nothing.

use anyhow::Result;
use llmchat_testkit::{Backend, TestApp, on_both_stores, prompt, within};
use ollama_stand_in::Script;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The answer to a prompt in `text/plain`, which a page may send without asking, with these headers.
async fn posted(app: &TestApp, headers: &str) -> Result<String> {
    let body = prompt("app", "Hi").to_string();
    let (host, length) = (app.address(), body.len());
    let mut socket = TcpStream::connect(host).await?;
    let request = format!(
        "POST /llmchat/ HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    within("the answer", socket.read_to_string(&mut answer)).await??;
    Ok(answer)
}

on_both_stores! {
    async fn a_page_of_another_origin_is_refused_before_anything_is_stored(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for headers in [
            "Origin: https://evil.example\r\n",
            "Origin: null\r\n",
            "Origin: http://localhost\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\nOrigin: http://evil.example\r\n",
        ] {
            let answer = posted(&app, headers).await?;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{headers}{answer}");
            assert!(answer.contains("\"code\":\"origin_refused\""), "{headers}{answer}");
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (0, 0));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_pages_and_apps_are_answered() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["ok"]));
    let own = format!("Origin: http://{}\r\n", app.address());
    for headers in [
        "",
        &own,
        &format!("{own}Sec-Fetch-Site: same-origin\r\n"),
        "Sec-Fetch-Site: none\r\n",
    ] {
        let answer = posted(&app, headers).await?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{headers}{answer}");
    }
    Ok(())
}
