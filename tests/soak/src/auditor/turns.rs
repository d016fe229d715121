//! The rules of one turn: what its client was told is what is stored, once, and nothing is left of what was deleted.

use std::time::Duration;

use serde_json::Value;

use super::{Conversation, Fate, Places, Tables, misplaced};
use crate::device::{Device, name_of};
use crate::evidence::Kind::{Doubled, Lost, Mixed, Untrue};
use crate::evidence::{Connection, End, Evidence, Kind, Outcome, Row, Seen, Violation};
use crate::text::{self, Text, collapsed};

/// A kill can cut a turn this long after its client has left.
const AFTERLIFE: Duration = Duration::from_secs(10);

impl Conversation<'_> {
    /// What was seen against what is stored.
    pub(super) fn turn(
        &self,
        seen: &Seen,
        evidence: &Evidence,
        tables: &Tables<'_>,
        found: &mut Vec<Violation>,
    ) {
        let id = seen.turn.id;
        let places = self.places.get(&id).cloned().unwrap_or_default();
        let row = |indices: &[usize]| self.rows.get(*indices.first()?);
        let (prompt, reply) = (row(&places.prompts), row(&places.replies));
        let calls = self.calls.iter().filter(|call| call.id == id).count();
        let own = Own {
            seen,
            evidence,
            tables,
            places: &places,
            prompt,
            reply,
            turn_id: prompt
                .map(|row| row.turn.as_str())
                .or(seen.turn_id.as_deref()),
            calls,
        };
        let mut violations = seen.wrong.clone();
        violations.extend(own.connections());
        match self.fates.get(&id).copied().unwrap_or(Fate::There) {
            Fate::Gone => violations.extend(own.nothing()),
            Fate::Either if prompt.is_none() => violations.extend(own.nothing()),
            Fate::There | Fate::Either => violations.extend(own.all()),
        }
        if let Some((_, last)) = violations.last_mut() {
            *last += &format!(": {seen:?}, {places:?}, {reply:?}, {calls} calls of Ollama");
        }
        let named = violations.into_iter();
        found.extend(named.map(|(kind, what)| (kind, format!("{id}: {what}"))));
    }
}

/// One turn, and what is stored of it.
struct Own<'a> {
    seen: &'a Seen,
    evidence: &'a Evidence,
    tables: &'a Tables<'a>,
    places: &'a Places,
    prompt: Option<&'a Row>,
    reply: Option<&'a Row>,
    turn_id: Option<&'a str>,
    calls: usize,
}

fn no(kind: Kind, what: &str) -> Violation {
    (kind, what.to_owned())
}

