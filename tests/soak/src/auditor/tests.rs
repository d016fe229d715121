//! Each violation is planted in what was good, and must be found.

use std::collections::BTreeSet;
use std::time::Duration;

use llmchat_testkit::Event;

use super::*;
use crate::device::Device;
use crate::evidence::Kind::Doubled;
use crate::evidence::{Connection, End, Kind, Stored};
use crate::plan::Plan;

const TOKENS: usize = 9;
const NONE: [Kind; 0] = [];
const PLAN: Plan = Plan {
    seed: 1,
    turns: 100,
    owners: 3,
    conversations: 3,
    hosts: 2,
    has_postgres: true,
    turns_a_fault: 30,
};
const NAME: ConversationId = ConversationId { owner: 1, app: 1 };
/// Another conversation of the owner.
const ELSEWHERE: TurnId = TurnId {
    conversation: ConversationId { owner: 1, app: 2 },
    turn: 0,
};
/// Another owner's of the same `appID`, and of the same turn.
const ANOTHERS: TurnId = TurnId {
    conversation: ConversationId { owner: 2, app: 1 },
    turn: 1,
};

fn id(turn: usize) -> TurnId {
    TurnId {
        conversation: NAME,
        turn,
    }
}

fn at(turn: usize, tenths: u64) -> Duration {
    Duration::from_millis(turn as u64 * 1_000 + tenths * 100)
}

fn content(turn: usize, pieces: usize) -> String {
    id(turn).call(0).text(pieces).content
}

fn connection(turn: usize) -> Connection {
    Connection {
        host: 0,
        sent: at(turn, 0),
        head: Some(at(turn, 1)),
        ended: at(turn, 5),
        end: End::Clean,
        is_done: true,
        codes: Vec::new(),
        error: None,
    }
}

/// What a client has after some pieces, and perhaps the receipt.
fn device(turn: usize, pieces: usize, is_done: bool) -> Device {
    let mut device = Device::default();
    let done = |n| is_done && n + 1 == pieces;
    for n in 0..pieces {
        let text = id(turn).call(0).text(n + 1);
        let end = match done(n) {
            true => "end".to_owned(),
            false => format!(
                "{}.{}.{}",
                text.content.len(),
                text.thinking.len(),
                text.calls.len()
            ),
        };
        let event = Event::Data(id(turn).call(0).line(n, done(n)));
        let taken = device.take(&event, &format!("{turn:08}.{end}"));
        assert_eq!(taken, Ok(()));
    }
    device
}

/// A turn without faults.
fn seen(turn: usize) -> Seen {
    let mut plan = PLAN.closing(NAME);
    (plan.id, plan.tokens) = (id(turn), TOKENS);
    Seen {
        turn: plan,
        turn_id: Some(uuid(turn)),
        connections: vec![connection(turn)],
        has: device(turn, TOKENS, true),
        outcome: Outcome::Told,
        stopped: None,
        is_deleted: false,
        agains: 0,
        is_uncertain: false,
        wrong: Vec::new(),
    }
}

fn uuid(turn: usize) -> String {
    format!("uuid-{turn}")
}

fn row(turn: usize, role: &str, message: String, status: &str) -> Row {
    Row {
        role: role.to_owned(),
        message,
        status: status.to_owned(),
        turn: uuid(turn),
        id: format!("{role}-{turn}"),
        ..Row::default()
    }
}

fn prompt(turn: usize) -> Row {
    row(turn, "user", id(turn).prompt(), "complete")
}

fn partial(turn: usize, pieces: usize) -> Row {
    let text = id(turn).call(0).text(pieces);
    let message = text::collapsed(&text.content);
    let calls: Vec<_> = text
        .calls
        .iter()
        .map(|name| format!("{{\"function\":{{\"name\":\"{name}\"}}}}"))
        .collect();
    Row {
        raw: Some(text.content).filter(|raw| *raw != message),
        thinking: Some(text.thinking).filter(|text| !text.is_empty()),
        calls: Some(calls.join(",")).filter(|text| !text.is_empty()),
        ..row(turn, "assistant", message, "partial")
    }
}

fn reply(turn: usize) -> Row {
    Row {
        status: "complete".to_owned(),
        ..partial(turn, TOKENS)
    }
}

