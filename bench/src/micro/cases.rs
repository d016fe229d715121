//! What is run, on what.

use std::hint::black_box;
use std::ops::ControlFlow;

use llmchat::reply::ndjson::{Line, LineSplitter};
use llmchat::reply::transcode::Transcoder;
use llmchat::reply::wire::ChatChunk;
use llmchat::reply::{End, Pipeline, Whitespace};
use ollama_stand_in::wire;

/// The operator's limits, by default.
const LINE_CAP: usize = 1 << 20;
const REPLY_CAP: usize = 4 << 20;

/// What is read from Ollama at once when it is fast.
const CHUNK: usize = 16 << 10;

/// What the tokens are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Words.
    Plain,
    /// Each with something that JSON escapes: such a one must be copied to be read.
    Escaped,
}

impl Tokens {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Escaped];

    pub fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Escaped => "escaped",
        }
    }

    fn texts(self) -> [&'static str; 8] {
        match self {
            Self::Plain => [" the", " quick", "est", " way", ",", " said", " Zoë", "."],
            Self::Escaped => ["\n", " \"a", "\\n", "\t\t", "<b>", "&&", "\"\n", " <\"q\">"],
        }
    }
}

/// A reply of Ollama's.
pub struct Input {
    all: Vec<u8>,
    lines: Vec<Vec<u8>>,
}

impl Input {
    /// One of `count` tokens and its last line.
    pub fn of(tokens: Tokens, count: usize) -> Self {
        let texts = tokens.texts();
        let texts = texts.iter().cycle().take(count);
        let mut lines: Vec<_> = texts.map(|text| wire::token(text).into_bytes()).collect();
        lines.push(wire::done().into_bytes());
        for line in &mut lines {
            line.push(b'\n');
        }
        Self {
            all: lines.concat(),
            lines,
        }
    }

    pub fn bytes(&self) -> usize {
        self.all.len()
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.lines.iter();
        lines.map(|line| line.strip_suffix(b"\n").unwrap_or(line))
    }
}

/// A part of the path, or all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Splitter,
    Parser,
    Transcoder,
    PipelineOfLines,
    PipelineOfChunks,
}

impl Case {
    pub const ALL: [Self; 5] = [
        Self::Splitter,
        Self::Parser,
        Self::Transcoder,
        Self::PipelineOfLines,
        Self::PipelineOfChunks,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Splitter => "split, chunks of 16 KiB",
            Self::Parser => "parse",
            Self::Transcoder => "parse, transcode, frame",
            Self::PipelineOfLines => "all, a line a chunk",
            Self::PipelineOfChunks => "all, chunks of 16 KiB",
        }
    }

    /// Its name on the command line.
    pub fn name(self, tokens: Tokens) -> String {
        format!("{self:?}-{tokens:?}")
    }

    /// One pass.
    pub fn run(self, input: &Input) {
        match self {
            Self::Splitter => {
                let mut splitter = LineSplitter::new(LINE_CAP);
                for chunk in input.all.chunks(CHUNK) {
                    let _ = splitter.feed(black_box(chunk), |line| {
                        black_box(line);
                        ControlFlow::Continue(())
                    });
                }
            }
            Self::Parser => {
                for line in input.lines() {
                    let _ = black_box(ChatChunk::parse(black_box(line)));
                }
            }
            Self::Transcoder => {
                let mut transcoder = Transcoder::new(Whitespace::Collapse, REPLY_CAP);
                let mut events = Vec::with_capacity(CHUNK);
                for line in input.lines() {
                    if let Some(event) = transcoder.accept(Line::Whole(black_box(line))) {
                        event.write_to(&mut events);
                    }
                    sent(&mut events);
                }
                black_box(transcoder.end(End::Closed));
            }
            Self::PipelineOfLines => pipeline(input.lines.iter().map(Vec::as_slice)),
            Self::PipelineOfChunks => pipeline(input.all.chunks(CHUNK)),
        }
    }
}

/// The case with this name.
pub fn by_name(name: &str) -> Option<(Case, Tokens)> {
    let all = Case::ALL.into_iter();
    let mut all = all.flat_map(|case| Tokens::ALL.map(|tokens| (case, tokens)));
    all.find(|(case, tokens)| case.name(*tokens) == name)
}

fn pipeline<'a>(chunks: impl Iterator<Item = &'a [u8]>) {
    let mut pipeline = Pipeline::new(LINE_CAP, REPLY_CAP, Whitespace::Collapse);
    let mut events = Vec::with_capacity(2 * CHUNK);
    for chunk in chunks {
        let _ = pipeline.feed(black_box(chunk), &mut events);
        sent(&mut events);
    }
    black_box(pipeline.end(End::Closed));
}

/// As a turn does: one write a chunk, and the buffer is used again.
fn sent(events: &mut Vec<u8>) {
    black_box(events.as_slice());
    events.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::allocations;

    #[test]
    fn each_case_is_found_by_its_name() {
        for case in Case::ALL {
            for tokens in Tokens::ALL {
                assert_eq!(by_name(&case.name(tokens)), Some((case, tokens)));
            }
        }
    }

    #[test]
    fn tokens_without_escapes_are_relayed_without_allocating() {
        let (short, long) = (
            Input::of(Tokens::Plain, 2_000),
            Input::of(Tokens::Plain, 4_000),
        );
        let count = |input| allocations::count(|| Case::PipelineOfChunks.run(input));
        // The reply's own buffer doubles.
        assert!(count(&long) - count(&short) <= 2);
    }
}
