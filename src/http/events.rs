//! The writing end of an event stream to a client, for as long as the client is there.

use std::pin::pin;
use std::time::Duration;

use crate::clock::{Clock, Deadline, Ticker};
use crate::spin::wasip3::http::types::{ErrorCode, Fields};
use crate::spin::wit_bindgen::{FutureWriter, StreamResult, StreamWriter};

/// Where the bytes of a response's body are written: WASI's stream in the component, a recording in unit
/// tests.
pub(crate) trait Sink {
    /// Writes some of `bytes`, and returns the rest of them.
    async fn write(&mut self, bytes: Vec<u8>) -> Written;
    /// Ends the body cleanly. A sink that is dropped instead cuts it off.
    async fn close(self);
}

/// The outcome of one write.
#[derive(Debug)]
pub(crate) enum Written {
    /// These bytes remain to be written; the buffer is the one that was given.
    Rest(Vec<u8>),
    /// Nobody reads the body any more.
    ReaderGone,
}

type Trailers = Result<Option<Fields>, ErrorCode>;

/// The body of a response to the client.
pub(crate) struct BodyWriter {
    stream: StreamWriter<u8>,
    end: FutureWriter<Trailers>,
}

impl BodyWriter {
    pub(super) fn new(stream: StreamWriter<u8>, end: FutureWriter<Trailers>) -> Self {
        Self { stream, end }
    }
}

impl Sink for BodyWriter {
    async fn write(&mut self, bytes: Vec<u8>) -> Written {
        match self.stream.write(bytes).await {
            (StreamResult::Complete(_), rest) => Written::Rest(rest.into_vec()),
            _ => Written::ReaderGone,
        }
    }

    async fn close(self) {
        drop(self.stream);
        let _ = self.end.write(Ok(None)).await;
    }
}

/// A stream of events to a client.
///
/// Written directly, without a queue: a client that reads slowly slows its writer. It ends cleanly only by
/// [`close`](Self::close); dropped otherwise, the body is cut off, so that a client never takes a broken
/// stream for a complete one.
pub(crate) struct EventStream<S = BodyWriter> {
    /// `None` once the client has left.
    sink: Option<S>,
}

