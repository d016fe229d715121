//! The database fails, before a turn and at its end; and comes back.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use llmchat_testkit::{Backend, Cluster, Event, PASSWORD, TestApp, Wire, eventually, within};
use ollama_stand_in::{Gate, Refused, Script, Unresponsive, wire};
use serde_json::Value;

use crate::conversation::words;

async fn with_wire() -> Result<TestApp> {
    TestApp::on(Backend::Postgres)
        .variable("database_timeout", "2s")
        .database_wire()
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_be_reached_is_a_500_and_ollama_is_not_called() -> Result<()> {
    let refused = Refused::new()?;
    let app = TestApp::on(Backend::Postgres)
        .variable(
            "database_url",
            format!("postgres://me:secret@{}/db", refused.address()),
        )
        .variable("database_timeout", "500ms")
        .start()
        .await?;
    let error = app.prompt("app", "Hi").await?.error(500).await?;
    assert!(error.contains("database"), "{error}");
    assert_eq!(app.ollama.chats(), 0);
    assert!(!app.log().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_elsewhere_is_reached_only_where_database_host_says_so() -> Result<()> {
    let database = Cluster::shared().await?.database().await?;
    // Not among the loopback addresses that the manifest lists.
    let elsewhere = Wire::between(Ipv4Addr::new(127, 0, 0, 2), database.address()).await?;
    let url = database.url_at(elsewhere.address());
    let with_host = |host: String| {
        TestApp::on(Backend::Postgres)
            .variable("database_url", &url)
            .variable("database_host", host)
    };

    let app = with_host(String::new()).start().await?;
    app.prompt("app", "Hi").await?.error(500).await?;
    assert_eq!(elsewhere.accepted(), 0);
    let log = app.log();
    assert!(log.contains("`database_host`"), "{log}");
    assert!(!log.contains(PASSWORD), "{log}");

    let host = format!("postgres://{}", elsewhere.address());
    let app = with_host(host).start().await?;
    app.ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert!(elsewhere.accepted() > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_take_the_connection_is_a_500_in_time() -> Result<()> {
    let nobody = Unresponsive::new().await?;
    let app = TestApp::on(Backend::Postgres)
        .variable(
            "database_url",
            format!("postgres://me:secret@{}/db", nobody.address()),
        )
        .variable("database_timeout", "500ms")
        .start()
        .await?;
    app.prompt("app", "Hi").await?.error(500).await?;
    assert_eq!(app.ollama.chats(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_is_a_500_in_time() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    app.database_wire()?.hold();
    app.prompt("app", "lost").await?.error(500).await?;
    assert_eq!(app.ollama.chats(), 1);

    app.database_wire()?.cut();
    app.database_wire()?.mend();
    app.ask("app", "and on").await?;
    let expected = words(&[
        ("user", "Hi"),
        ("assistant", "ok"),
        ("user", "and on"),
        ("assistant", "ok"),
    ]);
    assert_eq!(app.conversation("app").await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_between_two_turns_are_not_noticed() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    for turn in 1..=5 {
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
        assert_eq!(app.rows("app").await?.len(), 2 * turn);
        app.database_wire()?.cut();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_at_the_beginning_is_waited_for() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    let wire = app.database_wire()?;
    wire.refuse();
    let (answer, ()) = tokio::try_join!(app.prompt("app", "Hi"), async {
        eventually("a try", async || Ok((wire.accepted() > 0).then_some(()))).await?;
        wire.mend();
        Ok(())
    })?;
    assert_eq!(answer.events().await?.rest().await?.len(), 2);
    assert_eq!(
        app.conversation("app").await?,
        words(&[("user", "Hi"), ("assistant", "ok")])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_at_the_end_is_waited_for() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    app.ollama
        .push(Script::new().token("kept").gate(&gate).done());
    let mut events = app.stream("app", "Hi").await?;
    events.next().await?;
    let wire = app.database_wire()?;
    wire.refuse();
    wire.cut();
    let before = wire.accepted();
    gate.open();
    eventually("a try", async || {
        Ok((wire.accepted() > before).then_some(()))
    })
    .await?;
    wire.mend();
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    assert_eq!(
        app.conversation("app").await?,
        words(&[("user", "Hi"), ("assistant", "kept")])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_cannot_be_stored_is_no_done_and_is_not_lost_to_the_user() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    let last =
        r#"{"model":"m","message":{"role":"assistant","content":" words","x":1.50},"done":true}"#;
    app.ollama
        .push(Script::new().token("last").gate(&gate).line(last));
    let mut events = app.stream("app", "Hi").await?;
    events.next().await?;
    app.database_wire()?.refuse();
    app.database_wire()?.cut();
    gate.open();
    let rest = events.rest().await?;
    let [Event::Error { code, data, .. }] = &rest[..] else {
        anyhow::bail!("{rest:?}");
    };
    assert_eq!(code, "database_failed");
    let data: Value = serde_json::from_str(data)?;
    assert_eq!(data["message"]["content"], " words");
    assert_eq!(app.conversation("app").await?, words(&[("user", "Hi")]));

    app.database_wire()?.mend();
    app.ollama.push(Script::reply(["ok"]));
    app.ask("app", "Again").await?;
    assert_eq!(app.rows("app").await?.len(), 3);
    Ok(())
}

/// Every insertion waits until [`HeldInserts::release`], after it was sent and before it is done:
/// time to lose its answer.
struct HeldInserts(tokio_postgres::Client);

impl HeldInserts {
    async fn hold(app: &TestApp) -> Result<Self> {
        let client = app.postgres()?.connect().await?;
        client
            .batch_execute(
                "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
                     'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END';
                 CREATE TRIGGER held BEFORE INSERT ON chatts FOR EACH ROW EXECUTE FUNCTION held();
                 SELECT pg_advisory_lock(7)",
            )
            .await?;
        Ok(Self(client))
    }

    async fn reached(&self) -> Result<()> {
        let waiting = "SELECT 1 FROM pg_locks JOIN pg_database ON database = pg_database.oid
                       WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
        eventually("the insertion", async || {
            Ok((!self.0.query(waiting, &[]).await?.is_empty()).then_some(()))
        })
        .await
    }

    async fn release(&self) -> Result<()> {
        Ok(self.0.batch_execute("SELECT pg_advisory_unlock(7)").await?)
    }
}

/// The insertion that is held comes about; nobody is told.
async fn commits_unheard(app: &TestApp, inserts: &HeldInserts, rows: usize) -> Result<()> {
    inserts.reached().await?;
    let wire = app.database_wire()?;
    wire.swallow_answers();
    inserts.release().await?;
    eventually("the commit", async || {
        Ok((app.rows("app").await?.len() == rows).then_some(()))
    })
    .await?;
    wire.mend();
    wire.cut();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_whose_commit_was_not_heard_of_is_stored_once() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "one").await?;
    let inserts = HeldInserts::hold(&app).await?;
    let (answer, ()) =
        tokio::try_join!(app.prompt("app", "two"), commits_unheard(&app, &inserts, 3))?;
    answer.events().await?.rest().await?;
    let expected = words(&[
        ("user", "one"),
        ("assistant", "ok"),
        ("user", "two"),
        ("assistant", "ok"),
    ]);
    assert_eq!(app.conversation("app").await?, expected);
    let sent = app.ollama.chat(2).await.request().messages()?;
    assert_eq!(sent, expected[..3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_commit_was_not_heard_of_is_stored_once() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    app.ollama
        .push(Script::new().token("once").gate(&gate).done());
    let mut events = app.stream("app", "Hi").await?;
    events.next().await?;
    let inserts = HeldInserts::hold(&app).await?;
    gate.open();
    commits_unheard(&app, &inserts, 2).await?;
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    assert_eq!(
        app.conversation("app").await?,
        words(&[("user", "Hi"), ("assistant", "once")])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_slows_and_breaks_nothing() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    app.database_wire()?
        .delay(std::time::Duration::from_millis(30));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_the_server_has_forgotten_is_prepared_again() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "one").await?;
    let forget = "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NULL; END $$;
        CREATE TRIGGER forget AFTER INSERT ON chatts EXECUTE FUNCTION forget()";
    app.postgres()?
        .connect()
        .await?
        .batch_execute(forget)
        .await?;
    // More than the pool can have connections that were not used since.
    for _ in 0..40 {
        app.ask("app", "again").await?;
    }
    assert_eq!(app.conversation("app").await?.len(), 82);
    assert_eq!(app.log(), "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_terminated_are_replaced() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
    app.postgres()?.query(terminate).await?;
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_is_locked_for_a_while_is_waited_for() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let connection = app.sqlite()?.open()?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let (answer, ()) = tokio::try_join!(app.prompt("app", "Hi"), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        Ok(connection.execute_batch("COMMIT")?)
    })?;
    answer.events().await?.rest().await?;
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_stays_locked_is_a_500_in_time() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .variable("database_timeout", "2s")
        .start()
        .await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let connection = app.sqlite()?.open()?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let answer = within("the answer", app.prompt("app", "Hi")).await??;
    answer
        .error(500)
        .await
        .context("a prompt that cannot be stored")?;
    assert_eq!(app.ollama.chats(), 1);
    Ok(())
}
