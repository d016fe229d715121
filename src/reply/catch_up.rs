//! Brings a client up to what is stored of an attempt: what it has missed as one event, then the outcome. Or it is
//! told to drop what it has, where that cannot be gone on from.
//!
//! A client that follows a running attempt is brought up to each checkpoint in turn. Takes what is stored, gives
//! events; when to look again, and how long, is the follower's business.

use uuid::Uuid;

use super::kept::{Ending, Halves, Kept, Text};
use super::position::{Attempt, EventId, LastEventId, Position};
use super::sse::{ErrorData, Event};

/// How far a client is.
#[derive(Debug)]
pub struct CatchUp {
    turn: Uuid,
    /// The id of its last event: the one that it came with, then that of what it was sent.
    last: LastEventId,
    /// How much of the attempt was stored when it was last looked at: less than the client has where it has followed
    /// the attempt itself.
    known: Position,
    after_restart: bool,
}

/// What is left to do for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// To look again, at the text [from](CatchUp::from) where it is missing.
    Waiting,
    /// Nothing: it has the outcome.
    Ended,
}

impl CatchUp {
    /// A client of a turn that comes with the id of its last event.
    pub fn new(turn: Uuid, last: LastEventId) -> Self {
        Self {
            turn,
            last,
            known: Position::default(),
            after_restart: false,
        }
    }

    /// Where the text must begin that is looked at next, or before that.
    pub fn from(&self) -> Position {
        self.known
    }

    /// Appends the events that the client is to be sent by what is stored now.
    pub fn send(&mut self, kept: &Kept<'_>, events: &mut Vec<u8>) -> Progress {
        let attempt = kept.attempt.short();
        let has = match self.last {
            LastEventId::Absent => Some(Position::default()),
            LastEventId::Id(EventId::Token(of, position)) if of == attempt => Some(position),
            LastEventId::Id(_) | LastEventId::Unreadable => None,
        };
        let is_ahead = |has: Position| has.is_beyond(kept.text.end());
        if kept.ending == Ending::Running && has.is_some_and(is_ahead) {
            self.known = kept.text.end();
            return Progress::Waiting;
        }
        let is_whole = kept.text.from == Position::default();
        let before_the_line = match kept.ending {
            // White space alone is not stored, so the text may lack that of the line.
            Ending::Line(line) => kept
                .text
                .before(line)
                .or(is_whole.then_some((kept.text, Halves::default()))),
            _ => Some((kept.text, Halves::default())),
        };
        let missed = before_the_line.and_then(|(text, halves)| Some((text.after(has?)?, halves)));
        let (missed, halves) = match missed {
            Some(missed) => missed,
            None => {
                self.restart(kept.attempt, events);
                match before_the_line {
                    Some(whole) if is_whole => whole,
                    _ => return Progress::Waiting,
                }
            }
        };
        // With half a character the client is inside of that, where nobody can go on.
        let mut end = missed.end();
        end.content += usize::from(halves.content.is_some());
        end.thinking += usize::from(halves.thinking.is_some());
        let id = EventId::Token(attempt, end);
        if !missed.is_empty() || halves != Halves::default() {
            id.write_to(events);
            self.data(&missed_line(kept, &missed, halves), events);
        }
        self.last = LastEventId::Id(id);
        self.known = end;
        self.end(kept, events)
    }

    fn end(&mut self, kept: &Kept<'_>, events: &mut Vec<u8>) -> Progress {
        if kept.ending.is_stored() {
            EventId::End(kept.attempt.short()).write_to(events);
        }
        match kept.ending {
            Ending::Running => return Progress::Waiting,
            Ending::Line(line) => self.data(line, events),
            Ending::Receipt { reason } => {
                self.data(&receipt(kept.model, kept.created_at, reason), events);
            }
            Ending::Error { text, code } | Ending::Unknown { text, code } => {
                let data = ErrorData {
                    error: text.into(),
                    code,
                    message: None,
                };
                Event::Error(data).write_to(events);
            }
        }
        Progress::Ended
    }