impl<S: Sink> EventStream<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink: Some(sink) }
    }

    /// Whether the client is still there, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.sink.is_some()
    }

    /// Sends all of `bytes` and empties the buffer, keeping its capacity for the next events.
    ///
    /// A write that fails means that the client has left; one that makes no progress for `stall`, or whose
    /// rest is still to be taken at `end`, is taken to mean the same.
    pub(crate) async fn send(
        &mut self,
        bytes: &mut Vec<u8>,
        ticker: &mut Ticker<impl Clock>,
        stall: Duration,
        end: Deadline,
    ) {
        let Some(sink) = &mut self.sink else {
            bytes.clear();
            return;
        };
        while !bytes.is_empty() {
            if ticker.is_past(end) {
                bytes.clear();
                self.sink = None;
                return;
            }
            let deadline = ticker.deadline(stall).min(end);
            let written = {
                let mut write = pin!(sink.write(std::mem::take(bytes)));
                loop {
                    match ticker.or_tick(write.as_mut()).await {
                        Some(written) => break written,
                        None if ticker.is_past(deadline) => break Written::ReaderGone,
                        None => {}
                    }
                }
            };
            match written {
                Written::Rest(rest) => *bytes = rest,
                Written::ReaderGone => {
                    self.sink = None;
                    return;
                }
            }
        }
    }

    /// Ends the stream cleanly.
    pub(crate) async fn close(self) {
        if let Some(sink) = self.sink {
            sink.close().await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::future::pending;
    use std::rc::Rc;

    use super::*;
    use crate::clock::nanoseconds;
    use crate::clock::tests::Manual;

    const STEP: Duration = Duration::from_millis(10);
    const STALL: Duration = Duration::from_millis(100);
    const END: Duration = Duration::from_secs(1);

    /// A body whose reader takes `at_once` bytes a write, each of which takes `delay`.
    #[derive(Default)]
    pub(crate) struct Recording {
        pub(crate) clock: Manual,
        pub(crate) at_once: usize,
        pub(crate) delay: Duration,
        pub(crate) reader_gone: bool,
        pub(crate) seen: Rc<RefCell<Seen>>,
    }

    #[derive(Debug, Default)]
    pub(crate) struct Seen {
        pub(crate) bytes: Vec<u8>,
        pub(crate) writes: usize,
        pub(crate) closed: bool,
    }

    impl Sink for Recording {
        async fn write(&mut self, mut bytes: Vec<u8>) -> Written {
            self.seen.borrow_mut().writes += 1;
            if self.delay > Duration::ZERO {
                let time = self.clock.elapsed() + self.delay;
                self.clock.wait_until(nanoseconds(time)).await;
            }
            if self.reader_gone {
                return Written::ReaderGone;
            }
            if self.at_once == 0 {
                pending::<()>().await;
            }
            let taken = bytes.drain(..self.at_once.min(bytes.len()));
            self.seen.borrow_mut().bytes.extend(taken);
            Written::Rest(bytes)
        }

        async fn close(self) {
            self.seen.borrow_mut().closed = true;
        }
    }

    fn send(stream: &mut EventStream<Recording>, clock: &Manual, bytes: &mut Vec<u8>) {
        let mut ticker = clock.ticker();
        let end = ticker.deadline(END);
        clock.run(STEP, stream.send(bytes, &mut ticker, STALL, end));
    }

    #[test]
    fn all_bytes_are_sent_in_order_and_the_buffer_is_used_again() {
        let clock = Manual::default();
        for at_once in [1, 3, 100] {
            let sink = Recording {
                at_once,
                ..Recording::default()
            };
            let seen = sink.seen.clone();
            let mut stream = EventStream::new(sink);
            let mut bytes = Vec::with_capacity(64);
            let buffer = bytes.as_ptr();
            for _ in 0..2 {
                bytes.extend_from_slice(b"data: {}\n\n");
                send(&mut stream, &clock, &mut bytes);
                assert!(bytes.is_empty());
                assert_eq!((bytes.as_ptr(), bytes.capacity()), (buffer, 64));
            }
            assert_eq!(seen.borrow().bytes, b"data: {}\n\ndata: {}\n\n");
        }
    }

    #[test]
    fn nothing_is_written_for_a_client_that_has_left() {
        let clock = Manual::default();
        let sink = Recording {
            reader_gone: true,
            ..Recording::default()
        };
        let seen = sink.seen.clone();
        let mut stream = EventStream::new(sink);
        for _ in 0..2 {
            let mut bytes = b"lost".to_vec();
            send(&mut stream, &clock, &mut bytes);
            assert!(bytes.is_empty());
            assert!(!stream.is_open());
        }
        assert_eq!(seen.borrow().writes, 1);
        clock.run(STEP, stream.close());
        assert!(!seen.borrow().closed);
    }

    #[test]
    fn a_client_that_takes_nothing_is_gone_and_one_that_is_slow_is_not() {
        let clock = Manual::default();
        let sink = Recording::default();
        let mut stream = EventStream::new(sink);
        send(&mut stream, &clock, &mut b"stalled".to_vec());
        assert!(!stream.is_open());
        assert!(clock.elapsed() > STALL);

        let sink = Recording {
            clock: clock.clone(),
            at_once: 1,
            delay: STALL - STEP,
            ..Recording::default()
        };
        let seen = sink.seen.clone();
        let mut stream = EventStream::new(sink);
        send(&mut stream, &clock, &mut b"slow".to_vec());
        assert!(stream.is_open());
        assert_eq!(seen.borrow().bytes, b"slow");
    }

    #[test]
    fn a_client_that_is_just_fast_enough_is_gone_at_the_end() {
        for delay in [STALL - STEP, STEP, STEP / 10] {
            let clock = Manual::default();
            let sink = Recording {
                clock: clock.clone(),
                at_once: 1,
                delay,
                ..Recording::default()
            };
            let mut stream = EventStream::new(sink);
            let mut bytes = vec![b'x'; 10_000];
            send(&mut stream, &clock, &mut bytes);
            assert!(!stream.is_open() && bytes.is_empty());
            let late = clock.elapsed() - END;
            assert!(late <= 3 * STEP, "{late:?} after the end");
        }
    }

    #[test]
    fn only_a_stream_that_is_closed_ends_cleanly() {
        let clock = Manual::default();
        let streams = [(), ()].map(|()| {
            let sink = Recording::default();
            (sink.seen.clone(), EventStream::new(sink))
        });
        let [(closed, one), (dropped, other)] = streams;
        clock.run(STEP, one.close());
        drop(other);
        assert!(closed.borrow().closed);
        assert!(!dropped.borrow().closed);
    }
}
