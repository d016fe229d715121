//! Everything at once on one turn, from two hosts: whatever comes first, what is told is what is stored.

use std::time::Duration;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Client, Event, TestApp, on_both_stores, prompt, until, within};
use ollama_stand_in::Script;
use serde_json::Value;

/// Enough for chance to find what a lock was missing for.
const ROUNDS: usize = 30;
const KEY: (&str, &str) = ("idempotency-key", "one");

/// What clients do with a turn.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Repeat,
    Again,
    Stop,
    Read,
    Delete(&'static str),
}

/// Does it, a moment later; the last event, where there was a stream, and the status.
async fn act(client: Client, turn: &str, deed: Deed, wait: u64) -> Result<(u16, Option<Event>)> {
    tokio::time::sleep(Duration::from_micros(wait)).await;
    let (method, path) = match deed {
        Deed::Repeat => ("POST", "/llmchat/".to_owned()),
        Deed::Again => ("POST", format!("{turn}/again")),
        Deed::Stop => ("POST", format!("{turn}/stop")),
        Deed::Read => ("GET", turn.to_owned()),
        Deed::Delete(what) => ("DELETE", what.replace("{turn}", turn)),
    };
    let body = match deed {
        Deed::Repeat => prompt("app", "Hi").to_string(),
        Deed::Again => r#"{"model":"stand-in"}"#.to_owned(),
        _ => String::new(),
    };
    let answer = client.request_with(method, &path, &[KEY], body).await?;
    let status = answer.status().as_u16();
    let last = match deed {
        Deed::Repeat | Deed::Again if status == 200 => answer.read().await?.pop(),
        _ => {
            answer.bytes().await?;
            None
        }
    };
    Ok((status, last))
}

/// Nothing runs any more, and nothing is left of what did.
async fn until_quiet(app: &TestApp) -> Result<()> {
    let running = "SELECT appid FROM chatts_runs UNION ALL SELECT appid FROM chatts_parts";
    until("the end of all attempts", async || {
        Ok(app.query(running).await?.is_empty())
    })
    .await
}

/// Does these things at once, in an order that chance decides.
async fn all_at_once(
    hosts: [Client; 2],
    turn: &str,
    deeds: &[Deed],
    random: &mut fastrand::Rng,
) -> Result<Vec<(Deed, u16, Option<Event>)>> {
    let acts = deeds.iter().enumerate().map(|(n, deed)| {
        let wait = random.u64(0..20_000);
        async move {
            let (status, last) = act(hosts[n % 2], turn, *deed, wait).await?;
            ensure!(status < 500, "{deed:?}: {status}");
            Ok((*deed, status, last))
        }
    });
    within(
        "all that is done at once",
        futures_util::future::try_join_all(acts),
    )
    .await?
}

