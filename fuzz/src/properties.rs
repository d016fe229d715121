//! What must hold for any input: one function for each fuzz target.
//!
//! Each takes the bytes that a fuzzer (or the corpus) gives and panics where a property does not
//! hold. How the network cut the bytes is derived from the bytes, so that a corpus file is just
//! what a stranger might send. Run by the fuzz targets and, on stable, by
//! `tests/corpus.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a property that does not hold is told by a panic"
)]

use std::ops::ControlFlow;

use eventsource_stream::Eventsource;
use futures_util::{FutureExt, StreamExt};
use llmchat::conversation::{APP_ID_MAX_CHARS, ROLE_MAX_CHARS, ReplyStatus};
use llmchat::error::Rejection;
use llmchat::ollama::body;
use llmchat::reply::ndjson::{Line, LineSplitter};
use llmchat::reply::sse::{self, ErrorData};
use llmchat::reply::transcode::Transcoder;
use llmchat::reply::{self, End, Last, Pipeline, Whitespace};
use llmchat::request::{ChatRequest, Limits};
use serde_json::Value;
use serde_json::value::RawValue;

/// A cap that no input reaches.
const LARGE: usize = 1 << 20;
/// Bytes of events that are read byte by byte.
const SHORT: usize = 512;
/// Limits on a request that few inputs reach.
const LIMITS: Limits = Limits {
    body_bytes: LARGE,
    messages: 100,
};

/// The splitter: lines do not depend on the cuts, are those of a plain split, and none is over
/// the cap.
pub fn lines(input: &[u8]) {
    for cap in [0, 1, 7, 64, LARGE] {
        let expected = plain_split(input, cap);
        for chunks in ways_to_cut(input) {
            let mut found = Vec::new();
            let mut keep = |line: Line<'_>| {
                found.push(match line {
                    Line::Whole(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                });
                ControlFlow::Continue(())
            };
            let mut splitter = LineSplitter::new(cap);
            for chunk in chunks {
                assert!(splitter.feed(chunk, &mut keep).is_continue());
            }
            splitter.finish(&mut keep);
            assert_eq!(found, expected, "cap {cap}");
        }
    }
}

/// The lines as anybody would split them who has all the bytes; `None` is one over the cap.
fn plain_split(input: &[u8], cap: usize) -> Vec<Option<Vec<u8>>> {
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    // What comes after the last newline is a line only if there is something.
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let without_return = lines
        .iter()
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    without_return
        .map(|line| (line.len() <= cap).then(|| line.to_vec()))
        .collect()
}

/// The whole path: what is sent and stored does not depend on the cuts; what is sent is read back
/// by an independent parser; what was shown is what is stored; and that is bounded.
pub fn pipeline(input: &[u8]) {
    for (whitespace, line_cap, reply_cap) in [
        (Whitespace::Collapse, LARGE, LARGE),
        (Whitespace::Preserve, LARGE, LARGE),
        (Whitespace::Collapse, 120, 9),
    ] {
        let whole = relay(&[input], line_cap, reply_cap, whitespace);
        for chunks in ways_to_cut(input) {
            let relayed = relay(&chunks, line_cap, reply_cap, whitespace);
            assert_eq!(relayed, whole, "depends on the cuts");
        }
        let payloads = payloads(input, line_cap, reply_cap, whitespace);
        let read = read(&[&whole.events]);
        assert_eq!(read, payloads, "not read back as it was meant");
        whole.check(&payloads, reply_cap, whitespace);
    }
}

/// What became of a reply.
#[derive(Debug, PartialEq)]
struct Relayed {
    events: Vec<u8>,
    reply: Option<(String, ReplyStatus)>,
    last: Last,
}

fn relay(chunks: &[&[u8]], line_cap: usize, reply_cap: usize, whitespace: Whitespace) -> Relayed {
    let mut events = Vec::new();
    let mut pipeline = Pipeline::new(line_cap, reply_cap, whitespace);
    let flow = chunks
        .iter()
        .try_for_each(|chunk| pipeline.feed(chunk, &mut events));
    if flow.is_continue() {
        pipeline.finish(&mut events);
    }
    let outcome = pipeline.end(End::Closed);
    reply::write_last(&outcome.last, None, &mut events);
    Relayed {
        events,
        reply: outcome.reply,
        last: outcome.last,
    }
}

