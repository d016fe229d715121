//! The component creates its table, and keeps using one that an older server has created.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{
    Backend, Cluster, Event, TestApp, messages, on_both_stores, prompt, until, within,
};
use ollama_stand_in::{Gate, Script, wire};
use serde_json::json;

/// The table of the Python server, with three rows.
const OLD_TABLE: &str = "
    CREATE TABLE chatts (name text, message text, id uuid, time timestamptz, appid varchar(155));
    INSERT INTO chatts VALUES
        ('assistant', 'Old reply', '00000000-0000-0000-0000-000000000002', '2024-05-01 12:00:05+00:00', 'app'),
        ('user', 'Old prompt', '00000000-0000-0000-0000-000000000001', '2024-05-01 12:00:00+00:00', 'app'),
        ('user', 'Other', '00000000-0000-0000-0000-000000000003', '2024-05-01 12:00:00+00:00', 'other');";

/// Sends prompts to this many conversations at once.
async fn all_are_answered(app: &TestApp, count: usize) -> Result<()> {
    let ask = async |n: usize| app.ask(&format!("app {n}"), "Hi").await;
    let answers = futures_util::future::try_join_all((0..count).map(ask)).await?;
    ensure!(
        answers.iter().all(|events| events.len() == 2),
        "{answers:?}"
    );
    Ok(())
}

