//! Turns and messages as JSON.

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::clock;
use crate::conversation::AppId;
use crate::store::{Page, PageMessage, TurnView};

/// A turn, as `GET …/turns/{turn}` shows it.
#[derive(Serialize)]
struct TurnJson<'a> {
    turn: String,
    state: &'static str,
    attempt: Option<String>,
    model: Option<&'a str>,
    started: Option<String>,
    ended: Option<String>,
    code: Option<&'a str>,
    usage: Option<Box<RawValue>>,
}

/// The JSON of a turn.
pub(super) fn turn(id: Uuid, view: &TurnView) -> Vec<u8> {
    json(&TurnJson {
        turn: id.to_string(),
        state: view.state.as_str(),
        attempt: view.attempt.map(|id| id.to_string()),
        model: view.asked.model.as_deref(),
        started: view.started.and_then(clock::rfc3339),
        ended: view.ended.and_then(clock::rfc3339),
        code: view.code.as_deref(),
        usage: raw(view.usage.as_deref()),
    })
}

#[derive(Serialize)]
struct PageJson<'a> {
    #[serde(rename = "appID")]
    app_id: &'a str,
    system: Option<&'a str>,
    running: Option<String>,
    messages: Vec<MessageJson<'a>>,
    more: bool,
}

#[derive(Serialize)]
struct MessageJson<'a> {
    id: String,
    turn: String,
    role: &'a str,
    content: &'a str,
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Box<RawValue>>,
}

/// The JSON of a page.
pub(super) fn page(app_id: &AppId, page: &Page) -> Vec<u8> {
    json(&PageJson {
        app_id: app_id.as_str(),
        system: None,
        running: page.running.map(|id| id.to_string()),
        messages: page.messages.iter().map(message).collect(),
        more: page.has_more,
    })
}

fn message(message: &PageMessage) -> MessageJson<'_> {
    let status = message.status.as_deref();
    let calls = message.calls.as_ref().map(|calls| format!("[{calls}]"));
    MessageJson {
        id: message.id.to_string(),
        turn: message.turn.to_string(),
        role: &message.role,
        content: &message.content,
        time: message.time.and_then(clock::rfc3339),
        status: status.filter(|status| *status != "complete"),
        thinking: message.thinking.as_deref(),
        tool_calls: raw(calls.as_deref()),
        usage: raw(message.usage.as_deref()),
    }
}

/// JSON that was stored as it is.
fn raw(json: Option<&str>) -> Option<Box<RawValue>> {
    RawValue::from_string(json?.to_owned()).ok()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Serialising strings and numbers into memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}