impl Relayed {
    fn check(&self, payloads: &[(String, String)], reply_cap: usize, whitespace: Whitespace) {
        let is_done = matches!(self.last, Last::Done(_));
        let text = match &self.reply {
            None => "",
            Some((text, status)) => {
                assert_eq!(*status == ReplyStatus::Complete, is_done);
                assert!(!text.is_empty());
                text
            }
        };
        assert!(text.len() <= reply_cap, "stored {} bytes", text.len());
        assert!(!text.contains('\0'));
        if whitespace == Whitespace::Collapse {
            assert!(!text.contains("  "));
            assert!(text.chars().all(|c| c == ' ' || !c.is_whitespace()));
        }
        // What the client shows its user, taken from the events by another JSON reader; one that
        // refuses what ours does not look into has nothing to say.
        let shown: Option<String> = payloads
            .iter()
            .filter(|(kind, _)| kind == "message")
            .map(|(_, data)| {
                let line: Value = serde_json::from_str(data).ok()?;
                Some(
                    line["message"]["content"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                )
            })
            .collect();
        if let Some(shown) = shown {
            assert_eq!(
                text,
                stored_form(&shown, whitespace),
                "stored is not what was shown"
            );
        }
        for (_, data) in payloads {
            assert!(!data.contains(['\r', '\n']));
        }
    }
}

/// The form in which a text is stored, said in other words than the component's.
fn stored_form(shown: &str, whitespace: Whitespace) -> String {
    let text = shown.replace('\0', "\u{fffd}");
    if whitespace == Whitespace::Preserve {
        return text;
    }
    let mut words: Vec<&str> = text.split(char::is_whitespace).collect();
    // Empty words in the middle are runs of white space; at the ends they are its one space.
    let last = words.len() - 1;
    let mut index = 0;
    words.retain(|word| {
        index += 1;
        !word.is_empty() || index == 1 || index == last + 1
    });
    words.join(" ")
}

/// The events that should come out, as pairs of type and payload, before anything is framed.
fn payloads(
    input: &[u8],
    line_cap: usize,
    reply_cap: usize,
    whitespace: Whitespace,
) -> Vec<(String, String)> {
    let mut payloads = Vec::new();
    let mut transcoder = Transcoder::new(whitespace, reply_cap);
    let mut accept = |line: Line<'_>| {
        payloads.extend(transcoder.accept(line).map(|event| payload(&event)));
        match transcoder.is_over() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let mut splitter = LineSplitter::new(line_cap);
    if splitter.feed(input, &mut accept).is_continue() {
        splitter.finish(&mut accept);
    }
    match transcoder.end(End::Closed).last {
        Last::Done(line) => payloads.push(payload(&sse::Event::Data(&line))),
        Last::Error(error) => payloads.push(payload(&sse::Event::Error(ErrorData {
            error: error.text,
            code: error.code.as_str(),
            message: None,
        }))),
        Last::Nothing => {}
    }
    payloads
}

fn payload(event: &sse::Event<'_>) -> (String, String) {
    match event {
        sse::Event::Data(json) => ("message".to_owned(), json.replace('\r', " ")),
        sse::Event::Error(data) => ("error".to_owned(), serde_json::to_string(data).unwrap()),
    }
}

/// The framing: any text as an error's words, any line and any JSON as a payload, one after the
/// other and among comments, are read back as the same events.
pub fn sse(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let line = text.replace('\n', "");
    let json = serde_json::to_string(&text).unwrap();
    let raw: Option<&RawValue> = serde_json::from_str(&line).ok();
    let error = |message| {
        sse::Event::Error(ErrorData {
            error: text.as_ref().into(),
            code: "some_code",
            message,
        })
    };
    let events = [
        error(None),
        sse::Event::Data(&line),
        sse::Event::Data(&json),
        error(raw),
    ];
    let mut framed = Vec::new();
    let mut expected = Vec::new();
    for event in &events {
        framed.extend_from_slice(sse::COMMENT);
        event.write_to(&mut framed);
        let (kind, data) = payload(event);
        expected.push((kind, data.replace('\r', " ")));
    }
    let found = read(&[&framed]);
    assert_eq!(found, expected);
    // Only short ones: that parser scans an event anew for each chunk.
    if framed.len() <= SHORT {
        for chunks in ways_to_cut(&framed) {
            assert_eq!(read(&chunks), found, "depends on the cuts");
        }
    }
    for (kind, data) in &found {
        if kind == "error" {
            let data: Value = match serde_json::from_str(data) {
                Ok(data) => data,
                // The withheld message may be what only a lenient reader takes.
                Err(_) if raw.is_some() => continue,
                Err(error) => panic!("an error event is no JSON: {error}"),
            };
            assert_eq!(data["error"], *text);
        }
    }
}

/// Reads a stream of events, chunk by chunk, with a parser that is not ours.
fn read(chunks: &[&[u8]]) -> Vec<(String, String)> {
    let chunks = chunks
        .iter()
        .copied()
        .map(Ok::<_, std::convert::Infallible>);
    let events = futures_util::stream::iter(chunks).eventsource();
    let events = events.map(|event| {
        let event = event.unwrap();
        (event.event, event.data)
    });
    events.collect().now_or_never().unwrap()
}

/// The request reader: a refusal is a JSON error that says so; what is let through holds the
/// promises of its types, and is the same after it was written down and read again.
pub fn request(input: &[u8]) {
    let request = match ChatRequest::parse(input, &LIMITS) {
        Ok(request) => request,
        Err(refusal) => {
            assert!(refusal.to_string().starts_with("Deserializing request: "));
            let rejection = Rejection::from(refusal);
            assert_eq!(rejection.status.as_u16(), 422);
            let body: Value = serde_json::from_slice(&rejection.to_json()).unwrap();
            assert_eq!(body["error"], rejection.error);
            return;
        }
    };
    let app_id = request.app_id.as_str();
    assert!((1..=APP_ID_MAX_CHARS).contains(&app_id.chars().count()));
    assert!(!app_id.contains('\0'));
    assert!(!request.model.is_empty());
    for message in &request.messages {
        let role = message.role.as_str();
        assert!((1..=ROLE_MAX_CHARS).contains(&role.chars().count()));
        assert!(!role.contains('\0') && !message.content.as_str().contains('\0'));
    }
    for (name, value) in &request.fields {
        assert!(
            !is_ours(name),
            "`{name}` would reach Ollama as a field of ours"
        );
        serde_json::from_str::<Value>(value.get()).unwrap();
    }

    let mut messages = body::begin(&request.model);
    for message in &request.messages {
        messages.push(message.role.as_str(), message.content.as_str());
    }
    let body = body::finish(messages, request.stream, &request.fields);
    let for_ollama: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(for_ollama["model"], request.model);
    assert_eq!(for_ollama["stream"], request.stream);
    let messages = for_ollama["messages"].as_array().unwrap();
    assert_eq!(messages.len(), request.messages.len());
    for (sent, message) in messages.iter().zip(&request.messages) {
        assert_eq!(sent["role"], message.role.as_str());
        assert_eq!(sent["content"], message.content.as_str());
    }

    // What goes to Ollama, with the conversation's name, is a request again: the same one.
    let name = serde_json::to_string(app_id).unwrap();
    let again = [b"{\"appID\":", name.as_bytes(), b",", &body[1..]].concat();
    let again = ChatRequest::parse(&again, &LIMITS).unwrap();
    assert_eq!(again.app_id, request.app_id);
    assert_eq!(again.model, request.model);
    assert_eq!(again.messages, request.messages);
    assert_eq!(again.stream, request.stream);
    let fields = |request: &ChatRequest| -> Vec<(String, String)> {
        let fields = request.fields.iter();
        fields
            .map(|(name, value)| (name.clone(), value.get().to_owned()))
            .collect()
    };
    assert_eq!(fields(&again), fields(&request));
}

/// Whether Ollama would take a field's name for one of those that llmchat writes itself: Go's JSON
/// reader matches names by Unicode's simple case folding, in which the long s is an s and the
/// Kelvin sign a k.
fn is_ours(name: &str) -> bool {
    let folded = name.replace('\u{17f}', "s").replace('\u{212a}', "k");
    ["model", "messages", "stream", "appID"]
        .iter()
        .any(|ours| ours.eq_ignore_ascii_case(&folded))
}

/// The input in one piece, byte by byte, and in pieces whose lengths its own bytes decide.
fn ways_to_cut(input: &[u8]) -> [Vec<&[u8]>; 3] {
    // FNV-1a: the same on every machine.
    let mut state = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut pieces = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let length = (state >> 33) as usize % 24;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    [vec![input], input.chunks(1).collect(), pieces]
}