    fn restart(&mut self, attempt: Attempt, events: &mut Vec<u8>) {
        write_restart(self.turn, attempt, events);
        self.after_restart = true;
        self.last = LastEventId::Id(EventId::Token(attempt.short(), Position::default()));
        self.known = Position::default();
    }

    fn data(&mut self, line: &str, events: &mut Vec<u8>) {
        Event::data(line, std::mem::take(&mut self.after_restart)).write_to(events);
    }
}

/// Appends the event that tells a client to drop what it has of a turn: what follows is an attempt from its start. The
/// next event of data must carry its type, as after an error.
pub fn write_restart(turn: Uuid, attempt: Attempt, events: &mut Vec<u8>) {
    let attempt = attempt.id();
    let data = format!("{{\"turn\":\"{turn}\",\"attempt\":\"{attempt}\"}}");
    events.extend_from_slice(b"event: restart\n");
    Event::Data(&data).write_to(events);
}

/// The last line of a reply that has none of Ollama's.
pub fn receipt(model: &str, created_at: &str, reason: &str) -> String {
    let mut line = line(model, created_at, &Text::default(), Halves::default());
    line.push_str("true,\"done_reason\":");
    push_text(reason, None, &mut line);
    line.push('}');
    line
}

fn missed_line(kept: &Kept<'_>, missed: &Text<'_>, halves: Halves) -> String {
    let mut line = line(kept.model, kept.created_at, missed, halves);
    line.push_str("false}");
    line
}

/// A line as Ollama writes it, as far as the value of `done`. By hand: serde's derive and `RawValue` would be 5 KiB of
/// the component (measured).
fn line(model: &str, created_at: &str, text: &Text<'_>, halves: Halves) -> String {
    let mut json = String::from("{\"model\":");
    push_text(model, None, &mut json);
    json.push_str(",\"created_at\":");
    push_text(created_at, None, &mut json);
    json.push_str(",\"message\":{\"role\":\"assistant\",\"content\":");
    push_text(text.content, halves.content, &mut json);
    if !text.thinking.is_empty() || halves.thinking.is_some() {
        json.push_str(",\"thinking\":");
        push_text(text.thinking, halves.thinking, &mut json);
    }
    if !text.calls.is_empty() {
        json.push_str(",\"tool_calls\":[");
        // Between the tokens of a call there can be line breaks, which would end the event.
        json.extend(text.calls.chars().map(|c| if c == '\n' { ' ' } else { c }));
        json.push(']');
    }
    json.push_str("},\"done\":");
    json
}

