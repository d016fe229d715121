//! What the model is sent of a conversation: the newest whole turns that fit, and the receipt for it.

use anyhow::{Result, ensure};
use llmchat_testkit::{Backend, Client, TestApp, messages, on_both_stores};
use ollama_stand_in::Script;
use serde_json::{Value, json};

/// `max_history_bytes`
const BUDGET: usize = 300;

type Message = (String, String);

fn body(app_id: &str, messages: &[Message]) -> Value {
    let messages = messages.iter();
    let messages = messages.map(|(role, content)| json!({"role": role, "content": content}));
    json!({"appID": app_id, "model": "m", "messages": messages.collect::<Vec<_>>()})
}

fn bytes(turns: &[Vec<Message>]) -> usize {
    turns
        .iter()
        .flatten()
        .map(|(_, content)| content.len())
        .sum()
}

/// What the model is to be sent of these turns, the last of which is the prompt. `None` where it does not fit.
fn expected(turns: &[Vec<Message>]) -> Option<&[Vec<Message>]> {
    let begins = |turn: &Vec<Message>| {
        let first = turn.first();
        first.is_some_and(|(role, _)| !["assistant", "tool"].contains(&role.as_str()))
    };
    if bytes(turns) <= BUDGET {
        return Some(turns);
    }
    let cuts = (0..turns.len()).filter(|&cut| begins(&turns[cut]));
    let mut fitting = cuts
        .map(|cut| &turns[cut..])
        .filter(|turns| bytes(turns) <= BUDGET);
    fitting.next()
}

/// A conversation of turns and of rows of an older server, which are turns of their own.
fn conversation(random: &mut fastrand::Rng) -> Vec<Vec<Message>> {
    let content = |random: &mut fastrand::Rng| {
        let size = [0, 1, 20, 60, 290][random.usize(0..5)];
        "é\"".chars().cycle().take(size * 2 / 3).collect::<String>()
    };
    let role = |random: &mut fastrand::Rng| {
        let roles = ["user", "user", "assistant", "tool", "system"];
        roles[random.usize(0..roles.len())].to_owned()
    };
    let count = random.usize(0..12);
    let turn = |random: &mut fastrand::Rng| {
        let messages = 1 + random.usize(0..3);
        let messages = (0..messages).map(|_| (role(random), content(random)));
        messages.collect()
    };
    (0..count).map(|_| turn(random)).collect()
}

/// The rows of these turns; those with one message have, by turns, an id or none. Several of them began at once.
fn insert(backend: Backend, app_id: &str, turns: &[Vec<Message>]) -> String {
    let mut sql = String::new();
    for (n, turn) in turns.iter().enumerate() {
        let second = 1_700_000_000 + n / 2;
        let is_old = turn.len() == 1 && n % 2 == 0;
        for (role, content) in turn {
            let (start, time) = match backend {
                Backend::Postgres => (
                    format!("to_timestamp({second})"),
                    format!("to_timestamp({second})"),
                ),
                Backend::Sqlite => (
                    format!("{second}000000"),
                    format!("datetime({second}, 'unixepoch')"),
                ),
            };
            // Of two turns at once the older row comes first: it has no id.
            let (id, start) = match is_old {
                true => ("NULL".to_owned(), "NULL".to_owned()),
                false => (format!("'01900000-0000-7000-8000-{n:012}'"), start),
            };
            let row = fastrand::u128(..);
            let row = format!(
                "{:08x}-0000-4000-8000-{:012x}",
                row as u32,
                (row >> 64) as u64 & 0xffff_ffff_ffff
            );
            sql += &format!(
                "INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
                 VALUES ('{role}', '{content}', '{row}', {time}, '{app_id}', {id}, {start});\n"
            );
        }
    }
    sql
}

async fn refused(client: &Client, body: &Value) -> Result<()> {
    let answer = client.prompt(body).await?.error(413).await?;
    ensure!(answer.contains("max_history_bytes"), "{answer}");
    Ok(())
}

on_both_stores! {
    async fn the_newest_whole_turns_that_fit_are_sent(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_history_bytes", BUDGET).await?;
        app.ollama.always(Script::reply(["ok"]));
        app.ask("first", "makes the table").await?;
        let mut random = fastrand::Rng::with_seed(7);
        let (mut sent, mut too_large) = (1, 0);
        for n in 0..150 {
            let app_id = format!("app {n}");
            let mut turns = conversation(&mut random);
            app.execute(&insert(backend, &app_id, &turns)).await?;
            let prompt = match random.usize(0..4) {
                0 => Vec::new(),
                1 => vec![("tool".to_owned(), "result".to_owned())],
                _ => vec![("user".to_owned(), "prompt".to_owned())],
            };
            turns.push(prompt.clone());
            if bytes(&turns) == 0 && turns.iter().all(Vec::is_empty) {
                app.client.prompt(&body(&app_id, &prompt)).await?.error(422).await?;
                continue;
            }
            let Some(kept) = expected(&turns) else {
                too_large += 1;
                let rows = app.rows(&app_id).await?.len();
                refused(&app.client, &body(&app_id, &prompt)).await?;
                assert_eq!(app.rows(&app_id).await?.len(), rows, "nothing is stored");
                continue;
            };
            let answer = app.client.prompt(&body(&app_id, &prompt)).await?;
            let context = answer.header("x-context").unwrap_or_default().to_owned();
            answer.read().await?;
            sent += 1;
            let messages: Vec<Message> = kept.iter().flatten().cloned().collect();
            assert_eq!(app.sent_to_ollama(sent).await?, messages, "{n}: {turns:?}");
            let more = if kept.len() < turns.len() { "+" } else { "" };
            let (count, bytes) = (kept.len(), bytes(kept));
            assert_eq!(context, format!("turns={count}/{count}{more}, bytes={bytes}"), "{n}: {turns:?}");
        }
        ensure!(sent > 50 && too_large > 5, "{sent} sent, {too_large} too large");
        Ok(())
    }

    async fn a_prompt_larger_than_what_a_model_is_sent_is_a_413_and_not_stored(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "max_history_bytes", 100).await?;
        app.ollama.always(Script::reply(["ok"]));
        app.client.prompt(&body("app", &messages(&[("user", &"x".repeat(100))]))).await?.read().await?;
        refused(&app.client, &body("app", &messages(&[("user", &"x".repeat(101))]))).await?;
        // What the model is told of tools counts too.
        let mut with_tools = body("app", &messages(&[("user", &"x".repeat(90))]));
        with_tools["tools"] = json!([{"type": "function"}]);
        refused(&app.client, &with_tools).await?;
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }
}
