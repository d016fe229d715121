//! Each built component imports what its world in `wit/` lists, signature by signature, and exports its
//! one handler: an additional capability fails here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use llmchat_host::Manifest;
use wit_component::DecodedWasm;
use wit_parser::{Resolve, WorldId};

/// The version of WASI 0.2 in `wit/`. The component's depends on the toolchain.
const WASI_0_2: &str = "@0.2.6";

#[test]
fn each_component_imports_and_exports_what_the_contract_says() {
    let builds = [
        ("spin.toml", None, "llmchat"),
        ("spin.toml", Some("spin-4-0"), "llmchat-rc"),
        ("deploy/akamai/spin.toml", None, "akamai"),
    ];
    for (manifest, profile, world) in builds {
        let manifest = Manifest::load_profile(workspace().join(manifest), profile).unwrap();
        manifest.build().unwrap();
        has_world(manifest.source(), world);
    }
}

fn has_world(component: &Path, name: &str) {
    let wasm = fs::read(component).unwrap();
    let DecodedWasm::Component(component, world) = wit_component::decode(&wasm).unwrap() else {
        panic!("{} is no component", component.display());
    };
    let imports = names(&component, world, Side::Imports);
    let exports = names(&component, world, Side::Exports);
    let built_with = imports.iter().find_map(|name| name.split_once("@0.2."));
    let built_with = built_with.map_or(WASI_0_2.to_owned(), |(_, patch)| format!("@0.2.{patch}"));

    let (contract, contracted) = contract(&built_with, name);
    // Imports that the contract lacks, exports that the component lacks, and signatures.
    wit_component::targets(&contract, contracted, &wasm).unwrap();
    assert_eq!(exports, names(&contract, contracted, Side::Exports));
}

#[test]
fn the_release_candidate_differs_from_wasi_0_3_0_in_its_version_alone() {
    for name in ["http", "clocks", "random"] {
        let read = |version| {
            let path = workspace().join(format!("wit/deps/wasi-{name}-{version}.wit"));
            fs::read_to_string(path).unwrap()
        };
        let candidate = read("0.3-rc").replace("0.3.0-rc-2026-03-15", "0.3.0");
        let (_, candidate) = candidate.split_once('\n').unwrap();
        assert_eq!(candidate, read("0.3"), "{name}");
    }
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