fn turn_row(turn: usize) -> TurnRow {
    TurnRow {
        turn: uuid(turn),
        state: "complete".to_owned(),
        code: None,
        attempt: Some(format!("{turn:08}-0000-4000-8000-000000000000")),
        reply_id: Some(format!("assistant-{turn}")),
        columns: vec!["key".to_owned(), "request".to_owned()],
    }
}

fn stub(turn: usize) -> TurnRow {
    TurnRow {
        turn: uuid(turn),
        state: "deleted".to_owned(),
        columns: vec!["key".to_owned(), "expires".to_owned()],
        ..TurnRow::default()
    }
}

fn call(turn: usize, context: &[Row]) -> Call {
    let rows = context.iter().cloned();
    Call {
        id: id(turn),
        messages: rows.map(|row| (row.role, row.message)).collect(),
        body: id(turn).to_string(),
    }
}

/// The kinds found in two turns, one after the other, once `change` was made to what was good.
fn found(change: impl FnOnce(&mut Evidence, &mut Vec<Row>)) -> Vec<Kind> {
    let mut rows = vec![prompt(0), reply(0), prompt(1), reply(1)];
    let mut evidence = Evidence {
        seen: vec![seen(0), seen(1)],
        calls: vec![call(0, &rows[..1]), call(1, &rows[..3])],
        stored: Stored {
            turns: vec![turn_row(0), turn_row(1)],
            ..Stored::default()
        },
        first_closing: 2,
        history: 1 << 20,
        ..Evidence::default()
    };
    change(&mut evidence, &mut rows);
    evidence.stored.row_count += rows.len();
    evidence.stored.rows.insert(NAME, rows);
    let violations = audit(&evidence);
    let kinds: BTreeSet<_> = violations.iter().map(|(kind, _)| *kind).collect();
    kinds.into_iter().collect()
}

/// The second turn's client asked once.
fn once(evidence: &mut Evidence) -> &mut Seen {
    evidence.seen[1].outcome = Outcome::Once;
    &mut evidence.seen[1]
}

/// The second turn's client left in mid-stream, and of its reply there is only this.
fn left(evidence: &mut Evidence, rows: &mut Vec<Row>, stored: Option<Row>) {
    let seen = once(evidence);
    seen.connections[0].end = End::Left;
    seen.connections[0].is_done = false;
    seen.has = device(1, 1, false);
    rows.truncate(3);
    rows.extend(stored);
}

/// The second turn ended with an error event after two tokens, and its client did not come back.
fn failed(evidence: &mut Evidence, rows: &mut [Row], code: &str) {
    let seen = once(evidence);
    seen.connections[0].is_done = false;
    seen.connections[0].codes.push(code.to_owned());
    seen.has = device(1, 2, false);
    rows[3] = partial(1, 2);
}

/// The second turn is swept, and that was acknowledged.
fn swept(evidence: &mut Evidence, rows: &mut Vec<Row>) {
    evidence.sweeps.push(Sweep {
        conversation: NAME,
        from: Some(id(1)),
        sent: at(1, 6),
        acknowledged: Some(at(1, 7)),
    });
    rows.truncate(2);
    evidence.stored.turns[1] = stub(1);
}

#[test]
fn what_is_good_is_not_reported() {
    assert_eq!(found(|_, _| {}), NONE);
    assert_eq!(found(|e, rows| failed(e, rows, "ollama_broke_off")), NONE);
    assert_eq!(found(|e, rows| left(e, rows, Some(reply(1)))), NONE);
    assert_eq!(found(swept), NONE);
}

