//! The data of one instance's store: WASI, its resources, and the host's services.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmtime::ResourceLimiter;
use wasmtime::component::{Accessor, HasData, Resource, ResourceTable};
use wasmtime_wasi::{HostWallClock, WasiCtx, WasiCtxView, WasiView};
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
    pub(crate) clock_ahead: Duration,
    pub(crate) output: Output,
}

/// The data of one store.
pub(crate) struct Instance {
    pub(crate) services: Arc<Services>,
    pub(crate) table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: Hooks,
    pub(crate) memory: MemoryLimit,
}

impl Instance {
    /// With memories of at most `max_memory` bytes each.
    pub(crate) fn new(services: Arc<Services>, max_memory: usize) -> Self {
        // No files, no sockets, no environment: the component has what its manifest grants.
        let mut wasi = WasiCtx::builder();
        services.output.attach(&mut wasi);
        wasi.wall_clock(Ahead(services.clock_ahead));
        let output = services.output.clone();
        Self {
            outbound: Hooks(services.outbound.clone()),
            services,
            table: ResourceTable::new(),
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            memory: MemoryLimit {
                max: max_memory,
                is_reported: false,
                output,
            },
        }
    }
}

/// The machine's wall clock, or one that is wrong.
struct Ahead(Duration);

impl HostWallClock for Ahead {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default() + self.0
    }
}

/// Refuses an instance more memory than the host can spare: its allocation fails, which ends it, and
/// not the host with all the others.
pub(crate) struct MemoryLimit {
    max: usize,
    is_reported: bool,
    output: Output,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let is_too_large = desired > self.max;
        if is_too_large && !std::mem::replace(&mut self.is_reported, true) {
            self.output.line(format_args!(
                "an instance was refused {desired} bytes of memory: it may have {} (`--max-instance-memory`)",
                self.max
            ));
        }
        Ok(!is_too_large && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let max = maximum.map_or(MAX_TABLE, |maximum| maximum.min(MAX_TABLE));
        Ok(desired <= max)
    }
}

/// Elements of a table: a component of Rust has as many as functions that are called by pointer.
const MAX_TABLE: usize = 1 << 20;

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
