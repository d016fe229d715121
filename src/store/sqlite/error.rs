//! Sorts SQLite's errors by what can be done about them. SQLite's codes do not reach a component, its
//! messages do.

use crate::spin::sqlite::Error;
use crate::store::phrases::{self, contains};
use crate::store::{Kind, StoreError};

pub(super) fn classify(error: Error) -> StoreError {
    let why = match error {
        Error::NoSuchDatabase | Error::AccessDenied => {
            return StoreError::new(
                Kind::Unusable,
                "The component has no SQLite database: give it `sqlite_databases = [\"default\"]` in spin.toml, or set `database_url`.",
            );
        }
        Error::InvalidConnection => "the connection is not valid".to_owned(),
        Error::DatabaseFull => "the database or disk is full".to_owned(),
        Error::Io(why) => why,
    };
    if contains(&why, phrases::SQLITE_READ_ONLY) {
        return StoreError::new(
            Kind::Unusable,
            "The file of the SQLite database may not be written: let the server's user own it and its directory.",
        );
    }
    let kinds = [
        (phrases::SQLITE_SCHEMA, Kind::Schema),
        (phrases::RESULT_TOO_LARGE, Kind::TooLarge),
        (phrases::SQLITE_FINAL, Kind::Failed),
    ];
    let kind = kinds.iter().find(|(phrases, _)| contains(&why, phrases));
    let kind = kind.map_or(Kind::Unavailable, |(_, kind)| *kind);
    let advice = phrases::SQLITE_ADVICE
        .iter()
        .find(|(phrase, _)| why.contains(phrase));
    match advice {
        Some((_, advice)) => StoreError::new(kind, format!("{why}: {advice}")),
        None => StoreError::new(kind, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlites_message_decides_what_is_done() {
        for (kind, messages) in [
            (
                Kind::Schema,
                &[
                    "no such table: chatts",
                    "table chatts has no column named turn_id",
                    "no such column: turn_start",
                    "ON CONFLICT clause does not match any PRIMARY KEY or UNIQUE constraint",
                    "cannot INSERT into generated column \"message\"",
                    "cannot modify chatts because it is a view",
                ][..],
            ),
            (
                Kind::Unavailable,
                &[
                    "database is locked",
                    "database table is locked",
                    "database schema has changed",
                    "unable to open database file",
                    "unable to open database file: /data/sqlite_db.db",
                    "disk I/O error",
                    "database or disk is full",
                    "locking protocol",
                    "interrupted",
                    "out of memory",
                    "too many connections opened",
                    "channel closed",
                    "",
                ],
            ),
            (
                Kind::TooLarge,
                &["query result exceeds limit of 134217728 bytes"],
            ),
            (
                Kind::Failed,
                &[
                    "malformed JSON",
                    "database disk image is malformed",
                    "file is not a database",
                    "NOT NULL constraint failed: chatts.extra",
                    "UNIQUE constraint failed: chatts.id",
                    "CHECK constraint failed: name",
                    "datatype mismatch",
                    "string or blob too big",
                    "near \"x\": syntax error",
                ],
            ),
        ] {
            for message in messages {
                let error = classify(Error::Io((*message).into()));
                assert_eq!(error.kind, kind, "{message}");
                assert!(error.why.starts_with(message), "{error}");
            }
        }
        let read_only = classify(Error::Io("attempt to write a readonly database".into()));
        assert_eq!(read_only.kind, Kind::Unusable);
        let full = classify(Error::DatabaseFull);
        assert_eq!(full.kind, Kind::Unavailable);
        assert!(full.why.contains("free some space"), "{full}");
        assert!(classify(Error::AccessDenied).why.contains("database_url"));
    }
}
