//! Reads the rows of a statement, from either database.

use super::StoreError;
use crate::spin::wit_bindgen::{StreamReader, StreamResult};

/// Rows requested at once.
const BATCH: usize = 16;

/// Calls `take` for each row, to the end: a row stream that is not read to its end holds the connection.
pub(super) async fn each<R>(
    mut rows: StreamReader<R>,
    mut take: impl FnMut(R) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let status;
        (status, batch) = rows.read(batch).await;
        for row in batch.drain(..) {
            take(row)?;
        }
        if status == StreamResult::Dropped {
            return Ok(());
        }
    }
}
