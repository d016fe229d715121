//! The component creates its table, and keeps using one that an older server has created.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, TestApp, messages, on_both_stores};
use ollama_stand_in::Script;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_without_a_text_or_with_one_id_do_not_disturb() -> Result<()> {
    let app = TestApp::start(Backend::Postgres).await?;
    app.execute(OLD_TABLE).await?;
    app.execute(
        "INSERT INTO chatts SELECT * FROM chatts WHERE appid = 'other';
         INSERT INTO chatts VALUES (NULL, NULL, NULL, NULL, 'app'), ('user', NULL, NULL, now(), 'app')",
    )
    .await?;
    app.ollama.push(Script::reply(["ok"]));
    assert_eq!(app.ask("app", "Hi").await?.len(), 2);
    let expected = [
        ("user", "Old prompt"),
        ("assistant", "Old reply"),
        ("user", "Hi"),
    ];
    assert_eq!(app.sent_to_ollama(1).await?, messages(&expected));
    Ok(())
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
    let error = limited.prompt("app", "Hi").await?.error(500).await?;
    assert!(
        error.contains("may not create") && error.contains("migrations"),
        "{error}"
    );
    assert_eq!(limited.ollama.chats(), 0);

    // Once another role has created the table, the limited one can use it.
    app.turn("app", "Hi", "ok").await?;
    let role = app
        .postgres()?
        .query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'limited_%' || current_database()")
        .await?;
    app.execute(&format!("GRANT SELECT, INSERT ON chatts TO {}", role[0]))
        .await?;
    limited.ollama.push(Script::reply(["ok"]));
    assert_eq!(limited.ask("app", "Hi").await?.len(), 2);
    assert_eq!(app.rows("app").await?.len(), 4);
    Ok(())
}
