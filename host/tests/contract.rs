//! The built component imports what `wit/` lists, signature by signature, and exports its
//! one handler: a capability that creeps in fails here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llmchat_host::Manifest;
use wit_parser::decoding::decode;
use wit_parser::{Function, Handle, Resolve, Type, TypeDefKind, TypeId, WorldId, WorldItem};

/// Interfaces by name, each with its functions and their types spelt out.
type Interfaces = BTreeMap<String, BTreeMap<String, String>>;

#[test]
fn the_component_imports_and_exports_what_the_contract_says() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = Manifest::load(workspace.join("spin.toml")).unwrap();
    manifest.build().unwrap();
    let wasm = std::fs::read(manifest.source()).unwrap();
    let decoded = decode(&wasm).unwrap();
    let component = decoded.resolve();
    let (component_world, _) = component.worlds.iter().next().unwrap();

    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(workspace.join("wit")).unwrap();
    let contract_world = contract.select_world(&[package], Some("llmchat")).unwrap();

    let allowed = imports(&contract, contract_world);
    let mut creeping = Vec::new();
    for (interface, functions) in imports(component, component_world) {
        let Some(allowed) = allowed.get(&interface) else {
            creeping.push(interface);
            continue;
        };
        for (name, signature) in functions {
            match allowed.get(&name) {
                Some(expected) => assert_eq!(&signature, expected, "{interface}: {name}"),
                None => creeping.push(format!("{interface}: {name}")),
            }
        }
    }
    assert!(creeping.is_empty(), "not in wit/world.wit: {creeping:#?}");
    assert_eq!(
        exports(component, component_world),
        exports(&contract, contract_world)
    );
}

fn imports(resolve: &Resolve, world: WorldId) -> Interfaces {
    interfaces(resolve, resolve.worlds.get(world).unwrap().imports.iter())
}

fn exports(resolve: &Resolve, world: WorldId) -> Interfaces {
    interfaces(resolve, resolve.worlds.get(world).unwrap().exports.iter())
}

fn interfaces<'a>(
    resolve: &Resolve,
    items: impl Iterator<Item = (&'a wit_parser::WorldKey, &'a WorldItem)>,
) -> Interfaces {
    let spelt = items.map(|(key, item)| {
        let name = without_std_patch(&resolve.name_world_key(key));
        let functions: BTreeMap<_, _> = match item {
            WorldItem::Interface { id, .. } => resolve
                .interfaces
                .get(*id)
                .unwrap()
                .functions
                .values()
                .collect(),
            WorldItem::Function(function) => vec![function],
            WorldItem::Type { .. } => vec![],
        }
        .into_iter()
        .map(|function| (function.name.clone(), signature(resolve, function)))
        .collect();
        (name, functions)
    });
    spelt.collect()
}

/// `@0.2.6` → `@0.2`: which patch of WASI 0.2 it is depends on the toolchain.
fn without_std_patch(name: &str) -> String {
    match name.split_once("@0.2.") {
        Some((name, _)) if name.starts_with("wasi:") => format!("{name}@0.2"),
        _ => name.to_owned(),
    }
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let params = function
        .params
        .iter()
        .map(|param| format!("{}: {}", param.name, spell(resolve, &param.ty)));
    let params = params.collect::<Vec<_>>().join(", ");
    let result = function
        .result
        .as_ref()
        .map(|result| spell(resolve, result));
    format!("({params}) -> {}", result.unwrap_or_default())
}

/// A type with the names that matter on the wire, those of fields and cases, and without
/// those that do not, of types.
fn spell(resolve: &Resolve, of: &Type) -> String {
    let Type::Id(id) = of else {
        return format!("{of:?}");
    };
    let optional = |of: &Option<Type>| {
        of.as_ref()
            .map_or_else(|| "_".to_owned(), |of| spell(resolve, of))
    };
    let kind = &resolve.types.get(*id).unwrap().kind;
    let parts: Vec<String> = match kind {
        TypeDefKind::Type(of) => return spell(resolve, of),
        TypeDefKind::Resource => return resource(resolve, *id),
        TypeDefKind::Handle(Handle::Own(id)) => vec![resource(resolve, *id)],
        TypeDefKind::Handle(Handle::Borrow(id)) => {
            vec![format!("borrow {}", resource(resolve, *id))]
        }
        TypeDefKind::Record(record) => record
            .fields
            .iter()
            .map(|field| format!("{}: {}", field.name, spell(resolve, &field.ty)))
            .collect(),
        TypeDefKind::Variant(variant) => variant
            .cases
            .iter()
            .map(|case| format!("{}({})", case.name, optional(&case.ty)))
            .collect(),
        TypeDefKind::Enum(of) => of.cases.iter().map(|case| case.name.clone()).collect(),
        TypeDefKind::Flags(flags) => flags.flags.iter().map(|flag| flag.name.clone()).collect(),
        TypeDefKind::Tuple(tuple) => tuple.types.iter().map(|of| spell(resolve, of)).collect(),
        TypeDefKind::Option(of) | TypeDefKind::List(of) => vec![spell(resolve, of)],
        TypeDefKind::Result(result) => vec![optional(&result.ok), optional(&result.err)],
        TypeDefKind::Future(of) | TypeDefKind::Stream(of) => vec![optional(of)],
        other => panic!("a type that this test does not know: {other:?}"),
    };
    format!("{}<{}>", kind.as_str(), parts.join(", "))
}

fn resource(resolve: &Resolve, id: TypeId) -> String {
    let definition = resolve.types.get(id).unwrap();
    match definition.kind {
        TypeDefKind::Type(Type::Id(id)) => resource(resolve, id),
        _ => definition.name.clone().unwrap(),
    }
}

#[test]
fn what_the_host_implements_is_part_of_the_contract() {
    let mut contract = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("wit");
    let (package, _) = contract.push_dir(wit).unwrap();
    let names = |world| -> BTreeSet<String> {
        imports(
            &contract,
            contract.select_world(&[package], Some(world)).unwrap(),
        )
        .into_keys()
        .collect()
    };
    assert!(names("spin").is_subset(&names("llmchat")));
    assert!(
        names("llmchat")
            .iter()
            .all(|name| name.starts_with("spin:") || name.starts_with("wasi:"))
    );
}
