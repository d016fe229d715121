//! The rows of a query as a stream and its outcome as a future, as both of Spin's database
//! interfaces return them.
//!
//! The component's reads pull rows from the database: a slow reader holds the database back, and
//! no result has to fit into memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Destination, FutureReader, Lift, Lower, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};

use crate::instance::Spin;

/// Rows handed over at once, if so many have arrived.
pub(crate) const BATCH: usize = 64;

/// The largest row that Spin hands out: the `MAX_HOST_BUFFERED_BYTES` of its source.
pub(crate) const MAX_ROW_BYTES: usize = 128 << 20;

/// Refuses a row that is too large, with Spin's message.
pub(crate) fn check_size(row_bytes: usize, max_row_bytes: usize) -> Result<(), String> {
    match row_bytes > max_row_bytes {
        true => Err(format!(
            "query result exceeds limit of {max_row_bytes} bytes"
        )),
        false => Ok(()),
    }
}

type Readers<R, E> = (StreamReader<R>, FutureReader<Result<(), E>>);

/// Hands rows to the component. `unread` is the outcome of those that it does not read to their end.
pub(crate) fn readers<T, R, E>(
    accessor: &Accessor<T, Spin>,
    rows: impl Stream<Item = Result<R, E>> + Send + 'static,
    unread: fn(String) -> E,
) -> wasmtime::Result<Readers<R, E>>
where
    R: Lower + Lift + Send + Sync + 'static,
    E: Lower + Lift + Send + Sync + 'static,
{
    let (sender, outcome) = oneshot::channel();
    let rows = Rows {
        source: Some(Box::pin(rows)),
        outcome: Some(sender),
    };
    let outcome = async move {
        let unread = |_| Err(unread("the rows were dropped unread".to_owned()));
        Ok::<_, wasmtime::Error>(outcome.await.unwrap_or_else(unread))
    };
    accessor.with(|mut access| {
        let rows = StreamReader::new(&mut access, rows)?;
        Ok((rows, FutureReader::new(&mut access, outcome)?))
    })
}

/// Rows, and perhaps an error after them.
type Source<R, E> = Pin<Box<dyn Stream<Item = Result<R, E>> + Send>>;

struct Rows<R, E> {
    /// `None` once it has ended, and with it what it holds of the database.
    source: Option<Source<R, E>>,
    outcome: Option<oneshot::Sender<Result<(), E>>>,
}

impl<R, E> Rows<R, E> {
    /// The rows that have arrived, at least one unless they have ended.
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
            // First a connection goes back to its pool: whoever receives the outcome may need it.
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
        // A read of no rows only waits for the stream to be ready: a row taken for it might be lost.
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
