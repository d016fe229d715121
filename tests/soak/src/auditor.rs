//! What the clients saw and what Ollama was sent, against what the database holds.
//!
//! Takes all three as values and gives the violations of llmchat's promise; runs nothing, reads
//! nothing. Each piece of text names its turn (see [`crate::plan`]), so that it can be attributed
//! wherever it turns up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use llmchat_testkit::Row;

use crate::plan::{Turn, TurnId};

/// What one client saw. Times are since the beginning of the run.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What was to happen.
    pub(crate) turn: Turn,
    /// The host that was asked.
    pub(crate) host: usize,
    /// Just before the request.
    pub(crate) sent: Duration,
    /// When the head of a stream had come: the prompt is stored.
    pub(crate) head: Option<Duration>,
    pub(crate) ended: Duration,
    pub(crate) end: End,
    /// The tokens shown, one after the other.
    pub(crate) shown: String,
    /// Whether `done` came.
    pub(crate) done: bool,
    /// Of each error event.
    pub(crate) codes: Vec<String>,
}

/// How it ended for the client.
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

/// One request that Ollama got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The turn that it was made for, by a field that llmchat hands on unread.
    pub(crate) id: TurnId,
    /// `(role, content)`
    pub(crate) messages: Vec<(String, String)>,
}

/// Everything there is to compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) seen: Vec<Seen>,
    pub(crate) asked: Vec<Asked>,
    /// By conversation, in their order.
    pub(crate) rows: BTreeMap<usize, Vec<Row>>,
    /// When each host was killed.
    pub(crate) kills: Vec<(usize, Duration)>,
    /// The hosts' logs: a turn that failed is named there by the id that its rows have.
    pub(crate) log: String,
    /// A client that leaves ends its turn (`on_disconnect = cancel`).
    pub(crate) leaving_cancels: bool,
}

/// What was promised and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Not stored, or not in the context, though the client could rely on it.
    Lost,
    /// Stored, sent or asked twice.
    Doubled,
    OutOfOrder,
    /// In a place where it does not belong.
    Mixed,
    /// The client was told something that is not so.
    Untrue,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Lost,
        Self::Doubled,
        Self::OutOfOrder,
        Self::Mixed,
        Self::Untrue,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::OutOfOrder => "out of order",
            Self::Mixed => "mixed",
            Self::Untrue => "untrue",
        })
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) conversation: usize,
    pub(crate) what: String,
}

/// A kill this long after the client was gone can still have cut its turn.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// Finds all violations.
pub(crate) fn audit(evidence: &Evidence) -> Vec<Violation> {
    let mut conversations: BTreeSet<usize> = evidence.rows.keys().copied().collect();
    conversations.extend(evidence.seen.iter().map(|seen| seen.turn.id.conversation));
    let mut seen: HashMap<usize, Vec<&Seen>> = HashMap::new();
    for one in &evidence.seen {
        seen.entry(one.turn.id.conversation).or_default().push(one);
    }
    let mut asked: HashMap<usize, Vec<&Asked>> = HashMap::new();
    for one in &evidence.asked {
        asked.entry(one.id.conversation).or_default().push(one);
    }
    let mut violations = Vec::new();
    for number in conversations {
        let mut conversation = Conversation {
            number,
            rows: evidence.rows.get(&number).map_or(&[], Vec::as_slice),
            seen: seen.remove(&number).unwrap_or_default(),
            asked: asked.remove(&number).unwrap_or_default(),
            turns: BTreeMap::new(),
            evidence,
            violations: Vec::new(),
        };
        conversation.attribute();
        for seen in conversation.seen.clone() {
            conversation.turn(seen);
        }
        conversation.order();
        conversation.contexts();
        violations.extend(conversation.violations);
    }
    for (number, strays) in asked {
        violations.push(Violation {
            kind: Kind::Mixed,
            conversation: number,
            what: format!(
                "Ollama was asked {} times for a conversation that nobody has",
                strays.len()
            ),
        });
    }
    violations
}

/// Where a turn's rows are.
#[derive(Default)]
struct Stored {
    prompts: Vec<usize>,
    replies: Vec<usize>,
}

