//! The migrations, embedded: the same files that `psql -f` and `sqlite3` can apply.

use super::{Kind, StoreError};

const POSTGRES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/postgres"));
#[cfg(feature = "sqlite")]
const SQLITE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sqlite"));

/// The statements of a database's migrations, in order.
pub(super) struct Migrations(String);

impl Migrations {
    /// PostgreSQL's.
    pub(super) fn postgres() -> Result<Self, StoreError> {
        Self::unpack(POSTGRES)
    }

    /// SQLite's. The first returns what is wrong with a table of others.
    #[cfg(feature = "sqlite")]
    pub(super) fn sqlite() -> Result<Self, StoreError> {
        Self::unpack(SQLITE)
    }

    fn unpack(compressed: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::new(Kind::Failed, "the component is damaged: build it anew");
        let text = miniz_oxide::inflate::decompress_to_vec(compressed).map_err(|_| damaged())?;
        String::from_utf8(text).map(Self).map_err(|_| damaged())
    }

    /// One after the other. Semicolons do not tell where one ends, since functions and triggers contain some.
    pub(super) fn statements(&self) -> impl Iterator<Item = &str> {
        self.0.split("\n-- next\n")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::Migrations;

    #[test]
    fn every_migration_file_is_embedded_in_order() {
        for (folder, embedded) in [
            ("postgres", Migrations::postgres().unwrap()),
            #[cfg(feature = "sqlite")]
            ("sqlite", Migrations::sqlite().unwrap()),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("migrations")
                .join(folder);
            let mut files: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            let mut rest = embedded.0.as_str();
            for file in files {
                let text = fs::read_to_string(&file).unwrap();
                rest = rest.strip_prefix(text.as_str()).expect(&text);
                rest = rest.strip_prefix("-- next\n").unwrap_or(rest);
            }
            assert_eq!(rest, "", "{}", folder.display());
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn each_of_sqlites_statements_is_one() {
        // The first has a semicolon in a text, too.
        for statement in Migrations::sqlite().unwrap().statements().skip(1) {
            let code = statement
                .lines()
                .map(|line| line.split("--").next().unwrap_or_default());
            let code = code.collect::<Vec<_>>().join("\n");
            let is_trigger = code.trim_start().starts_with("CREATE TRIGGER");
            let end = if is_trigger { "\nEND;" } else { ";" };
            let rest = code.split_once(end).map(|(_, rest)| rest.trim());
            assert_eq!(rest, Some(""), "{statement}");
        }
    }
}
