//! One turn as a client: sends the prompt, reads or leaves as planned, and returns what it saw.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_testkit::{Answer, Client, Event, prompt};
use serde_json::{Value, json};

use crate::auditor::{End, Seen};
use crate::plan::{Behaviour, Turn};
use crate::world::{World, app_id};

/// Runs one turn.
pub(crate) async fn run(world: &Arc<World>, turn: Turn) -> Result<Seen> {
    turn.faults().for_each(|fault| world.count(fault));
    if let Some(planned) = turn.fault {
        world.schedule(planned);
    }
    let mut seen = Seen {
        turn,
        host: turn.host,
        sent: Duration::ZERO,
        head: None,
        ended: Duration::ZERO,
        end: End::NoAnswer,
        shown: String::new(),
        done: false,
        codes: Vec::new(),
    };
    let reading = read(world, &mut seen);
    match turn.behaviour {
        Behaviour::LeaveEarly(after) => {
            if let Ok(read) = tokio::time::timeout(after, reading).await {
                read?;
            } else if seen.head.is_some() {
                seen.end = End::Left;
            }
        }
        _ => reading.await?,
    }
    seen.ended = world.now();
    Ok(seen)
}

async fn read(world: &World, seen: &mut Seen) -> Result<()> {
    let Some(answer) = send(world, seen).await? else {
        return Ok(());
    };
    let status = answer.status().as_u16();
    if status != 200 {
        seen.end = match answer.text().await {
            Ok(_) => End::Refused(status),
            Err(_) => End::NoAnswer,
        };
        return Ok(());
    }
    seen.head = Some(world.now());
    seen.end = End::Broken;
    let mut events = answer.events().await?;
    let mut read = 0;
    loop {
        match seen.turn.behaviour {
            Behaviour::LeaveMidStream(count) | Behaviour::LeaveBeforeDone(count)
                if read == count =>
            {
                seen.end = End::Left;
                return Ok(());
            }
            Behaviour::ReadSlowly(pause) => tokio::time::sleep(pause).await,
            _ => {}
        }
        match events.next().await {
            Ok(Some(Event::Data(line))) => {
                let line: Value = serde_json::from_str(&line)?;
                let content = line.pointer("/message/content").and_then(Value::as_str);
                seen.shown
                    .push_str(content.context("a line without content")?);
                seen.done |= line.get("done") == Some(&Value::Bool(true));
            }
            Ok(Some(Event::Error { code, .. })) => seen.codes.push(code),
            Ok(None) => {
                seen.end = End::Clean;
                return Ok(());
            }
            // The auditor decides whether the host had a reason to break off.
            Err(_) => return Ok(()),
        }
        read += 1;
    }
}

/// Sends the prompt to the turn's host, or to the next that accepts the connection. `None` if no
/// head came.
async fn send(world: &World, seen: &mut Seen) -> Result<Option<Answer>> {
    let mut body = prompt(&app_id(seen.turn.id.conversation), &seen.turn.id.prompt());
    let options = json!({"turn": seen.turn.id.to_string()});
    let fields = body.as_object_mut().context("not an object")?;
    fields.insert("options".to_owned(), options);
    loop {
        let node = world.nodes.get(seen.host).context("no such host")?;
        seen.sent = world.now();
        let error = match Client::of(node.host.address()).prompt(&body).await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        // Connecting fails with an I/O error, everything after it with one of HTTP.
        if error.downcast_ref::<std::io::Error>().is_none() {
            return Ok(None);
        }
        seen.host = (seen.host + 1) % world.nodes.len();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
