//! Behind nginx, as the README has it: its blocks are used as they stand, but for addresses and one time-out.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Browser, Client, Nginx, Site, TestApp, prompt};
use ollama_stand_in::{Gate, Script};
use serde_json::{Value, json};

use crate::origins::blocks;

/// In place of the README's, for silence that is too long for it.
const TIMEOUT: &str = "proxy_read_timeout 5s";
const SILENCE: Duration = Duration::from_secs(8);

/// Replaces what must be there.
fn replace(text: &mut String, changes: &[(&str, &str)]) -> Result<()> {
    for (from, to) in changes {
        ensure!(text.contains(from), "no {from:?} in\n{text}");
        *text = text.replace(from, to);
    }
    Ok(())
}

/// The README's server before this one; a page of `site` is among what it serves.
fn server(app: &TestApp, site: &Site) -> Result<String> {
    let mut server = blocks("README.md", "nginx", "server_name")?;
    let page = format!(
        "location ~ ^/(page|page.js|told)$ {{ proxy_pass {}; }}\nlocation / {{",
        site.origin("127.0.0.1")
    );
    let changes = [
        ("location / {", page.as_str()),
        ("127.0.0.1:3000", &app.address().to_string()),
        ("/etc/ssl/", ""),
    ];
    replace(&mut server, &changes)?;
    Ok(server)
}

/// The same without TLS.
fn plain_server(app: &TestApp, site: &Site) -> Result<String> {
    let server = server(app, site)?;
    let lines = server.lines().filter(|line| !line.contains("ssl_"));
    Ok(lines
        .collect::<Vec<_>>()
        .join("\n")
        .replace(" ssl http2", ""))
}

async fn start(mut server: String) -> Result<Nginx> {
    let identity = rcgen::generate_simple_self_signed(["chat.example".to_owned()])?;
    let files = [
        ("chat.example.pem", identity.cert.pem()),
        ("chat.example.key", identity.signing_key.serialize_pem()),
    ];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let listen = |address: SocketAddr| {
        server = server.replacen("listen 443", &format!("listen {address}"), 1);
        server
    };
    Nginx::start(listen, &files).await
}

fn open(site: Site, scheme: &str, nginx: &Nginx) -> Result<Browser> {
    let origin = format!("{scheme}://chat.example:{}", nginx.address().port());
    Browser::open(
        site,
        &origin,
        include_str!("origins/proxied.js"),
        &Value::Null,
    )
}

/// What a page sees of a reply that pauses, and how the stream ends.
async fn paused(comment_interval: &str) -> Result<Value> {
    let app = TestApp::with(Backend::Sqlite, "comment_interval", comment_interval).await?;
    let gate = Gate::new();
    app.ollama.push(Script::new().token("a").gate(&gate).done());
    let site = Site::start().await?;
    let mut server = server(&app, &site)?;
    replace(&mut server, &[("proxy_read_timeout 60s", TIMEOUT)])?;
    let nginx = start(server).await?;
    let mut page = open(site, "https", &nginx)?;
    assert_eq!(page.told().await?, "the first event");
    tokio::time::sleep(SILENCE).await;
    gate.open();
    page.told().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_come_one_by_one_and_comments_keep_the_stream_open() -> Result<()> {
    if !Browser::is_installed() || !Nginx::is_installed() {
        return Ok(());
    }
    let (with, without) = tokio::join!(paused("100ms"), paused("1h"));
    assert_eq!(with?, json!({ "protocol": "h2", "isDone": true }));
    // The proxy's time-out is one.
    assert_eq!(without?, "TypeError");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_changes_the_host_is_told_what_to_do() -> Result<()> {
    if !Browser::is_installed() || !Nginx::is_installed() {
        return Ok(());
    }
    let whole = json!({ "protocol": "http/1.1", "isDone": true });
    for (passes_host, allowed) in [(true, ""), (false, ""), (false, "*")] {
        let gate = Gate::new();
        let app = TestApp::with(Backend::Sqlite, "allowed_origins", allowed).await?;
        app.ollama.push(Script::new().token("a").gate(&gate).done());
        let site = Site::start().await?;
        let mut server = plain_server(&app, &site)?;
        if !passes_host {
            // nginx as it is by itself: HTTP/1.0, buffers, the address for a name.
            let defaults = [
                "proxy_set_header Host $http_host;",
                "proxy_http_version 1.1;",
                "proxy_set_header Connection \"\";",
                "proxy_buffering off;",
            ];
            replace(&mut server, &defaults.map(|line| (line, "")))?;
        }
        let nginx = start(server).await?;
        let mut page = open(site, "http", &nginx)?;
        let told = page.told().await?;
        if passes_host || allowed == "*" {
            assert_eq!(told, "the first event");
            gate.open();
            assert_eq!(page.told().await?, whole);
        } else {
            assert_eq!(
                (&told["status"], &told["code"]),
                (&json!(403), &json!("origin_refused"))
            );
            let error = told["error"].as_str().unwrap_or_default();
            assert!(
                error.contains("`Host`") && error.contains("`allowed_origins`"),
                "{error}"
            );
            assert_eq!((app.row_count().await?, app.ollama.chats()), (0, 0));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_tells_who_it_is_whatever_the_client_says() -> Result<()> {
    if !Nginx::is_installed() {
        return Ok(());
    }
    let app = TestApp::on(Backend::Sqlite)
        .variable("owner_header", "x-user")
        .variable("allowed_origins", "https://app.example")
        .start()
        .await?;
    app.ollama.always(Script::reply(["ok"]));
    let gateway = blocks("README.md", "nginx", "auth_request")?;
    let (inside, beside) = gateway.split_once("# Beside it:").unwrap_or_default();
    let login = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let site = Site::start().await?;
    let mut server = plain_server(&app, &site)?;
    let last = "client_max_body_size 2m;";
    let changes = [
        ("location / {", format!("{beside}\nlocation / {{")),
        (last, format!("{last}\n{inside}")),
        ("127.0.0.1:9000", login.to_string()),
    ];
    let changes = changes.each_ref().map(|(from, to)| (*from, to.as_str()));
    replace(&mut server, &changes)?;
    let server = format!(
        "{server}
server {{
    listen {login};
    location / {{
        if ($cookie_session = \"\") {{ return 401; }}
        add_header X-User $cookie_session;
        return 204;
    }}
}}"
    );
    let nginx = start(server).await?;
    let client = Client::of(nginx.address());
    let hi = prompt("app", "Hi");
    let refused = client.prompt_with(&[("x-user", "eve")], &hi).await?;
    assert_eq!(refused.status(), 401);
    let headers = [("cookie", "session=ann"), ("x-user", "eve")];
    client.prompt_with(&headers, &hi).await?.read().await?;
    assert_eq!(
        app.query("SELECT DISTINCT owner FROM chatts").await?,
        ["ann"]
    );

    let asks = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
    ];
    let answer = client
        .request_with("OPTIONS", "/llmchat/", &asks, "")
        .await?;
    assert_eq!(answer.status(), 204);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    // Without a user's name, anything else gets no further.
    let answer = client
        .request_with("OPTIONS", "/llmchat/app", &[], "")
        .await?;
    assert_eq!(answer.refusal(401).await?, "unauthorized");
    Ok(())
}
