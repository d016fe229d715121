//! Neither the database's password nor Ollama's key is in anything that is printed or sent.

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{Backend, Cluster, PASSWORD, TestApp};
use ollama_stand_in::{Gate, Refused, Script, wire};

/// Ollama's key, in which JSON may escape a character.
const KEY: &str = "sk-0llama/Key+with=all~that.may:be";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_failure_shows_the_password() -> Result<()> {
    let server = Cluster::shared().await?.address();
    let refused = Refused::new()?.address();
    let urls = [
        format!("postgres://llmchat:{PASSWORD}@{refused}/db"),
        format!("postgres://llmchat:{PASSWORD}@db.invalid:5432/db"),
        format!("postgres://llmchat:{PASSWORD}@192.0.2.1:5432/db"),
        // A wrong user, password, database.
        format!("postgres://nobody:{PASSWORD}@{server}/postgres"),
        format!("postgres://llmchat:not-{PASSWORD}@{server}/postgres"),
        format!("postgres://llmchat:{PASSWORD}@{server}/nowhere"),
        // What cannot be parsed, and what parses as something else.
        format!("postgres://llmchat:{PASSWORD}@{server}:port/db"),
        format!("postgres://llmchat:{PASSWORD}"),
        format!("postgres://llmchat:{PASSWORD}/@{server}/db"),
        format!("postgres://llmchat:{PASSWORD}@{server}/db?unknown={PASSWORD}"),
        // What ends the password early, so that its rest is taken for a host, a port, a database, a parameter.
        format!("postgres://llmchat:a@{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a@{PASSWORD}:1@{server}/db"),
        format!("postgres://llmchat:a@127.0.0.1:{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a@{server}/{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a@{server}/db?{PASSWORD}=b@{server}/db"),
        format!("postgres://llmchat:a/{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a?{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a#{PASSWORD}@{server}/db"),
        format!("postgres://llmchat:a%zz{PASSWORD}@{server}/db"),
        format!("postgres://{server}/db?user=llmchat&password={PASSWORD}"),
        format!("postgres://{server}/db?user=llmchat&password=a&{PASSWORD}=b"),
        format!("mysql://llmchat:{PASSWORD}@{server}/db"),
        format!("host=127.0.0.1 password={PASSWORD}"),
        PASSWORD.to_owned(),
    ];
    for url in urls {
        let started = TestApp::on(Backend::Postgres)
            .variable("database_url", &url)
            .variable("database_timeout", "500ms")
            .start()
            .await;
        let app = match started {
            Ok(app) => app,
            Err(error) => {
                ensure!(!format!("{error:?}").contains(PASSWORD), "{error:?}");
                continue;
            }
        };
        let answer = app.prompt("app", "Hi").await?;
        let head = format!("{answer:?}");
        let body = answer.error(500).await?;
        let ready = app.client.get("/readyz", &[]).await?.text().await?;
        for text in [&head, &body, &ready, &app.log()?] {
            ensure!(!text.contains(PASSWORD), "{url}: {text}");
            ensure!(!text.contains(&url), "{url}: {text}");
        }
        ensure!(app.ollama.chats() == 0, "{url}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_that_the_driver_does_not_know_is_named_and_the_password_is_not() -> Result<()>
{
    let server = Cluster::shared().await?.address();
    for name in ["schema", "pgbouncer"] {
        let url = format!("postgres://llmchat:{PASSWORD}@{server}/postgres?{name}=x");
        let app = TestApp::with(Backend::Postgres, "database_url", url).await?;
        let error = app.prompt("app", "Hi").await?.error(500).await?;
        for text in [error, app.log()?] {
            ensure!(text.contains(&format!("`{name}`")), "{text}");
            ensure!(!text.contains(PASSWORD), "{text}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_failure_in_mid_stream_shows_the_password_or_the_statement() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .variable("database_timeout", "2s")
        .database_wire()
        .start()
        .await?;
    let gate = Gate::new();
    app.ollama.push(Script::new().token("a").gate(&gate).done());
    let mut answer = app.prompt("app", "Hi").await?;
    let first = answer.chunk().await?.unwrap_or_default();
    ensure!(answer.status() == 200, "{first:?}");
    app.database_wire()?.take_down();
    gate.open();
    let body = answer.text().await?;
    ensure!(body.contains("database_failed"), "{body}");
    for text in [&body, &app.log()?] {
        ensure!(!text.contains(PASSWORD), "{text}");
    }
    let address = app.database_wire()?.address().to_string();
    for inner in ["INSERT", "SELECT", "chatts (", "127.0.0.1", &address] {
        ensure!(!body.contains(inner), "{body}");
    }
    Ok(())
}

/// Ways to repeat a key in an error, of which none may reach anybody.
fn echoes() -> Vec<Script> {
    let refuse = |status, said: &str| Script::refuse(status, said);
    let said = format!("the key {KEY} is not known");
    let long = format!("{} {KEY}", "x".repeat(2040));
    let page = format!("<h1>403</h1> {KEY} <p>{} {KEY}</p>", "y".repeat(150));
    let nested = format!(r#"{{"error":{{"detail":[{{"authorization":"Bearer {KEY}"}}]}}}}"#);
    let escaped = format!(
        r#"{{"error":"{}"}}"#,
        KEY.replace('/', r"\/").replace('k', r"\u006b")
    );
    vec![
        refuse(401, &said),
        refuse(500, &said),
        refuse(403, &long),
        Script::body(403, "text/html", page),
        Script::body(401, KEY, "?"),
        Script::body(400, "application/json", nested.clone()),
        Script::body(400, "application/json", escaped.clone()),
        Script::body(200, "text/plain", said.clone()),
        // In mid-reply: as the last line, and before another one.
        Script::new().token("a").line(wire::error(&said)),
        Script::new().token("a").line(&escaped).token("b").done(),
        Script::new().token("a").line(&nested).token("b").done(),
        Script::new().token("a").line(wire::error(&long)),
        // No chat responses: left out.
        Script::new()
            .token("a")
            .line(&said)
            .line(format!("{{\"key\":\"{KEY}\"}}"))
            .done(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_ollama_repeats_reaches_nobody() -> Result<()> {
    let setup = TestApp::on(Backend::Sqlite).guarded_ollama("", KEY);
    let app = setup.start().await?;
    // The first few characters of a key tell nothing.
    let part = KEY.get(..8).context("a short key")?;
    for (n, script) in echoes().into_iter().enumerate() {
        app.ollama.push(script);
        let answer = app.prompt(&format!("app {n}"), "Hi").await?;
        let turn = answer.turn()?;
        let stream = answer.text().await?;
        ensure!(stream.contains("event: error"), "{stream}");
        let later = app.client.get(&turn, &[]).await?.text().await?;
        for text in [&stream, &later] {
            ensure!(!text.contains(part), "{n}: {text}");
        }
    }
    ensure!(!app.log()?.contains(part), "{}", app.log()?);
    let stored = "SELECT coalesce(error, '') || coalesce(final, '') FROM chatts_turns";
    let stored = app.query(stored).await?.concat();
    ensure!(!stored.contains(part), "{stored}");
    Ok(())
}
