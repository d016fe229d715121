//! What the clients saw and what Ollama was sent, against what the database holds.
//!
//! Takes all three as values and returns the violations of llmchat's guarantees; runs nothing, reads
//! nothing. Each piece of text names its turn (see [`crate::plan`]), so it can be attributed
//! wherever it turns up.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use llmchat_testkit::Row;
use strum::{Display, VariantArray};

use self::Kind::{Doubled, Lost, Mixed, OutOfOrder, Untrue};
use crate::plan::{Turn, TurnId};

/// What one client saw. Times are since the beginning of the run.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) turn: Turn,
    /// The host that it connected to.
    pub(crate) host: usize,
    /// Just before the request.
    pub(crate) sent: Duration,
    /// When the head of a stream had come: the prompt is stored.
    pub(crate) head: Option<Duration>,
    pub(crate) ended: Duration,
    pub(crate) end: End,
    /// The tokens shown, concatenated.
    pub(crate) shown: String,
    /// Whether `done` came.
    pub(crate) done: bool,
    /// Of each error event.
    pub(crate) codes: Vec<String>,
}

impl Seen {
    /// Whether the last try to store the reply may have been committed or not: its answer did not
    /// come in time.
    fn reply_is_uncertain(&self) -> bool {
        self.codes.iter().any(|code| code == "database_failed")
    }
}

/// How a turn ended for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A status that is not 200.
    Refused(u16),
    /// The client left, or the connection broke, before a head had come.
    NoAnswer,
    /// The stream came to its clean end.
    Clean,
    /// The stream was cut.
    Broken,
    /// The client left in mid-stream.
    Left,
}

/// One chat request to Ollama.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The turn that it was made for, from a field that llmchat passes on unread.
    pub(crate) id: TurnId,
    /// `(role, content)`
    pub(crate) messages: Vec<(String, String)>,
}

/// Everything there is to compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) seen: Vec<Seen>,
    pub(crate) calls: Vec<Call>,
    /// By conversation, in order.
    pub(crate) rows: BTreeMap<usize, Vec<Row>>,
    /// The number of rows in the table.
    pub(crate) row_count: usize,
    /// From this turn on, nothing fails any more.
    pub(crate) first_closing: usize,
    /// When each host was killed.
    pub(crate) kills: Vec<(usize, Duration)>,
    /// The hosts' logs, which name a turn that failed by the id in its rows.
    pub(crate) log: String,
    /// A client that leaves ends its turn (`on_disconnect = cancel`).
    pub(crate) leaving_cancels: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Display, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Kind {
    /// Not stored, or not in the context, though the client could rely on it.
    Lost,
    /// Stored or sent to Ollama twice.
    Doubled,
    OutOfOrder,
    /// Where it does not belong.
    Mixed,
    /// Not as the client was told.
    Untrue,
}

/// A guarantee that does not hold, and where.
pub(crate) type Violation = (Kind, String);

/// A kill can cut a turn this long after its client has left.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// Finds all violations.
pub(crate) fn audit(evidence: &Evidence) -> Vec<Violation> {
    let mut conversations: BTreeMap<usize, Conversation<'_>> = BTreeMap::new();
    for (number, rows) in &evidence.rows {
        conversations.entry(*number).or_default().rows = rows;
    }
    for seen in &evidence.seen {
        let conversation = conversations.entry(seen.turn.id.conversation);
        conversation.or_default().seen.push(seen);
    }
    for call in &evidence.calls {
        let conversation = conversations.entry(call.id.conversation);
        conversation.or_default().calls.push(call);
    }
    let mut found = Vec::new();
    let (known, count) = (evidence.rows.values().flatten().count(), evidence.row_count);
    if known != count {
        found.push((Mixed, format!("{count} rows, {known} in the conversations")));
    }
    for (number, conversation) in conversations {
        conversation.audit(number, evidence, &mut found);
    }
    found
}

#[derive(Default)]
struct Conversation<'a> {
    rows: &'a [Row],
    seen: Vec<&'a Seen>,
    calls: Vec<&'a Call>,
    stored: BTreeMap<TurnId, Stored>,
}

/// The indices of a turn's rows.
#[derive(Clone, Debug, Default)]
struct Stored {
    prompts: Vec<usize>,
    replies: Vec<usize>,
}

