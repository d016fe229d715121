//! The disk that the store is on is full.

use std::time::Duration;

use anyhow::{Result, bail};
use llmchat_testkit::{Backend, Disk, Event, TestApp, at_limit, on_both_stores};
use ollama_stand_in::{Gate, Script, wire};

/// `database_timeout` where it is reached.
const LIMIT: Duration = Duration::from_secs(2);
const MEBIBYTES: usize = 16;

/// Text that needs new pages, however it is compressed.
fn long() -> String {
    let mut state = 1_u64;
    let mut letter = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'a' + (state >> 60) as u8)
    };
    (0..200_000).map(|_| letter()).collect()
}

on_both_stores! {
    async fn a_disk_that_is_full_for_a_while_is_waited_for(backend: Backend) -> Result<()> {
        if !Disk::is_possible() {
            return Ok(());
        }
        let app = TestApp::on(backend).disk(MEBIBYTES).start().await?;
        let gate = Gate::new();
        let script = Script::new().token("it begins ").gate(&gate).token(&long()).done();
        let mut events = app.begin("app", "Hi", script).await?;
        app.disk()?.fill()?;
        gate.open();
        assert_eq!(events.next().await?, Some(Event::Data(wire::token(&long()))));
        tokio::time::sleep(Duration::from_millis(500)).await;
        app.disk()?.free()?;
        assert_eq!(events.rest().await?, [Event::Data(wire::done())]);
        let reply = format!("it begins {}", long());
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", reply.as_str(), "complete"));
        Ok(())
    }

    async fn a_disk_that_stays_full_is_told_and_damages_nothing(backend: Backend) -> Result<()> {
        if !Disk::is_possible() {
            return Ok(());
        }
        let app = TestApp::on(backend)
            .variable("database_timeout", "2s")
            .disk(MEBIBYTES)
            .start()
            .await?;
        app.turn("app", "one", "ok").await?;
        let gate = Gate::new();
        let script = Script::new().token("a").gate(&gate).token(&long()).done();
        let events = app.begin("app", "two", script).await?;
        app.disk()?.fill()?;
        gate.open();
        let rest = at_limit(LIMIT, events.rest()).await??;
        let [Event::Data(_), Event::Error { code, .. }] = &rest[..] else {
            bail!("{} events", rest.len());
        };
        assert_eq!(code, "database_failed");
        let refused = at_limit(LIMIT, app.prompt("app", &long())).await??;
        refused.error(500).await?;
        assert_eq!(app.ollama.chats(), 2);

        app.disk()?.free()?;
        app.turn("app", "three", "ok").await?;
        let conversation = app.conversation("app").await?;
        let texts = conversation.iter().map(|(_, text)| text.as_str());
        // A try that was given up may have found room after all: then all of it is there.
        let (uncertain, certain): (Vec<_>, Vec<_>) = texts.partition(|text| text.len() > 100);
        assert_eq!(certain, ["one", "ok", "two", "three", "ok"]);
        let (reply, prompt) = (format!("a{}", long()), long());
        assert!(uncertain.iter().all(|text| **text == reply || **text == prompt));
        Ok(())
    }
}
