//! An Ollama behind a path, a key and TLS: what it is sent, and what a client is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Client, Event, Process, TestApp, Wire, prompt, within};
use ollama_stand_in::{Config, Script, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const PREFIX: &str = "/team%20a/ollama";
const KEY: &str = "sk-0llama/Key+with=all~that.may:be";

/// The program, with Ollama behind path and key.
async fn start() -> Result<TestApp> {
    let setup = TestApp::on(Backend::Sqlite).guarded_ollama(PREFIX, KEY);
    setup.start().await
}

/// The error that is the only event, as its code and text.
fn only_error(events: &[Event]) -> Result<(&str, &str)> {
    match events {
        [Event::Error { code, error, .. }] => Ok((code, error)),
        _ => anyhow::bail!("not a single error: {events:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_goes_to_ollama_behind_its_path_with_the_key() -> Result<()> {
    let app = start().await?;
    app.turn("app", "Hi", "ok").await?;
    let exchange = within("the chat request", app.ollama.chat(1)).await?;
    let request = exchange.request();
    assert_eq!(request.path, format!("{PREFIX}/api/chat"));
    assert_eq!(
        request.header("authorization"),
        Some(&*format!("Bearer {KEY}"))
    );
    // What the client is known by is nobody else's business.
    let body = prompt("app", "Hi again");
    app.ollama.push(Script::reply(["ok"]));
    let own = [("authorization", "Bearer of-the-client"), ("cookie", "a=b")];
    app.client.prompt_with(&own, &body).await?.read().await?;
    let exchange = within("the chat request", app.ollama.chat(2)).await?;
    assert_eq!(exchange.request().header("cookie"), None);
    let bearer = exchange.request().header("authorization");
    assert_eq!(bearer, Some(&*format!("Bearer {KEY}")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_none_is_sent_and_a_slash_at_the_end_is_ignored() -> Result<()> {
    let ollama = Server::scripted().await?;
    let url = format!("{}/", ollama.url());
    let app = TestApp::with(Backend::Sqlite, "ollama_url", url).await?;
    ollama.push(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let exchange = within("the chat request", ollama.chat(1)).await?;
    assert_eq!(exchange.request().path, "/api/chat");
    assert_eq!(exchange.request().header("authorization"), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_or_missing_key_is_told_with_the_variable_to_look_at() -> Result<()> {
    for key in ["wrong-key", ""] {
        let setup = TestApp::on(Backend::Sqlite).guarded_ollama(PREFIX, KEY);
        let app = setup.variable("ollama_api_key", key).start().await?;
        let events = app.ask("app", "Hi").await?;
        let (code, error) = only_error(&events)?;
        assert_eq!(code, "ollama_refused");
        for part in [
            "401",
            "unauthorized",
            "`ollama_api_key` may be wrong or missing",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(app.rows("app").await?.len(), 1);
    }
    Ok(())
}

/// What a program with this variable answers: a refusal that names it, before anything is stored or sent.
async fn misconfigured(name: &str, value: &str) -> Result<String> {
    let app = TestApp::with(Backend::Sqlite, name, value).await?;
    let (code, error) = app.prompt("app", "Hi").await?.refused(500).await?;
    assert_eq!(code, "misconfigured");
    assert!(error.contains(&format!("`{name}`")), "{error}");
    assert_eq!((app.row_count().await?, app.ollama.chats()), (0, 0));
    Ok(format!("{error}\n{}", app.log()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_sent_is_refused_and_not_repeated() -> Result<()> {
    let long = "s3cret".repeat(10 << 10);
    for key in [
        "s3cret key",
        "s3cret\nkey",
        "s3cret\r\nx: y",
        "s3cret\u{e9}",
        "Bearer s3cret",
        &long,
    ] {
        let told = misconfigured("ollama_api_key", key).await?;
        ensure!(!told.contains("s3cret"), "{told}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_may_have_a_line_end_after_it() -> Result<()> {
    let setup = TestApp::on(Backend::Sqlite).guarded_ollama("", KEY);
    let setup = setup.variable("ollama_api_key", format!("{KEY}\n"));
    setup.start().await?.turn("app", "Hi", "ok").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_ollama_url_is_refused_with_the_reason() -> Result<()> {
    for (url, why) in [
        ("http://localhost:11434/../x", "`..`"),
        ("http://localhost:11434/a b", "space"),
        ("http://localhost:11434/\u{e9}", "ASCII"),
        ("http://localhost:11434/a?b", "query"),
        ("http://me:s3cret@localhost:11434", "user"),
        ("localhost:11434", "http://"),
    ] {
        let told = misconfigured("ollama_url", url).await?;
        ensure!(
            told.contains(why) && !told.contains("s3cret"),
            "{url}: {told}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ollama_elsewhere_is_reached_only_where_ollama_host_says_so() -> Result<()> {
    let ollama = Server::scripted().await?;
    // Not among the loopback addresses that the manifest lists.
    let elsewhere = Wire::between(Ipv4Addr::new(127, 0, 0, 2), ollama.address()).await?;
    let origin = format!("http://{}", elsewhere.address());
    let url = format!("{origin}/");
    let app = TestApp::with(Backend::Sqlite, "ollama_url", &url).await?;
    let events = app.ask("app", "Hi").await?;
    let (code, error) = only_error(&events)?;
    assert_eq!(code, "ollama_unreachable");
    let advice = "set `ollama_host` to scheme, host and port of `ollama_url`";
    assert!(error.contains(advice), "{error}");
    assert_eq!(elsewhere.accepted(), 0);

    let setup = TestApp::on(Backend::Sqlite).variable("ollama_url", &url);
    let app = setup.variable("ollama_host", origin).start().await?;
    ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert!(elsewhere.accepted() > 0);
    Ok(())
}

/// TLS before `server`, with a certificate for `localhost`; returns with its address, and the file of its issuer's.
async fn tls(server: SocketAddr) -> Result<(SocketAddr, TempDir)> {
    let mut ca = CertificateParams::new([])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &ca)?;
    let files = TempDir::with_prefix("llmchat-tls-")?;
    std::fs::write(files.path().join("ca.crt"), ca.pem())?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok((address, files))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ollama_behind_tls_is_sent_the_key_and_a_wrong_one_is_told() -> Result<()> {
    let ollama = Server::scripted_as(Config {
        prefix: PREFIX.to_owned(),
        key: Some(KEY.to_owned()),
        ..Config::default()
    })
    .await?;
    ollama.always(Script::reply(["ok"]));
    let (address, files) = tls(ollama.address()).await?;
    let url = format!("https://localhost:{}{PREFIX}", address.port());
    let path = files.path();
    let ca = Some(path.join("ca.crt"));
    for (name, key) in [("right", KEY), ("wrong", "sk-another")] {
        let variables = [
            ("ollama_url", url.clone()),
            ("ollama_api_key", key.to_owned()),
        ];
        let state = path.join(name);
        std::fs::create_dir(&state)?;
        let host = Process::trusting(ca.clone(), path, &state, name, variables).await?;
        let client = Client::of(host.address());
        let events = client.prompt(&prompt("app", "Hi")).await?.read().await?;
        if name == "right" {
            assert_eq!(events.len(), 2, "{events:?}");
        } else {
            let (code, error) = only_error(&events)?;
            assert_eq!(code, "ollama_refused");
            assert!(error.contains("`ollama_api_key` may be wrong"), "{error}");
        }
        let log = host.log()?;
        ensure!(!log.contains(key), "{log}");
    }
    Ok(())
}