on_both_stores! {
    async fn a_turn_that_is_deleted_is_gone_whatever_else_is_done_with_it(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "50ms").await?;
        let another = app.another().await?;
        let mut random = fastrand::Rng::with_seed(11);
        app.ollama.always(Script::new().token("a").delay(Duration::from_millis(10)).token("b").done());
        for round in 0..ROUNDS {
            let what = ["{turn}", "/llmchat/app"][round % 2];
            let first = app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await?;
            let turn = first.turn()?;
            let deeds = [
                Deed::Again, Deed::Repeat, Deed::Stop, Deed::Read, Deed::Delete(what), Deed::Again, Deed::Delete(what), Deed::Repeat,
            ];
            let all = all_at_once([app.client, another.client], &turn, &deeds, &mut random);
            let (first, all) = tokio::join!(first.read(), all);
            let (last, all) = (first?.pop(), all?);
            ensure!(last.as_ref().is_some_and(is_end), "{last:?}");
            for (deed, status, last) in &all {
                let expected: &[u16] = match deed {
                    Deed::Repeat => &[200, 410],
                    Deed::Again | Deed::Read => &[200, 404],
                    Deed::Stop => &[200, 202, 404],
                    Deed::Delete(_) => &[204],
                };
                ensure!(expected.contains(status), "{round} {all:?}");
                ensure!(last.as_ref().is_none_or(is_end), "{round} {all:?}");
            }
            until_quiet(&app).await?;
            assert_eq!(app.rows("app").await?, [], "{round} {all:?}");
            assert_eq!(app.query("SELECT state FROM chatts_turns").await?, ["deleted"], "{round} {all:?}");
            app.execute("DELETE FROM chatts_turns").await?;
        }
        Ok(())
    }

    async fn what_is_told_last_is_what_is_stored(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "50ms").await?;
        let another = app.another().await?;
        let mut random = fastrand::Rng::with_seed(12);
        app.ollama.always(Script::new().token("a").delay(Duration::from_millis(10)).token("b").done());
        for round in 0..ROUNDS {
            let first = app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await?;
            let turn = first.turn()?;
            let deeds = [Deed::Again, Deed::Repeat, Deed::Stop, Deed::Read, Deed::Again, Deed::Delete("{turn}/reply"), Deed::Repeat];
            let all = all_at_once([app.client, another.client], &turn, &deeds, &mut random);
            let (first, all) = tokio::join!(first.read(), all);
            first?;
            let all = all?;
            until_quiet(&app).await?;
            let rows = app.rows("app").await?;
            let rows: Vec<_> = rows.iter().map(|row| row.parts()).collect();
            let turn: Value = app.client.get(&turn, &[]).await?.json(200).await?;
            assert_eq!(rows[0], ("user", "Hi", "complete"), "{round} {all:?}");
            let state = turn["state"].as_str().unwrap_or_default();
            let stands: &[&[(&str, &str, &str)]] = match state {
                "complete" => &[&[("assistant", "ab", "complete")]],
                "stopped" => &[&[("assistant", "a", "stopped")], &[("assistant", "ab", "stopped")], &[]],
                "failed" => &[&[]],
                _ => &[],
            };
            ensure!(stands.contains(&&rows[1..]), "{round}: {turn} {rows:?} {all:?}");
            app.client.delete("/llmchat/app").await?;
            app.execute("DELETE FROM chatts_turns").await?;
        }
        Ok(())
    }

    async fn a_turn_of_an_older_release_is_gone_whatever_else_is_done_with_it(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "50ms").await?;
        let another = app.another().await?;
        let mut random = fastrand::Rng::with_seed(13);
        app.ollama.always(Script::new().token("a").delay(Duration::from_millis(5)).token("b").done());
        app.turn("another", "makes the tables", "ok").await?;
        let turn = "/llmchat/app/turns/00000000-0000-4000-8000-000000000001";
        let from = "/llmchat/app/turns?from=00000000-0000-4000-8000-000000000001";
        for round in 0..ROUNDS {
            app.execute(
                "INSERT INTO chatts (name, message, id, time, appid) VALUES
                     ('user', 'Hi', '00000000-0000-4000-8000-000000000001', '2024-05-01 12:00:00+00:00', 'app')",
            )
            .await?;
            let what = [turn, "/llmchat/app", from][round % 3];
            let deeds = [Deed::Again, Deed::Delete(what), Deed::Read, Deed::Again, Deed::Stop];
            let all = all_at_once([app.client, another.client], turn, &deeds, &mut random).await?;
            until_quiet(&app).await?;
            assert_eq!(app.rows("app").await?, [], "{round} {all:?}");
            assert_eq!(app.query("SELECT state FROM chatts_turns WHERE appid = 'app'").await?, [""; 0], "{round} {all:?}");
        }
        Ok(())
    }
}

/// Whether a stream may end so: with a receipt, or with what became of the turn.
fn is_end(event: &Event) -> bool {
    match event {
        Event::Data(line) => line.contains(r#""done":true"#),
        other => matches!(other.code(), Some("turn_deleted" | "turn_superseded")),
    }
}
