//! The migrations, embedded: the same files that `psql -f` and `sqlite3` can apply.

/// PostgreSQL's, in order; each is one statement.
pub(super) const POSTGRES: [&str; 2] = [
    include_str!("../../migrations/postgres/0001_chatts.sql"),
    include_str!("../../migrations/postgres/0002_leases.sql"),
];

/// SQLite's, in order; each is one statement.
pub(super) const SQLITE: [&str; 8] = [
    include_str!("../../migrations/sqlite/0001_wal.sql"),
    include_str!("../../migrations/sqlite/0002_chatts.sql"),
    include_str!("../../migrations/sqlite/0003_turn_id.sql"),
    include_str!("../../migrations/sqlite/0004_turn_start.sql"),
    include_str!("../../migrations/sqlite/0005_status.sql"),
    include_str!("../../migrations/sqlite/0006_row.sql"),
    include_str!("../../migrations/sqlite/0007_conversation.sql"),
    include_str!("../../migrations/sqlite/0008_leases.sql"),
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn every_migration_file_is_embedded_in_order() {
        for (folder, embedded) in [
            ("postgres", &super::POSTGRES[..]),
            ("sqlite", &super::SQLITE),
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
