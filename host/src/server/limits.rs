//! What a platform cuts off: responses that take too long or grow too large.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::Error;

use crate::output::Output;

/// The limits of one response. The component is not told of them: what goes over is broken off.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseLimits {
    /// From the arrival of the request to the end of the response.
    pub time: Option<Duration>,
    /// Bytes of the response's body.
    pub bytes: Option<u64>,
}

/// The limits of a response that has begun to be made.
pub(super) struct Meter {
    end: Option<Pin<Box<Sleep>>>,
    left: u64,
    limits: ResponseLimits,
    output: Output,
}

impl Meter {
    pub(super) fn start(limits: ResponseLimits, output: Output) -> Self {
        let end = limits
            .time
            .and_then(|time| Instant::now().checked_add(time));
        Self {
            end: end.map(|end| Box::pin(tokio::time::sleep_until(end))),
            left: limits.bytes.unwrap_or(u64::MAX),
            limits,
            output,
        }
    }

    /// Waits until the response has taken too long.
    pub(super) async fn too_long(&mut self) {
        match &mut self.end {
            Some(end) => end.as_mut().await,
            None => std::future::pending().await,
        }
    }

    fn broken_off(&self, why: impl std::fmt::Display) -> Error {
        self.output
            .line(format_args!("a response was broken off: {why}"));
        Error::HttpResponseIncomplete
    }
}

/// A body that breaks off at the limits.
pub(super) struct Limited<B> {
    pub(super) body: B,
    pub(super) meter: Meter,
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Limited<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(end) = &mut this.meter.end
            && end.as_mut().poll(cx).is_ready()
        {
            let time = this.meter.limits.time.unwrap_or_default();
            let why = format_args!("it took longer than {time:?}");
            return Poll::Ready(Some(Err(this.meter.broken_off(why))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = this.meter.left.checked_sub(length) else {
                let bytes = this.meter.limits.bytes.unwrap_or_default();
                let why = format_args!("it had more than {bytes} bytes");
                return Poll::Ready(Some(Err(this.meter.broken_off(why))));
            };
            this.meter.left = left;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    fn limited<B>(body: B, bytes: Option<u64>, time: Option<Duration>) -> Limited<B> {
        Limited {
            body,
            meter: Meter::start(ResponseLimits { time, bytes }, Output::capture()),
        }
    }

    #[tokio::test]
    async fn a_body_breaks_off_that_is_too_large() {
        for (bytes, is_whole) in [(None, true), (Some(4), true), (Some(3), false)] {
            let body = Full::new(Bytes::from_static(b"text")).map_err(|never| match never {});
            let limited = limited(body, bytes, Some(Duration::from_secs(60)));
            let output = limited.meter.output.clone();
            assert_eq!(limited.collect().await.is_ok(), is_whole, "{bytes:?}");
            let is_told = output
                .text()
                .contains("broken off: it had more than 3 bytes");
            assert_eq!(is_told, !is_whole);
        }
    }

    #[tokio::test]
    async fn a_body_breaks_off_that_takes_too_long() {
        let body = StreamBody::new(futures_util::stream::pending());
        let limited = limited(body, None, Some(Duration::from_millis(20)));
        let output = limited.meter.output.clone();
        assert!(limited.collect().await.is_err());
        assert!(
            output
                .text()
                .contains("broken off: it took longer than 20ms")
        );
    }
}
