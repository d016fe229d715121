//! Files that only their owner can read: they hold what people wrote.

#[cfg(unix)]
use std::fs;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::path::Path;

/// Creates an empty database and its directory, where they are missing. SQLite gives the files that
/// it puts beside a database the database's permissions.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let mut dir = DirBuilder::new();
    let mut file = OpenOptions::new();
    #[cfg(unix)]
    {
        std::os::unix::fs::DirBuilderExt::mode(&mut dir, 0o700);
        std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    }
    if let Some(parent) = path.parent() {
        dir.recursive(true).create(parent)?;
    }
    match file.write(true).create_new(true).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Takes all permissions from group and others, if the path is this user's. Whether it had any.
#[cfg(unix)]
pub(super) fn tighten(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let metadata = fs::symlink_metadata(path)?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw() && !metadata.is_symlink();
    let mut permissions = metadata.permissions();
    if !is_own || permissions.mode() & 0o077 == 0 {
        return Ok(false);
    }
    permissions.set_mode(permissions.mode() & !0o077);
    fs::set_permissions(path, permissions)?;
    Ok(true)
}

#[cfg(not(unix))]
pub(super) fn tighten(_: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::sqlite::{Databases, sqlite_file};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_database_and_what_sqlite_puts_beside_it_are_private() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join(".spin");
        let file = sqlite_file(&dir);
        create(&file).unwrap();
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection
            .pragma_update(None, "journal_mode", "wal")
            .unwrap();
        connection.execute("CREATE TABLE it (n)", ()).unwrap();
        assert_eq!(mode(&dir), 0o700);
        let mut names = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            names += 1;
        }
        assert_eq!(names, 3, "the database, -wal and -shm");
    }

    #[test]
    fn those_of_an_earlier_run_become_private_but_no_directory_of_somebodys_choice() {
        let temporary = tempfile::tempdir().unwrap();
        for (name, expected) in [(".spin", 0o700), ("data", 0o755)] {
            let dir = temporary.path().join(name);
            let file = sqlite_file(&dir);
            create(&file).unwrap();
            let set =
                |path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            set(&dir, 0o755);
            set(&file, 0o644);
            let databases = Databases::new(["default".to_owned()].into(), dir.clone(), 1);
            assert_eq!(
                databases.make_private().len(),
                if expected == 0o700 { 2 } else { 1 }
            );
            assert_eq!((mode(&dir), mode(&file)), (expected, 0o600));
            assert!(databases.make_private().is_empty());
        }
    }
}