#[test]
fn what_a_client_put_together_is_what_is_stored() {
    let row = |change: &dyn Fn(&mut Row)| found(|_, rows| change(&mut rows[3]));
    let raw = |row: &Row| row.raw.clone().unwrap_or_default();
    assert_ne!(
        row(&|row: &mut Row| row.raw = Some(raw(row).replacen('1', "2", 1))),
        NONE
    );
    assert_ne!(row(&|row: &mut Row| row.raw = None), NONE);
    assert_eq!(row(&|row: &mut Row| row.message = raw(row)), [Untrue]);
    assert_eq!(row(&|row: &mut Row| row.thinking = None), [Untrue]);
    assert_eq!(row(&|row: &mut Row| row.calls = None), [Untrue]);
    assert_eq!(
        row(&|row: &mut Row| row.status = "stopped".to_owned()),
        [Untrue]
    );
    assert_eq!(row(&|row: &mut Row| row.id = "another".to_owned()), [Mixed]);
    assert_eq!(
        found(|_, rows| rows[3] = Row {
            status: "complete".to_owned(),
            ..partial(1, 8)
        }),
        [Untrue]
    );
    // The last event before the receipt did not come.
    let dropped = found(|e, _| {
        let whole = e.seen[1].has.text.content.clone();
        e.seen[1].has.text.content = whole.replace(&(content(1, 8)[content(1, 7).len()..]), "");
    });
    assert!(dropped.contains(&Untrue), "{dropped:?}");
    let turn = |change: fn(&mut TurnRow)| found(|e, _| change(&mut e.stored.turns[1]));
    assert_eq!(turn(|turn| turn.state = "stopped".to_owned()), [Untrue]);
    assert_eq!(turn(|turn| turn.attempt = None), [Untrue]);
    assert_eq!(found(|e, _| drop(e.stored.turns.pop())), [Lost]);
}

#[test]
fn nothing_is_left_of_what_was_deleted() {
    let left = |change: fn(&mut Evidence, &mut Vec<Row>)| {
        found(|e, rows| {
            swept(e, rows);
            change(e, rows);
        })
    };
    assert_ne!(left(|_, rows| rows.push(reply(1))), NONE);
    assert_ne!(left(|_, rows| rows.extend([prompt(1), reply(1)])), NONE);
    assert_ne!(left(|e, _| e.stored.turns[1] = turn_row(1)), NONE);
    assert_eq!(
        left(|e, _| e.stored.turns[1].columns.push("model".to_owned())),
        [Untrue]
    );
    assert_eq!(left(|e, _| e.stored.turns[1].columns.clear()), [Untrue]);
    assert_eq!(left(|e, _| e.stored.runs.push(uuid(1))), [Untrue]);
    assert_eq!(left(|e, _| e.stored.parts.push(uuid(1))), [Untrue]);
    // A turn that began before the first that was to go.
    let all = left(|e, rows| {
        e.stored.turns[0] = stub(0);
        rows.clear();
    });
    assert!(all.contains(&Lost), "{all:?}");
    assert_eq!(
        found(|e, rows| {
            e.seen[1].outcome = Outcome::Deleted;
            rows.truncate(2);
            e.stored.turns[1] = stub(1);
        }),
        NONE
    );
}

#[test]
fn a_sweep_that_runs_beside_a_turn_takes_all_of_it_or_nothing() {
    let beside = |change: fn(&mut Evidence, &mut Vec<Row>)| {
        found(|e, rows| {
            swept(e, rows);
            e.sweeps[0].sent = at(1, 0);
            e.sweeps[0].from = Some(id(0));
            e.seen[0].connections[0].head = Some(at(0, 1));
            rows.clear();
            e.stored.turns[0] = stub(0);
            change(e, rows);
        })
    };
    assert_eq!(beside(|_, _| {}), NONE);
    let whole = |e: &mut Evidence, rows: &mut Vec<Row>| {
        e.stored.turns[1] = turn_row(1);
        rows.extend([prompt(1), reply(1)]);
    };
    assert_eq!(beside(whole), NONE);
    assert_ne!(
        beside(|e, rows| {
            e.stored.turns[1] = turn_row(1);
            rows.push(prompt(1));
        }),
        NONE
    );
    // It was told the outcome when the sweep was over.
    let told_later = beside(|e, _| e.sweeps[0].acknowledged = Some(at(1, 0)));
    assert!(told_later.contains(&Lost), "{told_later:?}");
}

#[test]
fn a_reply_that_was_deleted_is_not_there() {
    let deleted = |change: fn(&mut Evidence, &mut Vec<Row>)| {
        found(|e, rows| {
            e.seen[1].outcome = Outcome::WithoutReply;
            rows.pop();
            let turn = &mut e.stored.turns[1];
            (turn.state, turn.code) = ("failed".to_owned(), Some("turn_deleted".to_owned()));
            change(e, rows);
        })
    };
    assert_eq!(deleted(|_, _| {}), NONE);
    assert_eq!(deleted(|_, rows| rows.push(reply(1))), [Untrue]);
    assert_eq!(deleted(|e, _| e.stored.turns[1].code = None), [Untrue]);
    assert_eq!(deleted(|e, _| e.stored.parts.push(uuid(1))), [Untrue]);
}

