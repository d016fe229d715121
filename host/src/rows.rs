//! A query's rows as a stream and its outcome as a future, the way both of Spin's
//! database interfaces hand them out.
//!
//! The component's read is what draws rows from the database: one that reads slowly holds
//! the database back, and no result has to fit into memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, StreamProducer, StreamResult, VecBuffer};

/// Rows handed over at once, if so many have come.
pub(crate) const BATCH: usize = 64;

/// What a query yields: rows, and perhaps an error after them.
type Source<R, E> = Pin<Box<dyn Stream<Item = Result<R, E>> + Send>>;

/// Rows on their way into a component.
pub(crate) struct Rows<R, E> {
    /// `None` when it has ended, and with it whatever it holds of the database.
    source: Option<Source<R, E>>,
    outcome: Option<oneshot::Sender<Result<(), E>>>,
}

/// The stream and the future. `lost` is the outcome of rows that were not read to their end.
pub(crate) fn split<R, E>(
    source: impl Stream<Item = Result<R, E>> + Send + 'static,
    lost: impl FnOnce() -> E + Send + 'static,
) -> (
    Rows<R, E>,
    impl Future<Output = wasmtime::Result<Result<(), E>>> + Send + 'static,
)
where
    E: Send + 'static,
{
    let (sender, outcome) = oneshot::channel();
    let rows = Rows {
        source: Some(Box::pin(source)),
        outcome: Some(sender),
    };
    (rows, async move {
        Ok(outcome.await.unwrap_or_else(|_| Err(lost())))
    })
}

impl<R, E> Rows<R, E> {
    /// Rows that have come, at least one unless they have ended.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Vec<R>> {
        let mut batch = Vec::new();
        while let Some(source) = &mut self.source
            && batch.len() < BATCH
        {
            let outcome = match source.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(row))) => {
                    batch.push(row);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => Err(error),
                Poll::Ready(None) => Ok(()),
                Poll::Pending if batch.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            // A connection goes back to its pool first: whoever hears the outcome may want it next.
            self.source = None;
            if let Some(sender) = self.outcome.take() {
                let _ = sender.send(outcome);
            }
        }
        Poll::Ready(batch)
    }
}

impl<D, R: Send + Sync + 'static, E: Send + 'static> StreamProducer<D> for Rows<R, E> {
    type Item = R;
    type Buffer = VecBuffer<R>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, R, VecBuffer<R>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // A reader that asks for nothing wants to know whether it is worth asking:
        // a row taken for it might be lost.
        if destination.remaining(store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let this = self.get_mut();
        match this.poll_batch(cx) {
            Poll::Ready(batch) => {
                destination.set_buffer(batch.into());
                Poll::Ready(Ok(match this.source {
                    Some(_) => StreamResult::Completed,
                    None => StreamResult::Dropped,
                }))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
