//! PostgreSQL and Ollama with TLS: whom the host trusts, and what a client is told where it does not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use llmchat_testkit::{Backend, Cluster, Database, PASSWORD, TestApp};
use ollama_stand_in::Script;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A server whose certificate for `localhost` is signed by a CA of its own.
struct Secure {
    cluster: &'static Cluster,
    files: TempDir,
}

impl Secure {
    async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Secure> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    async fn start() -> Result<Self> {
        let mut ca = CertificateParams::new([])?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &ca)?;
        let files = TempDir::with_prefix("llmchat-tls-")?;
        std::fs::write(files.path().join("ca.crt"), ca.pem())?;
        let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(files.path().join("stranger.crt"), stranger.cert.pem())?;
        let cluster = Cluster::with_tls(&server.pem(), &key.serialize_pem()).await?;
        Ok(Self { cluster, files })
    }

    /// A URL with these parameters; `<files>` stands for the certificates' directory.
    fn url(&self, database: &Database, host: &str, parameters: &str) -> String {
        let url = database.url_at(database.address());
        let url = url.replacen("@127.0.0.1", &format!("@{host}"), 1);
        let files = self.files.path().to_string_lossy();
        format!("{url}{}", parameters.replace("<files>", &files))
    }
}

/// How the program's turn was stored: encrypted or not, by what the server has seen.
async fn is_encrypted(database: &Database) -> Result<bool> {
    let seen = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE datname = current_database() AND application_name <> 'llmchat-testkit'";
    Ok(database.query(seen).await? == ["t"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_trusted_as_far_as_sslmode_says() -> Result<()> {
    let secure = Secure::shared().await?;
    for (host, parameters, encrypted) in [
        ("localhost", "", true),
        ("localhost", "?sslmode=disable", false),
        ("localhost", "?sslmode=allow", true),
        ("127.0.0.1", "?sslmode=require", true),
        (
            "localhost",
            "?sslmode=require&sslrootcert=<files>/ca.crt",
            true,
        ),
        (
            "127.0.0.1",
            "?sslmode=verify-ca&sslrootcert=<files>/ca.crt",
            true,
        ),
        (
            "localhost",
            "?sslmode=verify-full&sslrootcert=<files>/ca.crt",
            true,
        ),
    ] {
        let database = secure.cluster.database().await?;
        let url = secure.url(&database, host, parameters);
        let app = TestApp::with(Backend::Postgres, "database_url", url).await?;
        app.turn("app", "Hi", "ok").await?;
        let rows = database.query("SELECT message FROM chatts").await?;
        assert_eq!(rows, ["Hi", "ok"], "{parameters}: {}", app.log()?);
        assert_eq!(is_encrypted(&database).await?, encrypted, "{parameters}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_sslmode_does_not_trust_is_refused_with_the_reason() -> Result<()> {
    let secure = Secure::shared().await?;
    let database = secure.cluster.database().await?;
    for (host, parameters, why) in [
        ("localhost", "?sslmode=verify-full", "UnknownIssuer"),
        ("localhost", "?sslrootcert=system", "UnknownIssuer"),
        (
            "localhost",
            "?sslmode=verify-ca&sslrootcert=<files>/stranger.crt",
            "invalid peer certificate",
        ),
        (
            "localhost",
            "?sslmode=require&sslrootcert=<files>/stranger.crt",
            "invalid peer certificate",
        ),
        (
            "127.0.0.1",
            "?sslmode=verify-full&sslrootcert=<files>/ca.crt",
            "certificate not valid for name",
        ),
        (
            "localhost",
            "?sslmode=verify-ca&sslrootcert=<files>/none.crt",
            "cannot read the certificate file",
        ),
    ] {
        let url = secure.url(&database, host, parameters);
        let app = TestApp::on(Backend::Postgres)
            .variable("database_url", url)
            .variable("database_timeout", "1s")
            .start()
            .await?;
        app.prompt("app", "Hi").await?.error(500).await?;
        assert_eq!(app.ollama.chats(), 0);
        let log = app.log()?;
        assert!(log.contains(why), "{parameters}: {log}");
        assert!(log.contains("error performing TLS handshake"), "{log}");
        assert!(!log.contains(PASSWORD), "{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_used_unless_tls_is_required() -> Result<()> {
    let database = Cluster::shared().await?.database().await?;
    let url = database.url_at(database.address());
    let app = TestApp::with(
        Backend::Postgres,
        "database_url",
        format!("{url}?sslmode=prefer"),
    );
    app.await?.turn("app", "Hi", "ok").await?;
    let app = TestApp::on(Backend::Postgres)
        .variable("database_url", format!("{url}?sslmode=require"))
        .variable("database_timeout", "1s")
        .start()
        .await?;
    app.prompt("app", "Hi").await?.error(500).await?;
    let log = app.log()?;
    assert!(log.contains("server does not support TLS"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostaddr_leads_nowhere_that_is_not_allowed() -> Result<()> {
    let database = Cluster::shared().await?.database().await?;
    // Not among the loopback addresses that the manifest lists.
    let elsewhere = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await?;
    let port = elsewhere.local_addr()?.port();
    for parameters in [
        "?hostaddr=127.0.0.2".to_owned(),
        format!("?host=127.0.0.2&port={port}"),
    ] {
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let app = TestApp::on(Backend::Postgres)
            .variable("database_url", database.url_at(own) + &parameters)
            .variable("database_timeout", "1s")
            .start()
            .await?;
        app.prompt("app", "Hi").await?.error(500).await?;
        let dialled = tokio::time::timeout(std::time::Duration::ZERO, elsewhere.accept()).await;
        assert!(dialled.is_err(), "{parameters}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ollama_with_a_certificate_that_nobody_trusts_is_told() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.cert.der().clone()],
            key.map_err(anyhow::Error::msg)?,
        )?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let url = format!("https://localhost:{}", address.port());
    let app = TestApp::with(Backend::Sqlite, "ollama_url", url).await?;
    app.ollama.push(Script::reply(["never asked"]));
    let events = app.ask("app", "Hi").await?;
    let told = format!("{:?}", events.first().context("no event")?);
    assert!(told.contains("certificate is not trusted"), "{told}");
    assert!(!told.contains("refused"), "{told}");
    Ok(())
}
