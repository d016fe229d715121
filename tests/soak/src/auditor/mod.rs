//! What the clients saw and what Ollama was sent, against what the database holds.
//!
//! Takes all three as values and returns the violations of llmchat's guarantees; runs nothing, reads
//! nothing. [`turns`] has the rules of a turn, [`contexts`] those of what Ollama was sent.

mod contexts;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::evidence::Kind::{Foreign, Lost, Mixed, OutOfOrder, Untrue};
use crate::evidence::{Call, Evidence, Kind, Outcome, Pages, Row, Seen, Sweep, TurnRow, Violation};
use crate::text::{self, ConversationId, TurnId};

/// Finds all violations.
pub(crate) fn audit(evidence: &Evidence) -> Vec<Violation> {
    let mut conversations: BTreeMap<ConversationId, Conversation<'_>> = BTreeMap::new();
    let stored = &evidence.stored;
    for (name, rows) in &stored.rows {
        conversations.entry(*name).or_default().rows = rows;
    }
    for seen in &evidence.seen {
        let conversation = conversations.entry(seen.turn.id.conversation);
        conversation.or_default().seen.push(seen);
    }
    for call in &evidence.calls {
        let conversation = conversations.entry(call.id.conversation);
        conversation.or_default().calls.push(call);
    }
    for sweep in &evidence.sweeps {
        let conversation = conversations.entry(sweep.conversation);
        conversation.or_default().sweeps.push(sweep);
    }
    let mut found = Vec::new();
    let (known, count) = (stored.rows.values().flatten().count(), stored.row_count);
    if known != count {
        found.push((Mixed, format!("{count} rows, {known} in the conversations")));
    }
    foreign(evidence, &mut found);
    let tables = Tables::new(evidence, &mut found);
    for (name, conversation) in conversations {
        conversation.audit(name, evidence, &tables, &mut found);
    }
    found
}

/// Nothing that is stored for an owner, read by it or sent to a model for it names another.
fn foreign(evidence: &Evidence, found: &mut Vec<Violation>) {
    let rows = evidence.stored.whole.iter();
    let rows = rows.map(|(name, row)| ("stored", name, row));
    let calls = evidence.calls.iter();
    let calls = calls.map(|call| ("sent to Ollama", &call.id.conversation, &call.body));
    let pages = evidence.pages.iter();
    let pages = pages.map(|(name, pages)| ("read", name, &pages.bodies));
    for (place, name, text) in rows.chain(calls).chain(pages) {
        if let Some(other) = text::of_another(text, name.owner) {
            found.push((Foreign, format!("{place} for {name}, of {other}: {text}")));
        }
    }
}

/// What it is to be in another conversation's place.
fn misplaced(of: ConversationId, place: ConversationId) -> Kind {
    match of.owner == place.owner {
        true => Mixed,
        false => Foreign,
    }
}

/// What is stored besides messages, by the id of the turn.
struct Tables<'a> {
    turns: HashMap<&'a str, &'a TurnRow>,
    runs: BTreeSet<&'a str>,
    parts: BTreeSet<&'a str>,
}

impl<'a> Tables<'a> {
    /// All of it is of a turn whose prompt is stored; of a deleted turn only what refuses its key is left.
    fn new(evidence: &'a Evidence, found: &mut Vec<Violation>) -> Self {
        let stored = &evidence.stored;
        let rows = stored.rows.values().flatten();
        let prompts = rows.filter(|row| row.role != "assistant");
        let prompts: BTreeSet<_> = prompts.map(|row| row.turn.as_str()).collect();
        let turns = stored.turns.iter().map(|turn| (turn.turn.as_str(), turn));
        let tables = Self {
            turns: turns.collect(),
            runs: stored.runs.iter().map(String::as_str).collect(),
            parts: stored.parts.iter().map(String::as_str).collect(),
        };
        for turn in &stored.turns {
            let has_prompt = prompts.contains(turn.turn.as_str());
            let is_stub = turn
                .columns
                .iter()
                .all(|name| STUB.contains(&name.as_str()));
            let has_key = turn.columns.iter().any(|name| name == "key");
            match turn.state.as_str() {
                "deleted" if has_prompt || !is_stub || !has_key => {
                    found.push((Untrue, format!("left of a deleted turn: {turn:?}")));
                }
                "deleted" => {}
                _ if !has_prompt => found.push((Lost, format!("no prompt is left of {turn:?}"))),
                _ => {}
            }
        }
        for (table, turns) in [
            ("chatts_runs", &tables.runs),
            ("chatts_parts", &tables.parts),
        ] {
            for turn in turns.iter().filter(|turn| !prompts.contains(*turn)) {
                found.push((Untrue, format!("left in {table} of {turn}, which is gone")));
            }
        }
        tables
    }
}

