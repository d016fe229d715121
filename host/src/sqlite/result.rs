//! The result of a statement on its way from the thread that it runs on: rows in batches, the columns
//! with the first and the outcome with the last, so that a small result costs one change of thread.

use std::task::{Poll, ready};

use futures_util::{Stream, stream};
use tokio::sync::mpsc::{self, error::SendError};

use super::wit;
use crate::rows;

/// A batch ends with the row that makes it this large.
const BATCH_BYTES: usize = 64 * 1024;

/// Rows, and after the last of them the outcome.
#[derive(Default)]
pub(super) struct Batch {
    columns: Vec<String>,
    rows: Vec<wit::RowResult>,
    outcome: Option<Result<(), wit::Error>>,
}

impl Batch {
    /// Only a thread that panicked sends no outcome.
    fn abandoned() -> Self {
        let error = wit::Error::Io("the statement was abandoned".to_owned());
        Self {
            outcome: Some(Err(error)),
            ..Self::default()
        }
    }
}

/// The two ends of a result in which no row may be larger than `max_row_bytes`.
pub(super) fn channel(max_row_bytes: usize) -> (Sender, mpsc::Receiver<Batch>) {
    let (batches, receiver) = mpsc::channel(1);
    let sender = Sender {
        batch: Batch::default(),
        bytes: 0,
        max_row_bytes,
        batches,
    };
    (sender, receiver)
}

pub(super) struct Sender {
    batch: Batch,
    bytes: usize,
    max_row_bytes: usize,
    batches: mpsc::Sender<Batch>,
}

impl Sender {
    pub(super) fn columns(&mut self, columns: Vec<String>) {
        self.batch.columns = columns;
    }

    pub(super) fn row(&mut self, row: wit::RowResult) -> Result<(), wit::Error> {
        let bytes = row.values.iter().map(size).sum::<usize>();
        rows::check_size(bytes, self.max_row_bytes).map_err(wit::Error::Io)?;
        self.bytes += bytes;
        self.batch.rows.push(row);
        if self.batch.rows.len() < rows::BATCH && self.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.send()
            .map_err(|_| wit::Error::Io("the rows were dropped unread".to_owned()))
    }

    /// Whether nobody waits for the result any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.batches.is_closed()
    }

    pub(super) fn end(mut self, outcome: Result<(), wit::Error>) {
        self.batch.outcome = Some(outcome);
        let _ = self.send();
    }

    /// Blocks until the last batch has been received.
    fn send(&mut self) -> Result<(), SendError<Batch>> {
        self.bytes = 0;
        self.batches.blocking_send(std::mem::take(&mut self.batch))
    }
}

/// What a value counts as in Spin.
fn size(value: &wit::Value) -> usize {
    size_of_val(value)
        + match value {
            wit::Value::Text(text) => text.len(),
            wit::Value::Blob(bytes) => bytes.len(),
            wit::Value::Null | wit::Value::Integer(_) | wit::Value::Real(_) => 0,
        }
}

/// The columns and the rows, once the first of them have been sent. Nothing follows an error: the
/// stream is not to be polled again.
pub(super) async fn receive(
    mut batches: mpsc::Receiver<Batch>,
) -> (
    Vec<String>,
    impl Stream<Item = Result<wit::RowResult, wit::Error>>,
) {
    let first = batches.recv().await.unwrap_or_else(Batch::abandoned);
    let mut rows = first.rows.into_iter();
    let mut outcome = first.outcome;
    let rows = stream::poll_fn(move |cx| {
        loop {
            if let Some(row) = rows.next() {
                return Poll::Ready(Some(Ok(row)));
            }
            if let Some(outcome) = outcome.take() {
                return Poll::Ready(outcome.err().map(Err));
            }
            let batch = ready!(batches.poll_recv(cx)).unwrap_or_else(Batch::abandoned);
            rows = batch.rows.into_iter();
            outcome = batch.outcome;
        }
    });
    (first.columns, rows)
}
