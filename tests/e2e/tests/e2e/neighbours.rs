//! What one owner has stored costs no other anything: the statements of an owner with a few messages do the same work
//! beside an owner with very many, whose conversations have the same `appID`s.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use llmchat_testkit::{Backend, Cluster, Store, TestApp, prompt};
use ollama_stand_in::Script;
use regex_lite::Regex;
use rusqlite::types::Value;
use rusqlite::{Connection, StatementStatus, params_from_iter};

const KEYS: &str = "many:a few:b";
const KEY: (&str, &str) = ("authorization", "Bearer b");

/// Messages of the conversation `huge`.
const HUGE: usize = 100_000;
/// Conversations of ten messages: `app 0`, `app 1`…
const OTHERS: usize = 10_000;

/// The turns of the owner with many messages, two messages each, and then the messages.
fn turns() -> String {
    format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})
         SELECT CASE WHEN n < {huge} THEN 'huge' ELSE 'app ' || ((n - {huge}) / 5) END AS appid, n FROM numbers",
        HUGE / 2 + OTHERS * 5 - 1,
        huge = HUGE / 2,
    )
}

async fn add_many(app: &TestApp) -> Result<()> {
    let (id, at) = match app.store() {
        Store::Sqlite(_) => (
            "printf('01990000-0000-7000-%04x-%012x', {line}, n)",
            "1700000000000000 + n * 1000000",
        ),
        Store::Postgres(_) => (
            "('01990000-0000-7000-' || lpad(to_hex({line}), 4, '0') || '-' || lpad(to_hex(n), 12, '0'))::uuid",
            "to_timestamp(1700000000 + n)",
        ),
    };
    let id = |line: &str| id.replace("{line}", line);
    let (turn, prompt, reply) = (id("0"), id("1"), id("2"));
    let turns = turns();
    app.execute(&format!(
        "INSERT INTO chatts_turns (owner, appid, turn_id, started, model, stream, request, reply_id, attempt, state, ended)
         SELECT 'many', appid, {turn}, {at}, 'm', true, '{{}}', {reply}, {turn}, 'complete', {at} FROM ({turns}) AS t;
         INSERT INTO chatts (owner, appid, turn_id, turn_start, id, name, message, time)
         SELECT 'many', appid, {turn}, {at}, {prompt}, 'user', 'Hello', '2023-11-14T22:13:20Z' FROM ({turns}) AS t;
         INSERT INTO chatts (owner, appid, turn_id, turn_start, id, name, message, time)
         SELECT 'many', appid, {turn}, {at}, {reply}, 'assistant', 'Hello', '2023-11-14T22:13:20Z' FROM ({turns}) AS t;"
    ))
    .await
}

/// Sends all kinds of requests of the owner with few messages, who has none before and after.
async fn work(app: &TestApp, round: usize) -> Result<()> {
    for app_id in ["huge", "app 7"] {
        let path = format!("/llmchat/{}", app_id.replace(' ', "%20"));
        let mut turns = Vec::new();
        for number in 0..3 {
            app.ollama.push(Script::reply(["ok"]));
            let key = format!("{round}-{number}");
            let key = [KEY, ("idempotency-key", key.as_str())];
            for _ in 0..2 {
                let body = prompt(app_id, &format!("Prompt {number}"));
                let answer = app.client.prompt_with(&key, &body).await?;
                turns.push(answer.turn()?);
                answer.read().await?;
            }
        }
        let sent = async |method: &str, path: &str, status: u16| {
            let answer = app.client.request_with(method, path, &[KEY], "").await?;
            ensure!(
                answer.status() == status,
                "{method} {path}: {}",
                answer.status()
            );
            answer.text().await
        };
        let page = sent("GET", &path, 200).await?;
        let page: serde_json::Value = serde_json::from_str(&page)?;
        assert_eq!(page["messages"].as_array().map(Vec::len), Some(6), "{page}");
        let last = page["messages"][5]["id"].as_str().context("no id")?;
        sent("GET", &format!("{path}?limit=2&before={last}"), 200).await?;
        sent("GET", &turns[0], 200).await?;
        sent("POST", &format!("{}/stop", turns[0]), 200).await?;
        app.ollama.push(Script::reply(["ok"]));
        let again = format!("{}/again", turns[0]);
        app.client
            .request_with("POST", &again, &[KEY], "")
            .await?
            .read()
            .await?;
        sent("DELETE", &turns[2], 204).await?;
        let from = turns[4].rsplit('/').next().unwrap_or_default();
        sent("DELETE", &format!("{path}/turns?from={from}"), 204).await?;
        sent("DELETE", &path, 204).await?;
    }
    Ok(())
}

