//! Replays the fuzz corpus, and the fixtures, on stable: the same properties as `fuzz/`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

// Not a dependency: the fuzz crate is no member of the workspace and links a fuzzer.
#[path = "../../fuzz/src/properties.rs"]
#[allow(unreachable_pub, reason = "it is a crate's root elsewhere")]
mod properties;

/// Prefixes are tried of inputs up to this length; a longer one tells nothing new for its time.
const SHORT: usize = 300;

fn replay(target: &str, property: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = files(&root.join("fuzz/corpus").join(target));
    assert!(!files.is_empty(), "the corpus of {target} is missing");
    files.extend(self::files(&root.join("tests/fixtures")));
    for file in files {
        let input = fs::read(&file).unwrap();
        println!("{}", file.display());
        property(&input);
        if input.len() <= SHORT {
            (0..input.len()).for_each(|end| property(&input[..end]));
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
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
