//! Splits a byte stream into NDJSON lines, however the network chunked it.
//!
//! Takes chunks and yields lines without their terminator (`\n` or `\r\n`). A line that lies within
//! one chunk is borrowed from it; only a line that spans chunks is copied, once. Each byte is scanned
//! once, and a line over the cap uses no memory beyond the cap. Knows no JSON and does no I/O.

use std::ops::ControlFlow;

use memchr::memchr;

/// One line of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A whole line, without its terminator.
    Whole(&'a [u8]),
    /// A line with more bytes than the cap; all of it is skipped.
    TooLong,
}

/// The splitter's state between two chunks.
#[derive(Debug)]
pub struct LineSplitter {
    /// The start of a line whose terminator has not arrived yet.
    partial: Vec<u8>,
    /// The most bytes a line may have, its terminator not counted.
    cap: usize,
    /// Inside a line that was already reported as too long.
    skipping: bool,
}

impl LineSplitter {
    /// A splitter for lines of at most `cap` bytes.
    pub fn new(cap: usize) -> Self {
        Self {
            partial: Vec::new(),
            cap,
            skipping: false,
        }
    }

    /// Takes the next chunk and calls `on_line` for each line that ends in it, until `on_line` breaks.
    pub fn feed(
        &mut self,
        mut chunk: &[u8],
        mut on_line: impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end);
            chunk = rest.get(1..).unwrap_or_default();
            self.end_line(line, &mut on_line)?;
        }
        self.keep(chunk, &mut on_line)
    }

    /// Ends the stream: what is left is a line too, even without `\n`.
    pub fn finish(&mut self, mut on_line: impl FnMut(Line<'_>) -> ControlFlow<()>) {
        if !self.partial.is_empty() {
            let _ = self.end_line(&[], &mut on_line);
        }
    }

    fn end_line(
        &mut self,
        tail: &[u8],
        on_line: &mut impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if std::mem::take(&mut self.skipping) {
            return ControlFlow::Continue(());
        }
        if self.partial.is_empty() {
            return on_line(self.measured(tail));
        }
        self.partial.extend_from_slice(tail);
        let flow = on_line(self.measured(&self.partial));
        self.partial.clear();
        flow
    }

    fn measured<'a>(&self, line: &'a [u8]) -> Line<'a> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.cap {
            Line::TooLong
        } else {
            Line::Whole(line)
        }
    }

    /// Keeps the start of a line. One byte over the cap may be the `\r` of its terminator.
    fn keep(
        &mut self,
        start: &[u8],
        on_line: &mut impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.skipping {
            return ControlFlow::Continue(());
        }
        if self.partial.len() + start.len() > self.cap.saturating_add(1) {
            self.skipping = true;
            self.partial = Vec::new();
            return on_line(Line::TooLong);
        }
        self.partial.extend_from_slice(start);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines of `input`, fed in chunks that end at each of `cuts`; `None` is a line over the cap.
    fn lines(input: &[u8], cap: usize, cuts: &[usize]) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let mut splitter = LineSplitter::new(cap);
        let mut keep = |line: Line<'_>| {
            found.push(match line {
                Line::Whole(line) => Some(line.to_vec()),
                Line::TooLong => None,
            });
            ControlFlow::Continue(())
        };
        let mut start = 0;
        for &cut in cuts {
            assert!(splitter.feed(&input[start..cut], &mut keep).is_continue());
            start = cut;
        }
        assert!(splitter.feed(&input[start..], &mut keep).is_continue());
        splitter.finish(&mut keep);
        found
    }

    fn whole(lines: &[&str]) -> Vec<Option<Vec<u8>>> {
        lines
            .iter()
            .map(|line| Some(line.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn lines_end_with_either_terminator_and_the_last_needs_none() {
        assert_eq!(lines(b"a\r\nb\nc", 9, &[]), whole(&["a", "b", "c"]));
    }

    #[test]
    fn a_carriage_return_inside_a_line_stays() {
        assert_eq!(lines(b"a\rb\n", 9, &[]), whole(&["a\rb"]));
    }

    #[test]
    fn a_line_of_exactly_the_cap_passes_with_either_end() {
        for input in ["four\n", "four\r\n", "four"] {
            for cut in 0..input.len() {
                assert_eq!(lines(input.as_bytes(), 4, &[cut]), whole(&["four"]));
            }
        }
    }

    #[test]
    fn a_line_over_the_cap_is_reported_once_and_the_next_one_is_whole() {
        let input = b"12345678901234567890\nok\n";
        for cut in 0..input.len() {
            assert_eq!(
                lines(input, 4, &[cut]),
                [None, Some(b"ok".to_vec())],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn no_line_is_yielded_after_the_reader_breaks() {
        let mut seen = 0;
        let flow = LineSplitter::new(9).feed(b"a\nb\nc\n", |_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert_eq!((flow, seen), (ControlFlow::Break(()), 1));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_network_chunked(
            input in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            mut cuts in prop::collection::vec(0usize..200, 0..12),
            cap in 0usize..60,
        ) {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(input.len()));
            cuts.sort_unstable();
            prop_assert_eq!(lines(&input, cap, &cuts), lines(&input, cap, &[]));
        }

        #[test]
        fn memory_stays_under_the_cap(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
        ) {
            let mut splitter = LineSplitter::new(16);
            for chunk in chunks {
                let _ = splitter.feed(&chunk, |_| ControlFlow::Continue(()));
                prop_assert!(splitter.partial.len() <= 17);
            }
        }
    }
}
