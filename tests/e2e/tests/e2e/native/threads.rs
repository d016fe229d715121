//! The host on several threads: each serves its own connections, and all serve the same
//! conversations.

use anyhow::{Result, ensure};
use llmchat_testkit::{
    Backend, Client, Event, Events, TestApp, messages, on_both_stores, prompt, until,
    until_refused, within,
};
use ollama_stand_in::{Gate, Script, wire};
use tokio::net::TcpStream;

const THREADS: usize = 3;

/// Streams on every thread, each of which waits at the gate after its first token.
async fn streams(app: &TestApp, gate: &Gate) -> Result<Vec<Events>> {
    app.ollama
        .always(Script::new().token("a").gate(gate).token("b").done());
    let mut streams = app.streams(2 * THREADS).await?;
    for events in &mut streams {
        events.next().await?;
    }
    within("all turns at once", gate.reached_by(streams.len())).await?;
    // One instance could take them all, but it stays on its thread.
    ensure!(
        app.instances()? >= THREADS,
        "{} instances",
        app.instances()?
    );
    Ok(streams)
}

on_both_stores! {
    async fn a_conversation_goes_on_on_any_thread(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend).threads(THREADS).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        let mut expected = Vec::new();
        let mut open = Vec::new();
        for n in 0..2 * THREADS {
            let n = n.to_string();
            app.ask("app", &n).await?;
            expected.extend([("user".to_owned(), n), ("assistant".to_owned(), "ok".to_owned())]);
            // It stays open, so that the next connection goes to another thread.
            open.push(TcpStream::connect(app.address()).await?);
        }
        assert_eq!(app.conversation("app").await?, expected);
        Ok(())
    }

    async fn a_stop_lets_the_turns_of_every_thread_end(backend: Backend) -> Result<()> {
        let mut app = TestApp::on(backend).threads(THREADS).start().await?;
        let gate = Gate::new();
        let streams = streams(&app, &gate).await?;
        let address = app.address();
        let (stopped, read) = tokio::join!(within("the stop", app.stop()), async {
            until_refused(address).await?;
            gate.open();
            for stream in streams {
                assert_eq!(stream.rest().await?, [wire::token("b"), wire::done()].map(Event::Data));
            }
            anyhow::Ok(())
        });
        read?;
        assert_eq!(stopped??, 0);
        assert_eq!(app.row_count().await?, 4 * THREADS);
        Ok(())
    }

    async fn a_crash_ends_the_turns_of_every_thread(backend: Backend) -> Result<()> {
        let mut app = TestApp::on(backend).threads(THREADS).start().await?;
        let gate = Gate::new();
        let streams = streams(&app, &gate).await?;
        app.crash().await?;
        for stream in streams {
            assert!(stream.rest().await.is_err());
        }
        app.restart().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app 0", "Still there?").await?;
        let expected = messages(&[("user", "Hi"), ("user", "Still there?"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app 0").await?, expected);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_finds_a_client_of_postgres_though_many_hang() -> Result<()> {
    const HANGING: usize = 12;
    let app = TestApp::with(Backend::Postgres, "on_busy", "reject").await?;
    app.ollama.always(Script::reply(["ok"]));
    for n in 0..HANGING {
        app.ask(&format!("app {n}"), "Hi").await?;
    }
    // A turn that needs the lease of one of these conversations waits for this transaction.
    let client = app.postgres()?.connect().await?;
    client
        .batch_execute(
            "BEGIN; INSERT INTO chatts_leases (appid, turn_id, expires)
             SELECT appid, gen_random_uuid(), now() FROM chatts GROUP BY appid",
        )
        .await?;
    let hanging: Vec<_> = (0..HANGING)
        .map(|n| {
            let client = Client::of(app.address());
            tokio::spawn(async move { client.prompt(&prompt(&format!("app {n}"), "Hi")).await })
        })
        .collect();
    let all_hang = async || Ok(app.open_requests()? >= HANGING);
    until("the hanging turns", all_hang).await?;
    app.ask("another app", "Hi").await?;
    client.batch_execute("ROLLBACK").await?;
    for answer in hanging {
        let answer = within("a turn that hung", answer).await???;
        answer.read().await?;
    }
    Ok(())
}
