//! The compiled component on disk, beside its `.wasm`, so that a start takes milliseconds.
//!
//! Loading machine code means trusting it. It is taken only from a directory and a file
//! that belong to the user who runs this and that nobody else may write, which is as much
//! as can be said of this program itself.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

/// The component from the cache, where it is there and can be trusted.
pub(super) fn load(engine: &Engine, source: &Path, wasm: &[u8]) -> Option<Component> {
    let path = path(engine, source, wasm)?;
    if !(is_ours(path.parent()?) && is_ours(&path)) {
        return None;
    }
    #[allow(
        unsafe_code,
        reason = "wasmtime checks version and settings but not the code itself; `store` below wrote it, \
                  under this name, where only this user can write"
    )]
    // SAFETY: see above.
    unsafe { Component::deserialize_file(engine, &path) }.ok()
}

/// Puts it there. Failing to is no error: the next start compiles again.
pub(super) fn store(engine: &Engine, source: &Path, wasm: &[u8], component: &Component) {
    let Some(path) = path(engine, source, wasm) else {
        return;
    };
    let Some(dir) = path.parent().filter(|dir| is_ours(dir)) else {
        return;
    };
    let Ok(code) = component.serialize() else {
        return;
    };
    // Written aside and renamed: a process that starts meanwhile sees all of it or nothing.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    if std::fs::write(&aside, code)
        .and_then(|()| std::fs::rename(&aside, &path))
        .is_err()
    {
        let _ = std::fs::remove_file(&aside);
        return;
    }
    remove_older(dir, source, &path);
}

/// Every build of the component has a name of its own; only the last is of use.
fn remove_older(dir: &Path, source: &Path, kept: &Path) {
    let Some(prefix) = source.file_stem().and_then(|stem| stem.to_str()) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_cache = path
            .extension()
            .is_some_and(|extension| extension == "cwasm")
            && path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| {
                    name.strip_prefix(prefix)
                        .is_some_and(|rest| rest.starts_with('.'))
                });
        if is_cache && path != kept {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// `it.wasm` → `it.<hash of its content, wasmtime's version and settings>.cwasm`
fn path(engine: &Engine, source: &Path, wasm: &[u8]) -> Option<PathBuf> {
    let mut hasher = DefaultHasher::new();
    wasm.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let mut name = OsString::from(source.file_stem()?);
    name.push(format!(".{:016x}.cwasm", hasher.finish()));
    Some(source.with_file_name(name))
}

#[cfg(unix)]
fn is_ours(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    const OTHERS_WRITE: u32 = 0o002;
    // `parent()` of a bare file name is empty.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    std::fs::metadata(path).is_ok_and(|metadata| {
        metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & OTHERS_WRITE == 0
    })
}

#[cfg(not(unix))]
fn is_ours(_: &Path) -> bool {
    false
}
