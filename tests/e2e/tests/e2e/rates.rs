//! `max_turns_per_minute` and `max_running_turns`: exact for an owner, whatever the number of hosts, and free for what
//! begins no attempt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use llmchat_testkit::{
    Answer, Backend, Client, Event, Events, Setup, TestApp, messages, on_both_stores, prompt,
    until, within,
};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::json;

const KEY: (&str, &str) = ("idempotency-key", "prompt-1");

fn a_minute(backend: Backend, turns: u64) -> Setup {
    TestApp::on(backend).variable("max_turns_per_minute", turns)
}

fn running(backend: Backend, turns: u64) -> Setup {
    TestApp::on(backend)
        .variable("max_running_turns", turns)
        .variable("checkpoint_interval", "100ms")
}

/// The seconds after which a refused attempt may come again, and what it is told.
async fn refused(answer: Answer) -> Result<(u64, String)> {
    let seconds = answer.header("retry-after").map(str::to_owned);
    let (code, error) = answer.refused(429).await?;
    ensure!(code == "rate_limited", "{code}: {error}");
    let seconds = seconds.context("no `retry-after`")?.parse()?;
    Ok((seconds, error))
}

/// As if the attempts so far had begun this much earlier.
async fn age(app: &TestApp, seconds: u64) -> Result<()> {
    app.execute(&match app.postgres() {
        Ok(_) => format!("UPDATE chatts_attempts SET at = at - interval '{seconds} seconds'"),
        Err(_) => format!("UPDATE chatts_attempts SET at = at - {seconds}000000"),
    })
    .await
}

/// The attempts that count, or have counted until lately.
async fn counted(app: &TestApp) -> Result<usize> {
    Ok(app.query("SELECT owner FROM chatts_attempts").await?.len())
}

/// A turn whose reply waits for `gate`.
async fn begin(app: &TestApp, app_id: &str, gate: &Gate) -> Result<Events> {
    let script = Script::new().token("a").gate(gate).done();
    app.begin(app_id, "Hi", script).await
}

/// The statement that begins turn `n`, where so many may begin a minute, and so many may run.
fn begin_statement(backend: Backend, n: u64, limits: (u64, u64)) -> String {
    let id = format!("'0199f3a1-5c00-7000-8000-{n:012}'");
    let same = format!("''; 'app'; {id}; {id}; {id}; NULL; NULL; 'm'; true; '{{}}'");
    let (statement, sign, others) = match backend {
        Backend::Sqlite => (
            include_str!("../../../../src/store/sqlite/begin.sql"),
            '?',
            r#"'[["user","Hi","row"]]'; 2; 15000000; false; true"#,
        ),
        Backend::Postgres => (
            include_str!("../../../../src/store/postgres/begin_turn.sql"),
            '$',
            "'{user}'; '{Hi}'; '{0199f3a1-5c00-7000-8000-000000000000}'; 2; true; 4194304; 65536; 4194304; 15000000; \
             false; true",
        ),
    };
    let limits = format!("{}; {}", limits.0, limits.1);
    let values: Vec<_> = [&same, others, &limits]
        .iter()
        .flat_map(|it| it.split("; "))
        .collect();
    let literal =
        |sql: String, (n, value): (usize, &&str)| sql.replace(&format!("{sign}{}", n + 1), value);
    values
        .iter()
        .enumerate()
        .rev()
        .fold(statement.to_owned(), literal)
}

/// Waits until a prompt is taken; until then each must be refused since too many run.
async fn until_one_may_run(client: &Client) -> Result<()> {
    until("a place", async || {
        let answer = client.prompt(&prompt("next", "Hi")).await?;
        if answer.status() == 200 {
            answer.read().await?;
            return Ok(true);
        }
        let (seconds, error) = refused(answer).await?;
        ensure!(
            seconds == 1 && error.contains("at the same time"),
            "{error}"
        );
        Ok(false)
    })
    .await
}

