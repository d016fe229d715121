//! Replays the fuzz corpus, and the fixtures, on stable: the same properties as `fuzz/`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;

// Not a dependency: the fuzz crate is no member of the workspace and links a fuzzer.
#[path = "../fuzz/src/properties.rs"]
#[allow(unreachable_pub, reason = "it is a crate's root elsewhere")]
mod properties;

/// Inputs up to this length are tried with all their prefixes; the prefixes of longer ones take
/// long and show nothing new.
const SHORT: usize = 300;

/// Files of the corpus and fixtures, each with its name.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut inputs = Vec::new();
    for file in fs::read_dir(corpus.join(target)).unwrap() {
        let path = file.unwrap().path();
        inputs.push((path.display().to_string(), fs::read(path).unwrap()));
    }
    assert!(!inputs.is_empty(), "the corpus of {target} is missing");
    for fixture in llmchat_fixtures::all().unwrap() {
        let texts = [fixture.ndjson, fixture.sse.into(), fixture.reply.into()];
        inputs.extend(texts.map(|text| (fixture.name.clone(), text)));
    }
    inputs.sort();
    inputs
}

fn replay(target: &str, property: fn(&[u8])) {
    for (name, input) in inputs(target) {
        println!("{name}");
        property(&input);
        if input.len() <= SHORT {
            (0..input.len()).for_each(|end| property(&input[..end]));
        }
    }
}

#[test]
fn lines() {
    replay("lines", properties::lines);
}

#[test]
fn pipeline() {
    replay("pipeline", properties::pipeline);
}

#[test]
fn sse() {
    replay("sse", properties::sse);
}

#[test]
fn request() {
    replay("request", properties::request);
}
