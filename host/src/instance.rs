//! What one instance's store holds: WASI, its resources, and the host's services.

use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::outbound::Outbound;
use crate::output::Output;
use crate::postgres::Pools;
use crate::sqlite::Databases;
use crate::variables::Variables;

/// What all instances on a thread share.
pub(crate) struct Services {
    pub(crate) variables: Arc<Variables>,
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) postgres: Pools,
    pub(crate) sqlite: Arc<Databases>,
    pub(crate) output: Output,
}

/// The data of one store.
pub(crate) struct Instance {
    pub(crate) services: Arc<Services>,
    pub(crate) table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: crate::outbound::Hooks,
}

impl Instance {
    pub(crate) fn new(services: Arc<Services>) -> Self {
        // No files, no sockets, no environment: the component has what its manifest grants.
        let wasi = WasiCtx::builder()
            .stdout(services.output.stdout())
            .stderr(services.output.stderr())
            .build();
        Self {
            outbound: crate::outbound::Hooks(services.outbound.clone()),
            services,
            table: ResourceTable::new(),
            wasi,
            http: WasiHttpCtx::new(),
        }
    }
}

impl WasiView for Instance {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Instance {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}
