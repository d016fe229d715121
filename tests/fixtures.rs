//! Replays `tests/fixtures` through the pure path, cut at every point: the events and the stored
//! text must not depend on how the network cut the bytes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use llmchat::reply::{self, End, Pipeline, Whitespace};

/// What the client is sent for `chunks`, and what is stored.
fn relay(chunks: &[&[u8]]) -> (String, String) {
    let mut events = Vec::new();
    let mut pipeline = Pipeline::new(1 << 20, 1 << 20, Whitespace::Collapse);
    let flow = chunks
        .iter()
        .try_for_each(|chunk| pipeline.feed(chunk, &mut events));
    if flow.is_continue() {
        pipeline.finish(&mut events);
    }
    let outcome = pipeline.end(End::Closed);
    reply::write_last(&outcome.last, None, &mut events);
    let stored = outcome.reply.map(|(text, _)| text).unwrap_or_default();
    (String::from_utf8(events).unwrap(), stored)
}

/// Puts `{{error:CODE}}` in the place of an error's payload, which must be JSON with that code.
fn without_words(events: &str) -> String {
    let mut after_error = false;
    let lines = events.split('\n').map(|line| {
        let is_payload = std::mem::replace(&mut after_error, line == "event: error");
        if !is_payload {
            return line.to_owned();
        }
        let payload: serde_json::Value =
            serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        assert!(!payload["error"].as_str().unwrap().is_empty());
        format!("data: {{{{error:{}}}}}", payload["code"].as_str().unwrap())
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "ndjson")
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_fixture_gives_the_same_events_at_every_split_point() {
    let fixtures = fixtures();
    assert!(fixtures.len() > 10, "the fixtures are missing");
    for ndjson in fixtures {
        let name = ndjson.display();
        let input = fs::read(&ndjson).unwrap();
        let events = fs::read_to_string(ndjson.with_extension("sse")).unwrap();
        let stored = fs::read_to_string(ndjson.with_extension("reply")).unwrap();
        for cut in 0..=input.len() {
            let (head, tail) = input.split_at(cut);
            let (sent, kept) = relay(&[head, tail]);
            assert_eq!(without_words(&sent), events, "{name} cut at {cut}");
            assert_eq!(kept, stored, "{name} cut at {cut}");
        }
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(
            without_words(&relay(&bytes).0),
            events,
            "{name} byte by byte"
        );
    }
}
