//! The database's password is in nothing that is printed or sent.

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Cluster, PASSWORD, TestApp};
use ollama_stand_in::{Gate, Refused, Script};

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
        for text in [&head, &body, &app.log()?] {
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
