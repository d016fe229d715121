//! A pooler stands between the component and PostgreSQL.

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Cluster, Database, Pooler, TestApp};
use ollama_stand_in::Script;

/// Turns at once.
const CONVERSATIONS: usize = 10;

/// The program behind PgBouncer, and what keeps that alive.
async fn behind_pgbouncer(pool_mode: &str, size: usize) -> Result<(TestApp, Pooler, Database)> {
    let database = Cluster::shared().await?.database().await?;
    let pooler = Pooler::start(&database, pool_mode, size).await?;
    let url = database.url_at(pooler.address());
    let app = TestApp::with(Backend::Postgres, "database_url", url).await?;
    app.ollama.always(Script::reply(["ok"]));
    Ok((app, pooler, database))
}

/// Turns in several conversations at once, each of which is stored.
async fn turns_are_kept(app: &TestApp, database: &Database) -> Result<()> {
    let conversation = async |n: usize| {
        for _ in 0..5 {
            let answer = app.prompt(&format!("app {n}"), "Hi").await?.text().await?;
            ensure!(
                answer.contains(r#""done":true"#),
                "{answer}\n{}",
                app.log()?
            );
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..CONVERSATIONS).map(conversation)).await?;
    let rows = "SELECT count(*) FROM chatts GROUP BY appid HAVING count(*) = 10";
    assert_eq!(database.query(rows).await?.len(), CONVERSATIONS);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_keeps_a_sessions_connection_works() -> Result<()> {
    // Spin keeps a connection for each turn that it has run at once.
    let (app, _pooler, database) = behind_pgbouncer("session", CONVERSATIONS).await?;
    turns_are_kept(&app, &database).await
}

/// PgBouncer before 1.21 has a statement prepared on one connection and executed on another, now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_keeps_no_track_of_prepared_statements_is_got_along_with() -> Result<()> {
    let (app, _pooler, database) = behind_pgbouncer("transaction", 4).await?;
    turns_are_kept(&app, &database).await
}
