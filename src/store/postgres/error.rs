//! Sorts PostgreSQL's errors by what can be done about them: by SQLSTATE where there is one (PostgreSQL's
//! manual, appendix A), else by the host's message.

use spin_sdk::pg::{Error, PgError, QueryError};

use super::url::DatabaseUrl;
use crate::store::phrases::{self, contains};
use crate::store::{Kind, StoreError};

pub(super) fn classify(error: Error, url: &DatabaseUrl) -> StoreError {
    let (kind, why) = match error {
        Error::PgError(PgError::QueryFailed(QueryError::DbError(error))) => {
            let why = format!("{} ({})", error.message, error.code);
            return StoreError::new(of_sqlstate(&error.code), why);
        }
        Error::PgError(PgError::QueryFailed(QueryError::Text(why))) => (of_statement(&why), why),
        Error::PgError(PgError::ConnectionFailed(why)) => return not_connected(&why, url),
        Error::PgError(
            PgError::BadParameter(why) | PgError::ValueConversionFailed(why) | PgError::Other(why),
        )
        | Error::Decode(why) => (Kind::Failed, why),
    };
    StoreError::new(kind, url.redact(&why))
}

fn of_sqlstate(code: &str) -> Kind {
    match code {
        // No such table, no such column, no index for the ON CONFLICT.
        "42P01" | "42703" | "42P10" => Kind::Schema,
        // Insufficient privilege.
        "42501" => Kind::NotAllowed,
        // Too long for its column.
        "22001" => Kind::Refused,
        // Serialization failure, deadlock, lock not available, shutting down, crashed, starting up.
        "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" => Kind::Unavailable,
        // Connection exceptions, insufficient resources.
        code if code.starts_with("08") || code.starts_with("53") => Kind::Unavailable,
        _ => Kind::Failed,
    }
}

/// The kind of a statement's failure without an SQLSTATE.
fn of_statement(why: &str) -> Kind {
    if contains(why, phrases::RESULT_TOO_LARGE) {
        Kind::TooLarge
    } else if contains(why, phrases::INVALID_VALUE) {
        Kind::Failed
    } else {
        // The connection broke during the statement.
        Kind::Unavailable
    }
}

/// A connection that could not be established.
fn not_connected(why: &str, url: &DatabaseUrl) -> StoreError {
    if contains(why, phrases::ADDRESS_NOT_ALLOWED) {
        let why = format!(
            "{}: set the variable `database_host` to this address, since `allowed_outbound_hosts` lists only this machine and `database_host`",
            url.redact(why)
        );
        return StoreError::new(Kind::Failed, why);
    }
    if contains(why, phrases::INVALID_URL) {
        // The host's message may quote a piece of the password.
        return StoreError::new(
            Kind::Failed,
            "`database_url` is not a valid PostgreSQL URL (postgres://user:password@host/database, special characters in the password percent-encoded)",
        );
    }
    let why = url.redact(why);
    match contains(&why, phrases::LOGIN_FAILED) {
        true => StoreError::new(Kind::Failed, why),
        false => StoreError::new(Kind::Unavailable, why),
    }
}

#[cfg(test)]
mod tests {
    use spin_sdk::pg::DbError;

    use super::*;

    const URL: &str = "postgres://me:s3cr@t@db.example:5432/chat";

    fn classified(error: PgError) -> StoreError {
        classify(Error::PgError(error), &DatabaseUrl::new(URL.into()))
    }

    #[test]
    fn an_sqlstate_decides_what_is_done() {
        for (kind, codes) in [
            (Kind::Schema, &["42P01", "42703", "42P10"][..]),
            (Kind::NotAllowed, &["42501"]),
            (Kind::Refused, &["22001"]),
            (
                Kind::Unavailable,
                &[
                    "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "08000", "08006",
                    "53100", "53300",
                ],
            ),
            (
                Kind::Failed,
                &["22021", "23505", "42601", "0A000", "XX000", ""],
            ),
        ] {
            for code in codes {
                let error = classified(PgError::QueryFailed(QueryError::DbError(DbError {
                    as_text: String::new(),
                    severity: "ERROR".into(),
                    code: (*code).into(),
                    message: "what it says".into(),
                    detail: None,
                    extras: Vec::new(),
                })));
                assert_eq!(error.kind, kind, "{code}");
                assert_eq!(error.why, format!("what it says ({code})"));
            }
        }
    }

    #[test]
    fn a_failure_without_an_sqlstate_is_known_by_its_message() {
        let statement = |why: &str| PgError::QueryFailed(QueryError::Text(why.into()));
        let connection = |why: &str| PgError::ConnectionFailed(why.into());
        for (kind, error) in [
            (
                Kind::TooLarge,
                statement("query result exceeds limit of 134217728 bytes"),
            ),
            (Kind::Failed, statement("error serializing parameter 0")),
            (Kind::Unavailable, statement("connection closed")),
            (
                Kind::Failed,
                connection("address postgres://db is not permitted"),
            ),
            (Kind::Failed, connection("invalid connection string")),
            (Kind::Failed, connection("db error: SqlState(E28P01)")),
            (Kind::Unavailable, connection("Connection refused")),
            (Kind::Failed, PgError::BadParameter("no UUID".into())),
        ] {
            let shown = format!("{error:?}");
            assert_eq!(classified(error).kind, kind, "{shown}");
        }
    }

    #[test]
    fn the_password_is_in_no_error() {
        for text in [
            "failed: s3cr@t",
            "invalid connection string: unexpected `s3cr`",
            "address is not permitted s3cr@t",
        ] {
            for error in [
                PgError::ConnectionFailed(text.into()),
                PgError::Other(text.replace("`s3cr`", "s3cr@t")),
            ] {
                let error = classified(error).to_string();
                assert!(!error.contains("s3cr"), "{error}");
            }
        }
    }
}