impl Own<'_> {
    /// What holds for each connection, whatever became of the turn.
    fn connections(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for connection in &self.seen.connections {
            if connection.end == End::Broken && !self.is_killed(connection, connection.ended) {
                found.push(no(Untrue, "the stream was cut, but no host was killed"));
            }
            if connection.end == End::Clean && !connection.is_done && connection.codes.is_empty() {
                found.push(no(Untrue, "neither `done` nor an error came"));
            }
        }
        found
    }

    fn is_killed(&self, connection: &Connection, until: Duration) -> bool {
        let mut kills = self.evidence.kills.iter();
        kills.any(|(host, at)| *host == connection.host && (connection.sent..=until).contains(at))
    }

    /// Nothing is left of a turn that was deleted.
    fn nothing(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.prompt.is_some() || self.reply.is_some() {
            found.push(no(Untrue, "deleted, and there are messages of it"));
        }
        if let Some(turn) = self.turn_id.and_then(|id| self.tables.turns.get(id))
            && turn.state != "deleted"
        {
            found.push((Untrue, format!("deleted, and it is {turn:?}")));
        }
        found.extend(self.no_attempt());
        if self.seen.is_told() && !self.seen.is_deleted && self.evidence.sweeps.is_empty() {
            found.push(no(Lost, "gone, and nobody deleted it"));
        }
        found
    }

    fn no_attempt(&self) -> Option<Violation> {
        let is_in = |table: &std::collections::BTreeSet<&str>| {
            self.turn_id.is_some_and(|id| table.contains(id))
        };
        let is_left = is_in(&self.tables.runs) || is_in(&self.tables.parts);
        is_left.then(|| no(Untrue, "an attempt is left in chatts_runs or chatts_parts"))
    }

    /// What holds for a turn that was not deleted.
    fn all(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.places.prompts.len() > 1 {
            found.push(no(Doubled, "the prompt is stored twice"));
        }
        if self.places.replies.len() > 1 {
            found.push(no(Doubled, "the reply is stored twice"));
        }
        if self.calls > 0 && self.prompt.is_none() {
            found.push(no(Lost, "Ollama was called, but the prompt is not stored"));
        }
        if self.seen.head().is_some() && self.prompt.is_none() {
            found.push(no(Lost, "a stream began, but the prompt is not stored"));
        }
        let is_closing = self.seen.turn.id.turn >= self.evidence.first_closing;
        if is_closing && (self.seen.outcome != Outcome::Told || !self.seen.has.is_done) {
            found.push(no(
                Untrue,
                "nothing failed any more, but `done` did not come",
            ));
        }
        let may_ask = 1 + self.seen.agains;
        let is_asked_once = self.seen.outcome == Outcome::Once || is_closing;
        if self.calls > may_ask && is_asked_once && !self.evidence.leaving_cancels {
            found.push(no(
                Doubled,
                "Ollama was called more often than it was asked to",
            ));
        }
        if let Some(row) = self.reply {
            found.extend(wrong_row(row));
        }
        match text::of_content(&self.seen.has.text.content) {
            _ if self.seen.has.text.content.is_empty() => {}
            Ok(shown) if shown.of == self.seen.turn.id => {}
            Ok(shown) => found.push((
                misplaced(shown.of.conversation, self.seen.turn.id.conversation),
                format!("the client was shown {shown:?}"),
            )),
            Err((kind, why)) => found.push((kind, format!("the client was shown: {why}"))),
        }
        match self.seen.outcome {
            Outcome::Once => found.extend(self.once()),
            Outcome::Told => found.extend(self.told()),
            Outcome::WithoutReply => found.extend(self.without_reply()),
            Outcome::Unanswered => {
                found.push(no(Lost, "posted again and again, without an answer"))
            }
            Outcome::Deleted => {}
        }
        let is_certain = matches!(self.seen.outcome, Outcome::Told | Outcome::WithoutReply);
        if is_certain && !self.seen.is_uncertain {
            found.extend(self.no_attempt());
        }
        found
    }

    /// What a client that asked until it was told the outcome put together is what is stored.
    fn told(&self) -> Vec<Violation> {
        let Device {
            text,
            attempt,
            error,
            ..
        } = &self.seen.has;
        let mut found = Vec::new();
        match self.reply {
            None if text.is_empty() => {}
            None => found.push(no(Lost, "the client has a reply that is not stored")),
            Some(row) if self.seen.is_uncertain && generated(row) != *text => return found,
            Some(row) if generated(row) != *text => {
                found.push(no(Untrue, "what is stored is not what the client has"));
            }
            Some(_) => {}
        }
        let turn = self.turn_id.and_then(|id| self.tables.turns.get(id));
        let Some(turn) = turn else {
            found.push(no(Lost, "told an outcome, and no turn is stored"));
            return found;
        };
        let expected = self.seen.has.state();
        if turn.state != expected {
            found.push((Untrue, format!("told {expected}, and it is {turn:?}")));
        }
        if turn.attempt.as_deref().and_then(|it| it.get(..8)) != attempt.as_deref() {
            found.push((
                Untrue,
                format!("told of another attempt than that of {turn:?}"),
            ));
        }
        if let Some(row) = self.reply {
            if turn.reply_id.as_deref() != Some(row.id.as_str()) {
                found.push((Mixed, format!("the reply is not that of {turn:?}")));
            }
            // A reply of which a line was left out is partial, although it is done.
            let is_garbled = |of: text::Generation| self.seen.turn.is_garbled(of.call);
            let status = match text::of_content(&text.content).is_ok_and(is_garbled) {
                true if expected == "complete" => "partial",
                _ => expected,
            };
            if row.status != status {
                found.push((Untrue, format!("the reply is to be {status}")));
            }
        }
        // A stop before an attempt had anything is forgotten where an earlier one has left a reply.
        let has_failed = |by: Duration| {
            let mut before = self.seen.connections.iter().filter(|it| it.ended <= by);
            before.any(|it| !it.codes.is_empty())
        };
        let is_stopped = self
            .seen
            .stopped
            .is_some_and(|(at, status)| status == 202 && !has_failed(at));
        if is_stopped && error.as_deref() == Some("turn_timeout") {
            found.push(no(Untrue, "the stop was acknowledged, but it went on"));
        }
        found
    }

    fn without_reply(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.seen.is_uncertain {
            return found;
        }
        if self.reply.is_some() {
            found.push(no(Untrue, "the reply was deleted, and is there"));
        }
        let turn = self.turn_id.and_then(|id| self.tables.turns.get(id));
        let code = turn.and_then(|turn| turn.code.as_deref());
        if turn.is_none_or(|turn| turn.state != "failed") || code != Some("turn_deleted") {
            found.push((
                Untrue,
                format!("the reply was deleted, and the turn is {turn:?}"),
            ));
        }
        found
    }

    /// What is stored of a turn whose client asked once.
    fn once(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let (seen, id) = (self.seen, self.seen.turn.id);
        let Some(connection) = seen.connections.first() else {
            return found;
        };
        let shown = &seen.has.text;
        let is_complete = self.reply.is_some_and(|row| row.status == "complete");
        let stored = self.reply.map(generated).unwrap_or_default();
        // It ended as an orphan, and what is stored is its last checkpoint.
        let is_orphan = connection
            .codes
            .iter()
            .any(|code| code == "turn_superseded");
        match connection.end {
            // Nothing is stored, except perhaps the prompt if the database did not say whether it is.
            End::Refused(status) => {
                if status != 500 && self.prompt.is_some() {
                    found.push(no(Untrue, "refused, but the prompt is stored"));
                }
                if self.calls > 0 || self.reply.is_some() {
                    found.push(no(Untrue, "refused, but Ollama was called"));
                }
            }
            End::Clean => {
                let whole = id.call(0).text(seen.turn.tokens);
                if seen.has.is_done && *shown != whole {
                    found.push(no(Lost, "`done` came, but not all tokens"));
                }
                let is_uncertain = !seen.has.is_done && seen.reply_is_uncertain();
                match self.reply {
                    None if is_uncertain || is_orphan => {}
                    None if !seen.has.is_done && shown.is_empty() => {}
                    None => found.push(no(Lost, "what was shown is not stored")),
                    Some(_) if is_orphan && starts_with(shown, &stored) => {}
                    // The outcome of an attempt whose commit was not heard of is what its checkpoints have.
                    Some(_) if is_uncertain && starts_with(shown, &stored) => {}
                    Some(_) if stored != *shown && !(is_uncertain && stored == whole) => {
                        found.push(no(Untrue, "what is stored is not what was shown"));
                    }
                    // A reply of which a line was left out is partial, although it is done.
                    Some(_)
                        if is_complete != (seen.has.is_done && connection.codes.is_empty())
                            && !is_uncertain =>
                    {
                        found.push(no(Untrue, "the status is not what the client was told"));
                    }
                    Some(_) => {}
                }
            }
            // Nobody saw the end. The turn goes on without its client; only a host that was killed,
            // or a failure in the log, excuses a reply that is missing.
            End::NoAnswer | End::Left | End::Broken => {
                let is_killed = self.is_killed(connection, connection.ended + AFTERLIFE);
                let is_excused = is_killed
                    || self.turn_id.is_some_and(|turn| self.evidence.log.contains(turn))
                    || self.evidence.leaving_cancels
                    // A failure before the head is answered, not logged, and the client had left;
                    // or nothing was stored.
                    || (connection.end == End::NoAnswer && self.calls == 0);
                let is_shown =
                    starts_with(&stored, shown) || (is_excused && starts_with(shown, &stored));
                if self.reply.is_some() && !is_shown {
                    found.push(no(Untrue, "what is stored is not what was shown"));
                }
                let whole = id.call(0).text(seen.turn.tokens);
                if is_complete && !(seen.turn.completes() && stored == whole) {
                    found.push(no(Untrue, "what is stored as complete is not"));
                }
                let certain = id.call(0).text(seen.turn.tokens_for_certain());
                let is_whole = starts_with(&stored, &certain)
                    && (self.reply.is_none()
                        || is_complete == (seen.turn.upstream == crate::plan::Upstream::Reply));
                if !is_whole && !is_excused {
                    found.push(no(Lost, "the reply is not stored whole"));
                }
            }
        }
        found
    }
}

/// A reply as it was generated.
fn generated(row: &Row) -> Text {
    let calls = format!("[{}]", row.calls.as_deref().unwrap_or_default());
    let calls: Vec<Value> = serde_json::from_str(&calls).unwrap_or_default();
    Text {
        content: row.raw.as_ref().unwrap_or(&row.message).clone(),
        thinking: row.thinking.clone().unwrap_or_default(),
        calls: calls.iter().map(name_of).collect(),
    }
}

/// All columns of a reply's row are of one text, from its beginning.
fn wrong_row(row: &Row) -> Option<Violation> {
    let text = generated(row);
    let of = text::of_content(&text.content).ok()?;
    let whole = of.text(400);
    if collapsed(&text.content) != row.message {
        return Some(no(
            Untrue,
            "the message is not what was generated, its white space collapsed",
        ));
    }
    (!starts_with(&whole, &text)).then(|| no(Mixed, "thinking or calls are not of the content"))
}

fn starts_with(text: &Text, start: &Text) -> bool {
    text.content.starts_with(&start.content)
        && text.thinking.starts_with(&start.thinking)
        && text.calls.starts_with(&start.calls)
}
