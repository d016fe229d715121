//! The pure path, which runs once a token: Ollama's bytes -> lines -> events -> bytes. This is
//! native code; the component's is compiled from the same source.
//!
//! `cargo bench -p llmchat-bench` shows, for a whole reply, the time, tokens and bytes a second,
//! and allocations; `tests/allocations.rs` has the goal for these.

use std::ops::ControlFlow;

use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use llmchat::reply::ndjson::LineSplitter;
use llmchat::reply::position::{Attempt, Short};
use llmchat::reply::wire::ChatChunk;
use llmchat::reply::{Caps, End, Pipeline, Whitespace};
use ollama_stand_in::wire;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const TOKENS: usize = 2_000;

/// The operator's limits, by default.
const LINE_CAP: usize = 1 << 20;
const CAPS: Caps = Caps {
    line: LINE_CAP,
    completion: 4 << 20,
    stream: usize::MAX,
};

/// What one read from a fast Ollama gives.
const CHUNK: usize = 16 << 10;

const PLAIN: [&str; 8] = [" the", " quick", "est", " way", ",", " said", " Zoë", "."];

/// JSON escapes a part of each, which must then be copied to be read.
const ESCAPED: [&str; 8] = ["\n", " \"a", "\\n", "\t\t", "<b>", "&&", "\"\n", " <q>"];

fn main() {
    divan::main();
}

/// Runs `work` on the lines of a reply, with their newlines.
fn bench(bencher: Bencher<'_, '_>, tokens: &str, work: impl Fn(&[Vec<u8>])) {
    let texts = if tokens == "escaped" { ESCAPED } else { PLAIN };
    let tokens = texts.iter().cycle().take(TOKENS);
    let lines = tokens.map(|text| wire::token(text)).chain([wire::done()]);
    let lines: Vec<_> = lines.map(|line| (line + "\n").into_bytes()).collect();
    bencher
        .counter(BytesCount::new(lines.concat().len()))
        .counter(ItemsCount::new(TOKENS))
        .bench_local(|| work(&lines));
}

#[divan::bench(args = ["plain", "escaped"])]
fn split(bencher: Bencher<'_, '_>, tokens: &str) {
    bench(bencher, tokens, |lines| {
        let mut splitter = LineSplitter::new(LINE_CAP);
        for line in lines {
            let _ = splitter.feed(black_box(line), |line| {
                black_box(line);
                ControlFlow::Continue(())
            });
        }
    });
}

#[divan::bench(args = ["plain", "escaped"])]
fn parse(bencher: Bencher<'_, '_>, tokens: &str) {
    bench(bencher, tokens, |lines| {
        for line in lines {
            let _ = black_box(ChatChunk::parse(black_box(line.trim_ascii_end())));
        }
    });
}

/// Splits, parses, transcodes and frames, with a write for each line.
#[divan::bench(args = ["plain", "escaped"])]
fn all(bencher: Bencher<'_, '_>, tokens: &str) {
    relay(bencher, tokens, None);
}

/// The same with an id for each event.
#[divan::bench(args = ["plain", "escaped"])]
fn all_with_ids(bencher: Bencher<'_, '_>, tokens: &str) {
    relay(bencher, tokens, Some(Attempt::new(0).short()));
}

fn relay(bencher: Bencher<'_, '_>, tokens: &str, attempt: Option<Short>) {
    bench(bencher, tokens, |lines| {
        let mut pipeline = Pipeline::new(CAPS, Whitespace::Collapse, attempt);
        let mut events = Vec::with_capacity(CHUNK);
        for line in lines {
            let _ = pipeline.feed(black_box(line), &mut events);
            black_box(events.as_slice());
            events.clear();
        }
        black_box(pipeline.end(End::Closed));
    });
}
