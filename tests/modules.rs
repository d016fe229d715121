//! The plan of `src/`: no two modules use each other, and what a module must not know it does not import.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Top-level modules, each with the source of its files, without unit tests and comments.
fn modules() -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for path in entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "lib" {
            modules.insert(name, source(&path));
        }
    }
    modules
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn source(path: &Path) -> String {
    if path.is_dir() {
        return entries(path).iter().map(|path| source(path)).collect();
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]\n").next().unwrap().lines();
    let code = code.filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| format!("{line}\n")).collect()
}

/// The modules that `source` names as `crate::…`.
fn used(source: &str) -> BTreeSet<String> {
    let paths = source.split("crate::").skip(1);
    let names = paths.map(|path| path.split(|c: char| !c.is_alphanumeric() && c != '_'));
    names
        .map(|mut parts| parts.next().unwrap().to_owned())
        .collect()
}

#[test]
fn modules_are_used_in_one_direction() {
    let modules = modules();
    let mut uses: BTreeMap<_, _> = modules
        .iter()
        .map(|(name, source)| (name.clone(), used(source)))
        .collect();
    for (name, used) in &mut uses {
        used.remove(name);
        let unknown: Vec<_> = used
            .iter()
            .filter(|it| !modules.contains_key(*it))
            .collect();
        assert!(unknown.is_empty(), "{name} names {unknown:?}");
    }
    assert!(uses["service"].contains("turn"), "{uses:?}");
    // Takes away what uses nothing that is left, until nothing is left.
    while !uses.is_empty() {
        let free: Vec<_> = uses
            .iter()
            .filter(|(_, used)| used.iter().all(|it| !uses.contains_key(it)))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(!free.is_empty(), "these use each other: {uses:#?}");
        uses.retain(|name, _| !free.contains(name));
    }
}

#[test]
fn a_module_does_not_import_what_it_must_not_know() {
    let modules = modules();
    for (name, must_not) in [
        ("conversation", &["crate::spin", "crate::"][..]),
        ("error", &["crate::spin", "crate::"]),
        ("request", &["crate::spin", "crate::store", "crate::ollama"]),
        (
            "reply",
            &[
                "crate::spin",
                "crate::store",
                "crate::ollama",
                "crate::http",
                "crate::clock",
            ],
        ),
        (
            "store",
            &[
                "crate::http",
                "crate::ollama",
                "crate::reply",
                "crate::request",
                "crate::error",
            ],
        ),
        ("ollama", &["crate::store", "crate::turn", "reply::sse"]),
        (
            "http",
            &[
                "crate::service",
                "crate::turn",
                "crate::request",
                "crate::store",
            ],
        ),
        ("service", &["spin::pg", "spin::sqlite"]),
        ("turn", &["spin::pg", "spin::sqlite", "serde"]),
    ] {
        // How much of a reply there is, which the store counts, is nothing of how it came.
        let source = modules[name].replace("crate::reply::position::", "");
        for path in must_not {
            assert!(!source.contains(path), "{name} imports {path}");
        }
    }
}

#[test]
fn only_the_store_uses_spins_databases() {
    for (name, source) in modules() {
        let uses = ["spin::pg", "spin::sqlite"].map(|path| source.contains(path));
        assert_eq!(uses, [name == "store"; 2], "{name}");
    }
}
