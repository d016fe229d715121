//! Spin's interfaces, from the files in `wit/`.
#![allow(missing_docs, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "spin",
    imports: { default: trappable },
    with: {
        "spin:postgres/postgres.connection": crate::postgres::Connection,
        "spin:sqlite/sqlite.connection": crate::sqlite::Connection,
    },
});
