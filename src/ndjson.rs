//! Splits a byte stream into NDJSON lines, wherever the network cut it.
//!
//! Takes chunks, hands out lines without their end (`\n` or `\r\n`). A line that lies within one
//! chunk is borrowed from it; only a line that crosses chunks is copied, once. Each byte is
//! scanned once, and a line over the cap costs no memory beyond the cap. Knows no JSON, no I/O.

use memchr::memchr;

/// What the splitter found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A whole line, without its end.
    Whole(&'a [u8]),
    /// A line with more bytes than the cap; all of it is skipped.
    TooLong,
}

/// The state between two chunks.
#[derive(Debug)]
pub struct LineSplitter {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Bytes in the longest line, its end not counted.
    cap: usize,
    /// Inside a line that was already found too long.
    skipping: bool,
}

impl LineSplitter {
    /// A splitter whose longest line has `cap` bytes.
    pub fn new(cap: usize) -> Self {
        Self {
            partial: Vec::new(),
            cap,
            skipping: false,
        }
    }

    /// Takes the next chunk and calls `on_line` for each line that ends in it, until `on_line`
    /// says that it wants no more.
    pub fn feed(&mut self, mut chunk: &[u8], mut on_line: impl FnMut(Line<'_>) -> More) -> More {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end);
            chunk = rest.get(1..).unwrap_or_default();
            if self.end_line(line, &mut on_line) == More::No {
                return More::No;
            }
        }
        self.keep(chunk, &mut on_line)
    }

    /// The stream has ended: what is left is a line too, even without `\n`.
    pub fn finish(&mut self, mut on_line: impl FnMut(Line<'_>) -> More) {
        if !self.partial.is_empty() {
            self.end_line(&[], &mut on_line);
        }
    }

    fn end_line(&mut self, tail: &[u8], on_line: &mut impl FnMut(Line<'_>) -> More) -> More {
        if std::mem::take(&mut self.skipping) {
            return More::Yes;
        }
        if self.partial.is_empty() {
            return on_line(self.measured(tail));
        }
        self.partial.extend_from_slice(tail);
        let more = on_line(self.measured(&self.partial));
        self.partial.clear();
        more
    }

    fn measured<'a>(&self, line: &'a [u8]) -> Line<'a> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.cap {
            Line::TooLong
        } else {
            Line::Whole(line)
        }
    }

    /// Keeps the beginning of a line. One byte over the cap may be the `\r` of its end.
    fn keep(&mut self, start: &[u8], on_line: &mut impl FnMut(Line<'_>) -> More) -> More {
        if self.skipping {
            return More::Yes;
        }
        if self.partial.len() + start.len() > self.cap.saturating_add(1) {
            self.skipping = true;
            self.partial = Vec::new();
            return on_line(Line::TooLong);
        }
        self.partial.extend_from_slice(start);
        More::Yes
    }
}

/// Whether the reader of lines wants the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// Go on.
    Yes,
    /// The conversation's end was among the lines: what follows is of no interest.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines of `input`, cut before each of `cuts`, as text; `None` is a line over the cap.
    fn lines(input: &[u8], cap: usize, cuts: &[usize]) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let mut splitter = LineSplitter::new(cap);
        let mut keep = |line: Line<'_>| {
            found.push(match line {
                Line::Whole(line) => Some(line.to_vec()),
                Line::TooLong => None,
            });
            More::Yes
        };
        let mut start = 0;
        for &cut in cuts {
            splitter.feed(&input[start..cut], &mut keep);
            start = cut;
        }
        splitter.feed(&input[start..], &mut keep);
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
    fn lines_end_with_either_newline_and_the_last_needs_none() {
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
    fn a_line_over_the_cap_is_told_once_and_the_next_one_is_whole() {
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
    fn nothing_more_is_handed_out_once_the_reader_has_enough() {
        let mut seen = 0;
        let more = LineSplitter::new(9).feed(b"a\nb\nc\n", |_| {
            seen += 1;
            More::No
        });
        assert_eq!((more, seen), (More::No, 1));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_the_network_cut(
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
                splitter.feed(&chunk, |_| More::Yes);
                prop_assert!(splitter.partial.len() <= 17);
            }
        }
    }
}
