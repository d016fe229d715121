//! What a client puts together from a turn's events, as any app would: it appends, counts, and drops what it has where
//! it is told to. Holds the ids of events against what they must be. Pure: no connection.

use llmchat_testkit::Event;
use serde_json::Value;

use crate::evidence::Kind::{Lost, Mixed, Untrue};
use crate::evidence::Violation;
use crate::text::Text;

/// One device of a user's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub(crate) text: Text,
    /// The short name of the attempt that the text is of.
    pub(crate) attempt: Option<String>,
    /// The last id that it can go on from; empty where it has none.
    pub(crate) last_id: String,
    /// A line with `done` came: the receipt.
    pub(crate) is_done: bool,
    /// Why the reply ended, where `done` came.
    pub(crate) reason: Option<String>,
    /// An attempt was stopped before it had anything, and an older reply stands: not the outcome.
    pub(crate) is_kept: bool,
    /// An error event came with the id of the stored outcome.
    pub(crate) error: Option<String>,
    /// After each event with an id: the id, and how much there was of each text.
    marks: Vec<(String, [usize; 3])>,
}

impl Device {
    /// Takes an event, and the last id that came on its connection.
    pub(crate) fn take(&mut self, event: &Event, last_id: &str) -> Result<(), Violation> {
        if self.is_done {
            return Err((Untrue, format!("{event:?} came after `done`")));
        }
        match event {
            Event::Restart { attempt, .. } => {
                self.forget();
                self.attempt = attempt.get(..8).map(str::to_owned);
                Ok(())
            }
            // The id of an event before it is still the last one.
            Event::Error { code, .. } => {
                if last_id.ends_with(".end") && last_id != self.last_id {
                    if self.is_of_another_attempt(last_id) {
                        return Err((Mixed, format!("{last_id} without a restart")));
                    }
                    if NEVER_STORED.contains(&code.as_str()) {
                        return Err((Untrue, format!("{code} with the id {last_id}")));
                    }
                    self.last_id = last_id.to_owned();
                    self.error = Some(code.clone());
                }
                Ok(())
            }
            Event::Data(line) => self.line(line, last_id),
        }
    }

    fn line(&mut self, line: &str, id: &str) -> Result<(), Violation> {
        let line: Value = serde_json::from_str(line)
            .map_err(|error| (Untrue, format!("no JSON ({error}): {line}")))?;
        let text = |name: &str| line.pointer(name).and_then(Value::as_str);
        self.is_kept = text("/done_reason") == Some("stopped") && !id.ends_with(".end");
        if self.is_kept {
            return Ok(());
        }
        let Some(content) = text("/message/content") else {
            return Err((Untrue, format!("a line without content: {line}")));
        };
        self.text.content += content;
        self.text.thinking += text("/message/thinking").unwrap_or_default();
        let calls = line.pointer("/message/tool_calls");
        for call in calls.and_then(Value::as_array).into_iter().flatten() {
            self.text.calls.push(name_of(call));
        }
        if self.is_of_another_attempt(id) {
            return Err((Mixed, format!("{id} without a restart")));
        }
        let attempt = id.split('.').next().unwrap_or_default();
        self.attempt = Some(attempt.to_owned());
        let [content, thinking, calls] = self.lengths();
        self.is_done = line.get("done") == Some(&Value::Bool(true));
        let expected = match self.is_done {
            true => format!("{attempt}.end"),
            false => format!("{attempt}.{content}.{thinking}.{calls}"),
        };
        if id != expected {
            let what = format!("an event with the id {id:?}; with it a client has {expected}");
            return Err((Lost, what));
        }
        self.reason = text("/done_reason").map(str::to_owned);
        self.last_id = id.to_owned();
        self.marks.push((self.last_id.clone(), self.lengths()));
        Ok(())
    }

