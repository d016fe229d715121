//! What is asked for besides replies: stops and deletions, repeated until they are acknowledged; and the pages.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;

use super::{PATIENCE, PAUSE};
use crate::evidence::{Outcome, Pages, Seen, Sweep};
use crate::plan::{Deletion, PlannedSweep, Turn};
use crate::text::ConversationId;
use crate::world::{World, app_id};

pub(super) async fn delete(
    world: &World,
    turn: Turn,
    path: &str,
    what: Deletion,
) -> Result<Option<u16>> {
    world.count(what.into());
    let path = match what {
        Deletion::Turn => path.to_owned(),
        Deletion::Reply => format!("{path}/reply"),
    };
    let owner = turn.id.conversation.owner;
    insist(world, turn.host, owner, ("DELETE", &path), &[204]).await
}

/// Deletes the part of a conversation that is planned, from a turn on that is there.
pub(crate) async fn sweep(
    world: &World,
    conversation: ConversationId,
    planned: Option<PlannedSweep>,
    seen: &[Seen],
    sweeps: &[Sweep],
) -> Result<Option<Sweep>> {
    let Some(planned) = planned else {
        return Ok(None);
    };
    let mut path = format!("/llmchat/{}", app_id(conversation));
    let mut from = None;
    if let Some(back) = planned.back {
        let swept = sweeps.iter().map(|sweep| sweep.acknowledged);
        let is_there = |seen: &&Seen| {
            (seen.is_told() || seen.outcome == Outcome::WithoutReply)
                && swept
                    .clone()
                    .all(|end| end.is_some_and(|end| end <= seen.sent()))
        };
        let seen = seen.iter().rev().nth(back).filter(is_there);
        let Some((seen, turn_id)) = seen.and_then(|seen| Some((seen, seen.turn_id.as_ref()?)))
        else {
            return Ok(None);
        };
        from = Some(seen.turn.id);
        path += &format!("/turns?from={turn_id}");
    }
    world.count(from.map_or("delete-conversation", |_| "delete-from"));
    let sent = world.now();
    let host = planned.back.unwrap_or_default() % world.nodes.len();
    let status = insist(world, host, conversation.owner, ("DELETE", &path), &[204]).await?;
    Ok(Some(Sweep {
        conversation,
        from,
        sent,
        acknowledged: status.map(|_| world.now()),
    }))
}

/// Repeats a request, from host to host, until it has one of these answers; its status.
pub(super) async fn insist(
    world: &World,
    mut host: usize,
    owner: usize,
    request: (&str, &str),
    statuses: &[u16],
) -> Result<Option<u16>> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let sent = world.ask(host, owner, request, &[], String::new());
        if let Ok(answer) = sent.await {
            let status = answer.status().as_u16();
            if statuses.contains(&status) && answer.bytes().await.is_ok() {
                return Ok(Some(status));
            }
        }
        host = (host + 1) % world.nodes.len();
        sleep(PAUSE).await;
    }
    Ok(None)
}

/// Reads a conversation from its newest page back to its beginning, when nothing fails any more.
pub(crate) async fn pages(world: &World, conversation: ConversationId) -> Result<Pages> {
    let mut messages = Vec::new();
    let mut bodies = String::new();
    let mut before = None;
    loop {
        let mut path = format!("/llmchat/{}?limit=7", app_id(conversation));
        path.extend(before.iter().map(|id| format!("&before={id}")));
        let request = ("GET", path.as_str());
        let answer = world.ask(0, conversation.owner, request, &[], String::new());
        let answer = answer.await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.status());
        let body = answer.text().await?;
        let page: Value = serde_json::from_str(&body)?;
        bodies += &body;
        let of_page = page.get("messages").and_then(Value::as_array);
        let of_page = of_page.context("a page without messages")?;
        let text = |message: &Value, name: &str| {
            let text = message.get(name).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let newest_first = of_page.iter().rev();
        messages
            .extend(newest_first.map(|message| (text(message, "role"), text(message, "content"))));
        before = of_page.first().map(|message| text(message, "id"));
        if page.get("more") != Some(&Value::Bool(true)) {
            messages.reverse();
            return Ok(Pages { messages, bodies });
        }
    }
}
