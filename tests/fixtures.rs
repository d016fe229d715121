//! Replays the fixtures through the pure path, cut at every point: the events and the stored text
//! must not depend on how the network cut the bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use llmchat::reply::position::Attempt;
use llmchat::reply::{self, Caps, End, Pipeline, Whitespace};
use llmchat_fixtures::{without_ids, without_messages};

const CAPS: Caps = Caps {
    line: 1 << 20,
    completion: 1 << 20,
    stream: usize::MAX,
};

/// An attempt whose short form is `00000000`.
const ATTEMPT: u128 = 0;

/// What the client is sent for `chunks`, the ids of the events, and what is stored.
fn relay(chunks: &[&[u8]]) -> (String, String, String) {
    let mut events = Vec::new();
    let attempt = Some(Attempt::new(ATTEMPT).short());
    let mut pipeline = Pipeline::new(CAPS, Whitespace::Collapse, attempt);
    let flow = chunks
        .iter()
        .try_for_each(|chunk| pipeline.feed(chunk, &mut events));
    if flow.is_continue() {
        pipeline.finish(&mut events);
    }
    let outcome = pipeline.end(End::Closed);
    reply::write_last(&outcome.last, None, attempt, &mut events);
    let stored = outcome.reply.map(|it| it.message).unwrap_or_default();
    let (events, ids) = without_ids(str::from_utf8(&events).unwrap());
    (without_messages(&events), ids, stored)
}

#[test]
fn every_fixture_gives_the_same_events_at_every_split_point() {
    let fixtures = llmchat_fixtures::all().unwrap();
    assert!(fixtures.len() > 10, "the fixtures are missing");
    for fixture in fixtures {
        let (name, input) = (&fixture.name, &fixture.ndjson);
        let expected = (fixture.sse, fixture.ids, fixture.reply);
        for cut in 0..=input.len() {
            let (head, tail) = input.split_at(cut);
            assert_eq!(relay(&[head, tail]), expected, "{name} cut at {cut}");
        }
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(relay(&bytes), expected, "{name} byte by byte");
    }
}
