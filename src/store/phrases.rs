//! Messages of other programs by which something is decided, since no code comes with them.
//!
//! Each list names the program, the version and the place that it was read from. Whatever else decides
//! does so by a code: see `postgres::error` for SQLSTATEs.

/// Whether a text contains one of `phrases`.
pub(super) fn contains(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// Spin 4.0 to 4.1, `factor-outbound-pg` and `sqlite-inproc`: "query result exceeds limit of 134217728
/// bytes", for one row.
pub(super) const RESULT_TOO_LARGE: &[&str] = &["exceeds limit"];

/// Spin 4.0 to 4.1, `factor-outbound-pg`: "address postgres://… is not permitted".
pub(super) const ADDRESS_NOT_ALLOWED: &[&str] = &["is not permitted"];

/// tokio-postgres 0.7, which Spin and our host use: a URL that does not parse.
pub(super) const INVALID_URL: &[&str] = &["connection string", "invalid configuration"];

/// tokio-postgres 0.7, as `ConnectionFailed`: an SQLSTATE in the text says that every connection will fail
/// in the same way. Wrong password, wrong role, no such database.
pub(super) const LOGIN_FAILED: &[&str] = &["28P01", "28000", "3D000"];

/// tokio-postgres 0.7 and Spin's conversions, as a statement's `Text`: a value that has another type than
/// its parameter or column.
pub(super) const INVALID_VALUE: &[&str] = &["serializing", "convert"];

/// SQLite 3.40 to 3.49: the schema is missing or old.
pub(super) const SQLITE_SCHEMA: &[&str] = &[
    "no such table",
    "no such column",
    "has no column named",
    "ON CONFLICT clause does not match",
];

/// SQLite 3.40 to 3.49: another try may succeed.
pub(super) const SQLITE_BUSY: &[&str] = &["is locked", "busy", "schema has changed"];

/// SQLite 3.40 to 3.49: the file or its directory may not be written.
pub(super) const SQLITE_READ_ONLY: &[&str] = &["readonly"];

/// SQLite 3.40 to 3.49: `ALTER TABLE … ADD COLUMN` of a column that exists.
pub(super) const SQLITE_COLUMN_EXISTS: &[&str] = &["duplicate column name"];
