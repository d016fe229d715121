//! Another owner, who knows the path of a turn and tries all that it could do there if it were its own.

use anyhow::Result;
use serde_json::Value;

use super::caller::foreign;
use crate::evidence::Kind::{Foreign, Untrue};
use crate::evidence::Violation;
use crate::plan::Turn;
use crate::world::{World, app_id};

/// A failing database has these.
const FAILED: [u16; 2] = [500, 503];

/// Tries all; returns what was not as if the turn did not exist. That nothing has become of the turn, the auditor sees.
pub(super) async fn intrude(
    world: &World,
    turn: Turn,
    intruder: usize,
    path: &str,
) -> Result<Vec<Violation>> {
    world.count("intruder");
    let conversation = format!("/llmchat/{}", app_id(turn.id.conversation));
    let id = path.rsplit('/').next().unwrap_or_default();
    let (stop, again, reply) = (
        path.to_owned() + "/stop",
        path.to_owned() + "/again",
        path.to_owned() + "/reply",
    );
    let from = format!("{conversation}/turns?from={id}");
    let stream = [("accept", "text/event-stream")];
    let mut requests = vec![
        ("GET", path, &[][..], 404),
        ("GET", path, &stream, 404),
        ("POST", &stop, &[], 404),
        ("POST", &again, &[], 404),
        ("DELETE", &reply, &[], 204),
        ("DELETE", path, &[], 204),
        ("DELETE", &from, &[], 204),
        ("GET", &conversation, &[], 200),
    ];
    let has_nothing = intruder == world.plan.stranger();
    if has_nothing {
        requests.push(("DELETE", &conversation, &[], 204));
    }
    let mut found = Vec::new();
    for (method, path, headers, expected) in requests {
        let sent = world.ask(turn.host, intruder, (method, path), headers, String::new());
        // Hosts die.
        let Ok(answer) = sent.await else { continue };
        let status = answer.status().as_u16();
        let Ok(body) = answer.text().await else {
            continue;
        };
        found.extend(foreign(&body, intruder));
        let is_as_expected = status == expected || FAILED.contains(&status);
        let is_empty = status != 200 || !has_nothing || is_empty(&body);
        if !is_as_expected || !is_empty || body.contains(id) {
            let what = format!("{status} {body} to {method} {path} of owner {intruder}");
            found.push((Foreign, what));
        }
    }
    let wrong = format!("{}?", world.authorization(intruder).unwrap_or_default());
    for headers in [&[][..], &[("authorization", wrong.as_str())]] {
        for (method, path) in [("GET", path), ("POST", &stop), ("DELETE", &conversation)] {
            let client = world.client(turn.host)?;
            let sent = client.request_with(method, path, headers, "").await;
            let Ok(answer) = sent else { continue };
            let status = answer.status().as_u16();
            if status != 401 {
                found.push((
                    Untrue,
                    format!("{status} to {method} {path} without a right key"),
                ));
            }
        }
    }
    Ok(found)
}

/// Whether it is the page of a conversation that nobody has begun.
fn is_empty(page: &str) -> bool {
    let page: Value = serde_json::from_str(page).unwrap_or_default();
    let is = |name, value: Value| page.get(name) == Some(&value);
    is("messages", Value::Array(Vec::new()))
        && is("running", Value::Null)
        && is("more", Value::Bool(false))
}
