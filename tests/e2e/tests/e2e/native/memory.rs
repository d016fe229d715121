//! A conversation of any size takes a bounded amount of memory, and disturbs nobody.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use llmchat_testkit::{Backend, Client, Cluster, Event, Process, Store, on_both_stores, prompt};
use ollama_stand_in::{Gate, Script, Server, wire};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Prompts at once to one conversation.
const PROMPTS: usize = 200;
/// Longer than so much takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);
/// Bytes of the host's memory, at its peak.
const BOUND: u64 = 512 << 20;

/// 500 messages of a million bytes.
fn large(backend: Backend) -> &'static str {
    match backend {
        Backend::Postgres => {
            "INSERT INTO chatts (name, message, id, time, appid)
             SELECT 'user', repeat('x', 1000000), gen_random_uuid(), now() - n * interval '1 second', 'large'
             FROM generate_series(1, 500) AS n"
        }
        Backend::Sqlite => {
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 500)
             INSERT INTO chatts (name, message, id, time, appid)
             SELECT 'user', printf('%.*c', 1000000, 'x'), n, datetime(1700000000 + n, 'unixepoch'), 'large' FROM numbers"
        }
    }
}

/// An Ollama that takes a large request only once the gate is open, and small ones at once.
async fn slow(ollama: SocketAddr, gate: Gate) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, ollama, gate.clone()));
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream, ollama: SocketAddr, gate: Gate) -> Result<()> {
    let mut begun = vec![0; 4096];
    let read = stream.peek(&mut begun).await?;
    let head = String::from_utf8_lossy(&begun[..read]).to_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
    let length = length.context("no length")?;
    if length < 1 << 20 {
        let mut to = TcpStream::connect(ollama).await?;
        copy_bidirectional(&mut stream, &mut to).await?;
        return Ok(());
    }
    gate.pass().await;
    let mut left = length + head.find("\r\n\r\n").context("no end of the head")? + 4;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "{left} bytes are missing");
        left = left.saturating_sub(read);
    }
    let reply = format!("{}\n{}\n", wire::token("ok"), wire::done());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{reply}", reply.len());
    Ok(stream.write_all(answer.as_bytes()).await?)
}

on_both_stores! {
    async fn many_prompts_to_a_huge_conversation_take_little_memory_and_disturb_nobody(backend: Backend) -> Result<()> {
        let directory = TempDir::with_prefix("llmchat-memory-")?;
        let ollama = Server::scripted().await?;
        let gate = Gate::new();
        let address = slow(ollama.address(), gate.clone()).await?;
        let mut variables = vec![
            ("ollama_url", format!("http://{address}")),
            ("database_timeout", "60s".to_owned()),
        ];
        let store = match backend {
            Backend::Sqlite => Store::Sqlite(directory.path().join("sqlite_db.db")),
            Backend::Postgres => {
                let database = Cluster::shared().await?.database().await?;
                variables.push(("database_url", database.url_at(database.address())));
                Store::Postgres(database)
            }
        };
        let process = Process::start(directory.path(), directory.path(), "process", variables).await?;
        let client = Client::of(process.address());
        let neighbours = Gate::new();
        ollama.push(Script::new().token("a").gate(&neighbours).token("b").done());
        let mut neighbour = client.prompt(&prompt("neighbour", "Hi")).await?.events().await?;
        assert_eq!(neighbour.next().await?, Some(Event::Data(wire::token("a"))));
        store.execute(large(backend)).await?;

        let mut answers = Vec::new();
        for _ in 0..PROMPTS {
            answers.push(tokio::spawn(async move { client.prompt(&prompt("large", "Hi")).await?.events().await }));
        }
        let heads = async { Ok::<_, anyhow::Error>(try_join_all(answers).await?) };
        let streams = timeout(LONG, heads).await.context("not all heads came")??;
        // All wait for Ollama; others do not wait for them.
        ollama.always(Script::reply(["ok"]));
        for n in 0..3 {
            let events = client.prompt(&prompt(&format!("small {n}"), "Hi")).await?.read().await?;
            assert_eq!(events.len(), 2, "{events:?}");
        }
        neighbours.open();
        assert_eq!(neighbour.rest().await?.len(), 2);

        gate.open();
        for stream in streams {
            let events = stream?.rest().await?;
            ensure!(events.last() == Some(&Event::Data(wire::done())), "{events:?}");
        }
        assert_eq!(store.rows("neighbour").await?.len(), 2);
        let stored = store.query("SELECT name FROM chatts WHERE appid = 'large' AND message = 'ok'").await?;
        assert_eq!(stored.len(), PROMPTS);
        let peak = process.peak_memory().await?;
         ensure!(peak < BOUND, "{} MiB", peak >> 20);
        Ok(())
    }
}
