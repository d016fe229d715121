//! The data of one instance's store: WASI, its resources, and the host's services.

use std::sync::Arc;

use wasmtime::component::{Accessor, HasData, Resource, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::outbound::{Hooks, Outbound};
use crate::output::Output;
use crate::postgres::Pools;
use crate::sqlite::Databases;
use crate::variables::Variables;

/// Shared by all instances on a thread.
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
    outbound: Hooks,
}

impl Instance {
    pub(crate) fn new(services: Arc<Services>) -> Self {
        // No files, no sockets, no environment: the component has what its manifest grants.
        let mut wasi = WasiCtx::builder();
        services.output.attach(&mut wasi);
        Self {
            outbound: Hooks(services.outbound.clone()),
            services,
            table: ResourceTable::new(),
            wasi: wasi.build(),
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

/// The implementation of Spin's interfaces on an instance.
pub(crate) struct Spin;

impl HasData for Spin {
    type Data<'a> = &'a mut Instance;
}

pub(crate) fn services<T>(accessor: &Accessor<T, Spin>) -> Arc<Services> {
    accessor.with(|mut access| access.get().services.clone())
}

pub(crate) fn resource<T, R: Clone + Send + 'static>(
    accessor: &Accessor<T, Spin>,
    resource: &Resource<R>,
) -> wasmtime::Result<R> {
    accessor.with(|mut access| Ok(access.get().table.get(resource)?.clone()))
}

/// Makes a resource of what was opened.
pub(crate) fn push<T, R: Send + 'static, E>(
    accessor: &Accessor<T, Spin>,
    opened: Result<R, E>,
) -> wasmtime::Result<Result<Resource<R>, E>> {
    let push = |opened| accessor.with(|mut access| access.get().table.push(opened));
    match opened {
        Ok(opened) => Ok(Ok(push(opened)?)),
        Err(error) => Ok(Err(error)),
    }
}
