//! Components that were built with WASI 0.3's release candidate of 2026-03-15, the one that Spin 4.0 runs.
//!
//! 0.3.0 has the same interfaces, function by function, under another version. So such a component runs as one of
//! 0.3.0 once what it imports and exports is called so.

use std::borrow::Cow;
use std::convert::Infallible;

use wasm_encoder::reencode::component_utils;
use wasm_encoder::reencode::{Error, Reencode, ReencodeComponent};
use wasm_encoder::{
    Component, ComponentExportSection, ComponentImportSection, ComponentSectionId, RawSection,
};
use wasmparser::{ComponentExport, ComponentExternName, ComponentImportSectionReader, Parser};

const CANDIDATE: &str = "@0.3.0-rc-2026-03-15";
const FINAL: &str = "@0.3.0";

/// The component with the names of 0.3.0; as it is where it has no others, or is none.
pub(super) fn as_final(wasm: &[u8]) -> Cow<'_, [u8]> {
    let mut renamed = Component::new();
    let mut rename = Rename { any: false };
    match rename.parse_component(&mut renamed, Parser::new(0), wasm) {
        Ok(()) if rename.any => Cow::Owned(renamed.finish()),
        // What is wrong with it, wasmtime says better.
        _ => Cow::Borrowed(wasm),
    }
}

/// Copies a component, its top-level names excepted.
struct Rename {
    any: bool,
}

impl Rename {
    fn name<'a>(&mut self, name: &'a str) -> Cow<'a, str> {
        match name.strip_suffix(CANDIDATE) {
            Some(interface) if interface.starts_with("wasi:") => {
                self.any = true;
                Cow::Owned(format!("{interface}{FINAL}"))
            }
            _ => Cow::Borrowed(name),
        }
    }
}

impl Reencode for Rename {
    type Error = Infallible;
}

type Done = Result<(), Error<Infallible>>;

impl ReencodeComponent for Rename {
    fn parse_component_import_section(
        &mut self,
        imports: &mut ComponentImportSection,
        section: ComponentImportSectionReader<'_>,
    ) -> Done {
        for import in section {
            let import = import?;
            let name = self.name(import.name.name);
            let name = ComponentExternName {
                name: &name,
                ..import.name
            };
            imports.import(name, self.component_type_ref(import.ty)?);
        }
        Ok(())
    }

    fn parse_component_export(
        &mut self,
        exports: &mut ComponentExportSection,
        export: ComponentExport<'_>,
    ) -> Done {
        let name = self.name(export.name.name);
        let name = ComponentExternName {
            name: &name,
            ..export.name
        };
        component_utils::parse_component_export(self, exports, ComponentExport { name, ..export })
    }

    fn parse_component_submodule(
        &mut self,
        component: &mut Component,
        _: Parser,
        module: &[u8],
    ) -> Done {
        copy(component, ComponentSectionId::CoreModule, module)
    }

    fn parse_component_subcomponent(
        &mut self,
        component: &mut Component,
        _: Parser,
        inner: &[u8],
        _: &[u8],
    ) -> Done {
        copy(component, ComponentSectionId::Component, inner)
    }
}

fn copy(component: &mut Component, id: ComponentSectionId, data: &[u8]) -> Done {
    component.section(&RawSection {
        id: id.into(),
        data,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use wasmtime::Engine;

    use super::*;

    fn names(wasm: &[u8]) -> Vec<String> {
        let engine = Engine::default();
        let component = wasmtime::component::Component::new(&engine, wasm).unwrap();
        let ty = component.component_type();
        let imports = ty.imports(&engine).map(|(name, _)| name.to_owned());
        let exports = ty.exports(&engine).map(|(name, _)| name.to_owned());
        imports.chain(exports).collect()
    }

    fn component(version: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "wasi:clocks/monotonic-clock{version}" (instance
                    (export "now" (func (result u64)))))
                (import "other:clocks/clock{version}" (instance))
                (component $inner (import "wasi:clocks/monotonic-clock{version}" (instance)))
                (core module)
                (instance $made)
                (export "wasi:clocks/timezone{version}" (instance $made)))"#
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_a_component_of_the_candidate_imports_and_exports_gets_the_names_of_the_final_version() {
        let candidate = component(CANDIDATE);
        assert_eq!(
            names(&candidate)[0],
            format!("wasi:clocks/monotonic-clock{CANDIDATE}")
        );
        let expected = [
            "wasi:clocks/monotonic-clock@0.3.0",
            "other:clocks/clock@0.3.0-rc-2026-03-15",
            "wasi:clocks/timezone@0.3.0",
        ];
        assert_eq!(names(&as_final(&candidate)), expected);
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for wasm in [
            component(FINAL),
            component("@0.3.0-rc-2026-01-06"),
            b"no wasm".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(as_final(&wasm), wasm);
        }
    }
}
