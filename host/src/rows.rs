//! A query's rows as a stream and its outcome as a future, the way both of Spin's
//! database interfaces hand them out.
//!
//! Rows pass through a channel that holds a few: a slow reader holds the database back,
//! and no result has to fit into memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, StreamProducer, StreamResult, VecBuffer};

/// How many rows wait between the database and the component, as in Spin.
const WAITING: usize = 4;

/// The database's ends of the two.
pub(crate) struct Sender<R, E> {
    pub(crate) rows: mpsc::Sender<R>,
    pub(crate) outcome: oneshot::Sender<Result<(), E>>,
}

/// The component's ends of the two.
pub(crate) struct Receiver<R, E> {
    pub(crate) rows: Rows<R>,
    outcome: oneshot::Receiver<Result<(), E>>,
}

pub(crate) fn channel<R, E>() -> (Sender<R, E>, Receiver<R, E>) {
    let (rows_sender, rows) = mpsc::channel(WAITING);
    let (outcome_sender, outcome) = oneshot::channel();
    (
        Sender {
            rows: rows_sender,
            outcome: outcome_sender,
        },
        Receiver {
            rows: Rows(rows),
            outcome,
        },
    )
}

impl<R, E> Receiver<R, E> {
    /// The stream and the future. `lost` stands in where the work ended without a word,
    /// which only a panic does.
    pub(crate) fn split(
        self,
        lost: impl FnOnce() -> E + Send + 'static,
    ) -> (
        Rows<R>,
        impl Future<Output = wasmtime::Result<Result<(), E>>> + Send + 'static,
    )
    where
        E: Send + 'static,
    {
        let outcome = self.outcome;
        (self.rows, async move {
            Ok(outcome.await.unwrap_or_else(|_| Err(lost())))
        })
    }
}

/// Rows on their way into a component.
pub(crate) struct Rows<R>(mpsc::Receiver<R>);

impl<D, R: Send + Sync + 'static> StreamProducer<D> for Rows<R> {
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
        // a row taken from the channel for it might be lost.
        let limit = match destination.remaining(store) {
            Some(0) => return Poll::Ready(Ok(StreamResult::Completed)),
            Some(wanted) => wanted.min(WAITING),
            None => WAITING,
        };
        let mut rows = Vec::with_capacity(limit);
        match self.get_mut().0.poll_recv_many(cx, &mut rows, limit) {
            Poll::Ready(0) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(_) => {
                destination.set_buffer(rows.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
