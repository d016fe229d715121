//! Sorts PostgreSQL's errors by what can be done about them: by SQLSTATE where there is one (PostgreSQL's
//! manual, appendix A), else by the host's message.

use super::url::DatabaseUrl;
use crate::spin::pg::{DbError, Error, PgError, QueryError};
use crate::store::phrases::{self, contains};
use crate::store::{Kind, StoreError};

pub(super) fn classify(error: Error, url: &DatabaseUrl) -> StoreError {
    let (kind, why) = match error {
        Error::PgError(PgError::QueryFailed(QueryError::DbError(error))) => {
            return of_server(&error);
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

/// An error that the server, or a pooler before it, has reported.
fn of_server(error: &DbError) -> StoreError {
    let DbError { message, code, .. } = error;
    // The migrations', which say all that there is to say.
    if code == UNUSABLE {
        return StoreError::new(Kind::Unusable, message);
    }
    let kind = match of_sqlstate(code) {
        Kind::Failed if is_stale_plan(error) => Kind::Unavailable,
        kind => kind,
    };
    let why = match &**code {
        "26000" | "42P05" => format!("{message} ({code}): {POOLER}"),
        _ => format!("{message} ({code})"),
    };
    StoreError::new(kind, why)
}

/// The SQLSTATE that the migrations raise for a table that cannot be used.
const UNUSABLE: &str = "LLM01";

/// A statement was prepared on one connection of the server and executed on another.
const POOLER: &str = "a pooler before the database must be in session mode, or in transaction mode with prepared statements (PgBouncer 1.21 or newer: `max_prepared_statements`)";

/// What is certain to fail again is final; everything else passes.
fn of_sqlstate(code: &str) -> Kind {
    match code {
        // No such table, column, index for the ON CONFLICT, function, schema.
        "42P01" | "42703" | "42P10" | "42883" | "3F000" => Kind::Schema,
        // Insufficient privilege.
        "42501" => Kind::NotAllowed,
        // Too long for its column.
        "22001" => Kind::Refused,
        // A read-only transaction, as on a server that was the primary.
        "25006" => Kind::ReadOnly,
        // A prepared statement exists already.
        "42P05" => Kind::Unavailable,
        // Wrong data, constraint, login, no such database, wrong statement, not supported.
        _ if ["22", "23", "28", "3D", "42", "0A"].contains(&code.get(..2).unwrap_or_default()) => {
            Kind::Failed
        }
        _ => Kind::Unavailable,
    }
}

/// "cached plan must not change result type": the statement is prepared anew. The message is in the
/// server's language.
fn is_stale_plan(error: &DbError) -> bool {
    let routine = error.extras.iter().find(|(name, _)| name == "routine");
    error.code == "0A000"
        && (routine.is_some_and(|(_, routine)| routine == "RevalidateCachedQuery")
            || error.message.contains("cached plan"))
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
        // The host quotes the address, for which it may have taken a piece of the password.
        return StoreError::new(
            Kind::Unusable,
            "The address in `database_url` is not permitted: set the variable `database_host` to its scheme, host and port (postgres://db.example:5432), since `allowed_outbound_hosts` lists only this machine and `database_host`.",
        );
    }
    if contains(why, phrases::UNIX_SOCKET) {
        let why = "`database_url` names a Unix socket, to which a component cannot connect: let it name a host (localhost).";
        return StoreError::new(Kind::Unusable, why);
    }
    if contains(why, phrases::NO_PASSWORD) {
        let why = "The database asks for a password, and `database_url` has none.";
        return StoreError::new(Kind::Unusable, why);
    }
    if contains(why, phrases::INVALID_URL) {
        return StoreError::new(Kind::Unusable, url.complaint());
    }
    let kind = if contains(why, phrases::TLS_FAILED) && !contains(why, phrases::TLS_BROKE_OFF) {
        Kind::Tls
    } else if contains(why, phrases::LOGIN_FAILED) {
        Kind::Failed
    } else {
        Kind::Unavailable
    };
    StoreError::new(kind, url.redact(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://me:s3cr%40t@db.example:5432/chat";

    fn classified(error: PgError) -> StoreError {
        classify(Error::PgError(error), &DatabaseUrl::new(URL.into()))
    }

    fn db_error(code: &str, message: &str, routine: Option<&str>) -> StoreError {
        let extra = |routine: &str| ("routine".to_owned(), routine.to_owned());
        classified(PgError::QueryFailed(QueryError::DbError(DbError {
            as_text: String::new(),
            severity: "ERROR".into(),
            code: code.into(),
            message: message.into(),
            detail: None,
            extras: routine.map(extra).into_iter().collect(),
        })))
    }

    #[test]
    fn an_sqlstate_decides_what_is_done() {
        for (kind, codes) in [
            (
                Kind::Schema,
                &["42P01", "42703", "42P10", "42883", "3F000"][..],
            ),
            (Kind::NotAllowed, &["42501"]),
            (Kind::ReadOnly, &["25006"]),
            (Kind::Refused, &["22001"]),
            (
                Kind::Failed,
                &[
                    "22021", "22P05", "23505", "23502", "28000", "28P01", "3D000", "42601",
                    "42804", "0A000",
                ],
            ),
            (
                Kind::Unavailable,
                &[
                    "08000", "08006", "08P01", "40001", "40P01", "53100", "53300", "55P03",
                    "57014", "57P01", "57P02", "57P03", "57P05", "58000", "58030", "XX000", "",
                    "?",
                ],
            ),
        ] {
            for code in codes {
                let error = db_error(code, "what it says", None);
                assert_eq!(error.kind, kind, "{code}");
                assert_eq!(error.why, format!("what it says ({code})"));
            }
        }
    }

    #[test]
    fn a_plan_that_has_become_stale_passes_in_every_language() {
        for (message, routine) in [
            ("cached plan must not change result type", None),
            (
                "gecachter Plan darf den Ergebnistyp nicht ändern",
                Some("RevalidateCachedQuery"),
            ),
        ] {
            let error = db_error("0A000", message, routine);
            assert_eq!(error.kind, Kind::Unavailable, "{message}");
        }
    }

    #[test]
    fn a_statement_that_a_pooler_took_elsewhere_passes_and_says_what_the_pooler_needs() {
        for code in ["26000", "42P05"] {
            let error = db_error(code, "prepared statement \"s1\" …", None);
            assert_eq!(error.kind, Kind::Unavailable);
            assert!(error.why.contains("max_prepared_statements"), "{error}");
        }
    }

    #[test]
    fn what_a_migration_says_about_the_table_is_told_as_it_is() {
        let error = db_error("LLM01", "run: ALTER TABLE chatts …", None);
        assert_eq!(
            error,
            StoreError::new(Kind::Unusable, "run: ALTER TABLE chatts …")
        );
        assert_eq!(error.for_client(), error.why);
    }

    #[test]
    fn a_failure_without_an_sqlstate_is_known_by_its_message() {
        let statement = |why: &str| PgError::QueryFailed(QueryError::Text(why.into()));
        // Spin's debug form of anyhow's errors, and our host's one line.
        let spins = |cause: &str| {
            PgError::ConnectionFailed(format!(
                "Error occurred while creating a new object: {cause}\n\nCaused by:\n    0: {cause}"
            ))
        };
        let ours = |cause: &str| {
            PgError::ConnectionFailed(format!(
                "connecting to PostgreSQL: Error occurred while creating a new object: {cause}"
            ))
        };
        let mut cases = vec![
            (
                Kind::TooLarge,
                statement("query result exceeds limit of 134217728 bytes"),
            ),
            (
                Kind::Failed,
                statement(
                    "Error { kind: ToSql(0), cause: Some(WrongType { postgres: Varchar, rust: \"uuid::Uuid\" }) }",
                ),
            ),
            (
                Kind::Failed,
                statement("Error { kind: FromSql(2), cause: Some(..) }"),
            ),
            (
                Kind::Failed,
                statement("Error { kind: Parameters(3, 4), cause: None }"),
            ),
            (
                Kind::Failed,
                statement("error deserializing column 1\n\nCaused by:\n    cannot convert"),
            ),
            (Kind::Failed, statement("error serializing parameter 0")),
            (
                Kind::Unavailable,
                statement("Error { kind: Closed, cause: None }"),
            ),
            (
                Kind::Unavailable,
                statement(
                    "Error { kind: Io, cause: Some(Os { code: 110, kind: TimedOut, message: \"Connection timed out\" }) }",
                ),
            ),
            (
                Kind::Unavailable,
                statement("Error { kind: UnexpectedMessage, cause: None }"),
            ),
            (Kind::Unavailable, statement("async error: channel closed")),
            (
                Kind::Unusable,
                PgError::ConnectionFailed("address postgres://db is not permitted".into()),
            ),
            (
                Kind::Unusable,
                PgError::ConnectionFailed("invalid connection string".into()),
            ),
            (Kind::Failed, PgError::BadParameter("no UUID".into())),
        ];
        for (kind, cause) in [
            (
                Kind::Failed,
                "db error: FATAL: password authentication failed for user \"me\"",
            ),
            (
                Kind::Failed,
                "db error: FATAL: database \"chat\" does not exist",
            ),
            (
                Kind::Failed,
                "db error: FATAL: no pg_hba.conf entry for host \"10.0.0.1\"",
            ),
            (Kind::Unusable, "invalid configuration: password missing"),
            (
                Kind::Unusable,
                "Unix sockets are not supported on WebAssembly",
            ),
            (
                Kind::Tls,
                "error performing TLS handshake: error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed:../ssl/statem/statem_clnt.c:1889: (self-signed certificate)",
            ),
            (
                Kind::Tls,
                "error performing TLS handshake: server does not support TLS",
            ),
            (
                Kind::Tls,
                "error performing TLS handshake: invalid peer certificate: UnknownIssuer",
            ),
            (
                Kind::Unavailable,
                "error performing TLS handshake: unexpected EOF",
            ),
            (
                Kind::Unavailable,
                "error connecting to server: Connection refused (os error 111)",
            ),
            (
                Kind::Unavailable,
                "db error: FATAL: the database system is starting up",
            ),
            (
                Kind::Unavailable,
                "db error: FATAL: sorry, too many clients already",
            ),
            (Kind::Unavailable, "db error: FATAL: cannot connect now"),
        ] {
            cases.extend([(kind, spins(cause)), (kind, ours(cause))]);
        }
        for (kind, error) in cases {
            let shown = format!("{error:?}");
            assert_eq!(classified(error).kind, kind, "{shown}");
        }
    }

    #[test]
    fn the_password_is_in_no_error() {
        for text in [
            "failed: s3cr@t",
            "invalid connection string: unexpected `s3cr`",
            "address s3cr@t is not permitted",
            "invalid configuration: s3cr@t",
            "error performing TLS handshake: s3cr%40t",
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