/// Appends the JSON of a text, which may end with half a character.
fn push_text(text: &str, half: Option<u16>, json: &mut String) {
    // Serialising into memory cannot fail.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
    if let Some(half) = half {
        json.pop();
        json.push_str(&format!("\\u{half:04x}\""));
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::convert::Infallible;

    use eventsource_stream::Eventsource;
    use futures_util::{FutureExt, StreamExt, stream};
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::reply::{Caps, End, Mark, Pipeline, Whitespace};

    const TURN: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);
    const TIME: &str = "2026-08-01T12:00:00.000000Z";

    fn attempt() -> Attempt {
        Attempt::new(0x0b5e_1f0a << 96)
    }

    fn other_attempt() -> Attempt {
        Attempt::new(0x0b5e_1f0b << 96)
    }

    fn kept<'a>(content: &'a str, ending: Ending<'a>) -> Kept<'a> {
        Kept {
            attempt: attempt(),
            model: "m\"",
            created_at: TIME,
            text: Text {
                content,
                ..Text::default()
            },
            ending,
        }
    }

    fn read(id: &str) -> LastEventId {
        LastEventId::read(&[id])
    }

    /// What a client with this id is sent.
    fn sent(id: &str, kept: &Kept<'_>) -> (String, Progress) {
        let mut events = Vec::new();
        let progress = CatchUp::new(TURN, read(id)).send(kept, &mut events);
        (String::from_utf8(events).unwrap(), progress)
    }

    const RESTART: &str = "event: restart\ndata: {\"turn\":\"01990000-0000-7000-8000-000000000001\",\"attempt\":\"0b5e1f0a-0000-4000-8000-000000000000\"}\n\n";

    const FINAL: &str = r#"{"message":{"content":"!"}, "done":true}"#;

    #[test]
    fn what_was_missed_is_one_event_in_ollamas_shape_and_the_final_line_is_as_it_was() {
        let missed = |content| {
            format!(
                "data: {{\"model\":\"m\\\"\",\"created_at\":\"{TIME}\",\"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},\"done\":false}}\n\n"
            )
        };
        let last = format!("id: 0b5e1f0a.end\ndata: {FINAL}\n\n");
        let kept = kept("Hé you!", Ending::Line(FINAL));
        assert_eq!(
            sent("0b5e1f0a.3.0.0", &kept),
            (
                format!("id: 0b5e1f0a.7.0.0\n{}{last}", missed(" you")),
                Progress::Ended
            )
        );
        assert_eq!(sent("0b5e1f0a.7.0.0", &kept).0, last);
        let whole = format!(
            "data: {last}",
            last = missed("Hé you").replacen("data: ", "", 1)
        );
        assert_eq!(
            sent("", &kept).0,
            format!("id: 0b5e1f0a.7.0.0\n{whole}{last}")
        );
        assert_eq!(
            sent("nonsense", &kept).0,
            format!("{RESTART}id: 0b5e1f0a.7.0.0\nevent: message\n{whole}{last}")
        );
    }

    #[test]
    fn a_reply_of_one_line_is_that_line() {
        let kept = kept("!", Ending::Line(FINAL));
        let last = format!("id: 0b5e1f0a.end\ndata: {FINAL}\n\n");
        assert_eq!(sent("", &kept).0, last);
        let last = format!("{RESTART}id: 0b5e1f0a.end\nevent: message\ndata: {FINAL}\n\n");
        assert_eq!(sent("0b5e1f0a.1.0.0", &kept).0, last);
    }

    #[test]
    fn of_a_blank_reply_there_is_the_final_line() {
        let line = r#"{"message":{"content":" \n"},"done":true}"#;
        let last = format!("id: 0b5e1f0a.end\ndata: {line}\n\n");
        assert_eq!(sent("", &kept("", Ending::Line(line))).0, last);
        let events = sent("0b5e1f0a.3.0.0", &kept("", Ending::Line(line))).0;
        assert!(events.starts_with(RESTART), "{events}");
    }

    #[test]
    fn thinking_and_calls_are_there_where_there_are_any() {
        let mut kept = kept("", Ending::Running);
        kept.text.thinking = "hm";
        kept.text.calls = "{\"a\":\n1},{}";
        let (events, progress) = sent("", &kept);
        assert_eq!(progress, Progress::Waiting);
        let message =
            r#"{"role":"assistant","content":"","thinking":"hm","tool_calls":[{"a": 1},{}]}"#;
        assert!(events.starts_with("id: 0b5e1f0a.0.2.2\ndata: "), "{events}");
        assert!(events.contains(message), "{events}");
        let (events, _) = sent("0b5e1f0a.0.2.1", &kept);
        let message = r#"{"role":"assistant","content":"","tool_calls":[{}]}"#;
        assert!(events.contains(message), "{events}");
    }

    #[test]
    fn a_client_that_has_the_outcome_is_sent_nothing() {
        let error = Ending::Error { text: "", code: "" };
        let receipt = Ending::Receipt { reason: "stopped" };
        for ending in [Ending::Line(FINAL), receipt, error] {
            let kept = kept("!", ending);
            assert!(kept.is_known_to(read("0b5e1f0a.end")));
            for id in ["", "0b5e1f0a.1.0.0", "0b5e1f0b.end", "0b5e1f0a.end.", "x"] {
                assert!(!kept.is_known_to(read(id)), "{id}");
            }
        }
        let unknown = Ending::Unknown { text: "", code: "" };
        for ending in [Ending::Running, unknown] {
            assert!(!kept("!", ending).is_known_to(read("0b5e1f0a.end")));
        }
    }

    #[test]
    fn an_id_that_cannot_be_gone_on_from_restarts() {
        let ended = kept("aé!", Ending::Line(FINAL));
        for id in [
            "0b5e1f0b.1.0.0",
            "0b5e1f0b.end",
            "0b5e1f0a.2.0.0",
            // Within the final line.
            "0b5e1f0a.4.0.0",
            "0b5e1f0a.5.0.0",
            "0b5e1f0a.1.1.0",
            "0b5e1f0a.1.0.1",
            "x",
        ] {
            let (events, _) = sent(id, &ended);
            assert!(events.starts_with(RESTART), "{id}: {events}");
            assert!(events.contains("\nevent: message\n"), "{id}: {events}");
            assert_eq!(events.matches("event: message").count(), 1, "{id}");
        }
        let unknown = Ending::Unknown {
            text: "gone",
            code: "turn_orphaned",
        };
        assert!(
            sent("0b5e1f0a.9.0.0", &kept("a", unknown))
                .0
                .starts_with(RESTART)
        );
    }

    #[test]
    fn an_error_has_an_id_where_it_is_stored() {
        let (text, code) = ("it broke", "ollama_broke_off");
        let error =
            "event: error\ndata: {\"error\":\"it broke\",\"code\":\"ollama_broke_off\"}\n\n";
        assert_eq!(
            sent("0b5e1f0a.1.0.0", &kept("a", Ending::Error { text, code })),
            (format!("id: 0b5e1f0a.end\n{error}"), Progress::Ended)
        );
        assert_eq!(
            sent("0b5e1f0a.1.0.0", &kept("a", Ending::Unknown { text, code })),
            (error.to_owned(), Progress::Ended)
        );
    }

    #[test]
    fn a_reply_that_was_stopped_has_a_receipt_even_if_nothing_had_come() {
        let (events, progress) = sent("", &kept("", Ending::Receipt { reason: "stopped" }));
        assert_eq!(progress, Progress::Ended);
        assert_eq!(
            events,
            format!(
                "id: 0b5e1f0a.end\ndata: {{\"model\":\"m\\\"\",\"created_at\":\"{TIME}\",\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,\"done_reason\":\"stopped\"}}\n\n"
            )
        );
    }

    #[test]
    fn who_is_ahead_of_a_running_attempt_is_waited_for_and_of_an_ended_one_restarted() {
        let follow = |second: Kept<'_>| {
            let mut client = CatchUp::new(TURN, read("0b5e1f0a.4.0.0"));
            let mut events = Vec::new();
            let first = kept("ab", Ending::Running);
            assert_eq!(client.send(&first, &mut events), Progress::Waiting);
            assert!(events.is_empty());
            assert_eq!(client.from().content, 2);
            client.send(&second, &mut events);
            String::from_utf8(events).unwrap()
        };
        let second = |content, ending| {
            let mut kept = kept(content, ending);
            kept.text.from.content = 2;
            kept
        };
        let events = follow(second("cdef", Ending::Running));
        assert!(events.starts_with("id: 0b5e1f0a.6.0.0\ndata: "), "{events}");
        assert!(events.contains(r#""content":"ef""#), "{events}");
        assert_eq!(follow(second("cd", Ending::Running)), "");
        assert_eq!(follow(second("é", Ending::Running)), "");
        assert_eq!(follow(second("céf", Ending::Running)), RESTART);
        let error = Ending::Error { text: "", code: "" };
        assert_eq!(follow(second("c", error)), RESTART);
        let events = follow(kept("abc", error));
        assert!(events.starts_with(RESTART), "{events}");
        assert!(events.contains(r#""content":"abc""#), "{events}");
    }

    #[test]
    fn a_follower_of_an_attempt_that_is_replaced_restarts() {
        let mut client = CatchUp::new(TURN, LastEventId::Absent);
        let mut events = Vec::new();
        client.send(&kept("ab", Ending::Running), &mut events);
        let mut second = kept("xy", Ending::Running);
        second.attempt = other_attempt();
        events.clear();
        assert_eq!(client.send(&second, &mut events), Progress::Waiting);
        let events = String::from_utf8(events).unwrap();
        assert!(events.starts_with("event: restart\ndata: {"), "{events}");
        assert!(events.contains("\"attempt\":\"0b5e1f0b-"), "{events}");
        assert!(
            events.contains("\n\nid: 0b5e1f0b.2.0.0\nevent: message\n"),
            "{events}"
        );
        assert_eq!(client.from().content, 2);
    }

    #[test]
    fn the_first_half_of_a_character_that_the_final_line_completes_is_not_lost() {
        let line = r#"{"message":{"content":"\ude00"},"done":true}"#;
        let kept = kept("a😀", Ending::Line(line));
        let (events, _) = sent("0b5e1f0a.1.0.0", &kept);
        assert!(events.starts_with("id: 0b5e1f0a.2.0.0\n"), "{events}");
        assert!(events.contains(r#""content":"\ud83d"}"#), "{events}");
        // This client has the half.
        assert!(sent("0b5e1f0a.2.0.0", &kept).0.starts_with(RESTART));
    }

    /// A piece of a reply, as a line of Ollama's brings it.
    #[derive(Debug, Clone, Default)]
    struct Piece {
        content: String,
        thinking: String,
        calls: Vec<&'static str>,
    }

    impl Piece {
        fn line(&self, done: bool) -> String {
            let calls: Vec<Value> = self
                .calls
                .iter()
                .map(|call| serde_json::from_str(call).unwrap())
                .collect();
            let mut line = json!({"message": {"content": self.content}, "done": done});
            if !self.thinking.is_empty() {
                line["message"]["thinking"] = json!(self.thinking);
            }
            if !calls.is_empty() {
                line["message"]["tool_calls"] = json!(calls);
            }
            line.to_string()
        }
    }

    /// A reply, as it is stored or as a client has it.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Reply {
        content: String,
        thinking: String,
        calls: Vec<String>,
    }

    impl Reply {
        fn of(pieces: &[Piece]) -> Self {
            let mut reply = Self::default();
            for piece in pieces {
                reply.content += &piece.content.replace('\0', "\u{fffd}");
                reply.thinking += &piece.thinking.replace('\0', "\u{fffd}");
                reply
                    .calls
                    .extend(piece.calls.iter().map(|it| (*it).to_owned()));
            }
            reply
        }

        fn end(&self) -> Position {
            Position {
                content: self.content.len(),
                thinking: self.thinking.len(),
                calls: self.calls.len(),
            }
        }

        /// The stored form from `from` on.
        fn kept<R>(
            &self,
            from: Position,
            ending: Ending<'_>,
            read: impl FnOnce(&Kept<'_>) -> R,
        ) -> R {
            let calls = self.calls[from.calls..].join(",");
            let text = Text {
                from,
                content: &self.content[from.content..],
                thinking: &self.thinking[from.thinking..],
                calls: &calls,
            };
            read(&Kept {
                text,
                ..kept("", ending)
            })
        }
    }

    #[derive(Default)]
    struct Client {
        has: Reply,
        id: String,
        last: Option<String>,
        restarts: usize,
    }

    impl Client {
        fn take(&mut self, events: &[u8]) {
            let chunks = stream::iter([Ok::<_, Infallible>(events.to_vec())]);
            let events = chunks
                .eventsource()
                .collect::<Vec<_>>()
                .now_or_never()
                .unwrap();
            for event in events {
                let event = event.unwrap();
                if !event.id.is_empty() {
                    self.id = event.id;
                }
                assert_eq!(self.last, None, "nothing follows the outcome");
                match event.event.as_str() {
                    "restart" => {
                        self.has = Reply::default();
                        self.restarts += 1;
                    }
                    "error" => self.last = Some(event.data),
                    "message" => self.message(event.data),
                    other => panic!("{other}"),
                }
            }
        }

        fn message(&mut self, data: String) {
            let line: Value = serde_json::from_str(&data).unwrap();
            let text = |name: &str| {
                let text = line["message"][name].as_str().unwrap_or_default();
                text.replace('\0', "\u{fffd}")
            };
            self.has.content += &text("content");
            self.has.thinking += &text("thinking");
            let calls = line["message"]["tool_calls"].as_array();
            self.has
                .calls
                .extend(calls.into_iter().flatten().map(Value::to_string));
            if line["done"] == true {
                self.last = Some(data);
            }
        }
    }

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let text = "[ab \\r\\n\"\\\\\\x00\u{85}\u{2028}é\u{fffd}😀👩\u{200d}\u{301}]{0,4}";
        let calls = prop::sample::subsequence(
            vec![r#"{"a":"},{\"","b":[{},[1,"]"]]}"#, "{}", r#"{"é":null}"#],
            0..=3,
        );
        let calls = prop_oneof![3 => Just(Vec::new()), 1 => calls];
        let piece = (text, prop_oneof![Just(String::new()), text], calls).prop_map(
            |(content, thinking, calls)| Piece {
                content,
                thinking,
                calls,
            },
        );
        prop::collection::vec(piece, 0..8)
    }

    /// The units of UTF-16 of a JSON string, which may end inside a character.
    fn units(json: &str) -> Vec<u16> {
        let inside = json
            .strip_prefix('"')
            .and_then(|it| it.strip_suffix('"'))
            .unwrap();
        let mut units = Vec::new();
        let mut chars = inside.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
                continue;
            }
            units.push(match chars.next().unwrap() {
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    u16::from_str_radix(&digits, 16).unwrap()
                }
                'n' => 10,
                'r' => 13,
                't' => 9,
                'b' => 8,
                'f' => 12,
                itself => itself as u16,
            });
        }
        units
    }

    /// A client that joins texts as JavaScript does.
    #[derive(Debug, Default)]
    struct Browser {
        content: Vec<u16>,
        thinking: Vec<u16>,
        calls: Vec<String>,
        id: String,
        is_done: bool,
    }

    impl Browser {
        fn take(&mut self, events: &[u8]) {
            #[derive(Deserialize)]
            struct Line<'a> {
                #[serde(borrow)]
                message: Message<'a>,
                done: bool,
            }
            #[derive(Deserialize)]
            struct Message<'a> {
                #[serde(borrow)]
                content: Option<&'a RawValue>,
                #[serde(borrow)]
                thinking: Option<&'a RawValue>,
                #[serde(borrow, default)]
                tool_calls: Option<Vec<&'a RawValue>>,
            }
            let chunks = stream::iter([Ok::<_, Infallible>(events.to_vec())]);
            for event in chunks
                .eventsource()
                .collect::<Vec<_>>()
                .now_or_never()
                .unwrap()
            {
                let event = event.unwrap();
                if !event.id.is_empty() {
                    self.id = event.id;
                }
                match event.event.as_str() {
                    "restart" => {
                        *self = Self {
                            id: std::mem::take(&mut self.id),
                            ..Self::default()
                        }
                    }
                    "message" => {
                        let line: Line<'_> = serde_json::from_str(&event.data).unwrap();
                        let text = |json: Option<&RawValue>| {
                            json.map(|it| units(it.get())).unwrap_or_default()
                        };
                        self.content.extend(text(line.message.content));
                        self.thinking.extend(text(line.message.thinking));
                        self.calls.extend(
                            line.message
                                .tool_calls
                                .iter()
                                .flatten()
                                .map(|it| it.get().to_owned()),
                        );
                        self.is_done = line.done;
                    }
                    _ => {}
                }
            }
        }

        fn reply(&self) -> (String, String, String) {
            let text = |units: &[u16]| String::from_utf16_lossy(units).replace('\0', "\u{fffd}");
            (
                text(&self.content),
                text(&self.thinking),
                self.calls.join(","),
            )
        }
    }

    /// Lines as Ollama may write them: with texts that are cut between any units, calls, and some that are left out.
    fn lines() -> impl Strategy<Value = Vec<String>> {
        let text = prop::collection::vec(
            prop::sample::select(vec![
                "a", "\\ud83d", "\\ude00", "\\u0000", " ", "\\n", "é", "\\u00e9", "😀", "\\ufffd",
                "\u{2028}",
            ]),
            0..4,
        );
        let text = text.prop_map(|parts| parts.concat());
        let calls = prop::sample::select(vec![
            "",
            "",
            "[]",
            "null",
            r#"[{"a" : "},\\""} , {}]"#,
            "[{}]",
        ]);
        let line = (text.clone(), prop_oneof![Just(String::new()), text], calls).prop_map(
            |(content, thinking, calls)| {
                let thinking = if thinking.is_empty() {
                    String::new()
                } else {
                    format!(r#","thinking":"{thinking}""#)
                };
                let calls = if calls.is_empty() {
                    String::new()
                } else {
                    format!(r#","tool_calls":{calls}"#)
                };
                format!(r#"{{"message":{{"content":"{content}"{thinking}{calls}}},"done":false}}"#)
            },
        );
        let line = prop_oneof![8 => line, 1 => Just("left out".to_owned())];
        prop::collection::vec(line, 1..10)
    }

    fn pipeline() -> Pipeline {
        let caps = Caps {
            line: 1000,
            completion: 1000,
            stream: 100_000,
        };
        Pipeline::new(caps, Whitespace::Collapse, Some(attempt().short()))
    }

    proptest! {
        #[test]
        fn a_browser_that_is_cut_off_has_in_the_end_what_is_stored(
            mut lines in lines(),
            seen in 0usize..10,
            checkpoint in 0usize..10,
            is_done: bool,
        ) {
            if let Some(last) = lines.last_mut().filter(|_| is_done) {
                *last = last.replace(r#""done":false"#, r#""done":true"#);
            }
            let mut browser = Browser::default();
            let mut catch_up = None;
            let mut live = pipeline();
            let mut marked = None;
            for (i, line) in lines.iter().enumerate() {
                if i == seen {
                    catch_up = Some(CatchUp::new(TURN, read(&browser.id)));
                }
                let mut events = Vec::new();
                let is_over = live.feed(format!("{line}\n").as_bytes(), &mut events).is_break();
                if i < seen {
                    browser.take(&events);
                }
                // A checkpoint stores no part of the final line.
                if i == checkpoint && !is_over {
                    let growth = live.since(&Mark::default());
                    let texts = [growth.content, growth.thinking, growth.calls];
                    marked = Some(texts.map(str::to_owned));
                }
            }
            let mut catch_up = catch_up.unwrap_or_else(|| CatchUp::new(TURN, read(&browser.id)));
            if let Some([content, thinking, calls]) = &marked {
                let text = Text { from: Position::default(), content, thinking, calls };
                let mut events = Vec::new();
                catch_up.send(&Kept { text, ..kept("", Ending::Running) }, &mut events);
                browser.take(&events);
            }
            let outcome = live.end(End::Closed);
            let final_line = outcome.final_line().map(Cow::into_owned);
            let ending = match &final_line {
                Some(line) => Ending::Line(line),
                None => Ending::Error { text: "x", code: "ollama_ended_early" },
            };
            let reply = outcome.reply.as_ref();
            let text = |text: Option<&String>| text.cloned().unwrap_or_default();
            let (thinking, calls) = (text(reply.and_then(|it| it.thinking.as_ref())), text(reply.and_then(|it| it.calls.as_ref())));
            let content = reply.map(|it| it.content()).unwrap_or_default();
            let stored = Text { from: Position::default(), content, thinking: &thinking, calls: &calls };
            let from = catch_up.from();
            let text = stored.after(from).unwrap_or(stored);
            let mut events = Vec::new();
            if catch_up.send(&Kept { text, ..kept("", ending) }, &mut events) == Progress::Waiting {
                let progress = catch_up.send(&Kept { text: stored, ..kept("", ending) }, &mut events);
                prop_assert_eq!(progress, Progress::Ended);
            }
            browser.take(&events);
            prop_assert_eq!(browser.is_done, final_line.is_some());
            prop_assert_eq!(&browser.id, "0b5e1f0a.end");
            // White space alone is not stored.
            if reply.is_some() {
                prop_assert_eq!(browser.reply(), (content.to_owned(), thinking, calls));
            }
        }
    }

    proptest! {
        /// A client is cut off somewhere in a reply, comes back while it runs or when it has ended, and follows it
        /// from checkpoint to checkpoint.
        #[test]
        fn what_a_client_had_and_what_it_is_sent_are_the_whole(
            pieces in pieces(),
            last in pieces(),
            seen in 0usize..8,
            checkpoints in prop::collection::vec(0usize..8, 0..4),
            is_line: bool,
            is_read_whole: bool,
        ) {
            let final_piece = last.first().cloned().unwrap_or_default();
            let line = final_piece.line(true);
            let mut client = Client::default();
            for (i, piece) in pieces.iter().enumerate().take(seen) {
                let mut event = Vec::new();
                let position = Reply::of(&pieces[..=i]).end();
                EventId::Token(attempt().short(), position).write_to(&mut event);
                Event::data(&piece.line(false), false).write_to(&mut event);
                client.take(&event);
            }
            let mut catch_up = CatchUp::new(TURN, read(&client.id));
            let from = |catch_up: &CatchUp| match is_read_whole {
                true => Position::default(),
                false => catch_up.from(),
            };
            let mut checkpoints: Vec<_> = checkpoints.into_iter().map(|it| it.min(pieces.len())).collect();
            checkpoints.sort_unstable();
            for checkpoint in checkpoints {
                let mut events = Vec::new();
                let progress = Reply::of(&pieces[..checkpoint])
                    .kept(from(&catch_up), Ending::Running, |kept| catch_up.send(kept, &mut events));
                prop_assert_eq!(progress, Progress::Waiting);
                client.take(&events);
                let most = checkpoint.max(seen.min(pieces.len()));
                prop_assert_eq!(&client.has, &Reply::of(&pieces[..most]));
            }
            let mut whole = pieces.clone();
            let receipt = receipt("m\"", TIME, "stopped");
            let (ending, outcome) = match is_line {
                true => {
                    whole.push(final_piece);
                    (Ending::Line(&line), &line)
                }
                false => (Ending::Receipt { reason: "stopped" }, &receipt),
            };
            let mut events = Vec::new();
            let progress = Reply::of(&whole)
                .kept(from(&catch_up), ending, |kept| catch_up.send(kept, &mut events));
            prop_assert_eq!(progress, Progress::Ended);
            client.take(&events);
            prop_assert_eq!(client.has, Reply::of(&whole));
            prop_assert_eq!(client.restarts, 0);
            let outcome = outcome.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028");
            prop_assert_eq!(client.last, Some(outcome));
            prop_assert_eq!(client.id, "0b5e1f0a.end");
        }

        /// What a client had of a reply that lost its end, or of another attempt, does not matter.
        #[test]
        fn whatever_the_id_says_the_client_has_the_whole_or_goes_on_from_there(
            pieces in pieces(),
            last in pieces(),
            (content, thinking, calls) in (0usize..40, 0usize..20, 0usize..4),
            is_attempt: bool,
            is_line: bool,
        ) {
            let before = Reply::of(&pieces);
            let mut all = pieces;
            all.extend(last.first().filter(|_| is_line).cloned());
            let whole = Reply::of(&all);
            let line = last.first().cloned().unwrap_or_default().line(true);
            let position = Position { content, thinking, calls };
            let of = if is_attempt { attempt() } else { other_attempt() };
            let id = EventId::Token(of.short(), position);
            let mut client = Client::default();
            let is_from_there = is_attempt
                && before.content.get(content..).is_some()
                && before.thinking.get(thinking..).is_some()
                && before.calls.get(calls..).is_some();
            client.has = Reply {
                content: whole.content.get(..content).unwrap_or("?").to_owned(),
                thinking: whole.thinking.get(..thinking).unwrap_or("?").to_owned(),
                calls: whole.calls.iter().take(calls).cloned().collect(),
            };
            let ending = match is_line {
                true => Ending::Line(&line),
                false => Ending::Error { text: "x", code: "ollama_broke_off" },
            };
            let mut events = Vec::new();
            let mut catch_up = CatchUp::new(TURN, LastEventId::Id(id));
            let progress = whole.kept(Position::default(), ending, |kept| catch_up.send(kept, &mut events));
            prop_assert_eq!(progress, Progress::Ended);
            client.take(&events);
            prop_assert_eq!(client.has, whole);
            prop_assert_eq!(client.restarts, usize::from(!is_from_there));
        }
    }
}