struct Conversation<'a> {
    number: usize,
    rows: &'a [Row],
    seen: Vec<&'a Seen>,
    asked: Vec<&'a Asked>,
    turns: BTreeMap<TurnId, Stored>,
    evidence: &'a Evidence,
    violations: Vec<Violation>,
}

impl<'a> Conversation<'a> {
    fn violation(&mut self, kind: Kind, what: impl Into<String>) {
        self.violations.push(Violation {
            kind,
            conversation: self.number,
            what: what.into(),
        });
    }

    /// Finds out whose each row is.
    fn attribute(&mut self) {
        let mut ids: HashMap<&str, TurnId> = HashMap::new();
        for (index, row) in self.rows.iter().enumerate() {
            let id = match whose(&row.role, &row.message) {
                Ok(id) => id,
                Err((kind, why)) => {
                    self.violation(kind, format!("row {index}: {why}: {row:?}"));
                    continue;
                }
            };
            if id.conversation != self.number {
                self.violation(Kind::Mixed, format!("row {index} is of {id}: {row:?}"));
                continue;
            }
            let stored = self.turns.entry(id).or_default();
            if row.role == "assistant" {
                stored.replies.push(index);
            } else {
                stored.prompts.push(index);
            }
            let turn = row.turn.as_deref().unwrap_or_default();
            if let Some(other) = ids.insert(turn, id).filter(|other| *other != id) {
                self.violation(
                    Kind::Mixed,
                    format!("{id} and {other} are one turn: {turn}"),
                );
            }
        }
        let known: BTreeSet<TurnId> = self.seen.iter().map(|seen| seen.turn.id).collect();
        let strays: Vec<TurnId> = self
            .turns
            .keys()
            .copied()
            .filter(|id| !known.contains(id))
            .collect();
        for id in strays {
            self.violation(
                Kind::Mixed,
                format!("{id} is stored and was never asked for"),
            );
        }
    }

    /// One turn: what was seen against what is stored.
    fn turn(&mut self, seen: &'a Seen) {
        let id = seen.turn.id;
        let asked = self.asked.iter().filter(|asked| asked.id == id).count();
        let (prompts, replies) = match self.turns.get(&id) {
            Some(stored) => (stored.prompts.clone(), stored.replies.clone()),
            None => Default::default(),
        };
        if prompts.len() > 1 {
            self.violation(
                Kind::Doubled,
                format!("{id}: the prompt is in rows {prompts:?}"),
            );
        }
        if replies.len() > 1 {
            self.violation(
                Kind::Doubled,
                format!("{id}: the reply is in rows {replies:?}"),
            );
        }
        if asked > 1 {
            self.violation(
                Kind::Doubled,
                format!("{id}: Ollama was asked {asked} times"),
            );
        }
        if asked > 0 && prompts.is_empty() {
            self.violation(
                Kind::Lost,
                format!("{id}: Ollama was asked, and the prompt is not stored"),
            );
        }
        if !seen.shown.is_empty() {
            match whose("assistant", &seen.shown) {
                Ok(shown) if shown == id => {}
                Ok(shown) => self.violation(
                    Kind::Mixed,
                    format!("{id}'s client was shown {shown}: {seen:?}"),
                ),
                Err((kind, why)) => {
                    self.violation(kind, format!("{id}'s client was shown: {why}: {seen:?}"))
                }
            }
        }
        if seen.head.is_some() && prompts.is_empty() {
            self.violation(
                Kind::Lost,
                format!("{id}: a stream began, and the prompt is not stored: {seen:?}"),
            );
        }
        let reply = replies.first().and_then(|index| self.rows.get(*index));
        match seen.end {
            End::Refused(status) => self.refused(seen, status, &prompts, reply, asked),
            End::Clean => self.clean(seen, reply),
            End::NoAnswer | End::Left | End::Broken => {
                let id = prompts
                    .first()
                    .and_then(|index| self.rows.get(*index))
                    .and_then(|row| row.turn.as_deref());
                self.unseen_end(seen, reply, id, asked);
            }
        }
        if seen.done && seen.end != End::Clean && seen.end != End::Left {
            self.violation(
                Kind::Untrue,
                format!("{id}: `done` came and not the end of the stream: {seen:?}"),
            );
        }
    }

