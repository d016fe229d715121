//! Clients that leave, read slowly, or do neither.

use std::time::Duration;

use anyhow::Result;
use llmchat_testkit::{Backend, Event, TestApp, messages, on_both_stores, until, within};
use ollama_stand_in::{Ending, Gate, Script, wire};

/// A line that fills sockets without adding to the reply.
fn filler() -> String {
    let ignored = "x".repeat(60_000);
    format!(
        r#"{{"message":{{"role":"assistant","content":""}},"done":false,"logprobs":["{ignored}"]}}"#
    )
}

fn fillers(count: usize) -> Script {
    let filler = filler();
    (0..count).fold(Script::new(), |script, _| script.line(&filler))
}

/// Comments find out soon that a client has left.
async fn cancelling(backend: Backend) -> Result<TestApp> {
    TestApp::on(backend)
        .variable("on_disconnect", "cancel")
        .variable("comment_interval", "100ms")
        .start()
        .await
}

on_both_stores! {
    async fn a_reply_is_kept_whose_client_left_in_mid_stream(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("not ").gate(&gate).token("lost").done());
        let mut events = app.stream("app", "Hi").await?;
        assert_eq!(events.next().await?, Some(Event::Data(wire::token("not "))));
        drop(events);
        gate.open();
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "not lost", "complete"));
        assert_eq!(app.ollama_ended(1).await?, Ending::Complete);

        app.turn("app", "And now?", "ok").await?;
        assert_eq!(app.sent_to_ollama(2).await?, messages(&[("user", "Hi"), ("assistant", "not lost"), ("user", "And now?")]));
        Ok(())
    }

    async fn a_reply_is_kept_whose_client_left_while_it_was_being_stored(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let gate = Gate::new();
        let script = Script::new().token("whole").gate(&gate).token(" reply").done();
        let mut events = app.begin("app", "Hi", script).await?;
        let lock = app.lock().await?;
        gate.open();
        // All but the receipt.
        assert_eq!(events.next().await?, Some(Event::Data(wire::token(" reply"))));
        assert_eq!(app.ollama_ended(1).await?, Ending::Complete);
        drop(events);
        lock.release().await?;
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "whole reply", "complete"));
        Ok(())
    }

    async fn a_reply_is_kept_whose_client_left_before_it_began(backend: Backend) -> Result<()> {
        // Comments find out that the client has left, long before the first line.
        let app = TestApp::with(backend, "comment_interval", "50ms").await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().gate(&gate).delay(Duration::from_millis(300)).token("kept").done());
        let answer = app.prompt("app", "Hi").await?;
        drop(answer);
        within("the chat request", gate.reached()).await?;
        gate.open();
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].message, "kept");
        Ok(())
    }

    async fn with_cancel_ollama_stops_when_the_client_leaves(backend: Backend) -> Result<()> {
        let app = cancelling(backend).await?;
        drop(app.begin("app", "Hi", Script::new().token("so far").hang()).await?);
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "so far", "partial"));
        Ok(())
    }

    async fn with_cancel_nothing_is_stored_of_a_reply_that_had_not_begun(backend: Backend) -> Result<()> {
        let app = cancelling(backend).await?;
        app.ollama.push(Script::silence());
        drop(app.prompt("app", "Hi").await?);
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        // The next turn comes after whatever the last one would have stored.
        app.turn("app", "Again", "ok").await?;
        let expected = messages(&[("user", "Hi"), ("user", "Again"), ("assistant", "ok")]);
        assert_eq!(app.conversation("app").await?, expected);
        Ok(())
    }

    async fn with_cancel_a_client_that_stays_gets_everything(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "on_disconnect", "cancel").await?;
        app.ollama.push(Script::reply(["ok"]));
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
        assert_eq!(app.rows("app").await?[1].status, "complete");
        Ok(())
    }

    async fn a_turn_goes_on_without_a_client_that_neither_reads_nor_leaves(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "client_stall_timeout", "500ms").await?;
        // More than all sockets on the way can hold.
        app.ollama.push(fillers(600).token("kept").done());
        let _answer = app.prompt("app", "Hi").await?;
        app.until_rows("app", 2).await?;
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "kept", "complete"));
        Ok(())
    }

    async fn a_stalled_client_never_sees_a_clean_end(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "client_stall_timeout", "500ms").await?;
        app.ollama.push(fillers(600).token("kept").done());
        let answer = app.prompt("app", "Hi").await?;
        app.until_rows("app", 2).await?;
        // It wakes up too late: what it can still read must not look whole.
        let read = answer.bytes().await;
        assert!(read.is_err(), "{} bytes and a clean end", read.map_or(0, |bytes| bytes.len()));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_slows_ollama_down() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(Script::new().endless(filler()));
    let mut answer = app.prompt("app", "Hi").await?;
    let exchange = within("the chat request", app.ollama.chat(1)).await?;
    let quiet = Duration::from_millis(500);
    let stalled = within("the writer's standstill", exchange.stalled(quiet)).await?;
    // What the sockets hold, and no more.
    assert!(
        stalled < 64 << 20,
        "{stalled} bytes are on their way to a client that reads none"
    );

    // As the client reads on, so does the component.
    let mut read = 0;
    while read < stalled + (10 << 20) {
        let Some(chunk) = answer.chunk().await? else {
            break;
        };
        read += chunk.len() as u64;
    }
    assert!(exchange.bytes_sent() > stalled);
    assert_eq!(exchange.ending(), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_for_less_than_the_limit_misses_nothing() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.push(fillers(400).token("all").done());
    let events = app.stream("app", "Hi").await?;
    let exchange = within("the chat request", app.ollama.chat(1)).await?;
    within("a standstill or the end", async {
        tokio::select! {
            _ = exchange.stalled(Duration::from_millis(300)) => {}
            _ = exchange.ended() => {}
        }
    })
    .await?;
    let events = events.rest().await?;
    assert_eq!(events.len(), 402);
    assert_eq!(events.last(), Some(&Event::Data(wire::done())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_do_not_disturb_those_that_stay() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let gate = Gate::new();
    app.ollama
        .always(Script::new().token("a").gate(&gate).token("b").done());
    let mut streams = app.streams(30).await?;
    for stream in &mut streams {
        stream.next().await?;
    }
    let mut stays = [true, true, false].into_iter().cycle();
    streams.retain(|_| stays.next() == Some(true));
    gate.open();
    for stream in streams {
        assert_eq!(
            stream.rest().await?,
            [wire::token("b"), wire::done()].map(Event::Data)
        );
    }
    until("all replies", async || Ok(app.row_count().await? == 60)).await
}
