//! Messages of other programs by which something is decided, since no code comes with them.
//!
//! Each list names the program, the version and the place that it was read from. Whatever else decides
//! does so by a code: see `postgres::error` for SQLSTATEs. A message that is in no list passes: the call
//! is made again.

/// Whether a text contains one of `phrases`.
pub(super) fn contains(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// Spin 4.0 to 4.1, `factor-outbound-pg` and `sqlite-inproc`: "query result exceeds limit of 134217728
/// bytes", for one row.
pub(super) const RESULT_TOO_LARGE: &[&str] = &["exceeds limit"];

/// Spin 4.0 to 4.1, `factor-outbound-pg`: "address postgres://… is not permitted".
pub(super) const ADDRESS_NOT_ALLOWED: &[&str] = &["is not permitted"];

/// tokio-postgres 0.7, which Spin and our host use: a URL that does not parse. Its reason is not in Spin's
/// message.
pub(super) const INVALID_URL: &[&str] = &["connection string", "invalid configuration"];

/// Spin 4.0 to 4.1: "Unix sockets are not supported on WebAssembly"; our host in other words.
pub(super) const UNIX_SOCKET: &[&str] = &["Unix socket"];

/// tokio-postgres 0.7, as `Config`: the server asks for a password.
pub(super) const NO_PASSWORD: &[&str] = &["password missing"];

/// tokio-postgres 0.7, as `ConnectionFailed`: every TLS handshake will fail in the same way. Spin's comes
/// from native-tls 0.2 ("error performing TLS handshake", then OpenSSL's "certificate verify failed:
/// (self-signed certificate)"), our host's from rustls.
pub(super) const TLS_FAILED: &[&str] = &["TLS handshake", "does not support TLS", "certificate"];

/// As above, but the connection broke during the handshake.
pub(super) const TLS_BROKE_OFF: &[&str] = &[
    "unexpected EOF",
    "unexpected eof",
    "UnexpectedEof",
    "handshake eof",
    "reset by peer",
    "Broken pipe",
    "timed out",
];

/// PostgreSQL 10 to 18 and PgBouncer 1.18 to 1.24, as `ConnectionFailed`, where no SQLSTATE comes along:
/// every login will be refused in the same way. In another language they pass, and are told when the time
/// is up.
pub(super) const LOGIN_FAILED: &[&str] = &[
    "authentication failed",
    "authentication error",
    "auth failed",
    "does not exist",
    "no such database",
    "no such user",
    "is not permitted to log in",
    "is not currently accepting connections",
    "pg_hba.conf",
    "permission denied",
    "unsupported startup parameter",
];

/// tokio-postgres 0.7 and Spin's conversions, as a statement's `Text`, in its debug form ("Error { kind:
/// ToSql(0), cause: Some(WrongType { … }) }") and as a sentence: a value that has another type than its
/// parameter or column, or does not fit into a message.
pub(super) const INVALID_VALUE: &[&str] = &[
    "kind: ToSql(",
    "kind: FromSql(",
    "kind: Parameters(",
    "kind: Column",
    "kind: Encode",
    "kind: RowCount",
    "serializing",
    "convert",
    "WrongType",
];

/// SQLite 3.40 to 3.49: the schema is missing or old.
pub(super) const SQLITE_SCHEMA: &[&str] = &[
    "no such table",
    "no such column",
    "no such index",
    "has no column named",
    "ON CONFLICT clause does not match",
    // Its check says what to do.
    "because it is a view",
    "into generated column",
];

/// SQLite 3.40 to 3.49 (`sqlite3ErrStr`, and the messages of constraints and of the parser) and rusqlite
/// 0.34: another try fails in the same way.
pub(super) const SQLITE_FINAL: &[&str] = &[
    "constraint failed",
    "malformed",
    "not a database",
    "datatype mismatch",
    "mismatch",
    "too big",
    "syntax error",
    "incomplete input",
    "no such function",
    "no such module",
    "no such savepoint",
    "cannot ",
    "may not be",
    "not authorized",
    "SQL logic error",
    "bad parameter",
    "out of range",
    "Wrong number of parameters",
    "Invalid ",
    "not UTF-8",
    "sub-select returns",
    "ambiguous",
    "already exists",
    "duplicate column name",
    "attempted operation",
    "unsupported file format",
];

/// SQLite 3.40 to 3.49: what the operator can do about some that last.
pub(super) const SQLITE_ADVICE: [(&str, &str); 4] = [
    ("is full", "free some space"),
    (
        "unable to open",
        "the file and its directory must be there and writable for the server's user",
    ),
    ("disk I/O error", "look into the system's log for the disk"),
    ("is locked", "another process holds the database's file"),
];

/// SQLite 3.40 to 3.49: the file or its directory may not be written.
pub(super) const SQLITE_READ_ONLY: &[&str] = &["readonly", "access permission denied"];

/// SQLite 3.40 to 3.49: `ALTER TABLE … ADD COLUMN` of a column that exists.
pub(super) const SQLITE_COLUMN_EXISTS: &[&str] = &["duplicate column name"];
