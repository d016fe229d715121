//! The migrations, embedded: the same files that `psql -f` and `sqlite3` can apply.

/// PostgreSQL's, in order; each is one statement.
pub(super) const POSTGRES: [&str; 4] = [
    include_str!("../../migrations/postgres/0000_check.sql"),
    include_str!("../../migrations/postgres/0001_chatts.sql"),
    include_str!("../../migrations/postgres/0002_leases.sql"),
    include_str!("../../migrations/postgres/0003_context.sql"),
];

/// SQLite's first, which returns what is wrong with a table of others.
pub(super) const SQLITE_CHECK: &str = include_str!("../../migrations/sqlite/0000_check.sql");

/// SQLite's others, in order.
const SQLITE: [&str; 18] = [
    include_str!("../../migrations/sqlite/0001_wal.sql"),
    include_str!("../../migrations/sqlite/0002_chatts.sql"),
    include_str!("../../migrations/sqlite/0003_turn_id.sql"),
    include_str!("../../migrations/sqlite/0004_turn_start.sql"),
    include_str!("../../migrations/sqlite/0005_status.sql"),
    include_str!("../../migrations/sqlite/0006_row.sql"),
    include_str!("../../migrations/sqlite/0008_leases.sql"),
    include_str!("../../migrations/sqlite/0009_owner.sql"),
    include_str!("../../migrations/sqlite/0010_context.sql"),
    include_str!("../../migrations/sqlite/0011_reply.sql"),
    include_str!("../../migrations/sqlite/0012_turns.sql"),
    include_str!("../../migrations/sqlite/0013_settle.sql"),
    include_str!("../../migrations/sqlite/0014_begin.sql"),
    include_str!("../../migrations/sqlite/0015_commit.sql"),
    include_str!("../../migrations/sqlite/0016_checkpoint.sql"),
    include_str!("../../migrations/sqlite/0017_stop.sql"),
    include_str!("../../migrations/sqlite/0018_again.sql"),
    include_str!("../../migrations/sqlite/0019_delete.sql"),
];

/// The statements of SQLite's migrations, in order: those of a procedure share a file. Semicolons do not tell
/// where one ends, since triggers contain some.
pub(super) fn sqlite() -> impl Iterator<Item = &'static str> {
    SQLITE.iter().flat_map(|file| file.split("\n-- next\n"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn every_migration_file_is_embedded_in_order() {
        for (folder, embedded) in [
            ("postgres", super::POSTGRES.to_vec()),
            (
                "sqlite",
                [&[super::SQLITE_CHECK], &super::SQLITE[..]].concat(),
            ),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("migrations")
                .join(folder);
            let mut files: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            let texts: Vec<_> = files
                .iter()
                .map(|file| fs::read_to_string(file).unwrap())
                .collect();
            assert_eq!(texts, embedded, "{}", folder.display());
        }
    }

    #[test]
    fn each_of_sqlites_statements_is_one() {
        for statement in super::sqlite() {
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