on_both_stores! {
    async fn many_first_prompts_at_once_make_one_schema(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        all_are_answered(&app, 30).await?;
        assert_eq!(app.row_count().await?, 60);
        Ok(())
    }

    async fn an_older_servers_table_keeps_its_rows_and_works(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.execute(OLD_TABLE).await?;
        app.ollama.always(Script::reply(["New reply"]));
        for turn in 1..=2 {
            assert_eq!(app.ask("app", "New prompt").await?.len(), 2);
            let mut expected = messages(&[("user", "Old prompt"), ("assistant", "Old reply"), ("user", "New prompt")]);
            if turn == 2 {
                expected.extend(messages(&[("assistant", "New reply"), ("user", "New prompt")]));
            }
            assert_eq!(app.sent_to_ollama(turn).await?, expected);
        }
        // The old server, which does not know the new columns, can go on beside it.
        app.execute("INSERT INTO chatts (name, message, id, time, appid) VALUES
            ('user', 'By the old server', '00000000-0000-0000-0000-000000000004', '2124-05-01 12:00:00+00:00', 'other')").await?;
        app.ask("other", "New prompt").await?;
        let sent = app.sent_to_ollama(3).await?;
        assert_eq!(sent, messages(&[("user", "Other"), ("user", "By the old server"), ("user", "New prompt")]));
        Ok(())
    }

    async fn an_older_servers_table_is_brought_up_to_date_by_many_at_once(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.execute(OLD_TABLE).await?;
        app.ollama.always(Script::reply(["ok"]));
        all_are_answered(&app, 20).await?;
        assert_eq!(app.row_count().await?, 43);
        Ok(())
    }

    async fn the_migrations_can_be_applied_by_hand_and_again(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let folder = match backend {
            Backend::Sqlite => "sqlite",
            Backend::Postgres => "postgres",
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(folder);
        let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
        let mut files: Vec<_> = files.collect::<Result<_>>()?;
        files.sort();
        for _ in 0..2 {
            for file in &files {
                match app.execute(&fs::read_to_string(file)?).await {
                    // SQLite has no `ADD COLUMN IF NOT EXISTS`.
                    Err(error) if error.to_string().contains("duplicate column name") => {}
                    applied => applied?,
                }
            }
        }
        app.ollama.push(Script::reply(["ok"]));
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
        assert_eq!(app.rows("app").await?.len(), 2);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_key_is_as_good() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.execute(OLD_TABLE).await?;
    app.execute("ALTER TABLE chatts ADD PRIMARY KEY (id)")
        .await?;
    app.ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}

on_both_stores! {
    async fn old_rows_that_lack_something_do_not_disturb(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.execute(OLD_TABLE).await?;
        app.execute(
            "INSERT INTO chatts SELECT * FROM chatts WHERE appid = 'other';
             INSERT INTO chatts VALUES (NULL, NULL, NULL, NULL, 'app'), ('user', NULL, NULL, NULL, 'app'),
                (NULL, 'Nobody', NULL, '2024-05-01 12:00:01+00:00', 'app'),
                ('user', 'Timeless', NULL, NULL, 'app'),
                ('user', 'Last', NULL, '2024-05-02 12:00:00+00:00', 'app')",
        )
        .await?;
        if backend == Backend::Sqlite {
            app.execute(
                "INSERT INTO chatts VALUES ('user', X'FFFE', NULL, '2024-05-01 12:00:01', 'app'),
                    (X'75736572', 'Bytes', NULL, '2024-05-01 12:00:02', 'app')",
            )
            .await?;
        }
        app.ollama.always(Script::reply(["ok"]));
        // With a prompt, and without.
        let body = json!({"appID": "app", "model": "m", "messages": []});
        for turn in 1..=2 {
            let events = match turn {
                1 => app.ask("app", "Hi").await?,
                _ => app.client.prompt(&body).await?.read().await?,
            };
            assert_eq!(events.len(), 2);
            let mut expected = messages(&[
                ("user", "Timeless"), ("user", "Old prompt"), ("assistant", "Old reply"), ("user", "Last"),
                ("user", "Hi"),
            ]);
            if turn == 2 {
                expected.extend(messages(&[("assistant", "ok")]));
            }
            assert_eq!(app.sent_to_ollama(turn).await?, expected);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_narrower_column_refuses_is_a_422() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.execute("CREATE TABLE chatts (name text, message text, id uuid, time timestamptz, appid varchar(10))").await?;
    app.ollama.always(Script::reply(["ok"]));
    assert_eq!(app.ask("just right", "Hi").await?.len(), 2);
    let error = app.prompt("a bit too long", "Hi").await?.error(422).await?;
    assert!(
        error.starts_with("Deserializing request: ") && error.contains("appID"),
        "{error}"
    );
    assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_create_the_table_is_told_so() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    let url = app.postgres()?.url_without_create().await?;
    let limited = TestApp::with(Backend::Postgres, "database_url", url).await?;
    // Neither a new one, nor an older server's that is not its own.
    for table in ["", OLD_TABLE] {
        app.execute(table).await?;
        let error = limited.prompt("app", "Hi").await?.error(500).await?;
        assert!(
            error.contains("may not create") && error.contains("`migrations/postgres/`"),
            "{error}"
        );
    }
    assert_eq!(limited.ollama.chats(), 0);
    app.execute("DROP TABLE chatts").await?;

    // Once another role has applied the files, the limited one has everything but the right to use it.
    app.turn("app", "Hi", "ok").await?;
    let error = limited.prompt("app", "Hi").await?.error(500).await?;
    let grant = error
        .split_once("GRANT ")
        .and_then(|(_, grant)| grant.split_once('…'));
    let (grant, _) = grant.context(error.clone())?;
    let role = app
        .postgres()?
        .query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'limited_%' || current_database()")
        .await?;
    app.execute(&format!("GRANT {grant} {}", role[0])).await?;
    everything_works(&limited, &app).await
}

/// Prompts, repeats, checkpoints, stops, other attempts, reads and deletions, in the database of `owner`.
async fn everything_works(app: &TestApp, owner: &TestApp) -> Result<()> {
    let gate = Gate::new();
    app.ollama
        .push(Script::new().token("a").gate(&gate).token("b").done());
    let key = [("idempotency-key", "k")];
    let first = app.client.prompt_with(&key, &prompt("app", "Hi")).await?;
    let turn = first.header("location").context("no location")?.to_owned();
    let again = app.client.prompt_with(&key, &prompt("app", "Hi")).await?;
    let parts = async || Ok(owner.query("SELECT content FROM chatts_parts").await? == ["a"]);
    until("a checkpoint", parts).await?;
    gate.open();
    for answer in [first, again] {
        assert_eq!(
            answer.read().await?.last(),
            Some(&Event::Data(wire::done()))
        );
    }
    app.ollama.push(Script::new().token("c").hang());
    let mut running = app
        .client
        .request("POST", &format!("{turn}/again"), "")
        .await?
        .events()
        .await?;
    assert_eq!(running.next().await?, Some(Event::Data(wire::token("c"))));
    app.client
        .request("POST", &format!("{turn}/stop"), "")
        .await?
        .json(202)
        .await?;
    running.rest().await?;
    let stopped = app.client.get(&turn, &[]).await?.json(200).await?;
    assert_eq!(stopped["state"], "stopped");
    let page = app.client.get("/llmchat/app", &[]).await?.json(200).await?;
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(4));
    for path in [format!("{turn}/reply"), turn, "/llmchat/app".to_owned()] {
        assert_eq!(
            app.client.request("DELETE", &path, "").await?.status(),
            204,
            "{path}"
        );
    }
    assert_eq!(owner.row_count().await?, 0);
    Ok(())
}

/// A table of others is refused with what is wrong, before anything is stored; what the error says to run
/// mends it.
async fn is_refused_until_mended(app: &TestApp, table: &str, fault: &str) -> Result<()> {
    app.execute(table).await?;
    let asked = app.ollama.chats();
    let error = app.prompt("app", "Hi").await?.error(500).await?;
    ensure!(error.contains(fault), "{table}: {error}");
    ensure!(app.log()?.contains(fault), "{}", app.log()?);
    ensure!(app.ollama.chats() == asked, "{table}");
    for cure in error.split("Run: ").skip(1) {
        let (cure, _) = cure.rsplit_once(';').unwrap_or((cure, ""));
        app.execute(cure)
            .await
            .map_err(|error| error.context(cure.to_owned()))?;
    }
    let long = "x".repeat(10_000);
    app.ollama.push(Script::reply([&*long]));
    let events = app.ask("app", "Hi 😀").await?;
    ensure!(events.len() == 2, "{table}: {events:?}");
    let stored = app.conversation("app").await?;
    ensure!(
        stored.ends_with(&messages(&[("user", "Hi 😀"), ("assistant", &long)])),
        "{table}: {stored:?}"
    );
    app.execute("DROP TABLE chatts").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_work_is_refused_and_the_cure_named_on_postgres() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    let old = |columns: &str| format!("CREATE TABLE chatts ({columns})");
    let with_rows = |columns: &str, values: &str| {
        format!("CREATE TABLE chatts ({columns}); INSERT INTO chatts VALUES ({values})")
    };
    for (table, fault) in [
        (
            with_rows(
                "name text, message text, id varchar(255), time timestamptz, appid varchar(155)",
                "'user', 'Old', '00000000-0000-0000-0000-000000000001', now(), 'app'",
            ),
            "`id` is varchar(255)",
        ),
        (
            with_rows(
                "name text, message text, id bigserial PRIMARY KEY, time timestamptz, appid text",
                "'user', 'Old', 7, now(), 'app'",
            ),
            "`id` is int8",
        ),
        (
            old(
                "name text, message text, id bigint GENERATED ALWAYS AS IDENTITY, time timestamptz, appid text",
            ),
            "`id` is int8",
        ),
        (
            old("name text, message varchar(255), id uuid, time timestamptz, appid varchar(155)"),
            "`message` is varchar(255)",
        ),
        (
            with_rows(
                "name text, message bytea, id uuid, time timestamptz, appid varchar(155)",
                "'user', 'Old', gen_random_uuid(), now(), 'app'",
            ),
            "`message` is bytea",
        ),
        (
            old("name varchar(8), message text, id uuid, time timestamptz, appid varchar(155)"),
            "`name` is varchar(8)",
        ),
        (
            with_rows(
                "name text, message text, id uuid, time timestamp DEFAULT now(), appid varchar(155)",
                "'user', 'Old', gen_random_uuid(), now(), 'app'",
            ),
            "`time` is timestamp",
        ),
        (
            old("name text, message text, id uuid, time bigint, appid varchar(155)"),
            "`time` is int8",
        ),
        (
            old("username text, message text, id uuid, time timestamptz, appid varchar(155)"),
            "no column `name`",
        ),
        (old("name text, message text, id uuid"), "no column `time`"),
        (
            old("name text, message text, id uuid, time timestamptz, appid int"),
            "`appid` is int4",
        ),
        (
            old(
                "name text, message text, id uuid, time timestamptz, appid text, tenant text NOT NULL",
            ),
            "`tenant` must have a value",
        ),
        (
            old(
                "name text, message text, id uuid, time timestamptz, appid text, n int PRIMARY KEY",
            ),
            "`n` must have a value",
        ),
        (
            old(
                "name text, message text GENERATED ALWAYS AS ('x') STORED, id uuid, time timestamptz, appid text",
            ),
            "`message` is generated",
        ),
        (
            old(
                "name text, message text, id uuid, time timestamptz, appid text, status int, turn_id text",
            ),
            "`turn_id` is text",
        ),
        (
            old(
                "username text, message varchar(9), id text, time date, appid uuid, x int NOT NULL",
            ),
            "`message` is varchar(9)",
        ),
        (
            "CREATE VIEW chatts AS SELECT 'user' AS name, 'Hi' AS message".to_owned(),
            "is a view",
        ),
    ] {
        is_refused_until_mended(&app, &table, fault).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_work_is_refused_and_the_cure_named_on_sqlite() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for (table, fault) in [
        (
            "CREATE TABLE chatts (username text, message text, id text, time text, appid text)",
            "no column `name`",
        ),
        (
            "CREATE TABLE chatts (name text, message text, id text, appid text)",
            "no column `time`",
        ),
        (
            "CREATE TABLE chatts (name text, message text, id integer PRIMARY KEY, time text, appid text)",
            "`id` is a number",
        ),
        (
            "CREATE TABLE chatts (name text, message text AS ('x'), id text, time text, appid text)",
            "`message` is generated",
        ),
        (
            "CREATE TABLE chatts (name text, message text, id text, time text, appid text, tenant text NOT NULL)",
            "`tenant` must have a value",
        ),
        (
            "CREATE VIEW chatts AS SELECT 'user' AS name",
            "it is a view",
        ),
    ] {
        is_refused_until_mended(&app, table, fault).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_other_types_and_columns_of_others_work() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.execute(
        "CREATE DOMAIN words AS text;
         CREATE TABLE chatts (name varchar(20), message words, id uuid, time timestamptz, appid text,
             n bigserial PRIMARY KEY, tenant text NOT NULL DEFAULT 'all', note text)",
    )
    .await?;
    app.ollama.always(Script::reply(["ok"]));
    for _ in 0..2 {
        assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    }
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_servers_table_is_found_in_the_whole_search_path() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.execute(OLD_TABLE).await?;
    app.execute(
        "CREATE SCHEMA fresh;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = fresh, public', current_database()); END $$",
    )
    .await?;
    app.ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    assert_eq!(app.sent_to_ollama(1).await?.len(), 3);
    assert_eq!(app.row_count().await?, 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_encoding_cannot_hold_every_character_is_refused() -> Result<()> {
    for (encoding, works) in [("LATIN1", false), ("SQL_ASCII", true)] {
        let url = Cluster::shared().await?.database_in(encoding).await?;
        let app = TestApp::with(Backend::Postgres, "database_url", url).await?;
        app.ollama.always(Script::reply(["😀"]));
        if works {
            assert_eq!(app.ask("app", "Hi 😀").await?.len(), 2);
            assert_eq!(app.ask("app", "and on").await?.len(), 2);
            let expected = [("user", "Hi 😀"), ("assistant", "😀"), ("user", "and on")];
            assert_eq!(app.sent_to_ollama(2).await?, messages(&expected));
            continue;
        }
        let error = app.prompt("app", "Hi").await?.error(500).await?;
        ensure!(
            error.contains(encoding) && error.contains("ENCODING 'UTF8'"),
            "{error}"
        );
        ensure!(app.ollama.chats() == 0 && app.log()?.contains(encoding));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_an_older_server_is_using_is_migrated_without_stopping_it() -> Result<()> {
    let app = TestApp::with(Backend::Postgres, "database_timeout", "60s").await?;
    app.execute(OLD_TABLE).await?;
    app.ollama.always(Script::reply(["ok"]));
    let database = app.postgres()?;
    let transaction = database.connect().await?;
    transaction
        .batch_execute("BEGIN; SELECT FROM chatts")
        .await?;
    let others = async {
        // The migration waits in front of whatever comes next.
        let waiting = "SELECT 1 FROM pg_locks WHERE relation = 'chatts'::regclass AND NOT granted";
        let is_waiting = async || Ok(!database.query(waiting).await?.is_empty());
        for _ in 0..3 {
            until("the migration", is_waiting).await?;
            let insert = "INSERT INTO chatts VALUES ('user', 'Meanwhile', gen_random_uuid(), now(), 'other')";
            within("a query of the old server", database.execute(insert)).await??;
        }
        Ok(transaction.batch_execute("COMMIT").await?)
    };
    let (answer, ()) = tokio::try_join!(app.prompt("app", "Hi"), others)?;
    assert_eq!(answer.read().await?.len(), 2);
    assert_eq!(app.row_count().await?, 3 + 3 + 2);
    Ok(())
}
