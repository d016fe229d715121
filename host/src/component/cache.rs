//! The compiled component on disk, in a directory beside its `.wasm`, so that a start takes
//! milliseconds.
//!
//! Loading machine code means trusting it. It is loaded only if the directory and the file belong
//! to the user who runs this and neither their group nor anybody else may write to them. wasmtime's
//! own cache does not check that, and loads a component of 0.5 MB in some 20 ms instead of 1
//! (`release`; not optimised 65 instead of 8).

use std::fs::{self, DirBuilder, File, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use wasmtime::Engine;
use wasmtime::component::Component;

/// The component from the cache, if it is there and can be trusted.
pub(super) fn load(engine: &Engine, source: &Path, wasm: &[u8]) -> Option<Component> {
    let dir = directory(source);
    let mut file = File::open(dir.join(name(engine, wasm))).ok()?;
    // What is checked is the open file itself: nobody can exchange it afterwards.
    if !(is_private(&fs::symlink_metadata(dir).ok()?) && is_private(&file.metadata().ok()?)) {
        return None;
    }
    let mut code = Vec::new();
    file.read_to_end(&mut code).ok()?;
    #[allow(
        unsafe_code,
        reason = "wasmtime checks version and settings but not the code itself; `store` below wrote it, \
                  under this name, where only this user can write"
    )]
    // SAFETY: see above.
    unsafe { Component::deserialize(engine, code) }.ok()
}

/// Stores the component in place of any other. A failure only means that the next start compiles
/// again.
pub(super) fn store(
    engine: &Engine,
    source: &Path,
    wasm: &[u8],
    component: &Component,
) -> anyhow::Result<()> {
    let dir = directory(source);
    create_private(&dir)?;
    let path = dir.join(name(engine, wasm));
    // Renamed once it is complete: a process that starts meanwhile sees all of it or nothing.
    let mut file = NamedTempFile::new_in(&dir)?;
    file.write_all(&component.serialize()?)?;
    file.persist(&path)?;
    // Every build of the component has its own name, and only the last one is needed.
    for entry in fs::read_dir(dir)? {
        let other = entry?.path();
        if other != path {
            fs::remove_file(other)?;
        }
    }
    Ok(())
}

fn directory(source: &Path) -> PathBuf {
    source.with_extension("cache")
}

fn name(engine: &Engine, wasm: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    wasm.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}.cwasm", hasher.finish())
}

fn create_private(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir)
}

#[cfg(unix)]
fn is_private(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
    metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & GROUP_OR_OTHERS_WRITE == 0
}

#[cfg(not(unix))]
fn is_private(_: &Metadata) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The smallest component, and another one: it has a custom section.
    const WASM: &[u8] = b"\0asm\x0d\0\x01\0";
    const NEWER: &[u8] = b"\0asm\x0d\0\x01\0\0\x02\x01a";

    #[test]
    fn code_is_loaded_only_from_where_no_other_user_and_no_group_can_write() {
        let temporary = tempfile::tempdir().unwrap();
        let source = temporary.path().join("it.wasm");
        let engine = Engine::default();
        let is_cached = || load(&engine, &source, WASM).is_some();
        assert!(!is_cached());
        let component = Component::from_binary(&engine, WASM).unwrap();
        store(&engine, &source, WASM, &component).unwrap();
        assert!(is_cached());

        let dir = directory(&source);
        let file = dir.join(name(&engine, WASM));
        for (path, private, shared) in [
            (&dir, 0o700, [0o770, 0o702]),
            (&file, 0o600, [0o620, 0o606]),
        ] {
            let set = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            for mode in shared {
                set(mode);
                assert!(!is_cached(), "{mode:o}");
            }
            set(private);
            assert!(is_cached());
        }
    }

    #[test]
    fn only_the_last_build_is_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let source = temporary.path().join("it.wasm");
        let engine = Engine::default();
        for wasm in [WASM, NEWER] {
            let component = Component::from_binary(&engine, wasm).unwrap();
            store(&engine, &source, wasm, &component).unwrap();
        }
        assert!(load(&engine, &source, WASM).is_none());
        assert!(load(&engine, &source, NEWER).is_some());
    }
}