    /// The state of a turn whose outcome it was told.
    pub(crate) fn state(&self) -> &'static str {
        match (self.reason.as_deref(), &self.error) {
            (_, Some(_)) => "partial",
            (Some("stopped"), None) => "stopped",
            _ => "complete",
        }
    }

    fn is_of_another_attempt(&self, id: &str) -> bool {
        let attempt = self.attempt.as_deref();
        attempt.is_some_and(|attempt| !id.starts_with(attempt))
    }

    fn lengths(&self) -> [usize; 3] {
        let Text {
            content,
            thinking,
            calls,
        } = &self.text;
        [content.len(), thinking.len(), calls.len()]
    }

    /// The events that it can go back to.
    pub(crate) fn marks(&self) -> usize {
        self.marks.len()
    }

    /// Goes back to what it had after an event.
    pub(crate) fn rewind(&mut self, to: usize) {
        let Some((id, [content, thinking, calls])) = self.marks.get(to).cloned() else {
            return;
        };
        self.marks.truncate(to + 1);
        self.text.content.truncate(content);
        self.text.thinking.truncate(thinking);
        self.text.calls.truncate(calls);
        self.is_done = false;
        self.error = None;
        self.last_id = id;
    }

    /// Drops what it has.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// What is never stored with a turn.
const NEVER_STORED: [&str; 3] = ["database_failed", "turn_superseded", "turn_orphaned"];

/// The function that a tool call names.
pub(crate) fn name_of(call: &Value) -> String {
    let name = call.pointer("/function/name").and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Kind;
    use crate::text::{ConversationId, TurnId};

    const PIECES: usize = 12;

    fn events() -> Vec<(Event, String)> {
        let generation = TurnId {
            conversation: ConversationId { owner: 3, app: 1 },
            turn: 2,
        }
        .call(0);
        let event = |n| {
            let is_last = n + 1 == PIECES;
            let text = generation.text(n + 1);
            let id = match is_last {
                true => "0b5e1f0a.end".to_owned(),
                false => format!(
                    "0b5e1f0a.{}.{}.{}",
                    text.content.len(),
                    text.thinking.len(),
                    text.calls.len()
                ),
            };
            (Event::Data(generation.line(n, is_last)), id)
        };
        (0..PIECES).map(event).collect()
    }

    fn take(events: &[(Event, String)]) -> (Device, Vec<Kind>) {
        let mut device = Device::default();
        let wrong = events.iter().map(|(event, id)| device.take(event, id));
        let wrong = wrong.filter_map(Result::err).map(|(kind, _)| kind);
        let wrong = wrong.collect();
        (device, wrong)
    }

    #[test]
    fn a_reply_is_put_together_from_any_event_on() {
        let (whole, wrong) = take(&events());
        assert_eq!(wrong, []);
        assert!(whole.is_done);
        for to in 0..PIECES - 1 {
            let mut device = whole.clone();
            device.rewind(to);
            assert!(!device.is_done);
            for (event, id) in &events()[to + 1..] {
                assert_eq!(device.take(event, id), Ok(()));
            }
            assert_eq!(device.text, whole.text);
        }
    }

    #[test]
    fn an_event_that_is_missing_or_there_twice_is_found() {
        for n in 0..PIECES - 1 {
            let mut events = events();
            let event = events.remove(n);
            assert!(!take(&events).1.is_empty() || n + 2 == PIECES, "{n}");
            events.insert(n, event.clone());
            events.insert(n, event);
            assert!(!take(&events).1.is_empty(), "{n}");
        }
    }

    #[test]
    fn another_attempt_needs_a_restart() {
        let mut events = events();
        let mut other = events.clone();
        for (_, id) in &mut other {
            *id = id.replace("0b5e1f0a", "ffffffff");
        }
        events.truncate(3);
        events.extend(other);
        assert!(take(&events).1.contains(&Mixed));
        let restart = Event::Restart {
            turn: String::new(),
            attempt: "ffffffff-0000-4000-8000-000000000000".to_owned(),
        };
        events.insert(3, (restart, events[2].1.clone()));
        assert_eq!(take(&events).1, []);
    }

    #[test]
    fn an_error_that_is_not_stored_has_no_id() {
        let error = |code: &str| Event::Error {
            code: code.to_owned(),
            error: String::new(),
            data: String::new(),
        };
        let mut events = events();
        events.truncate(2);
        let end = "0b5e1f0a.end".to_owned();
        for (code, id, kinds) in [
            ("ollama_broke_off", &end, vec![]),
            ("database_failed", &events[1].1.clone(), vec![]),
            ("database_failed", &end, vec![Untrue]),
        ] {
            let mut events = events.clone();
            events.push((error(code), id.clone()));
            assert_eq!(take(&events).1, kinds, "{code}");
        }
    }
}