on_both_stores! {
    async fn one_more_within_a_minute_is_a_429_that_says_when(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 3).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        for app_id in ["one", "two", "three"] {
            app.ask(app_id, "Hi").await?;
        }
        for _ in 0..3 {
            let (seconds, error) = refused(app.prompt("one", "too many").await?).await?;
            ensure!((30..=60).contains(&seconds), "{seconds}");
            ensure!(error.contains("minute") && error.contains(&format!(" {seconds} s")), "{error}");
        }
        // They have left nothing behind, and count as nothing.
        assert_eq!((app.row_count().await?, app.ollama.chats(), counted(&app).await?), (6, 3, 3));
        let turns = app.query("SELECT appid FROM chatts_turns").await?.len();
        assert_eq!((turns, app.query("SELECT appid FROM chatts_runs").await?.len()), (3, 0));

        age(&app, 57).await?;
        let ask = async || app.client.prompt_with(&[KEY], &prompt("one", "again")).await;
        let (seconds, _) = refused(ask().await?).await?;
        ensure!((1..=3).contains(&seconds), "{seconds}");
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        ask().await?.read().await?;
        let said = [("user", "Hi"), ("assistant", "ok"), ("user", "again"), ("assistant", "ok")];
        assert_eq!(app.conversation("one").await?, messages(&said));
        Ok(())
    }

    async fn the_minute_slides(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 2).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "one").await?;
        age(&app, 40).await?;
        app.ask("app", "two").await?;
        let (seconds, _) = refused(app.prompt("app", "Hi").await?).await?;
        ensure!((1..=20).contains(&seconds), "{seconds}");
        age(&app, 20).await?;
        app.ask("app", "three").await?;
        // Now the second one is the oldest that counts.
        let (seconds, _) = refused(app.prompt("app", "Hi").await?).await?;
        ensure!((20..=40).contains(&seconds), "{seconds}");
        // What counts no more is not kept.
        assert_eq!(counted(&app).await?, 2);
        age(&app, 600).await?;
        app.ask("app", "four").await?;
        assert_eq!(counted(&app).await?, 1);
        Ok(())
    }

    async fn of_a_hundred_prompts_at_once_to_two_hosts_as_many_begin_as_may(backend: Backend) -> Result<()> {
        // SQLite lets in one after the other.
        let app = a_minute(backend, 17).variable("database_timeout", "18s").start().await?;
        let another = app.another().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "makes the tables").await?;
        let hosts = [app.client, another.client];
        let ask = async |n: usize| {
            let answer = hosts[n % 2].prompt(&prompt(&format!("app {}", n % 5), &n.to_string())).await?;
            if answer.status() == 200 {
                answer.read().await?;
                return anyhow::Ok(true);
            }
            refused(answer).await?;
            Ok(false)
        };
        let begun = try_join_all((0..100).map(ask)).await?;
        assert_eq!(begun.into_iter().filter(|begun| *begun).count(), 16);
        assert_eq!((app.row_count().await?, app.ollama.chats(), counted(&app).await?), (34, 17, 17));
        Ok(())
    }

    async fn of_a_hundred_prompts_at_once_to_two_hosts_as_many_run_as_may(backend: Backend) -> Result<()> {
        let app = running(backend, 7).variable("database_timeout", "18s").start().await?;
        let another = app.another().await?;
        app.turn("app", "makes the tables", "ok").await?;
        let hosts = [app.client, another.client];
        let gate = Gate::new();
        app.ollama.always(Script::new().gate(&gate).token("ok").done());
        let ask = async |n: usize| hosts[n % 2].prompt(&prompt(&format!("app {}", n % 5), &n.to_string())).await;
        let answers = try_join_all((0..100).map(ask)).await?;
        let (taken, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
        assert_eq!((taken.len(), others.len()), (7, 93));
        for answer in others {
            refused(answer).await?;
        }
        gate.open();
        for answer in taken {
            answer.read().await?;
        }
        assert_eq!((app.row_count().await?, app.ollama.chats()), (16, 8));
        // Where only these are limited, nobody counts the others.
        assert_eq!(counted(&app).await?, 0);
        Ok(())
    }

    async fn with_both_limits_and_one_turn_at_a_time_each_is_kept(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 20)
            .variable("max_running_turns", 3)
            .variable("on_busy", "reject")
            .variable("database_timeout", "18s")
            .start()
            .await?;
        let another = app.another().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "makes the tables").await?;
        let hosts = [app.client, another.client];
        // Whoever asks, stops and deletes at once never waits for another one who waits for them.
        let ask = async |n: usize| {
            let client = &hosts[n % 2];
            let answer = client.prompt(&prompt(&format!("app {}", n % 3), &n.to_string())).await?;
            match answer.status().as_u16() {
                200 => {
                    let turn = answer.turn()?;
                    answer.read().await?;
                    client.request("POST", &format!("{turn}/stop"), "").await?.json(200).await?;
                    client.delete(&turn).await?;
                    Ok(1)
                }
                409 => answer.error(409).await.map(|_| 0),
                _ => refused(answer).await.map(|_| 0),
            }
        };
        let begun: usize = try_join_all((0..60).map(ask)).await?.into_iter().sum();
        assert_eq!(counted(&app).await?, begun + 1);
        ensure!((1..20).contains(&begun), "{begun}");
        Ok(())
    }

    async fn what_begins_no_attempt_is_free(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 2)
            .variable("max_running_turns", 1)
            .variable("checkpoint_interval", "100ms")
            .start()
            .await?;
        app.ollama.push(Script::reply(["ok"]));
        let ask = async |body| app.client.prompt_with(&[KEY], body).await;
        let (first, second) = (prompt("first", "Hi"), prompt("second", "Hi"));
        ask(&first).await?.read().await?;
        let gate = Gate::new();
        app.ollama.push(Script::new().token("a").gate(&gate).done());
        let poster = ask(&second).await?;
        let turn = poster.turn()?;
        refused(app.prompt("third", "Hi").await?).await?;

        // Replaying, following, reading, stopping, deleting.
        let replayed = ask(&first).await?;
        assert_eq!(replayed.header("idempotency-replayed"), Some("true"));
        assert_eq!(replayed.read().await?.last(), Some(&Event::Data(wire::done())));
        let follower = ask(&second).await?;
        assert_eq!(follower.header("idempotency-replayed"), Some("true"));
        let again = app.client.request("POST", &format!("{turn}/again"), "").await?;
        assert_eq!(again.turn()?, turn);
        let watching = app.client.get(&turn, &[("accept", "text/event-stream")]).await?;
        for path in [turn.as_str(), "/llmchat/first"] {
            app.client.get(path, &[]).await?.json(200).await?;
        }
        let other = app.client.prompt_with(&[KEY], &prompt("first", "another")).await?;
        assert_eq!(other.refusal(422).await?, "idempotency_key_reused");
        app.client.request("POST", &format!("{turn}/stop"), "").await?.json(202).await?;
        for stream in [poster, follower, again, watching] {
            let events = stream.read().await?;
            ensure!(matches!(events.last(), Some(Event::Data(line)) if line.contains("stopped")), "{events:?}");
        }
        app.client.delete(&turn).await?;
        assert_eq!(ask(&second).await?.refusal(410).await?, "turn_deleted");
        assert_eq!((app.ollama.chats(), counted(&app).await?), (2, 2));
        Ok(())
    }

    async fn another_attempt_of_a_turn_counts(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 3).start().await?;
        app.ollama.push(Script::refuse(503, "busy"));
        app.ollama.push(Script::refuse(503, "busy"));
        app.ollama.always(Script::reply(["ok"]));
        let ask = async || app.client.prompt_with(&[KEY], &prompt("app", "Hi")).await;
        let turn = ask().await?;
        let path = turn.turn()?;
        turn.read().await?;
        ask().await?.read().await?;
        let again = async || app.client.request("POST", &format!("{path}/again"), "").await;
        again().await?.read().await?;
        let shown = app.client.get(&path, &[]).await?.json(200).await?;
        refused(again().await?).await?;
        assert_eq!(app.client.get(&path, &[]).await?.json(200).await?, shown);

        age(&app, 60).await?;
        app.ollama.push(Script::refuse(503, "busy"));
        app.client.delete(&format!("{path}/reply")).await?;
        for _ in 0..2 {
            ask().await?.read().await?;
            app.client.delete(&format!("{path}/reply")).await?;
        }
        again().await?.read().await?;
        app.client.delete(&format!("{path}/reply")).await?;
        let (seconds, _) = refused(ask().await?).await?;
        ensure!((30..=60).contains(&seconds), "{seconds}");
        let shown = app.client.get(&path, &[]).await?.json(200).await?;
        assert_eq!((&shown["state"], &shown["code"]), (&json!("failed"), &json!("turn_deleted")));
        assert_eq!((app.ollama.chats(), app.conversation("app").await?), (6, messages(&[("user", "Hi")])));

        age(&app, 60).await?;
        ask().await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi"), ("assistant", "ok")]));
        Ok(())
    }

    async fn what_is_refused_for_another_reason_is_not_counted(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 3)
            .variable("on_busy", "reject")
            .variable("max_history_bytes", 100)
            .start()
            .await?;
        let gate = Gate::new();
        let events = begin(&app, "app", &gate).await?;
        for _ in 0..3 {
            assert_eq!(app.prompt("app", "Hi").await?.refusal(409).await?, "busy");
            assert_eq!(app.prompt("large", &"a".repeat(101)).await?.refusal(413).await?, "context_too_large");
            let nothing = json!({"appID": "empty", "model": "m", "messages": []});
            app.client.prompt(&nothing).await?.error(422).await?;
            app.client.post("{}").await?.error(422).await?;
        }
        gate.open();
        events.rest().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "two").await?;
        app.ask("app", "three").await?;
        refused(app.prompt("app", "four").await?).await?;
        Ok(())
    }

    async fn a_deletion_gives_no_turn_back(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 1).start().await?;
        let turn = app.turn("app", "Hi", "ok").await?;
        for path in [&format!("{turn}/reply"), &turn, "/llmchat/app"] {
            app.client.delete(path).await?;
            refused(app.prompt("app", "Hi").await?).await?;
        }
        assert_eq!((app.row_count().await?, app.ollama.chats()), (0, 1));
        Ok(())
    }

    async fn a_place_is_free_when_a_turn_has_ended(backend: Backend) -> Result<()> {
        let app = running(backend, 2).start().await?;
        let (first, second) = (Gate::new(), Gate::new());
        let ends = begin(&app, "app", &first).await?;
        let stops = begin(&app, "another", &second).await?;
        let (seconds, error) = refused(app.prompt("app", "Hi").await?).await?;
        ensure!(seconds == 1 && error.contains("at the same time"), "{error}");
        assert_eq!((app.row_count().await?, app.ollama.chats()), (2, 2));

        // `done` means this too.
        first.open();
        ends.rest().await?;
        let ends = begin(&app, "app", &Gate::new()).await?;
        refused(app.prompt("app", "Hi").await?).await?;

        app.client.request("POST", &format!("{}/stop", stops.turn()), "").await?.json(202).await?;
        stops.rest().await?;
        let fails = app.begin("app", "Hi", Script::new().token("a").break_off()).await?;
        fails.rest().await?;
        app.ollama.always(Script::reply(["ok"]));
        until_one_may_run(&app.client).await?;
        app.client.delete(ends.turn()).await?;
        let other = begin(&app, "app", &Gate::new()).await?;
        app.ask("app", "Hi").await?;
        drop(other);
        Ok(())
    }

    async fn a_host_that_died_holds_no_place_for_ever(backend: Backend) -> Result<()> {
        let mut app = running(backend, 1).variable("turn_lease", "1s").start().await?;
        let lost = app.begin("app", "lost", Script::new().token("a").hang()).await?.turn().to_owned();
        app.crash().await?;
        app.restart().await?;
        app.ollama.always(Script::reply(["ok"]));
        until_one_may_run(&app.client).await?;
        // Nor is its own attempt in the way of another one.
        app.client.request("POST", &format!("{lost}/again"), "").await?.read().await?;
        assert_eq!(app.conversation("app").await?, messages(&[("user", "lost"), ("assistant", "ok")]));
        Ok(())
    }

    async fn a_limit_may_be_raised_and_lowered(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "is not counted").await?;
        let mut expected = 0;
        for (limit, more) in [("2", 2), ("5", 3), ("1", 0), ("6", 1), ("4", 0)] {
            let host = app.another_with(&[("max_turns_per_minute", limit)]).await?;
            for _ in 0..more {
                host.client.prompt(&prompt("app", "Hi")).await?.read().await?;
            }
            refused(host.client.prompt(&prompt("app", "Hi")).await?).await?;
            expected += more;
            assert_eq!(counted(&app).await?, expected, "{limit}");
        }
        age(&app, 60).await?;
        let host = app.another_with(&[("max_turns_per_minute", "2")]).await?;
        for left in 1..=2 {
            host.client.prompt(&prompt("app", "Hi")).await?.read().await?;
            assert_eq!(counted(&app).await?, left);
        }
        refused(host.client.prompt(&prompt("app", "Hi")).await?).await?;
        Ok(())
    }

    async fn a_clock_that_was_set_back_keeps_nobody_out(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 1).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("app", "Hi").await?;
        let (earlier, later) = match backend {
            Backend::Sqlite => ("at - 3600000000", "at + 3600000000"),
            Backend::Postgres => ("at - interval '1 hour'", "at + interval '1 hour'"),
        };
        for shifted in [later, earlier] {
            app.execute(&format!("UPDATE chatts_attempts SET at = {shifted}")).await?;
            app.ask("app", "Hi").await?;
            refused(app.prompt("app", "Hi").await?).await?;
        }
        Ok(())
    }

    async fn one_owners_turns_are_not_anothers(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 2)
            .variable("max_running_turns", 1)
            .variable("owner_header", "x-user")
            .start()
            .await?;
        let ask = async |owner: &str| {
            app.client.prompt_with(&[("x-user", owner)], &prompt("app", "Hi")).await
        };
        let gate = Gate::new();
        app.ollama.always(Script::new().token("a").gate(&gate).done());
        let mut running = Vec::new();
        for owner in ["one", "two", "three"] {
            running.push(ask(owner).await?);
            let (_, error) = refused(ask(owner).await?).await?;
            ensure!(error.contains("at the same time"), "{error}");
        }
        gate.open();
        for answer in running {
            answer.read().await?;
        }
        for owner in ["two", "three"] {
            ask(owner).await?.read().await?;
            let (_, error) = refused(ask(owner).await?).await?;
            ensure!(error.contains("minute"), "{error}");
        }
        ask("one").await?.read().await?;
        assert_eq!(app.ollama.chats(), 6);
        Ok(())
    }

    async fn a_begin_that_is_made_again_counts_once(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.turn("another", "makes the tables", "ok").await?;
        let begin = async |n, limits| anyhow::Ok(app.query(&begin_statement(backend, n, limits)).await?.concat());
        let live = match backend {
            Backend::Sqlite => "SELECT 'live' FROM chatts_runs WHERE expires > unixepoch('subsec') * 1000000",
            Backend::Postgres => "SELECT 'live' FROM chatts_runs WHERE expires > clock_timestamp()",
        };
        for limits in [(1, 0), (1, 1), (0, 1)] {
            let outcome = begin(1, limits).await?;
            ensure!(outcome.contains("started"), "{limits:?}: {outcome}");
            // Its lease, too, is what it would be without limits.
            app.execute("UPDATE chatts_runs SET expires = started FROM chatts_turns").await?;
            begin(1, limits).await?;
            assert_eq!(app.query(live).await?, ["live"], "{limits:?}");
            let outcome = begin(2, limits).await?;
            ensure!(outcome.contains("limited"), "{limits:?}: {outcome}");
        }
        assert_eq!((counted(&app).await?, app.rows("app").await?.len()), (1, 1));
        Ok(())
    }

    async fn what_a_begin_costs_does_not_grow_with_what_began(backend: Backend) -> Result<()> {
        let app = a_minute(backend, 1000).start().await?;
        app.turn("app", "makes the tables", "ok").await?;
        let begin = begin_statement(backend, 1, (1000, 10));
        let cost = async || app.store().cost(&begin, &["chatts_attempts", "chatts_runs"]).await;
        let before = cost().await?;
        // Of this owner as many as may be but one; and many of others, which run, too.
        app.execute(match backend {
            Backend::Sqlite => "
                WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 50000)
                INSERT INTO chatts_attempts (owner, number, at)
                SELECT iif(n < 999, '', 'other ' || n % 7), n + 1, unixepoch('subsec') * 1000000 FROM n;
                INSERT INTO chatts_runs (owner, appid, turn_id, attempt, expires, collapses)
                SELECT owner, 'app', number, number, at + 3600000000, true FROM chatts_attempts WHERE owner <> '';
                ANALYZE",
            Backend::Postgres => "
                INSERT INTO chatts_attempts (owner, number, at, oldest)
                SELECT CASE WHEN n < 999 THEN '' ELSE 'other ' || n % 7 END, n + 1, now(), 1
                FROM generate_series(1, 50000) AS n;
                INSERT INTO chatts_runs (owner, appid, turn_id, attempt, expires, exclusive, collapses)
                SELECT owner, 'app', gen_random_uuid(), gen_random_uuid(), at + interval '1 hour', false, true
                FROM chatts_attempts WHERE owner <> '';
                ANALYZE chatts_attempts, chatts_runs",
        })
        .await?;
        let after = cost().await?;
        ensure!(before > 0 && after < before + before / 4 + 8, "{before}, {after}");
        Ok(())
    }

    async fn a_limit_beyond_all_numbers_is_none(backend: Backend) -> Result<()> {
        let app = a_minute(backend, u64::MAX).variable("max_running_turns", u64::MAX).start().await?;
        app.ollama.always(Script::reply(["ok"]));
        for _ in 0..3 {
            app.ask("app", "Hi").await?;
        }
        assert_eq!(counted(&app).await?, 3);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_whose_begin_was_not_heard_of_counts_once() -> Result<()> {
    let setup = a_minute(Backend::Postgres, 2).variable("max_running_turns", 1);
    let app = setup.database_wire().start().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "one").await?;
    let lock = app.lock().await?;
    let (answer, lost) = tokio::join!(app.prompt("app", "two"), async {
        until("a begin that waits", async || {
            let waiting =
                "SELECT 'waiting' FROM pg_locks JOIN pg_database ON database = pg_database.oid
                WHERE NOT granted AND datname = current_database()";
            Ok(!app.query(waiting).await?.is_empty())
        })
        .await?;
        app.database_wire()?.swallow_answers();
        lock.release().await?;
        app.until_rows("app", 3).await?;
        app.database_wire()?.cut();
        app.database_wire()?.restore();
        anyhow::Ok(())
    });
    lost?;
    // It is the last one that may begin, and the only one that may run.
    within("the reply", answer?.read()).await??;
    assert_eq!((app.ollama.chats(), counted(&app).await?), (2, 2));
    refused(app.prompt("app", "three").await?).await?;
    Ok(())
}
