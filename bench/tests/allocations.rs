//! A token without JSON escapes is relayed without an allocation.

use llmchat::reply::position::Attempt;
use llmchat::reply::{Caps, End, Pipeline, Whitespace};
use ollama_stand_in::wire;

const CAPS: Caps = Caps {
    line: 1 << 20,
    completion: 4 << 20,
    stream: usize::MAX,
};

/// The allocations of relaying a reply with ids, reallocations included.
fn allocations(tokens: usize) -> u64 {
    let texts = [" the", " quick", "est", " way", ",", " said", " Zoë", "."];
    let texts = texts.iter().cycle().take(tokens);
    let lines = texts.map(|text| wire::token(text)).chain([wire::done()]);
    let reply: String = lines.map(|line| line + "\n").collect();
    let attempt = Some(Attempt::new(0).short());
    let counted = allocation_counter::measure(|| {
        let mut pipeline = Pipeline::new(CAPS, Whitespace::Collapse, attempt);
        let mut events = Vec::with_capacity(32 << 10);
        for chunk in reply.as_bytes().chunks(16 << 10) {
            let _ = pipeline.feed(chunk, &mut events);
            events.clear();
        }
        drop(pipeline.end(End::Closed));
    });
    counted.count_total
}

#[test]
fn tokens_without_escapes_are_relayed_without_allocating() {
    let (short, long) = (allocations(2_000), allocations(4_000));
    assert!(short > 0, "allocations are not counted");
    // The reply's own buffer doubles.
    assert!(long - short <= 2);
}