#[test]
fn a_user_reads_what_is_stored() {
    let read = |change: fn(&mut Vec<(String, String)>)| {
        found(|e, rows| {
            let shown = |row: &Row| {
                (
                    row.role.clone(),
                    row.raw.as_ref().unwrap_or(&row.message).clone(),
                )
            };
            let mut messages = rows.iter().map(shown).collect();
            change(&mut messages);
            let bodies = String::new();
            e.pages.insert(NAME, Pages { messages, bodies });
        })
    };
    assert_eq!(read(|_| {}), NONE);
    assert_eq!(read(|pages| drop(pages.remove(0))), [Untrue]);
    assert_eq!(read(|pages| pages.swap(0, 2)), [Untrue]);
    assert_eq!(
        read(|pages| pages[1].1 = text::collapsed(&pages[1].1)),
        [Untrue]
    );
}

#[test]
fn no_attempt_is_left_of_a_turn_whose_outcome_was_told() {
    assert_eq!(found(|e, _| e.stored.runs.push(uuid(1))), [Untrue]);
    assert_eq!(found(|e, _| e.stored.parts.push(uuid(1))), [Untrue]);
}

#[test]
fn a_client_that_asks_again_and_again_is_answered() {
    assert_eq!(
        found(|e, _| e.seen[1].outcome = Outcome::Unanswered),
        [Lost]
    );
    let wrong = (Mixed, "as the client found".to_owned());
    assert_eq!(found(|e, _| e.seen[1].wrong.push(wrong)), [Mixed]);
    let stopped_in_vain = found(|e, rows| {
        e.seen[1].stopped = Some((at(1, 2), 202));
        e.seen[1].has.is_done = false;
        e.seen[1].has.error = Some("turn_timeout".to_owned());
        e.stored.turns[1].state = "partial".to_owned();
        rows[3].status = "partial".to_owned();
    });
    assert_eq!(stopped_in_vain, [Untrue]);
}

#[test]
fn of_a_long_conversation_only_what_does_not_fit_may_be_missing() {
    let cut = |history: usize, left_out: usize| {
        found(|e, _| {
            e.history = history;
            e.calls[1].messages.drain(..left_out);
        })
    };
    assert_eq!(cut(200, 2), NONE);
    assert_eq!(cut(1 << 20, 2), [Lost]);
    assert_ne!(cut(200, 1), NONE);
    assert_eq!(cut(100, 0), [Untrue]);
}