    /// Nothing is stored, but for a prompt of which the database did not say whether it is.
    fn refused(
        &mut self,
        seen: &Seen,
        status: u16,
        prompts: &[usize],
        reply: Option<&Row>,
        asked: usize,
    ) {
        let id = seen.turn.id;
        if status != 500 && !prompts.is_empty() {
            self.violation(
                Kind::Untrue,
                format!("{id}: refused with {status}, and the prompt is stored"),
            );
        }
        if asked > 0 || reply.is_some() {
            self.violation(
                Kind::Untrue,
                format!("{id}: refused with {status}, and Ollama was asked"),
            );
        }
    }

    /// The client saw the stream to its end: it knows what is stored.
    fn clean(&mut self, seen: &Seen, reply: Option<&Row>) {
        let turn = &seen.turn;
        let id = turn.id;
        if seen.done {
            let whole = id.reply(turn.tokens);
            if seen.shown != whole {
                self.violation(
                    Kind::Lost,
                    format!("{id}: not all tokens were shown: {seen:?}"),
                );
            }
            match reply {
                None => self.violation(
                    Kind::Lost,
                    format!("{id}: `done` was seen, and the reply is not stored: {seen:?}"),
                ),
                Some(row) if row.message != seen.shown => {
                    self.violation(
                        Kind::Untrue,
                        format!("{id}: shown is not stored: {seen:?}, {row:?}"),
                    );
                }
                Some(row) if row.status != "complete" => {
                    self.violation(
                        Kind::Untrue,
                        format!("{id}: `done` was seen, and the status is {}", row.status),
                    );
                }
                Some(_) => {}
            }
            return;
        }
        if seen.codes.is_empty() {
            self.violation(
                Kind::Untrue,
                format!("{id}: the stream ended without `done` and without an error: {seen:?}"),
            );
        }
        // Whether the last try was committed is not known: its answer did not come in time.
        let may_be_absent = seen.codes.iter().any(|code| code == "database_failed");
        match reply {
            None if seen.shown.is_empty() || may_be_absent => {}
            None => self.violation(
                Kind::Lost,
                format!("{id}: the partial reply is not stored: {seen:?}"),
            ),
            Some(row) if row.message != seen.shown => {
                self.violation(
                    Kind::Untrue,
                    format!("{id}: shown is not stored: {seen:?}, {row:?}"),
                );
            }
            Some(row) if row.status == "complete" && !may_be_absent => {
                self.violation(
                    Kind::Untrue,
                    format!("{id}: ended with an error, and is stored as complete: {seen:?}"),
                );
            }
            Some(_) => {}
        }
    }

    /// Nobody saw the end. The turn goes on without its client; only a host that was killed, or a
    /// failure in the log, excuses a reply that is missing.
    fn unseen_end(
        &mut self,
        seen: &Seen,
        reply: Option<&Row>,
        turn_id: Option<&str>,
        asked: usize,
    ) {
        let turn = &seen.turn;
        let id = turn.id;
        let killed = |until: Duration| {
            let of_host = self
                .evidence
                .kills
                .iter()
                .filter(|(host, _)| *host == seen.host);
            of_host
                .into_iter()
                .any(|(_, at)| *at >= seen.sent && *at <= until)
        };
        if seen.end == End::Broken && !killed(seen.ended) {
            self.violation(
                Kind::Untrue,
                format!("{id}: the stream was cut by nobody: {seen:?}"),
            );
        }
        if let Some(row) = reply {
            if !row.message.starts_with(&seen.shown) {
                self.violation(
                    Kind::Untrue,
                    format!("{id}: shown is not stored: {seen:?}, {row:?}"),
                );
            }
            if row.status == "complete"
                && (!turn.completes() || row.message != id.reply(turn.tokens))
            {
                self.violation(
                    Kind::Untrue,
                    format!("{id}: stored as complete and is not: {row:?}"),
                );
            }
        }
        let certain = turn.tokens_for_certain();
        let is_whole = match reply {
            Some(row) => {
                row.message.len() >= id.reply(certain).len()
                    && (row.status == "complete") == turn.completes()
            }
            None => certain == 0,
        };
        let excused = killed(seen.ended + AFTERLIFE)
            || turn_id.is_some_and(|turn_id| self.evidence.log.contains(turn_id))
            || self.evidence.leaving_cancels
            // Before the head a failure is the client's to hear, and it had left; or nothing was stored.
            || (seen.end == End::NoAnswer && asked == 0);
        if !is_whole && !excused {
            self.violation(Kind::Lost, format!("{id}: the reply that nobody waited for is not stored whole: {seen:?}, {reply:?}"));
        }
    }

