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

/// SQLite's others, in order; each is one statement.
pub(super) const SQLITE: [&str; 9] = [
    include_str!("../../migrations/sqlite/0001_wal.sql"),
    include_str!("../../migrations/sqlite/0002_chatts.sql"),
    include_str!("../../migrations/sqlite/0003_turn_id.sql"),
    include_str!("../../migrations/sqlite/0004_turn_start.sql"),
    include_str!("../../migrations/sqlite/0005_status.sql"),
    include_str!("../../migrations/sqlite/0006_row.sql"),
    include_str!("../../migrations/sqlite/0008_leases.sql"),
    include_str!("../../migrations/sqlite/0009_owner.sql"),
    include_str!("../../migrations/sqlite/0010_context.sql"),
];

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
}