#[test]
fn what_is_missing_or_changed_is_lost() {
    assert!(found(|_, rows| drop(rows.remove(2))).contains(&Lost));
    let changed = id(1).prompt().replace('\t', " ");
    assert!(found(|_, rows| rows[2].message = changed).contains(&Lost));
    let token = content(1, 2).replace(&content(1, 1), "");
    let missing = |row: &mut Row| row.message = row.message.replace(&token, "");
    assert!(found(|_, rows| missing(&mut rows[3])).contains(&Lost));
    for missing in [1, 0] {
        let without = found(|e, _| drop(e.calls[1].messages.remove(missing)));
        assert!(without.contains(&Lost), "{without:?}");
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
    assert_eq!(
        found(|e, rows| {
            once(e);
            rows.pop();
        }),
        [Lost]
    );
    assert_eq!(missing("ollama_broke_off"), [Lost]);
    assert_eq!(missing("database_failed"), NONE);
}

#[test]
fn what_is_stored_or_sent_twice_is_doubled() {
    let token = content(1, 2).replace(&content(1, 1), "");
    assert!(found(|_, rows| rows[3].message += &token).contains(&Doubled));
    assert!(found(|_, rows| rows.push(reply(1))).contains(&Doubled));
    assert!(found(|_, rows| rows.insert(2, prompt(1))).contains(&Doubled));
    let in_context = found(|e, _| {
        let messages = &mut e.calls[1].messages;
        messages.insert(0, messages[0].clone());
    });
    assert_eq!(in_context, [Doubled]);
    let called_twice = |change: fn(&mut Evidence)| {
        found(|e, _| {
            change(e);
            e.calls.push(e.calls[1].clone());
        })
    };
    assert_eq!(
        called_twice(|e| e.seen[1].outcome = Outcome::Once),
        [Doubled]
    );
    assert_eq!(called_twice(|e| e.first_closing = 1), [Doubled]);
}

#[test]
fn rows_and_contexts_can_be_out_of_order() {
    assert!(found(|_, rows| rows.rotate_left(2)).contains(&OutOfOrder));
    let reply_away_from_its_prompt = found(|e, rows| {
        // They overlapped, so that either may come first.
        e.seen[1].connections[0].sent = at(0, 0);
        e.seen[1].connections[0].head = Some(at(0, 1));
        e.calls[1].messages.remove(1);
        rows.swap(1, 2);
    });
    assert_eq!(reply_away_from_its_prompt, [OutOfOrder]);
    assert_eq!(found(|e, _| e.calls[1].messages.swap(0, 1)), [OutOfOrder]);
}

#[test]
fn what_is_of_another_conversation_is_mixed_and_of_another_owner_foreign() {
    for (other, kind) in [(ELSEWHERE, Mixed), (ANOTHERS, Foreign)] {
        let is_found = |change: &dyn Fn(&mut Evidence, &mut Vec<Row>)| {
            let found = found(change);
            assert!(found.contains(&kind), "{other}: {found:?}");
        };
        let reply = other.call(0).text(TOKENS).content;
        is_found(&|_, rows| rows[3].message = reply.clone());
        is_found(&|_, rows| rows[2].message = other.prompt());
        is_found(&|e, _| e.seen[1].has.text.content = reply.clone());
        let prompt = ("user".to_owned(), other.prompt());
        is_found(&|e, _| e.calls[1].messages.insert(0, prompt.clone()));
    }
    let both = content(1, 1) + &ELSEWHERE.call(0).text(1).content;
    assert!(found(|_, rows| rows[3].message = both).contains(&Mixed));
    let unknown = row(9, "user", "who?".to_owned(), "complete");
    assert!(found(|_, rows| rows.push(unknown)).contains(&Mixed));
}

#[test]
fn what_names_another_owner_is_foreign_wherever_it_is() {
    let with = |change: &dyn Fn(&mut Evidence, String)| {
        let json = |of: TurnId| format!("{{\"thinking\":\"{of}.0-4~ \"}}");
        assert_eq!(found(|e, _| change(e, json(ELSEWHERE))), NONE);
        assert_eq!(found(|e, _| change(e, json(ANOTHERS))), [Foreign]);
    };
    with(&|e, row| e.stored.whole.push((NAME, row)));
    with(&|e, body| e.calls[1].body += &body);
    let pages = |rows: &[Row], bodies| {
        let shown = |row: &Row| row.raw.as_ref().unwrap_or(&row.message).clone();
        let messages = rows.iter().map(|row| (row.role.clone(), shown(row)));
        let messages = messages.collect();
        Pages { messages, bodies }
    };
    let rows = [prompt(0), reply(0), prompt(1), reply(1)];
    with(&|e, bodies| drop(e.pages.insert(NAME, pages(&rows, bodies))));
}

#[test]
fn what_is_of_no_turn_or_of_two_is_mixed() {
    assert_eq!(found(|_, rows| rows.extend([prompt(2), reply(2)])), [Mixed]);
    for id in [id(2), ELSEWHERE] {
        let (messages, body) = Default::default();
        let unsent = found(|e, _| e.calls.push(Call { id, messages, body }));
        assert_eq!(unsent, [Mixed]);
    }
    assert_eq!(found(|e, _| e.stored.row_count = 1), [Mixed]);
    let under_one_id = found(|_, rows| rows[3].turn = uuid(0));
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
        e.seen[1].connections[0].codes.clear();
    });
    assert_eq!(neither_done_nor_error, [Untrue]);
}

#[test]
fn what_was_refused_is_not_stored_but_for_a_prompt_after_a_500() {
    let refused = |status, prompts: usize, calls: usize| {
        found(|e, rows| {
            let seen = once(e);
            let connection = &mut seen.connections[0];
            connection.end = End::Refused(status);
            connection.is_done = false;
            connection.head = None;
            seen.has.forget();
            e.calls.truncate(1 + calls);
            rows.truncate(2 + prompts);
            e.stored.turns.truncate(1 + prompts);
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
            e.seen[1].connections[0].end = End::Broken;
            e.kills.extend(kill);
        })
    };
    assert_eq!(broken(None), [Untrue]);
    assert_eq!(broken(Some((0, at(1, 3)))), NONE);
}
