//! The table comes by itself, and an older server's goes on being used.

use std::fs;
use std::path::Path;

use anyhow::Result;
use llmchat_testkit::{Backend, TestApp, on_both_stores};
use ollama_stand_in::Script;

use crate::conversation::words;

/// What the Python server made, with two rows in it.
const OLD_TABLE: &str = "
    CREATE TABLE chatts (name text, message text, id uuid, time timestamptz, appid varchar(155));
    INSERT INTO chatts VALUES
        ('assistant', 'Old reply', '00000000-0000-0000-0000-000000000002', '2024-05-01 12:00:05+00:00', 'app'),
        ('user', 'Old prompt', '00000000-0000-0000-0000-000000000001', '2024-05-01 12:00:00+00:00', 'app'),
        ('user', 'Other', '00000000-0000-0000-0000-000000000003', '2024-05-01 12:00:00+00:00', 'other');";

on_both_stores! {
    async fn many_first_prompts_at_once_make_one_schema(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.always(Script::reply(["ok"]));
        let ask = async |n: usize| app.ask(&format!("app {n}"), "Hi").await;
        let answers = futures_util::future::try_join_all((0..30).map(ask)).await?;
        assert!(answers.iter().all(|events| events.len() == 2), "{answers:?}");
        assert_eq!(app.row_count().await?, 60);
        Ok(())
    }

    async fn an_older_servers_table_keeps_its_rows_and_works(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.execute(OLD_TABLE).await?;
        app.ollama.always(Script::reply(["New reply"]));
        for turn in 1..=2 {
            assert_eq!(app.ask("app", "New prompt").await?.len(), 2);
            let sent = app.ollama.chat(turn).await.request().messages()?;
            let mut expected = words(&[("user", "Old prompt"), ("assistant", "Old reply"), ("user", "New prompt")]);
            if turn == 2 {
                expected.extend(words(&[("assistant", "New reply"), ("user", "New prompt")]));
            }
            assert_eq!(sent, expected);
        }
        // The old server can go on beside it, knowing nothing of the new columns.
        app.execute("INSERT INTO chatts (name, message, id, time, appid) VALUES
            ('user', 'By the old server', '00000000-0000-0000-0000-000000000004', '2124-05-01 12:00:00+00:00', 'other')").await?;
        app.ask("other", "New prompt").await?;
        let sent = app.ollama.chat(3).await.request().messages()?;
        assert_eq!(sent, words(&[("user", "Other"), ("user", "By the old server"), ("user", "New prompt")]));
        Ok(())
    }

    async fn an_older_servers_table_is_brought_up_to_date_by_many_at_once(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.execute(OLD_TABLE).await?;
        app.ollama.always(Script::reply(["ok"]));
        let ask = async |n: usize| app.ask(&format!("app {n}"), "Hi").await;
        let answers = futures_util::future::try_join_all((0..20).map(ask)).await?;
        assert!(answers.iter().all(|events| events.len() == 2), "{answers:?}");
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
                    // SQLite cannot say "if it is not there yet".
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
    let sent = app.ollama.chat(1).await.request().messages()?;
    assert_eq!(
        sent,
        words(&[
            ("user", "Old prompt"),
            ("assistant", "Old reply"),
            ("user", "Hi")
        ])
    );
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
    let limited = TestApp::on(Backend::Postgres)
        .variable("database_url", url)
        .start()
        .await?;
    let error = limited.prompt("app", "Hi").await?.error(500).await?;
    assert!(
        error.contains("may not create") && error.contains("migrations"),
        "{error}"
    );
    assert_eq!(limited.ollama.chats(), 0);

    // Once somebody who may has done it, that role is enough.
    app.ollama.push(Script::reply(["ok"]));
    app.ask("app", "Hi").await?;
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