impl Conversation<'_> {
    fn audit(mut self, number: usize, evidence: &Evidence, found: &mut Vec<Violation>) {
        self.attribute(number, found);
        for seen in &self.seen {
            self.turn(seen, evidence, found);
        }
        self.order(found);
        self.contexts(number, found);
    }

    /// Finds the turn of each row.
    fn attribute(&mut self, number: usize, found: &mut Vec<Violation>) {
        let mut ids: HashMap<&str, TurnId> = HashMap::new();
        for (index, row) in self.rows.iter().enumerate() {
            let id = match turn_of(&row.role, &row.message) {
                Ok(id) if id.conversation == number => Ok(id),
                Ok(id) => Err((Mixed, format!("of {id}"))),
                Err(violation) => Err(violation),
            };
            let id = match id {
                Ok(id) => id,
                Err((kind, why)) => {
                    found.push((kind, format!("row {index} of c{number}: {why}: {row:?}")));
                    continue;
                }
            };
            let stored = self.stored.entry(id).or_default();
            match row.role.as_str() {
                "assistant" => stored.replies.push(index),
                _ => stored.prompts.push(index),
            }
            let turn = row.turn.as_deref().unwrap_or_default();
            if let Some(other) = ids.insert(turn, id).filter(|other| *other != id) {
                found.push((Mixed, format!("{id} and {other} share the id {turn}")));
            }
        }
        let known: BTreeSet<_> = self.seen.iter().map(|seen| seen.turn.id).collect();
        for id in self.stored.keys().filter(|id| !known.contains(id)) {
            found.push((Mixed, format!("{id} is stored, and nobody sent it")));
        }
    }

    /// One turn: what was seen against what is stored.
    fn turn(&self, seen: &Seen, evidence: &Evidence, found: &mut Vec<Violation>) {
        let (turn, id) = (&seen.turn, seen.turn.id);
        let stored = self.stored.get(&id).cloned().unwrap_or_default();
        let row = |indices: &[usize]| self.rows.get(*indices.first()?);
        let (prompt, reply) = (row(&stored.prompts), row(&stored.replies));
        let calls = self.calls.iter().filter(|call| call.id == id).count();
        let mut report = |kind: Kind, what: &str| {
            let details = format!("{seen:?}, {stored:?}, {reply:?}, {calls} calls of Ollama");
            found.push((kind, format!("{id}: {what}: {details}")));
        };

        if stored.prompts.len() > 1 {
            report(Doubled, "the prompt is stored twice");
        }
        if stored.replies.len() > 1 {
            report(Doubled, "the reply is stored twice");
        }
        if calls > 1 {
            report(Doubled, "Ollama was called twice");
        }
        if calls > 0 && prompt.is_none() {
            report(Lost, "Ollama was called, but the prompt is not stored");
        }
        if seen.head.is_some() && prompt.is_none() {
            report(Lost, "a stream began, but the prompt is not stored");
        }
        match turn_of("assistant", &seen.shown) {
            _ if seen.shown.is_empty() => {}
            Ok(shown) if shown == id => {}
            Ok(shown) => report(Mixed, &format!("the client was shown {shown}")),
            Err((kind, why)) => report(kind, &format!("the client was shown: {why}")),
        }
        let is_complete = reply.is_some_and(|row| row.status == "complete");
        match seen.end {
            // Nothing is stored, except perhaps the prompt if the database did not say whether it is.
            End::Refused(status) => {
                if status != 500 && prompt.is_some() {
                    report(Untrue, "refused, but the prompt is stored");
                }
                if calls > 0 || reply.is_some() {
                    report(Untrue, "refused, but Ollama was called");
                }
            }
            End::Clean => {
                if seen.done && seen.shown != id.reply(turn.tokens) {
                    report(Lost, "`done` came, but not all tokens");
                }
                if !seen.done && seen.codes.is_empty() {
                    report(Untrue, "neither `done` nor an error came");
                }
                let is_uncertain = !seen.done && seen.reply_is_uncertain();
                match reply {
                    None if is_uncertain || (!seen.done && seen.shown.is_empty()) => {}
                    None => report(Lost, "what was shown is not stored"),
                    Some(row) if row.message != seen.shown => {
                        report(Untrue, "what is stored is not what was shown");
                    }
                    // A reply of which a line was left out is partial, although it is done.
                    Some(_)
                        if is_complete != (seen.done && seen.codes.is_empty()) && !is_uncertain =>
                    {
                        report(Untrue, "the status is not what the client was told");
                    }
                    Some(_) => {}
                }
            }
            // Nobody saw the end. The turn goes on without its client; only a host that was killed,
            // or a failure in the log, excuses a reply that is missing.
            End::NoAnswer | End::Left | End::Broken => {
                let killed = |until: Duration| {
                    let mut kills = evidence.kills.iter();
                    kills.any(|(host, at)| *host == seen.host && (seen.sent..=until).contains(at))
                };
                if seen.end == End::Broken && !killed(seen.ended) {
                    report(Untrue, "the stream was cut, but no host was killed");
                }
                let text = reply.map_or("", |row| &row.message);
                if reply.is_some() && !text.starts_with(&seen.shown) {
                    report(Untrue, "what is stored is not what was shown");
                }
                if is_complete && !(turn.completes() && text == id.reply(turn.tokens)) {
                    report(Untrue, "what is stored as complete is not");
                }
                let certain = id.reply(turn.tokens_for_certain());
                let is_whole = text.len() >= certain.len()
                    && (reply.is_none() || is_complete == turn.completes());
                let turn_id = prompt.and_then(|row| row.turn.as_deref());
                let is_excused = killed(seen.ended + AFTERLIFE)
                    || turn_id.is_some_and(|turn_id| evidence.log.contains(turn_id))
                    || evidence.leaving_cancels
                    // A failure before the head is answered, not logged, and the client had left;
                    // or nothing was stored.
                    || (seen.end == End::NoAnswer && calls == 0);
                if !is_whole && !is_excused {
                    report(Lost, "the reply is not stored whole");
                }
            }
        }
        if id.turn >= evidence.first_closing && !seen.done {
            report(Untrue, "nothing failed any more, but `done` did not come");
        }
        if seen.done && !matches!(seen.end, End::Clean | End::Left) {
            report(Untrue, "`done` came, but not the end of the stream");
        }
    }

    /// Turns that did not overlap are in the order of time; a reply is right after its prompt.
    fn order(&self, found: &mut Vec<Violation>) {
        for (id, stored) in &self.stored {
            for (prompt, reply) in stored.prompts.iter().zip(&stored.replies) {
                if *reply != prompt + 1 {
                    let what = format!("{id}: the prompt is row {prompt}, the reply row {reply}");
                    found.push((OutOfOrder, what));
                }
            }
        }
        let prompt_of = |seen: &Seen| self.stored.get(&seen.turn.id)?.prompts.first();
        for earlier in &self.seen {
            for later in &self.seen {
                if earlier.head.is_some_and(|head| head <= later.sent)
                    && let (Some(one), Some(other)) = (prompt_of(earlier), prompt_of(later))
                    && one >= other
                {
                    let (earlier, later) = (earlier.turn.id, later.turn.id);
                    let what = format!("{earlier} is row {one}, {later} after it is row {other}");
                    found.push((OutOfOrder, what));
                }
            }
        }
    }

    /// What Ollama was sent: all that was certain by then, in the order of the rows, nothing else.
    fn contexts(&self, number: usize, found: &mut Vec<Violation>) {
        let rows = self.rows.iter().enumerate();
        let index: HashMap<_, _> = rows
            .map(|(index, row)| ((row.role.as_str(), row.message.as_str()), index))
            .collect();
        let seen: HashMap<_, _> = self.seen.iter().map(|seen| (seen.turn.id, seen)).collect();
        for call in &self.calls {
            let id = call.id;
            let mut report = |kind: Kind, what: &str| {
                found.push((kind, format!("the context of {id}: {what}")));
            };
            let Some(own) = seen.get(&id) else {
                report(Mixed, "nobody sent this prompt");
                continue;
            };
            let mut context = BTreeSet::new();
            let mut last = None;
            for (role, content) in &call.messages {
                if turn_of(role, content).map(|id| id.conversation) != Ok(number) {
                    report(Mixed, &format!("{content:?} is of another conversation"));
                } else if let Some(row) = index.get(&(role.as_str(), content.as_str())) {
                    if !context.insert(*row) {
                        report(Doubled, &format!("{content:?} is there twice"));
                    } else if last > Some(*row) {
                        report(OutOfOrder, &format!("row {row} comes after row {last:?}"));
                    }
                    last = Some(*row);
                } else {
                    report(Lost, &format!("{content:?} is not stored"));
                }
            }
            for earlier in &self.seen {
                let Some(stored) = self.stored.get(&earlier.turn.id) else {
                    continue;
                };
                let is_own = earlier.turn.id == id;
                let needs_prompt = is_own || earlier.head.is_some_and(|head| head <= own.sent);
                let needs_reply = !is_own
                    && earlier.end == End::Clean
                    && (earlier.done || !earlier.reply_is_uncertain())
                    && earlier.ended <= own.sent;
                let prompts = stored.prompts.iter().filter(|_| needs_prompt);
                let replies = stored.replies.iter().filter(|_| needs_reply);
                for row in prompts.chain(replies).filter(|row| !context.contains(row)) {
                    let of = earlier.turn.id;
                    report(Lost, &format!("row {row}, of {of}, is missing"));
                }
            }
        }
    }
}

