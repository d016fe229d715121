//! A small disk (a tmpfs) to be filled. Only root can mount one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cluster::start_keeper;

const BLOCK: [u8; 4096] = [0x5a; 4096];

/// Unmounts when its stdin is closed, and so with this process however that ends; but not before a
/// server that keeps its tables there, whose directory `$2` is, is gone.
const KEEPER: &str = r#"
cat >/dev/null
while [ -n "$2" ] && [ -e "$2" ]; do sleep 0.1; done
umount -l "$1"
rmdir "$1"
"#;

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _keeper: ChildStdin,
}

impl Disk {
    /// Whether this machine lets us mount one; says so if it does not.
    pub fn is_possible() -> bool {
        let refused = Self::mount(1, None).err();
        if let Some(refused) = &refused {
            eprintln!("no test of a full disk: {refused:#}");
        }
        refused.is_none()
    }

    /// An empty disk that is there for as long as this value, and as the directory `server`.
    pub(crate) fn mount(mebibytes: usize, server: Option<&Path>) -> Result<Self> {
        let path = TempDir::with_prefix("llmchat-disk-")?.keep();
        let size = format!("size={mebibytes}m,mode=755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "llmchat-test"])
            .arg(&path)
            .output();
        let refusal = match &mounted {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(refusal) = refusal {
            fs::remove_dir(&path)?;
            bail!("mounting needs root: {}", refusal.trim());
        }
        let arguments = [&path, server.unwrap_or(Path::new(""))];
        let mut keeper = start_keeper(Command::new("sh"), KEEPER, arguments)?;
        let stdin = keeper.stdin.take().context("the keeper has no stdin")?;
        Ok(Self {
            path,
            _keeper: stdin,
        })
    }

    /// A disk for files of this process's user, such as SQLite's.
    pub fn new(mebibytes: usize) -> Result<Self> {
        Self::mount(mebibytes, None)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all the room that is left.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler())?;
        loop {
            match file.write_all(&BLOCK) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_filled_freed_and_unmounted() -> Result<()> {
        if !Disk::is_possible() {
            return Ok(());
        }
        let disk = Disk::new(1)?;
        let write = || fs::write(disk.path().join("file"), BLOCK);
        write()?;
        fs::remove_file(disk.path().join("file"))?;
        disk.fill()?;
        let refused = write().map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::StorageFull));
        disk.free()?;
        write()?;
        let path = disk.path().to_owned();
        drop(disk);
        crate::until("its end", async || Ok(!path.exists())).await
    }
}