/// What may be left of a deleted turn.
const STUB: [&str; 3] = ["key", "expires", "is_bare"];

#[derive(Default)]
struct Conversation<'a> {
    rows: &'a [Row],
    seen: Vec<&'a Seen>,
    calls: Vec<&'a Call>,
    sweeps: Vec<&'a Sweep>,
    /// What was seen, by turn.
    known: HashMap<TurnId, &'a Seen>,
    places: BTreeMap<TurnId, Places>,
    /// The turns by the place of their prompt.
    order: BTreeMap<usize, TurnId>,
    fates: HashMap<TurnId, Fate>,
    /// When it was acknowledged that a turn was deleted with others.
    swept: HashMap<TurnId, Duration>,
}

/// The indices of a turn's rows.
#[derive(Clone, Debug, Default)]
struct Places {
    prompts: Vec<usize>,
    replies: Vec<usize>,
}

/// What deletions leave of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    There,
    Gone,
    /// It began while a deletion was under way: all of it is there, or nothing.
    Either,
}

impl Conversation<'_> {
    fn audit(
        mut self,
        name: ConversationId,
        evidence: &Evidence,
        tables: &Tables<'_>,
        found: &mut Vec<Violation>,
    ) {
        self.known = self.seen.iter().map(|seen| (seen.turn.id, *seen)).collect();
        self.attribute(name, found);
        for seen in self.seen.clone() {
            let fate = self.fate(seen);
            self.fates.insert(seen.turn.id, fate);
        }
        for seen in &self.seen {
            self.turn(seen, evidence, tables, found);
        }
        self.order(found);
        if let Some(pages) = evidence.pages.get(&name) {
            self.pages(name, pages, found);
        }
        self.contexts(name, evidence, found);
    }

    /// Finds the turn of each row.
    fn attribute(&mut self, name: ConversationId, found: &mut Vec<Violation>) {
        let mut ids: HashMap<&str, TurnId> = HashMap::new();
        for (index, row) in self.rows.iter().enumerate() {
            let id = match of_message(&row.role, &row.message) {
                Ok(id) if id.conversation == name => Ok(id),
                Ok(id) => Err((misplaced(id.conversation, name), format!("of {id}"))),
                Err(violation) => Err(violation),
            };
            let id = match id {
                Ok(id) => id,
                Err((kind, why)) => {
                    found.push((kind, format!("row {index} of {name}: {why}: {row:?}")));
                    continue;
                }
            };
            let places = self.places.entry(id).or_default();
            match row.role.as_str() {
                "assistant" => places.replies.push(index),
                _ => {
                    places.prompts.push(index);
                    self.order.insert(index, id);
                }
            }
            if let Some(other) = ids.insert(&row.turn, id).filter(|other| *other != id) {
                found.push((Mixed, format!("{id} and {other} share the id {}", row.turn)));
            }
        }
        for id in self.places.keys().filter(|id| !self.known.contains_key(id)) {
            found.push((Mixed, format!("{id} is stored, and nobody sent it")));
        }
    }

    fn fate(&mut self, seen: &Seen) -> Fate {
        let mut fate = match seen.outcome {
            Outcome::Deleted => Fate::Gone,
            _ => Fate::There,
        };
        for sweep in &self.sweeps {
            match self.is_swept(seen, sweep) {
                Some(true) => {
                    let end = sweep.acknowledged.unwrap_or(Duration::MAX);
                    let first = self.swept.entry(seen.turn.id).or_insert(end);
                    *first = end.min(*first);
                    fate = Fate::Gone;
                }
                _ if fate == Fate::Gone => {}
                None => fate = Fate::Either,
                Some(false) => {}
            }
        }
        fate
    }

    /// Whether a sweep deletes a turn; `None` where it may or may not.
    fn is_swept(&self, seen: &Seen, sweep: &Sweep) -> Option<bool> {
        let end = sweep.acknowledged;
        // What begins after it is not concerned.
        if end.is_some_and(|end| seen.sent() >= end) {
            return Some(false);
        }
        let is_later = match sweep.from {
            None => Some(true),
            Some(from) if from == seen.turn.id => Some(true),
            Some(from) => {
                let from = self.known.get(&from)?;
                match (from.head(), seen.head()) {
                    (Some(head), _) if head <= seen.sent() => Some(true),
                    (_, Some(head)) if head <= from.sent() => Some(false),
                    _ => None,
                }
            }
        };
        let was_there = seen.head().is_some_and(|head| head <= sweep.sent);
        match is_later {
            Some(false) => Some(false),
            Some(true) if was_there && end.is_some() => Some(true),
            // It was told an outcome when the sweep was over.
            _ if seen.outcome == Outcome::Told => {
                let last = seen.connections.last()?;
                end.filter(|end| last.sent >= *end).map(|_| false)
            }
            _ => None,
        }
    }

    /// What a user reads is what is stored, as it was generated.
    fn pages(&self, name: ConversationId, pages: &Pages, found: &mut Vec<Violation>) {
        let stored = self
            .rows
            .iter()
            .map(|row| (&row.role, row.raw.as_ref().unwrap_or(&row.message)));
        let shown = pages.messages.iter().map(|(role, content)| (role, content));
        let differ = stored
            .clone()
            .zip(shown.clone())
            .position(|(stored, shown)| stored != shown);
        if stored.len() != shown.len() || differ.is_some() {
            let (stored, shown) = (stored.len(), shown.len());
            let what = format!(
                "the pages of {name} have {shown} messages of {stored}; first at {differ:?}"
            );
            found.push((Untrue, what));
        }
    }

    /// Turns that did not overlap are in the order of time; a reply is right after its prompt.
    fn order(&self, found: &mut Vec<Violation>) {
        for (id, places) in &self.places {
            for (prompt, reply) in places.prompts.iter().zip(&places.replies) {
                if *reply != prompt + 1 {
                    let what = format!("{id}: the prompt is row {prompt}, the reply row {reply}");
                    found.push((OutOfOrder, what));
                }
            }
        }
        // Of the turns whose prompt was stored by then, the last in the conversation comes before each
        // that is sent later.
        let place = |seen: &Seen| self.places.get(&seen.turn.id)?.prompts.first().copied();
        let mut begun: Vec<_> = self
            .seen
            .iter()
            .filter_map(|s| Some((s.head()?, place(s)?, s.turn.id)))
            .collect();
        begun.sort_unstable();
        let mut later: Vec<_> = self
            .seen
            .iter()
            .filter_map(|s| Some((s.sent(), place(s)?, s.turn.id)))
            .collect();
        later.sort_unstable();
        let mut begun = begun.into_iter().peekable();
        let mut last: Option<(usize, TurnId)> = None;
        for (sent, place, id) in later {
            while let Some((_, place, id)) = begun.next_if(|(head, ..)| *head <= sent) {
                last = last.max(Some((place, id)));
            }
            if let Some((before, earlier)) = last.filter(|(before, _)| *before >= place) {
                let what = format!("{earlier} is row {before}, {id} after it is row {place}");
                found.push((OutOfOrder, what));
            }
        }
    }
}

/// The turn that a message is of.
fn of_message(role: &str, message: &str) -> Result<TurnId, Violation> {
    match role {
        "assistant" => text::of_content(message).map(|generation| generation.of),
        _ => text::of_prompt(message),
    }
}
