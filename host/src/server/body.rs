//! The beginning of a request's body, read before an instance gives it a place: a client that sends
//! one byte and then nothing costs a connection, no more.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;
use wasmtime_wasi_http::Error;

/// Bytes after which the rest is the component's to wait for: more than nearly all bodies have.
const BEGINNING: usize = 64 * 1024;

/// How long a client that still sends may take to do so before it is refused.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a body was not read.
pub(super) enum NotRead {
    TimedOut,
    BrokeOff,
}

/// A body of which the beginning has come.
pub(super) struct Begun {
    beginning: Option<Bytes>,
    trailers: Option<Frame<Bytes>>,
    rest: Incoming,
}

pub(super) async fn read_beginning(mut body: Incoming, limit: Duration) -> Result<Begun, NotRead> {
    let mut beginning = BytesMut::new();
    let mut trailers = None;
    timeout(limit, async {
        while beginning.len() < BEGINNING {
            let Some(frame) = body.frame().await else {
                break;
            };
            match frame.map_err(|_| NotRead::BrokeOff)?.into_data() {
                Ok(data) => beginning.extend_from_slice(&data),
                Err(frame) => trailers = Some(frame),
            }
        }
        Ok(())
    })
    .await
    .map_err(|_| NotRead::TimedOut)??;
    Ok(Begun {
        beginning: (!beginning.is_empty()).then(|| beginning.freeze()),
        trailers,
        rest: body,
    })
}

/// Reads what has no use, so that a client which still sends reads the refusal: it would find its
/// connection reset.
pub(super) async fn discard(mut body: Incoming) {
    let _ = timeout(DISCARD_TIMEOUT, async {
        let mut length = 0;
        while length < BEGINNING {
            let Some(Ok(frame)) = body.frame().await else {
                break;
            };
            length += frame.data_ref().map_or(1, Bytes::len);
        }
    })
    .await;
}

impl Body for Begun {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(beginning) = self.beginning.take() {
            return Poll::Ready(Some(Ok(Frame::data(beginning))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        let frame = Pin::new(&mut self.rest).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.beginning.is_none() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let beginning = self.beginning.as_ref().map_or(0, |it| it.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + beginning);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + beginning);
        }
        hint
    }
}