/// The turn that a text is of: a prompt, or a reply whose tokens are in sequence.
fn turn_of(role: &str, text: &str) -> Result<TurnId, Violation> {
    let foreign = || (Mixed, "not of this run".to_owned());
    if role != "assistant" {
        let text_of = text.strip_prefix("prompt ").ok_or_else(foreign)?;
        let name = text_of.split_once(':').ok_or_else(foreign)?.0;
        let id = TurnId::parse(name).ok_or_else(foreign)?;
        return match text == id.prompt() {
            true => Ok(id),
            false => Err((Lost, format!("{id}: the prompt's text has changed"))),
        };
    }
    let mut of = None;
    for (expected, token) in text.split_terminator(' ').enumerate() {
        let (name, number) = token.rsplit_once('-').ok_or_else(foreign)?;
        let id = TurnId::parse(name).ok_or_else(foreign)?;
        let number: usize = number.parse().map_err(|_| foreign())?;
        if let Some(other) = of.replace(id).filter(|other| *other != id) {
            return Err((Mixed, format!("tokens of {other} and {id} in one reply")));
        }
        match number.cmp(&expected) {
            Ordering::Equal => {}
            Ordering::Greater => return Err((Lost, format!("{id}: no token {expected}"))),
            Ordering::Less => return Err((Doubled, format!("{id}: token {number} twice"))),
        }
    }
    of.ok_or_else(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Behaviour, Upstream};

    const TOKENS: usize = 3;
    const NONE: [Kind; 0] = [];
    const FOREIGN: TurnId = TurnId {
        conversation: 2,
        turn: 0,
    };

    fn id(turn: usize) -> TurnId {
        TurnId {
            conversation: 1,
            turn,
        }
    }

    fn at(turn: usize, tenths: u64) -> Duration {
        Duration::from_millis(turn as u64 * 1_000 + tenths * 100)
    }

    /// A turn without faults.
    fn seen(turn: usize) -> Seen {
        Seen {
            turn: Turn {
                id: id(turn),
                host: 0,
                tokens: TOKENS,
                pace: Duration::ZERO,
                in_pieces: false,
                upstream: Upstream::Reply,
                before_failure: 0,
                behaviour: Behaviour::Read,
                fault: None,
            },
            host: 0,
            sent: at(turn, 0),
            head: Some(at(turn, 1)),
            ended: at(turn, 5),
            end: End::Clean,
            shown: id(turn).reply(TOKENS),
            done: true,
            codes: Vec::new(),
        }
    }

    fn row(turn: usize, role: &str, message: String, status: &str) -> Row {
        Row {
            role: role.to_owned(),
            message,
            status: status.to_owned(),
            turn: Some(format!("uuid-{turn}")),
        }
    }

    fn prompt(turn: usize) -> Row {
        row(turn, "user", id(turn).prompt(), "complete")
    }

    fn reply(turn: usize) -> Row {
        row(turn, "assistant", id(turn).reply(TOKENS), "complete")
    }

    fn partial(turn: usize, tokens: usize) -> Row {
        row(turn, "assistant", id(turn).reply(tokens), "partial")
    }

    fn call(turn: usize, context: &[Row]) -> Call {
        let rows = context.iter().cloned();
        Call {
            id: id(turn),
            messages: rows.map(|row| (row.role, row.message)).collect(),
        }
    }

    /// The kinds found in two turns, one after the other, once `change` was made to what was good.
    fn found(change: impl FnOnce(&mut Evidence, &mut Vec<Row>)) -> Vec<Kind> {
        let mut rows = vec![prompt(0), reply(0), prompt(1), reply(1)];
        let mut evidence = Evidence {
            seen: vec![seen(0), seen(1)],
            calls: vec![call(0, &rows[..1]), call(1, &rows[..3])],
            first_closing: 2,
            ..Evidence::default()
        };
        change(&mut evidence, &mut rows);
        evidence.row_count += rows.len();
        evidence.rows.insert(1, rows);
        let violations = audit(&evidence);
        let kinds: BTreeSet<_> = violations.iter().map(|(kind, _)| *kind).collect();
        kinds.into_iter().collect()
    }

    /// The second turn's client left in mid-stream, and of its reply there is only this.
    fn left(evidence: &mut Evidence, rows: &mut Vec<Row>, stored: Option<Row>) {
        evidence.seen[1].end = End::Left;
        evidence.seen[1].done = false;
        evidence.seen[1].shown = id(1).reply(1);
        rows.truncate(3);
        rows.extend(stored);
    }

    /// The second turn ended with an error event after two tokens.
    fn failed(evidence: &mut Evidence, rows: &mut [Row], code: &str) {
        evidence.seen[1].done = false;
        evidence.seen[1].codes.push(code.to_owned());
        evidence.seen[1].shown = id(1).reply(2);
        rows[3] = partial(1, 2);
    }

    #[test]
    fn what_is_good_is_not_reported() {
        assert_eq!(found(|_, _| {}), NONE);
        assert_eq!(found(|e, rows| failed(e, rows, "ollama_broke_off")), NONE);
        assert_eq!(found(|e, rows| left(e, rows, Some(reply(1)))), NONE);
    }

    #[test]
    fn what_is_missing_or_changed_is_lost() {
        assert!(found(|_, rows| drop(rows.remove(2))).contains(&Lost));
        let changed = id(1).prompt().replace('\t', " ");
        assert!(found(|_, rows| rows[2].message = changed).contains(&Lost));
        let missing = id(1).reply(TOKENS).replace(&id(1).token(1), "");
        assert!(found(|_, rows| rows[3].message = missing).contains(&Lost));
        for missing in [1, 0] {
            let without = found(|e, _| drop(e.calls[1].messages.remove(missing)));
            assert_eq!(without, [Lost]);
        }
    }

    #[test]
    fn a_reply_that_is_missing_is_lost_unless_its_commit_failed() {
        let missing = |code: &str| {
            found(|e, rows| {
                failed(e, rows, code);
                rows.pop();
            })
        };
        assert_eq!(found(|_, rows| drop(rows.pop())), [Lost]);
        assert_eq!(missing("ollama_broke_off"), [Lost]);
        assert_eq!(missing("database_failed"), NONE);
    }

    #[test]
    fn what_is_stored_or_sent_twice_is_doubled() {
        let twice = id(1).reply(TOKENS) + &id(1).token(2);
        assert!(found(|_, rows| rows[3].message = twice).contains(&Doubled));
        assert!(found(|_, rows| rows.push(reply(1))).contains(&Doubled));
        assert!(found(|_, rows| rows.insert(2, prompt(1))).contains(&Doubled));
        let in_context = found(|e, _| {
            let messages = &mut e.calls[1].messages;
            messages.insert(0, messages[0].clone());
        });
        assert_eq!(in_context, [Doubled]);
        assert_eq!(found(|e, _| e.calls.push(e.calls[1].clone())), [Doubled]);
    }

    #[test]
    fn rows_and_contexts_can_be_out_of_order() {
        assert!(found(|_, rows| rows.rotate_left(2)).contains(&OutOfOrder));
        let reply_away_from_its_prompt = found(|e, rows| {
            // They overlapped, so that either may come first.
            e.seen[1].sent = at(0, 0);
            e.seen[1].head = Some(at(0, 1));
            e.calls[1].messages.remove(1);
            rows.swap(1, 2);
        });
        assert_eq!(reply_away_from_its_prompt, [OutOfOrder]);
        assert_eq!(found(|e, _| e.calls[1].messages.swap(0, 1)), [OutOfOrder]);
    }

    #[test]
    fn what_is_of_another_conversation_is_mixed() {
        let reply = FOREIGN.reply(TOKENS);
        assert!(found(|_, rows| rows[3].message = reply.clone()).contains(&Mixed));
        assert!(found(|e, _| e.seen[1].shown = reply.clone()).contains(&Mixed));
        let both = id(1).reply(1) + &FOREIGN.reply(1);
        assert!(found(|_, rows| rows[3].message = both).contains(&Mixed));
        let unknown = row(9, "user", "who?".to_owned(), "complete");
        assert!(found(|_, rows| rows.push(unknown)).contains(&Mixed));
        let prompt = ("user".to_owned(), FOREIGN.prompt());
        assert_eq!(found(|e, _| e.calls[1].messages.insert(0, prompt)), [Mixed]);
    }

    #[test]
    fn what_is_of_no_turn_or_of_two_is_mixed() {
        assert_eq!(found(|_, rows| rows.extend([prompt(2), reply(2)])), [Mixed]);
        for id in [id(2), FOREIGN] {
            let messages = Vec::new();
            let unsent = found(|e, _| e.calls.push(Call { id, messages }));
            assert_eq!(unsent, [Mixed]);
        }
        assert_eq!(found(|e, _| e.row_count = 1), [Mixed]);
        let under_one_id = found(|_, rows| rows[3].turn = rows[0].turn.clone());
        assert_eq!(under_one_id, [Mixed]);
    }

    #[test]
    fn what_the_client_was_not_shown_is_untrue() {
        let after_the_faults = found(|e, rows| {
            failed(e, rows, "ollama_broke_off");
            e.first_closing = 1;
        });
        assert_eq!(after_the_faults, [Untrue]);
        let longer = found(|e, rows| {
            failed(e, rows, "ollama_broke_off");
            rows[3] = partial(1, 3);
        });
        assert_eq!(longer, [Untrue]);
        let partial = "partial".to_owned();
        assert_eq!(found(|_, rows| rows[3].status = partial), [Untrue]);
        let neither_done_nor_error = found(|e, rows| {
            failed(e, rows, "");
            e.seen[1].codes.clear();
        });
        assert_eq!(neither_done_nor_error, [Untrue]);
    }

    #[test]
    fn what_was_refused_is_not_stored_but_for_a_prompt_after_a_500() {
        let refused = |status, prompts: usize, calls: usize| {
            found(|e, rows| {
                e.seen[1].end = End::Refused(status);
                e.seen[1].done = false;
                e.seen[1].head = None;
                e.seen[1].shown.clear();
                e.calls.truncate(1 + calls);
                rows.truncate(2 + prompts);
            })
        };
        assert_eq!(refused(409, 0, 0), NONE);
        assert_eq!(refused(409, 1, 0), [Untrue]);
        assert_eq!(refused(500, 1, 0), NONE);
        assert_eq!(refused(500, 1, 1), [Untrue]);
    }

    #[test]
    fn a_reply_without_its_client_is_lost_unless_a_kill_or_the_log_excuses_it() {
        let missing = |excuse: fn(&mut Evidence)| {
            found(|e, rows| {
                left(e, rows, None);
                excuse(e);
            })
        };
        assert_eq!(missing(|_| {}), [Lost]);
        assert_eq!(found(|e, rows| left(e, rows, Some(partial(1, 2)))), [Lost]);
        assert_eq!(missing(|e| e.kills.push((0, at(1, 6)))), NONE);
        assert_eq!(missing(|e| e.kills.push((1, at(1, 6)))), [Lost]);
        assert_eq!(
            missing(|e| e.log = "llmchat: turn uuid-1: unavailable".to_owned()),
            NONE
        );
    }

    #[test]
    fn a_stream_may_break_only_where_the_host_was_killed() {
        let broken = |kill: Option<(usize, Duration)>| {
            found(|e, rows| {
                left(e, rows, Some(reply(1)));
                e.seen[1].end = End::Broken;
                e.kills.extend(kill);
            })
        };
        assert_eq!(broken(None), [Untrue]);
        assert_eq!(broken(Some((0, at(1, 3)))), NONE);
    }
}
