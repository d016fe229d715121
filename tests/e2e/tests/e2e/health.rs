//! `GET /healthz` and `GET /readyz`: whether the server is alive, and whether what it needs is there.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{
    Answer, Backend, PASSWORD, Setup, Store, TestApp, at_limit, on_both_stores, until,
};
use ollama_stand_in::Script;
use serde_json::{Value, json};

const VERSION: &str = "/api/version";
/// How long the server waits for what it needs.
const LIMIT: Duration = Duration::from_secs(3);

async fn readyz(app: &TestApp) -> Result<Answer> {
    app.client.get("/readyz", &[]).await
}

/// What is wrong with the database and with Ollama, by a server that is not ready.
async fn wrong(app: &TestApp) -> Result<[String; 2]> {
    let answer = readyz(app).await?;
    assert_eq!(answer.header("retry-after"), Some("1"));
    let found = answer.json(503).await?;
    assert_eq!(found["status"], "not ready");
    let words = |part: &str| found[part].as_str().map(str::to_owned).context("no text");
    let told = [words("database")?, words("ollama")?];
    for word in ["127.0.0.1", "localhost", PASSWORD, "SELECT", "postgres://"] {
        ensure!(!found.to_string().contains(word), "{found}");
    }
    Ok(told)
}

/// Waits until it is ready: an answer holds for a second.
async fn until_ready(app: &TestApp) -> Result<()> {
    until("readiness", async || Ok(readyz(app).await?.status() == 200)).await
}

fn ready() -> Value {
    json!({"status": "ready", "database": "ok", "ollama": "ok"})
}

/// A network to both.
fn wired(backend: Backend) -> Setup {
    let setup = TestApp::on(backend).ollama_wire();
    match backend {
        Backend::Sqlite => setup,
        Backend::Postgres => setup.database_wire(),
    }
}

