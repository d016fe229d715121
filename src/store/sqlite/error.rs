//! Sorts SQLite's errors by what can be done about them. SQLite's codes do not reach a component, its
//! messages do.

use spin_sdk::sqlite::Error;

use crate::store::phrases::{self, contains};
use crate::store::{Kind, StoreError};

pub(super) fn classify(error: Error) -> StoreError {
    let why = match error {
        Error::NoSuchDatabase | Error::AccessDenied => {
            return StoreError::new(
                Kind::Failed,
                "the component has no SQLite database: give it `sqlite_databases = [\"default\"]` in spin.toml, or set `database_url`",
            );
        }
        Error::InvalidConnection => "the connection is not valid".to_owned(),
        Error::DatabaseFull => "the database is full".to_owned(),
        Error::Io(why) => why,
    };
    let kinds = [
        (phrases::SQLITE_SCHEMA, Kind::Schema),
        (phrases::SQLITE_BUSY, Kind::Unavailable),
        (phrases::SQLITE_READ_ONLY, Kind::NotAllowed),
        (phrases::RESULT_TOO_LARGE, Kind::TooLarge),
    ];
    let kind = kinds.iter().find(|(phrases, _)| contains(&why, phrases));
    StoreError::new(kind.map_or(Kind::Failed, |(_, kind)| *kind), why)
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
                ][..],
            ),
            (
                Kind::Unavailable,
                &[
                    "database is locked",
                    "database table is locked",
                    "database schema has changed",
                ],
            ),
            (Kind::NotAllowed, &["attempt to write a readonly database"]),
            (
                Kind::TooLarge,
                &["query result exceeds limit of 134217728 bytes"],
            ),
            (Kind::Failed, &["disk I/O error", "malformed JSON", ""]),
        ] {
            for message in messages {
                let error = classify(Error::Io((*message).into()));
                assert_eq!(error, StoreError::new(kind, *message));
            }
        }
        assert_eq!(classify(Error::DatabaseFull).kind, Kind::Failed);
        assert!(classify(Error::AccessDenied).why.contains("database_url"));
    }
}