    /// Turns that did not overlap are in the order of time; a reply is right after its prompt.
    fn order(&mut self) {
        let mut found = Vec::new();
        for (id, stored) in &self.turns {
            for (prompt, reply) in stored.prompts.iter().zip(&stored.replies) {
                if *reply != prompt + 1 {
                    found.push(format!(
                        "{id}: the prompt is row {prompt}, the reply row {reply}"
                    ));
                }
            }
        }
        let row_of = |seen: &Seen| {
            self.turns
                .get(&seen.turn.id)
                .and_then(|stored| stored.prompts.first())
        };
        for earlier in &self.seen {
            for later in &self.seen {
                let in_order = earlier.head.is_some_and(|head| head <= later.sent);
                if let (true, Some(one), Some(other)) = (in_order, row_of(earlier), row_of(later))
                    && one >= other
                {
                    found.push(format!(
                        "{} is row {one}, and {}, which came later, is row {other}",
                        earlier.turn.id, later.turn.id
                    ));
                }
            }
        }
        for what in found {
            self.violation(Kind::OutOfOrder, what);
        }
    }

    /// What Ollama was sent: all that was certain by then, in the order of the rows, nothing else.
    fn contexts(&mut self) {
        let index: HashMap<(&str, &str), usize> = self
            .rows
            .iter()
            .enumerate()
            .map(|(index, row)| (row.words(), index))
            .collect();
        let seen: HashMap<TurnId, &Seen> =
            self.seen.iter().map(|seen| (seen.turn.id, *seen)).collect();
        for asked in self.asked.clone() {
            let Some(own) = seen.get(&asked.id) else {
                self.violation(
                    Kind::Mixed,
                    format!("Ollama was asked for {}, which nobody sent", asked.id),
                );
                continue;
            };
            let mut context = BTreeSet::new();
            let mut last = None;
            for (role, content) in &asked.messages {
                let id = whose(role, content).map(|id| id.conversation);
                if id != Ok(self.number) {
                    self.violation(
                        Kind::Mixed,
                        format!("the context of {} holds {content:?}", asked.id),
                    );
                    continue;
                }
                let Some(row) = index.get(&(role.as_str(), content.as_str())) else {
                    self.violation(
                        Kind::Lost,
                        format!(
                            "the context of {} held {content:?}, which is not stored",
                            asked.id
                        ),
                    );
                    continue;
                };
                if !context.insert(*row) {
                    self.violation(
                        Kind::Doubled,
                        format!("the context of {} holds {content:?} twice", asked.id),
                    );
                } else if last.is_some_and(|last| last > *row) {
                    self.violation(
                        Kind::OutOfOrder,
                        format!(
                            "the context of {}: {content:?} (row {row}) comes after row {last:?}",
                            asked.id
                        ),
                    );
                }
                last = Some(*row);
            }
            let mut missing = Vec::new();
            for earlier in self.seen.iter().copied() {
                let id = earlier.turn.id;
                let Some(stored) = self.turns.get(&id) else {
                    continue;
                };
                let is_own = id == asked.id;
                if is_own || earlier.head.is_some_and(|head| head <= own.sent) {
                    missing.extend(
                        stored
                            .prompts
                            .iter()
                            .filter(|row| !context.contains(*row))
                            .map(|row| (id, *row)),
                    );
                }
                let is_certain = earlier.end == End::Clean
                    && (earlier.done
                        || !earlier.codes.iter().any(|code| code == "database_failed"));
                if !is_own && is_certain && earlier.ended <= own.sent {
                    missing.extend(
                        stored
                            .replies
                            .iter()
                            .filter(|row| !context.contains(*row))
                            .map(|row| (id, *row)),
                    );
                }
            }
            for (id, row) in missing {
                self.violation(
                    Kind::Lost,
                    format!(
                        "the context of {} lacks row {row}, of {id}, which was told before",
                        asked.id
                    ),
                );
            }
        }
    }
}