on_both_stores! {
    async fn a_server_with_an_empty_database_is_ready_and_it_stays_empty(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let answer = readyz(&app).await?;
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.json(200).await?, ready());
        assert_eq!(app.client.request("HEAD", "/readyz", "").await?.status(), 200);
        let tables = match backend {
            Backend::Sqlite => "SELECT name FROM sqlite_master",
            Backend::Postgres => "SELECT relname::text FROM pg_class WHERE relname LIKE 'chatts%'",
        };
        assert_eq!(app.query(tables).await?, Vec::<String>::new());
        app.turn("app", "Hi", "ok").await?;
        assert_eq!(readyz(&app).await?.json(200).await?, ready());
        Ok(())
    }

    async fn an_ollama_that_is_not_there_or_hangs_is_told_and_its_return_too(backend: Backend) -> Result<()> {
        let app = wired(backend).start().await?;
        app.ollama_wire()?.take_down();
        let [database, ollama] = wrong(&app).await?;
        assert_eq!(database, "ok");
        assert!(ollama.starts_with("Ollama "), "{ollama}");
        app.ollama_wire()?.restore();
        until_ready(&app).await?;
        app.ollama.answer_at(VERSION, Script::silence());
        until("a wait for Ollama", async || Ok(readyz(&app).await?.status() == 503)).await?;
        Ok(())
    }

    async fn misconfigured_it_is_alive_and_says_of_the_rest_what_is_wrong(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "turn_timeout", "soon").await?;
        for path in ["/healthz", "/healthz/", "/healthz?a=b"] {
            let answer = app.client.get(path, &[]).await?;
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.json(200).await?, json!({"status": "ok"}));
        }
        assert_eq!(app.client.request("HEAD", "/healthz", "").await?.status(), 200);
        for path in ["/readyz", "/models"] {
            let (code, error) = app.client.get(path, &[]).await?.refused(500).await?;
            assert_eq!(code, "misconfigured");
            assert!(error.contains("`turn_timeout`"), "{error}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_is_told_and_its_return_too() -> Result<()> {
    let app = wired(Backend::Postgres).start().await?;
    app.database_wire()?.take_down();
    let [database, ollama] = at_limit(LIMIT, wrong(&app)).await??;
    assert!(database.contains("cannot be reached"), "{database}");
    assert_eq!(ollama, "ok");
    assert!(
        app.log()?.contains("not ready: the database"),
        "{}",
        app.log()?
    );
    app.database_wire()?.restore();
    until_ready(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_are_waited_for_at_the_same_time_and_not_for_long() -> Result<()> {
    let app = wired(Backend::Postgres).start().await?;
    app.database_wire()?.hold();
    app.ollama_wire()?.hold();
    let begun = std::time::Instant::now();
    let [database, ollama] = at_limit(LIMIT, wrong(&app)).await??;
    ensure!(begun.elapsed() < 2 * LIMIT, "one after the other");
    assert!(database.contains("does not answer in time"), "{database}");
    assert!(ollama.contains("did not answer within 3s"), "{ollama}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_limits_are_kept_where_they_are_shorter() -> Result<()> {
    let app = wired(Backend::Postgres)
        .variable("database_timeout", "200ms")
        .variable("ollama_first_byte_timeout", "200ms")
        .start()
        .await?;
    app.database_wire()?.hold();
    app.ollama_wire()?.hold();
    let begun = std::time::Instant::now();
    let [_, ollama] = wrong(&app).await?;
    assert!(ollama.starts_with("Ollama did not "), "{ollama}");
    ensure!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_not_ready() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$";
    app.execute(read_only).await?;
    let [database, ollama] = wrong(&app).await?;
    assert!(database.contains("takes no writes"), "{database}");
    assert_eq!(ollama, "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_refused_is_not_ready_and_the_password_is_not_told() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    let url = app.postgres()?.url_at(app.postgres()?.address());
    let url = url.replace(PASSWORD, &format!("not-{PASSWORD}"));
    let app = TestApp::with(Backend::Postgres, "database_url", url).await?;
    let [database, _] = wrong(&app).await?;
    assert!(database.contains("refused the login"), "{database}");
    assert!(!app.log()?.contains(PASSWORD), "{}", app.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_database_is_not_ready() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let Store::Sqlite(file) = app.store() else {
        anyhow::bail!("no SQLite");
    };
    fs::write(file, "This is no database. ".repeat(1000))?;
    let [database, _] = wrong(&app).await?;
    assert!(database.contains("the server's log says why"), "{database}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_needs_a_key_and_neither_tells_ollamas_or_its_words() -> Result<()> {
    const KEY: &str = "sk-0llama-s3cret";
    let app = TestApp::on(Backend::Sqlite)
        .guarded_ollama("/behind/it", KEY)
        .variable("api_keys", "ann:token")
        .start()
        .await?;
    app.client.get("/healthz", &[]).await?.json(200).await?;
    assert_eq!(readyz(&app).await?.json(200).await?, ready());
    let refused = Script::refuse(401, &format!("no {KEY} at 10.0.0.1"));
    app.ollama.answer_at(VERSION, refused);
    until(
        "a refusal",
        async || Ok(readyz(&app).await?.status() == 503),
    )
    .await?;
    let [_, ollama] = wrong(&app).await?;
    assert!(
        ollama.contains("401") && ollama.contains("`ollama_api_key` may be wrong"),
        "{ollama}"
    );
    for inner in ["s3cret", "10.0.0.1", "behind"] {
        assert!(!ollama.contains(inner), "{ollama}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_method_is_refused() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for path in ["/healthz", "/readyz"] {
        let answer = app.client.request("POST", path, "{}").await?;
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        answer.refused(405).await?;
    }
    Ok(())
}

/// Spin may send requests that come at once to several instances.
mod native {
    use futures_util::future::try_join_all;
    use ollama_stand_in::Gate;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_who_ask_at_once_ask_the_database_and_ollama_once() -> Result<()> {
        let app = TestApp::start(Backend::Postgres).await?;
        let gate = Gate::new();
        let version = r#"{"version":"1"}"#;
        app.ollama
            .answer_at(VERSION, Script::new().gate(&gate).bytes(version));
        let asked = try_join_all((0..50).map(|_| readyz(&app)));
        let opened = async {
            gate.reached().await;
            gate.open();
            Ok(())
        };
        let (answers, ()) = tokio::try_join!(asked, opened)?;
        for answer in answers {
            assert_eq!(answer.json(200).await?, ready());
        }
        let instances = app.instances()?;
        assert_eq!(
            (app.ollama.requests_at(VERSION), instances),
            (instances, instances)
        );
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leaves_while_asking_leaves_it_to_others() -> Result<()> {
        let app = TestApp::start(Backend::Sqlite).await?;
        let gate = Gate::new();
        app.ollama
            .answer_at(VERSION, Script::new().gate(&gate).hang());
        tokio::select! {
            answer = readyz(&app) => drop(answer?),
            () = gate.reached() => {}
        }
        app.ollama
            .answer_at(VERSION, Script::body(200, "application/json", "{}"));
        until_ready(&app).await
    }
}
