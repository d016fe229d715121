//! The database fails, before a turn and at its end; and comes back.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use llmchat_testkit::{
    Backend, Cluster, Event, PASSWORD, TestApp, Wire, at_limit, messages, on_both_stores, until,
};
use ollama_stand_in::{Gate, Refused, Script, Unresponsive, wire};
use serde_json::Value;

/// `database_timeout` in [`with_wire`].
const LIMIT: Duration = Duration::from_secs(2);

async fn with_wire() -> Result<TestApp> {
    TestApp::on(Backend::Postgres)
        .variable("database_timeout", "2s")
        .database_wire()
        .start()
        .await
}

/// The program with a database that is at another address.
async fn with_database_at(address: SocketAddr) -> Result<TestApp> {
    let url = format!("postgres://me:secret@{address}/db");
    TestApp::on(Backend::Postgres)
        .variable("database_url", url)
        .variable("database_timeout", "500ms")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_be_reached_is_a_500_and_ollama_is_not_called() -> Result<()> {
    let refused = Refused::new()?;
    let app = with_database_at(refused.address()).await?;
    let error = app.prompt("app", "Hi").await?.error(500).await?;
    assert!(error.contains("database"), "{error}");
    assert_eq!(app.ollama.chats(), 0);
    assert!(!app.log()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_elsewhere_is_reached_only_where_database_host_says_so() -> Result<()> {
    let database = Cluster::shared().await?.database().await?;
    // Not among the loopback addresses that the manifest lists.
    let elsewhere = Wire::between(Ipv4Addr::new(127, 0, 0, 2), database.address()).await?;
    let url = database.url_at(elsewhere.address());
    let app = TestApp::with(Backend::Postgres, "database_url", &url).await?;
    app.prompt("app", "Hi").await?.error(500).await?;
    assert_eq!(elsewhere.accepted(), 0);
    let log = app.log()?;
    assert!(log.contains("`database_host`"), "{log}");
    assert!(!log.contains(PASSWORD), "{log}");

    let host = format!("postgres://{}", elsewhere.address());
    let app = TestApp::on(Backend::Postgres)
        .variable("database_url", &url)
        .variable("database_host", host)
        .start()
        .await?;
    app.ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert!(elsewhere.accepted() > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_take_the_connection_is_a_500_in_time() -> Result<()> {
    let nobody = Unresponsive::new().await?;
    let app = with_database_at(nobody.address()).await?;
    let limit = Duration::from_millis(500);
    let answer = at_limit(limit, app.prompt("app", "Hi")).await??;
    answer.error(500).await?;
    assert_eq!(app.ollama.chats(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_is_a_500_in_time() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    app.database_wire()?.hold();
    let answer = at_limit(LIMIT, app.prompt("app", "lost")).await??;
    answer.error(500).await?;
    assert_eq!(app.ollama.chats(), 1);

    app.database_wire()?.cut();
    app.database_wire()?.restore();
    app.ask("app", "and on").await?;
    let expected = messages(&[
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
async fn connections_that_died_silently_cost_one_try() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .database_wire()
        .start()
        .await?;
    app.ollama.always(Script::reply(["ok"]));
    let network = app.database_wire()?;
    // Many, so that more than one can be met.
    let ask = async |n: usize| app.ask(&format!("app {n}"), "Hi").await;
    futures_util::future::try_join_all((0..20).map(ask)).await?;

    network.silence();
    let begun = Instant::now();
    let gate = Gate::new();
    let script = Script::new().token("kept").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    // A first try of 1.4 s, and not the 10 s of `database_timeout`.
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );

    network.silence();
    gate.open();
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    for _ in 0..5 {
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    }
    assert_eq!(app.rows("app").await?.len(), 12);
    assert!(!app.log()?.contains("database"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_at_the_beginning_is_waited_for() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    let wire = app.database_wire()?;
    wire.refuse();
    let (answer, ()) = tokio::try_join!(app.prompt("app", "Hi"), async {
        until("a try", async || Ok(wire.accepted() > 0)).await?;
        wire.restore();
        Ok(())
    })?;
    assert_eq!(answer.read().await?.len(), 2);
    let stored = app.conversation("app").await?;
    assert_eq!(stored, messages(&[("user", "Hi"), ("assistant", "ok")]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_at_the_end_is_waited_for() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    let script = Script::new().token("kept").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    let wire = app.database_wire()?;
    wire.take_down();
    let before = wire.accepted();
    gate.open();
    until("a try", async || Ok(wire.accepted() > before)).await?;
    wire.restore();
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    let stored = app.conversation("app").await?;
    assert_eq!(stored, messages(&[("user", "Hi"), ("assistant", "kept")]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_cannot_be_stored_is_no_done_and_is_not_lost_to_the_user() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    let last =
        r#"{"model":"m","message":{"role":"assistant","content":" words","x":1.50},"done":true}"#;
    let script = Script::new().token("last").gate(&gate).line(last);
    let events = app.begin("app", "Hi", script).await?;
    app.database_wire()?.hold();
    gate.open();
    let rest = at_limit(LIMIT, events.rest()).await??;
    let [Event::Error { code, data, .. }] = &rest[..] else {
        bail!("{rest:?}");
    };
    assert_eq!(code, "database_failed");
    let data: Value = serde_json::from_str(data)?;
    assert_eq!(data["message"]["content"], " words");
    let stored = app.conversation("app").await?;
    assert_eq!(stored, messages(&[("user", "Hi")]));

    app.database_wire()?.cut();
    app.database_wire()?.restore();
    app.turn("app", "Again", "ok").await?;
    assert_eq!(app.rows("app").await?.len(), 3);
    Ok(())
}

/// Every insertion waits for [`HeldInserts::release`] after it was sent and before it is done, so
/// that its answer can be lost.
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
        let is_waiting = async || Ok(!self.0.query(waiting, &[]).await?.is_empty());
        until("the insertion", is_waiting).await
    }

    async fn release(&self) -> Result<()> {
        Ok(self.0.batch_execute("SELECT pg_advisory_unlock(7)").await?)
    }
}

/// The insertion that is held is committed; its answer is lost.
async fn commits_unanswered(app: &TestApp, inserts: &HeldInserts, rows: usize) -> Result<()> {
    inserts.reached().await?;
    let wire = app.database_wire()?;
    wire.swallow_answers();
    inserts.release().await?;
    app.until_rows("app", rows).await?;
    wire.restore();
    wire.cut();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_whose_commit_was_not_heard_of_is_stored_once() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "one").await?;
    let inserts = HeldInserts::hold(&app).await?;
    let commit = commits_unanswered(&app, &inserts, 3);
    let (answer, ()) = tokio::try_join!(app.prompt("app", "two"), commit)?;
    answer.read().await?;
    let expected = messages(&[
        ("user", "one"),
        ("assistant", "ok"),
        ("user", "two"),
        ("assistant", "ok"),
    ]);
    assert_eq!(app.conversation("app").await?, expected);
    assert_eq!(app.sent_to_ollama(2).await?, expected[..3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_commit_was_not_heard_of_is_stored_once() -> Result<()> {
    let app = with_wire().await?;
    let gate = Gate::new();
    let script = Script::new().token("once").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    let inserts = HeldInserts::hold(&app).await?;
    gate.open();
    commits_unanswered(&app, &inserts, 2).await?;
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    let stored = app.conversation("app").await?;
    assert_eq!(stored, messages(&[("user", "Hi"), ("assistant", "once")]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_slows_and_breaks_nothing() -> Result<()> {
    let app = with_wire().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    app.database_wire()?.delay(Duration::from_millis(30));
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
    app.execute(forget).await?;
    // More often than the pool can have connections that were not used since.
    for _ in 0..40 {
        app.ask("app", "again").await?;
    }
    assert_eq!(app.conversation("app").await?.len(), 82);
    assert!(!app.log()?.contains("database"));
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

/// A trigger that fails every insertion in one way, and counts them.
async fn fail_insertions(app: &TestApp, backend: Backend, failure: &str) -> Result<()> {
    app.execute(&match backend {
        Backend::Sqlite => format!(
            "DROP TABLE IF EXISTS hits; CREATE TABLE hits (n);
             CREATE TRIGGER failing BEFORE INSERT ON chatts
             BEGIN INSERT INTO hits VALUES (1); SELECT RAISE(FAIL, '{failure}'); END"
        ),
        // A sequence is not rolled back.
        Backend::Postgres => format!(
            "DROP SEQUENCE IF EXISTS hits; CREATE SEQUENCE hits MINVALUE 0;
             CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('hits'); RAISE EXCEPTION 'failing' USING ERRCODE = '{failure}'; END $$;
             CREATE TRIGGER failing BEFORE INSERT ON chatts EXECUTE FUNCTION fail()"
        ),
    })
    .await
}

async fn stop_failing(app: &TestApp, backend: Backend) -> Result<()> {
    app.execute(match backend {
        Backend::Sqlite => "DROP TRIGGER failing",
        Backend::Postgres => "DROP TRIGGER failing ON chatts",
    })
    .await
}

async fn until_hit(app: &TestApp, backend: Backend) -> Result<()> {
    let count = match backend {
        Backend::Sqlite => "SELECT 'hit' FROM hits",
        Backend::Postgres => "SELECT 'hit' FROM hits WHERE is_called",
    };
    let is_hit = async || Ok(!app.query(count).await?.is_empty());
    until("a failed insertion", is_hit).await
}

on_both_stores! {
    async fn what_passes_is_waited_for(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "database_timeout", "60s").await?;
        app.turn("app", "Hi", "ok").await?;
        let failures: &[&str] = match backend {
            Backend::Sqlite => &[
                "disk I/O error", "database or disk is full", "unable to open database file", "locking protocol",
                "database is locked",
            ],
            Backend::Postgres => &["25006", "57014", "57P01", "58030", "40001", "53100", "08006", "26000", "XX000"],
        };
        for (turn, failure) in (1..).zip(failures) {
            let gate = Gate::new();
            let script = Script::new().token("kept").gate(&gate).done();
            let events = app.begin("app", "Hi", script).await?;
            fail_insertions(&app, backend, failure).await?;
            gate.open();
            until_hit(&app, backend).await?;
            stop_failing(&app, backend).await?;
            assert_eq!(events.rest().await?, [Event::Data(wire::done())], "{failure}");
            assert_eq!(app.rows("app").await?.len(), 2 + 2 * turn, "{failure}");
        }
        Ok(())
    }

    async fn what_would_fail_again_is_told_at_once(backend: Backend) -> Result<()> {
        // Whoever waited for it would be late for the test.
        let app = TestApp::with(backend, "database_timeout", "10m").await?;
        app.turn("app", "Hi", "ok").await?;
        let failures: &[&str] = match backend {
            Backend::Sqlite => &["CHECK constraint failed: x", "database disk image is malformed", "datatype mismatch",
                "attempt to write a readonly database"],
            Backend::Postgres => &["23514", "22P05", "42804", "0A000", "42501"],
        };
        for failure in failures {
            fail_insertions(&app, backend, failure).await?;
            app.prompt("app", "Hi").await?.error(500).await?;
            stop_failing(&app, backend).await?;
        }
        assert_eq!((app.rows("app").await?.len(), app.ollama.chats()), (2, 1));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_leaves_nothing_to_write_to_for_a_while_is_waited_for() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .variable("database_timeout", "60s")
        .database_wire()
        .start()
        .await?;
    let gate = Gate::new();
    let script = Script::new().token("kept").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    let database = app.postgres()?;
    let name = database.query("SELECT current_database()").await?.join("");
    let read_only =
        |is: &str| format!("ALTER DATABASE {name} SET default_transaction_read_only = {is}");
    database.execute(&read_only("on")).await?;
    let network = app.database_wire()?;
    network.cut();
    let before = network.accepted();
    gate.open();
    until("some tries", async || Ok(network.accepted() > before + 2)).await?;
    database
        .execute(&format!(
            "SET default_transaction_read_only = off; {}",
            read_only("off")
        ))
        .await?;
    assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
    // No connection is left from then.
    app.ollama.always(Script::reply(["ok"]));
    for _ in 0..5 {
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    }
    assert_eq!(app.rows("app").await?.len(), 12);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_has_become_read_only_are_left_for_others() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    app.execute(
        "CREATE TABLE former AS SELECT pid FROM pg_stat_activity WHERE datname = current_database();
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF pg_backend_pid() IN (SELECT pid FROM former) THEN
                RAISE EXCEPTION 'cannot execute INSERT in a read-only transaction' USING ERRCODE = '25006';
            END IF;
            RETURN NULL;
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON chatts EXECUTE FUNCTION refuse()",
    )
    .await?;
    for _ in 0..3 {
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    }
    assert_eq!(app.rows("app").await?.len(), 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_is_locked_for_a_while_is_waited_for() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let lock = app.lock().await?;
    let (answer, ()) = tokio::try_join!(app.prompt("app", "Hi"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        lock.release().await
    })?;
    answer.read().await?;
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_stays_locked_is_a_500_in_time() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "database_timeout", "2s").await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
    let lock = app.lock().await?;
    let answer = at_limit(LIMIT, app.prompt("app", "Hi")).await??;
    answer.error(500).await?;
    assert_eq!(app.ollama.chats(), 1);
    lock.release().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_is_locked_when_a_reply_ends_is_waited_for() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let gate = Gate::new();
    let script = Script::new().token("kept").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    let lock = app.lock().await?;
    gate.open();
    app.ollama_ended(1).await?;
    let (rest, ()) = tokio::try_join!(events.rest(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        lock.release().await
    })?;
    assert_eq!(rest, [Event::Data(wire::done())]);
    let stored = app.conversation("app").await?;
    assert_eq!(stored, messages(&[("user", "Hi"), ("assistant", "kept")]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_stays_locked_when_a_reply_ends_is_told_in_time() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "database_timeout", "2s").await?;
    let gate = Gate::new();
    let script = Script::new().token("shown").gate(&gate).done();
    let events = app.begin("app", "Hi", script).await?;
    let lock = app.lock().await?;
    gate.open();
    let rest = at_limit(LIMIT, events.rest()).await??;
    assert_eq!((rest.len(), rest[0].code()), (1, Some("database_failed")));
    lock.release().await?;
    app.turn("app", "Again", "ok").await?;
    // The try that was given up may have got the lock after all.
    let conversation = app.conversation("app").await?;
    let without = messages(&[("user", "Hi"), ("user", "Again"), ("assistant", "ok")]);
    let mut with = without.clone();
    with.insert(1, ("assistant".to_owned(), "shown".to_owned()));
    assert!([with, without].contains(&conversation), "{conversation:?}");
    Ok(())
}

/// Spin keeps a connection until its statement has ended.
mod native {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_that_was_given_up_takes_its_connection_with_it() -> Result<()> {
        let app = with_wire().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "Hi").await?;
        let lock = app.lock().await?;
        app.prompt("app", "Hi").await?.error(500).await?;
        let network = app.database_wire()?;
        until("its end", async || Ok(network.open() == 0)).await?;
        lock.release().await?;
        app.postgres()?.until_unused().await?;
        app.ask("app", "Hi").await?;
        Ok(())
    }
}
