//! The rules of what Ollama was sent: all that was certain by then and fits, in order, once, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Conversation, Fate, misplaced, of_message};
use crate::evidence::Kind::{Doubled, Lost, Mixed, OutOfOrder, Untrue};
use crate::evidence::{Call, End, Evidence, Kind, Outcome, Seen, Violation};
use crate::text::{ConversationId, TurnId, of_content};

/// What of a turn is in a context: its prompt, its reply.
type Sent<'a> = BTreeMap<TurnId, (Option<&'a str>, Option<&'a str>)>;

impl Conversation<'_> {
    pub(super) fn contexts(
        &self,
        name: ConversationId,
        evidence: &Evidence,
        found: &mut Vec<Violation>,
    ) {
        // By the messages' texts, which occur in many calls.
        let mut known = HashMap::new();
        for call in &self.calls {
            let id = call.id;
            let Some(own) = self.known.get(&id) else {
                found.push((Mixed, format!("a call for {id}: nobody sent this prompt")));
                continue;
            };
            let mut wrong = Vec::new();
            let mut report = |kind: Kind, what: String| wrong.push((kind, what));
            let mut sent = Sent::new();
            let mut order = Vec::new();
            for (role, content) in &call.messages {
                let message = (role.as_str(), content.as_str());
                let of = known
                    .entry(message)
                    .or_insert_with(|| of_message(role, content));
                match of {
                    Ok(of) if of.conversation == name => {
                        let (prompt, reply) = sent.entry(*of).or_default();
                        let is_reply = role == "assistant";
                        if is_reply && prompt.is_none() {
                            report(OutOfOrder, format!("{content:?} is not after its prompt"));
                        }
                        let place = if is_reply { reply } else { prompt };
                        if place.replace(content).is_some() {
                            report(Doubled, format!("{content:?} is there twice"));
                        }
                        if order.last() != Some(of) {
                            order.push(*of);
                        }
                    }
                    Ok(of) => report(
                        misplaced(of.conversation, name),
                        format!("{content:?} is of another conversation"),
                    ),
                    Err((kind, why)) => report(*kind, format!("{content:?}: {why}")),
                }
            }
            let places: Vec<_> = order.iter().filter_map(|of| self.prompt(*of)).collect();
            if !places.is_sorted() {
                report(OutOfOrder, format!("the turns are {order:?}"));
            }
            if order.last() != Some(&id) {
                report(Lost, "the prompt is not the last turn".to_owned());
            }
            for of in order.iter().filter(|of| **of != id) {
                if let Some(earlier) = self.known.get(of) {
                    wrong.extend(self.may_be_sent(earlier, own, &sent));
                }
            }
            wrong.extend(self.missing(own, call, &sent, &order, evidence.history));
            let named = wrong.into_iter();
            found.extend(named.map(|(kind, what)| (kind, format!("the context of {id}: {what}"))));
        }
    }

    /// The place of a turn's prompt.
    fn prompt(&self, of: TurnId) -> Option<usize> {
        self.places.get(&of)?.prompts.first().copied()
    }

    /// Whether what was sent of an earlier turn could stand then.
    fn may_be_sent(&self, earlier: &Seen, own: &Seen, sent: &Sent<'_>) -> Option<Violation> {
        let of = earlier.turn.id;
        let was_deleted = earlier.outcome == Outcome::Deleted && earlier.ended() <= own.sent();
        if was_deleted || self.swept.get(&of).is_some_and(|end| *end <= own.sent()) {
            return Some((Untrue, format!("{of} was deleted before")));
        }
        let (_, reply) = sent.get(&of).copied().unwrap_or_default();
        let had_ended = earlier.ended() <= own.sent();
        match reply {
            Some(reply)
                if had_ended
                    && earlier.outcome == Outcome::WithoutReply
                    && !earlier.is_uncertain =>
            {
                Some((Untrue, format!("{reply:?} was deleted before")))
            }
            Some(reply) if had_ended && earlier.is_told() && !earlier.is_uncertain => {
                let places = self.places.get(&of)?;
                let row = places
                    .replies
                    .first()
                    .and_then(|place| self.rows.get(*place))?;
                let what = || format!("{reply:?} instead of {:?}", row.message);
                (row.message != reply).then(|| (Untrue, what()))
            }
            Some(reply) => {
                let is_of_a_call = of_content(reply).is_ok();
                (!is_of_a_call).then(|| (Lost, format!("{reply:?} was not generated")))
            }
            None => None,
        }
    }

    /// What was certain by then and is not there, though it fits.
    fn missing(
        &self,
        own: &Seen,
        call: &Call,
        sent: &Sent<'_>,
        order: &[TurnId],
        history: usize,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        let bytes: usize = call.messages.iter().map(|(_, content)| content.len()).sum();
        // Whether it would have fit, whatever was stored of it then.
        let fits = |seen: &Seen| {
            let text = seen.turn.id.call(0).text(seen.turn.tokens).content;
            bytes + seen.turn.id.prompt().len() + text.len() + SLACK <= history
        };
        let is_gone = |seen: &&Seen| {
            let fate = self.fates.get(&seen.turn.id);
            seen.sent() <= own.sent()
                && (fate != Some(&Fate::There) || seen.outcome == Outcome::WithoutReply)
        };
        // Of the turns before the oldest that is there, the next was too large, or one that is gone since.
        let first = order
            .iter()
            .find_map(|of| self.prompt(*of))
            .unwrap_or_default();
        let next = self.order.range(..first).next_back();
        let next = next.and_then(|(_, of)| self.known.get(of));
        let is_cut = next.is_some_and(|next| {
            !fits(next)
                || self
                    .seen
                    .iter()
                    .copied()
                    .filter(is_gone)
                    .any(|gone| !fits(gone))
        });
        let oldest = if is_cut { first } else { 0 };
        if bytes > history && order.len() > 1 {
            found.push((Untrue, format!("{bytes} bytes, and only {history} fit")));
        }
        let end = self.prompt(own.turn.id).unwrap_or(usize::MAX);
        for (place, of) in self.order.range(oldest..=end) {
            let is_own = *of == own.turn.id;
            let Some(earlier) = self.known.get(of) else {
                continue;
            };
            if self.fates.get(of) != Some(&Fate::There) && !is_own {
                continue;
            }
            let is_by_then = |time: Option<Duration>| time.is_some_and(|time| time <= own.sent());
            let needs_prompt = is_own || is_by_then(earlier.head());
            let last = earlier.connections.last();
            let is_answered = match earlier.outcome {
                Outcome::Told => true,
                Outcome::Once => {
                    last.is_some_and(|it| it.end == End::Clean)
                        && (earlier.has.is_done || !earlier.reply_is_uncertain())
                }
                Outcome::WithoutReply | Outcome::Deleted | Outcome::Unanswered => false,
            };
            let needs_reply = !is_own && is_answered && is_by_then(Some(earlier.ended()));
            let has_reply = self
                .places
                .get(of)
                .is_some_and(|places| !places.replies.is_empty());
            let (prompt, reply) = sent.get(of).copied().unwrap_or_default();
            if needs_prompt && prompt.is_none() {
                found.push((Lost, format!("the prompt of {of}, row {place}, is missing")));
            }
            if needs_reply && has_reply && reply.is_none() {
                found.push((Lost, format!("the reply of {of} is missing")));
            }
        }
        found
    }
}

/// A reply of a later call has a longer name.
const SLACK: usize = 512;
