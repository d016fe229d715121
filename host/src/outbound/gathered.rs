//! A body in frames as large as what has arrived, instead of one for each chunk of the server's.
//!
//! A fast server sends many small chunks in one segment. Handing them to a component one by one costs
//! it a read, and most often a write, for each.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// Bytes gathered at most; a single frame may be larger.
const LIMIT: usize = 16 * 1024;

/// `body`, gathered. Never waits for more than one frame.
pub(super) struct Gathered<B: Body> {
    body: B,
    /// What followed the bytes that were handed out: trailers, an error, the end.
    after: Option<End<B>>,
}

type End<B> = Option<Result<Frame<Bytes>, <B as Body>::Error>>;

impl<B: Body> Gathered<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, after: None }
    }
}

impl<B> Body for Gathered<B>
where
    B: Body<Data = Bytes, Error: Unpin> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(after) = this.after.take() {
            return Poll::Ready(after);
        }
        let mut first = Bytes::new();
        let mut gathered = BytesMut::new();
        let end = loop {
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => break None,
                Poll::Ready(frame) => frame,
            };
            let bytes = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => bytes,
                Some(Ok(Err(other))) => break Some(Some(Ok(other))),
                Some(Err(error)) => break Some(Some(Err(error))),
                None => break Some(None),
            };
            if first.is_empty() && gathered.is_empty() {
                first = bytes;
            } else {
                if gathered.is_empty() {
                    gathered.reserve(LIMIT);
                    gathered.extend_from_slice(&first);
                }
                gathered.extend_from_slice(&bytes);
            }
            if first.len().max(gathered.len()) >= LIMIT {
                break None;
            }
        };
        if !gathered.is_empty() {
            first = gathered.freeze();
        }
        match end {
            Some(end) if first.is_empty() => Poll::Ready(end),
            None if first.is_empty() => Poll::Pending,
            end => {
                this.after = end;
                Poll::Ready(Some(Ok(Frame::data(first))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.after
            .as_ref()
            .map_or_else(|| self.body.is_end_stream(), Option::is_none)
    }

    fn size_hint(&self) -> SizeHint {
        match self.after {
            Some(_) => SizeHint::with_exact(0),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use futures_util::FutureExt as _;
    use http::HeaderMap;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    type Item = Result<Frame<Bytes>, &'static str>;

    fn body() -> (
        mpsc::UnboundedSender<Item>,
        Gathered<impl Body<Data = Bytes, Error = &'static str> + Unpin>,
    ) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (sender, Gathered::new(StreamBody::new(frames)))
    }

    fn data(text: &'static str) -> Item {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn what_has_arrived_is_one_frame_and_nothing_is_waited_for() {
        let (sender, mut body) = body();
        for text in ["a", "", "b", "c"] {
            sender.send(data(text)).unwrap();
        }
        let mut next = || {
            body.frame()
                .now_or_never()
                .map(|frame| frame?.ok()?.into_data().ok())
        };
        assert_eq!(next(), Some(Some("abc".into())));
        assert_eq!(next(), None);
        sender.send(data("d")).unwrap();
        assert_eq!(next(), Some(Some("d".into())));
        drop(sender);
        assert_eq!(next(), Some(None));
    }

    #[test]
    fn what_follows_the_bytes_comes_after_them() {
        let (sender, mut body) = body();
        sender.send(data("a")).unwrap();
        sender.send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
        sender.send(data("b")).unwrap();
        sender.send(Err("broken")).unwrap();
        let mut next = || body.frame().now_or_never().unwrap().unwrap();
        assert_eq!(next().unwrap().into_data().unwrap(), "a");
        assert!(next().unwrap().is_trailers());
        assert_eq!(next().unwrap().into_data().unwrap(), "b");
        assert_eq!(next().unwrap_err(), "broken");
    }

    #[test]
    fn a_frame_is_bounded() {
        let (sender, mut body) = body();
        let kib: &'static str = Box::leak("x".repeat(1024).into_boxed_str());
        for _ in 0..40 {
            sender.send(data(kib)).unwrap();
        }
        drop(sender);
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().now_or_never().unwrap() {
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(sizes, [LIMIT, LIMIT, 8 * 1024]);
    }
}
