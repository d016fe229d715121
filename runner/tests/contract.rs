//! The built component imports what `wit/` lists, signature by signature, and exports its
//! one handler: an additional capability fails here.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use llmchat_host::Manifest;
use wit_component::DecodedWasm;
use wit_parser::{Resolve, WorldId};

/// The version of WASI 0.2 in `wit/`. The component's depends on the toolchain.
const WASI_0_2: &str = "@0.2.6";

#[test]
fn the_component_imports_and_exports_what_the_contract_says() {
    let manifest = Manifest::load(workspace().join("spin.toml")).unwrap();
    manifest.build().unwrap();
    let wasm = fs::read(manifest.source()).unwrap();
    let DecodedWasm::Component(component, world) = wit_component::decode(&wasm).unwrap() else {
        panic!("{} is no component", manifest.source().display());
    };
    let imports = names(&component, world, Side::Imports);
    let exports = names(&component, world, Side::Exports);
    let built_with = imports.iter().find_map(|name| name.split_once("@0.2."));
    let built_with = built_with.map_or(WASI_0_2.to_owned(), |(_, patch)| format!("@0.2.{patch}"));

    let (contract, llmchat) = contract(&built_with, "llmchat");
    // Imports that the contract lacks, exports that the component lacks, and signatures.
    wit_component::targets(&contract, llmchat, &wasm).unwrap();
    assert_eq!(exports, names(&contract, llmchat, Side::Exports));
}

#[test]
fn what_the_host_implements_is_part_of_the_contract() {
    let imports = |world| {
        let (contract, world) = contract(WASI_0_2, world);
        names(&contract, world, Side::Imports)
    };
    let llmchat = imports("llmchat");
    assert!(imports("spin").iter().all(|name| llmchat.contains(name)));
    for name in llmchat {
        assert!(
            name.starts_with("spin:") || name.starts_with("wasi:"),
            "{name}"
        );
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A world of `wit/`, with another version of WASI 0.2.
fn contract(wasi_0_2: &str, world: &str) -> (Resolve, WorldId) {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("deps")).unwrap();
    for dir in ["", "deps"] {
        for entry in fs::read_dir(workspace().join("wit").join(dir)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let text = fs::read_to_string(entry.path()).unwrap();
                let text = text.replace(WASI_0_2, wasi_0_2);
                fs::write(copy.path().join(dir).join(entry.file_name()), text).unwrap();
            }
        }
    }
    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(copy.path()).unwrap();
    let world = contract.select_world(&[package], Some(world)).unwrap();
    (contract, world)
}

enum Side {
    Imports,
    Exports,
}

fn names(resolve: &Resolve, world: WorldId, side: Side) -> Vec<String> {
    let world = resolve.worlds.get(world).unwrap();
    let items = match side {
        Side::Imports => &world.imports,
        Side::Exports => &world.exports,
    };
    items
        .keys()
        .map(|key| resolve.name_world_key(key))
        .collect()
}
