//! The driver's errors as those of `spin:postgres`.

use tokio_postgres::Error;
use tokio_postgres::error::DbError;

use crate::component::bindings::spin::postgres::postgres as wit;

pub(super) fn text(text: String) -> wit::Error {
    wit::Error::QueryFailed(wit::QueryError::Text(text))
}

/// An error of a statement: the server's own with its fields, any other as text.
pub(super) fn query_failed(error: Error) -> wit::Error {
    // The debug form, as in Spin: the display form of a server's error is just "db error".
    let as_text = format!("{error:?}");
    wit::Error::QueryFailed(match error.as_db_error() {
        None => wit::QueryError::Text(as_text),
        Some(error) => wit::QueryError::DbError(wit::DbError {
            as_text,
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            extras: extras(error),
        }),
    })
}

/// What has no field in the interface, under the names that Spin uses.
fn extras(error: &DbError) -> Vec<(String, String)> {
    let line = error.line().map(|line| line.to_string());
    [
        ("column", error.column()),
        ("constraint", error.constraint()),
        ("routine", error.routine()),
        ("hint", error.hint()),
        ("table", error.table()),
        ("datatype", error.datatype()),
        ("schema", error.schema()),
        ("file", error.file()),
        ("line", line.as_deref()),
        ("where_", error.where_()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
    .collect()
}