/// Rounds of [`work`]: those in which connections read the catalogue and come to a plan for all parameters, and those
/// after them.
const ROUNDS: [usize; 2] = [8, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_an_owner_reads_no_page_of_anothers() -> Result<()> {
    let app = TestApp::on(Backend::Postgres)
        .variable("api_keys", KEYS)
        .variable("max_turns_per_minute", 1000)
        .variable("max_running_turns", 1000)
        .start()
        .await?;
    let module = app.execute("LOAD 'auto_explain'").await;
    module.context("install PostgreSQL's contrib modules (Fedora: postgresql-contrib)")?;
    let database = app.query("SELECT current_database()").await?.concat();
    for setting in [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_buffers = on",
        "auto_explain.log_timing = off",
    ] {
        app.execute(&format!("ALTER DATABASE {database} SET {setting}"))
            .await?;
    }
    let mut numbers = 0..;
    let mut measure = async || {
        let mut begun = 0;
        for rounds in ROUNDS {
            begun = Cluster::shared().await?.log()?.len();
            for number in numbers.by_ref().take(rounds) {
                work(&app, number).await?;
            }
        }
        let log = Cluster::shared().await?.log()?;
        read(log.get(begun..).context("a shorter log")?, &database)
    };
    let alone = measure().await?;
    assert!(alone.len() > 8, "{alone:?}");
    add_many(&app).await?;
    for statement in ["SELECT 1", "ANALYZE"] {
        app.execute(statement).await?;
        let beside = measure().await?;
        for (what, pages) in &beside {
            let alone = alone.get(what).copied().unwrap_or_default();
            // Indexes are a level or two deeper, and rows that were deleted are still there.
            assert!(
                *pages < 3 * alone + 50,
                "{what}: {pages} pages, and {alone} alone"
            );
        }
        assert_eq!(beside.len(), alone.len());
    }
    Ok(())
}

/// The most pages that an execution of each of the component's statements has read, by its first line.
fn read(log: &str, database: &str) -> Result<BTreeMap<String, usize>> {
    let plan = format!(
        r"(?m)^{database}\|[^|]*\|LOG:  duration: [^\n]* plan:\n\tQuery Text: -- ([^\n]*)\n(?:\t[^\n]*\n)*?\t *Buffers: ([^\n]*)"
    );
    let pages = Regex::new(r"(?:hit|read)=(\d+)")?;
    let mut read = BTreeMap::new();
    for plan in Regex::new(&plan)?.captures_iter(log) {
        let pages = pages
            .captures_iter(&plan[2])
            .map(|it| it[1].parse::<usize>());
        let pages = pages.sum::<Result<usize, _>>()?;
        let most = read.entry(plan[1].to_owned()).or_default();
        *most = pages.max(*most);
    }
    Ok(read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_an_owner_takes_no_step_for_anothers() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "api_keys", KEYS).await?;
    work(&app, 0).await?;
    let mut turns = Vec::new();
    for content in ["One", "Two"] {
        app.ollama.push(Script::reply(["ok"]));
        let body = prompt("app 7", content);
        let answer = app.client.prompt_with(&[KEY], &body).await?;
        turns.push(answer.header("x-turn-id").context("no turn")?.to_owned());
        answer.read().await?;
    }
    let Store::Sqlite(path) = app.store() else {
        return Ok(());
    };
    let alone = steps(path, &turns[0])?;
    add_many(&app).await?;
    for statement in ["SELECT 1", "ANALYZE"] {
        app.execute(statement).await?;
        let beside = steps(path, &turns[0])?;
        for (what, steps) in &beside {
            let alone = alone[what];
            assert!(
                *steps < alone + 20,
                "{what}: {steps} steps, and {alone} alone"
            );
        }
    }
    Ok(())
}

/// The statements, and their parameters after owner and `appID`. The other owner has a turn `FOREIGN` there.
const STATEMENTS: [(&str, &str, &str); 12] = [
    (
        "context",
        "context",
        "new-1 new-2 - - 100 0 999999 999999 999999",
    ),
    (
        "begin",
        "begin",
        "new-1 new-2 new-3 - - m 0 {} PROMPT 100 999999 0 0 100 100",
    ),
    ("page", "page", "100 - 999999"),
    ("page before", "page", "100 MESSAGE 999999"),
    ("turn", "turn", "TURN"),
    ("another's turn", "turn", "FOREIGN"),
    ("stop another's turn", "stop", "FOREIGN"),
    ("delete a turn", "delete_turn", "TURN 100"),
    ("delete another's turn", "delete_turn", "FOREIGN 100"),
    ("delete from a turn", "delete_from", "TURN - 100"),
    ("delete from another's turn", "delete_from", "FOREIGN - 100"),
    ("delete the conversation", "delete_conversation", "- 100"),
];

/// The steps of SQLite's virtual machine that the component's statements take, each on its own.
fn steps(path: &Path, turn: &str) -> Result<BTreeMap<&'static str, i32>> {
    let connection = Connection::open(path)?;
    let message = "SELECT id FROM chatts WHERE turn_id = ?1 LIMIT 1";
    let message: String = connection.query_row(message, [turn], |row| row.get(0))?;
    let value = |word: &str| match (word, word.parse()) {
        (_, Ok(number)) => Value::Integer(number),
        ("-", _) => Value::Null,
        ("TURN", _) => Value::Text(turn.to_owned()),
        ("MESSAGE", _) => Value::Text(message.clone()),
        ("FOREIGN", _) => Value::Text("01990000-0000-7000-0000-00000000c373".to_owned()),
        ("PROMPT", _) => Value::Text(r#"[["user","Hello","new-4"]]"#.to_owned()),
        _ => Value::Text(word.to_owned()),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/store/sqlite");
    let mut steps = BTreeMap::new();
    for (what, statement, parameters) in STATEMENTS {
        let sql = fs::read_to_string(folder.join(format!("{statement}.sql")))?;
        let names = ["few", "app 7"].map(|name| Value::Text(name.to_owned()));
        let parameters = names.into_iter().chain(parameters.split(' ').map(value));
        connection.execute_batch("BEGIN")?;
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement
            .query(params_from_iter(parameters))
            .context(what)?;
        while rows.next()?.is_some() {}
        drop(rows);
        steps.insert(what, statement.get_status(StatementStatus::VmStep));
        drop(statement);
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(steps)
}