/// The turn that a text is of: a prompt, or a reply whose tokens are in sequence.
fn whose(role: &str, text: &str) -> Result<TurnId, (Kind, String)> {
    let foreign = || (Kind::Mixed, "not of this run".to_owned());
    if role != "assistant" {
        let name = text
            .strip_prefix("prompt ")
            .and_then(|rest| rest.split_once(':'));
        let id = name
            .and_then(|(name, _)| TurnId::parse(name))
            .ok_or_else(foreign)?;
        return match text == id.prompt() {
            true => Ok(id),
            false => Err((Kind::Lost, format!("{id}: the prompt's text has changed"))),
        };
    }
    let mut of = None;
    for (expected, token) in text.split_terminator(' ').enumerate() {
        let (name, number) = token.rsplit_once('-').ok_or_else(foreign)?;
        let id = TurnId::parse(name).ok_or_else(foreign)?;
        let number: usize = number.parse().map_err(|_| foreign())?;
        if let Some(other) = of.replace(id).filter(|other| *other != id) {
            return Err((
                Kind::Mixed,
                format!("tokens of {other} and of {id} in one reply"),
            ));
        }
        match number.cmp(&expected) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => {
                return Err((Kind::Lost, format!("{id}: token {expected} is missing")));
            }
            std::cmp::Ordering::Less => {
                return Err((Kind::Doubled, format!("{id}: token {number} again")));
            }
        }
    }
    of.ok_or_else(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Behaviour, Upstream};

    const TOKENS: usize = 3;

    fn id(turn: usize) -> TurnId {
        TurnId {
            conversation: 1,
            turn,
        }
    }

    fn at(turn: usize, tenths: u64) -> Duration {
        Duration::from_millis(turn as u64 * 1_000 + tenths * 100)
    }

    /// A turn that went well.
    fn seen(turn: usize) -> Seen {
        Seen {
            turn: Turn {
                id: id(turn),
                host: 0,
                tokens: TOKENS,
                pace: Duration::ZERO,
                in_pieces: false,
                upstream: Upstream::Reply,
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

    /// Two turns, one after the other, of which nothing is amiss.
    fn good() -> Evidence {
        let rows = vec![prompt(0), reply(0), prompt(1), reply(1)];
        let words = |rows: &[Row]| {
            let words = rows.iter().map(Row::words);
            words
                .map(|(role, text)| (role.to_owned(), text.to_owned()))
                .collect()
        };
        Evidence {
            seen: vec![seen(0), seen(1)],
            asked: vec![
                Asked {
                    id: id(0),
                    messages: words(&rows[..1]),
                },
                Asked {
                    id: id(1),
                    messages: words(&rows[..3]),
                },
            ],
            rows: BTreeMap::from([(1, rows)]),
            ..Evidence::default()
        }
    }

    /// The kinds found once `change` was made to what was good.
    fn found(change: impl FnOnce(&mut Evidence, &mut Vec<Row>)) -> Vec<Kind> {
        let mut evidence = good();
        let mut rows = evidence.rows.remove(&1).unwrap();
        change(&mut evidence, &mut rows);
        evidence.rows.insert(1, rows);
        let mut kinds: Vec<_> = audit(&evidence).iter().map(|found| found.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// The second turn's client left in mid-stream, and of its reply there is only this.
    fn left(evidence: &mut Evidence, rows: &mut Vec<Row>, stored: Option<Row>) {
        evidence.seen[1].end = End::Left;
        evidence.seen[1].done = false;
        evidence.seen[1].shown = id(1).reply(1);
        rows.truncate(3);
        rows.extend(stored);
    }

    fn partial(turn: usize, tokens: usize) -> Row {
        row(turn, "assistant", id(turn).reply(tokens), "partial")
    }

    /// The second turn ended with an error event after two tokens.
    fn failed(evidence: &mut Evidence, rows: &mut [Row], code: &str) {
        evidence.seen[1].done = false;
        evidence.seen[1].codes.push(code.to_owned());
        evidence.seen[1].shown = id(1).reply(2);
        rows[3] = partial(1, 2);
    }

    const NONE: [Kind; 0] = [];

    #[test]
    fn what_is_good_is_not_complained_of() {
        assert_eq!(found(|_, _| {}), NONE);
        assert_eq!(
            found(|evidence, rows| failed(evidence, rows, "ollama_broke_off")),
            NONE
        );
        assert_eq!(
            found(|evidence, rows| left(evidence, rows, Some(reply(1)))),
            NONE
        );
    }

    #[test]
    fn a_prompt_that_is_missing_is_lost() {
        assert!(found(|_, rows| drop(rows.remove(2))).contains(&Kind::Lost));
    }

    #[test]
    fn a_reply_that_is_missing_is_lost() {
        assert_eq!(found(|_, rows| drop(rows.pop())), [Kind::Lost]);
        assert_eq!(
            found(|evidence, rows| {
                failed(evidence, rows, "ollama_broke_off");
                rows.pop();
            }),
            [Kind::Lost]
        );
    }

    #[test]
    fn a_reply_whose_commit_failed_may_be_missing() {
        let missing = |evidence: &mut Evidence, rows: &mut Vec<Row>| {
            failed(evidence, rows, "database_failed");
            rows.pop();
        };
        assert_eq!(found(missing), NONE);
    }

    #[test]
    fn a_token_that_is_missing_is_lost() {
        let hole = id(1).reply(TOKENS).replace(&id(1).token(1), "");
        assert!(found(|_, rows| rows[3].message = hole).contains(&Kind::Lost));
    }

    #[test]
    fn a_changed_prompt_is_lost() {
        assert!(
            found(|_, rows| rows[2].message = id(1).prompt().replace('\t', " "))
                .contains(&Kind::Lost)
        );
    }

    #[test]
    fn a_context_without_what_was_done_before_lost_it() {
        assert_eq!(
            found(|evidence, _| drop(evidence.asked[1].messages.remove(1))),
            [Kind::Lost]
        );
        assert_eq!(
            found(|evidence, _| drop(evidence.asked[1].messages.remove(0))),
            [Kind::Lost]
        );
    }

    #[test]
    fn a_row_too_many_is_doubled() {
        assert!(found(|_, rows| rows.push(reply(1))).contains(&Kind::Doubled));
        assert!(found(|_, rows| rows.insert(2, prompt(1))).contains(&Kind::Doubled));
    }

    #[test]
    fn a_token_stored_twice_is_doubled() {
        let doubled = id(1).reply(TOKENS) + &id(1).token(2);
        assert!(found(|_, rows| rows[3].message = doubled).contains(&Kind::Doubled));
    }

    #[test]
    fn a_context_with_something_twice_or_a_second_call_is_doubled() {
        let twice = |evidence: &mut Evidence, _: &mut Vec<Row>| {
            let first = evidence.asked[1].messages[0].clone();
            evidence.asked[1].messages.insert(0, first);
        };
        assert_eq!(found(twice), [Kind::Doubled]);
        let again = |evidence: &mut Evidence, _: &mut Vec<Row>| {
            let call = evidence.asked[1].clone();
            evidence.asked.push(call);
        };
        assert_eq!(found(again), [Kind::Doubled]);
    }

    #[test]
    fn turns_against_time_are_out_of_order() {
        assert!(found(|_, rows| rows.rotate_left(2)).contains(&Kind::OutOfOrder));
    }

    #[test]
    fn a_reply_away_from_its_prompt_is_out_of_order() {
        assert_eq!(
            found(|evidence, rows| {
                // They overlapped, so that either may come first.
                evidence.seen[1].sent = at(0, 0);
                evidence.seen[1].head = Some(at(0, 1));
                evidence.asked[1].messages.remove(1);
                rows.swap(1, 2);
            }),
            [Kind::OutOfOrder]
        );
    }

    #[test]
    fn a_context_in_another_order_than_the_rows_is_out_of_order() {
        assert_eq!(
            found(|evidence, _| evidence.asked[1].messages.swap(0, 1)),
            [Kind::OutOfOrder]
        );
    }

    #[test]
    fn what_is_of_another_conversation_is_mixed() {
        let foreign = TurnId {
            conversation: 2,
            turn: 0,
        };
        assert!(found(|_, rows| rows[3].message = foreign.reply(TOKENS)).contains(&Kind::Mixed));
        assert_eq!(
            found(|evidence, _| evidence.asked[1]
                .messages
                .insert(0, ("user".into(), foreign.prompt()))),
            [Kind::Mixed]
        );
        assert!(
            found(|evidence, _| evidence.seen[1].shown = foreign.reply(TOKENS))
                .contains(&Kind::Mixed)
        );
        let both = id(1).reply(1) + &foreign.reply(1);
        assert!(found(|_, rows| rows[3].message = both).contains(&Kind::Mixed));
        assert!(
            found(|_, rows| rows.push(row(9, "user", "who?".into(), "complete")))
                .contains(&Kind::Mixed)
        );
    }

    #[test]
    fn two_turns_under_one_id_are_mixed() {
        assert_eq!(
            found(|_, rows| rows[3].turn = rows[0].turn.clone()),
            [Kind::Mixed]
        );
    }

    #[test]
    fn a_reply_that_was_shown_otherwise_is_untrue() {
        assert_eq!(
            found(|evidence, rows| {
                failed(evidence, rows, "ollama_broke_off");
                rows[3] = partial(1, 3);
            }),
            [Kind::Untrue]
        );
        assert_eq!(
            found(|_, rows| rows[3].status = "partial".into()),
            [Kind::Untrue]
        );
    }

    #[test]
    fn an_end_without_a_word_is_untrue() {
        assert_eq!(
            found(|evidence, rows| {
                failed(evidence, rows, "");
                evidence.seen[1].codes.clear();
            }),
            [Kind::Untrue]
        );
    }

    #[test]
    fn what_was_refused_is_not_stored_but_for_a_prompt_after_a_500() {
        let refused = |status, keep: usize, asked: usize| {
            found(|evidence, rows| {
                evidence.seen[1].end = End::Refused(status);
                evidence.seen[1].done = false;
                evidence.seen[1].head = None;
                evidence.seen[1].shown.clear();
                evidence.asked.truncate(1 + asked);
                rows.truncate(2 + keep);
            })
        };
        assert_eq!(refused(409, 0, 0), NONE);
        assert_eq!(refused(409, 1, 0), [Kind::Untrue]);
        assert_eq!(refused(500, 1, 0), NONE);
        assert_eq!(refused(500, 1, 1), [Kind::Untrue]);
    }

    #[test]
    fn a_reply_that_nobody_waited_for_is_lost_unless_its_host_was_killed_or_said_why() {
        assert_eq!(
            found(|evidence, rows| left(evidence, rows, None)),
            [Kind::Lost]
        );
        assert_eq!(
            found(|evidence, rows| left(evidence, rows, Some(partial(1, 2)))),
            [Kind::Lost]
        );
        assert_eq!(
            found(|evidence, rows| {
                left(evidence, rows, None);
                evidence.kills.push((0, at(1, 6)));
            }),
            NONE
        );
        assert_eq!(
            found(|evidence, rows| {
                left(evidence, rows, None);
                evidence.kills.push((1, at(1, 6)));
            }),
            [Kind::Lost]
        );
        assert_eq!(
            found(|evidence, rows| {
                left(evidence, rows, None);
                evidence.log = "llmchat: turn uuid-1: the database is unavailable".into();
            }),
            NONE
        );
    }

    #[test]
    fn a_stream_may_break_only_where_the_host_was_killed() {
        let broken = |evidence: &mut Evidence, rows: &mut Vec<Row>| {
            left(evidence, rows, Some(reply(1)));
            evidence.seen[1].end = End::Broken;
        };
        assert_eq!(found(broken), [Kind::Untrue]);
        assert_eq!(
            found(|evidence, rows| {
                broken(evidence, rows);
                evidence.kills.push((0, at(1, 3)));
            }),
            NONE
        );
    }
}
