//! From a `.wasm` to something that can be instantiated: engine, compilation, linker.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use wasmtime::component::{Component, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::instance::{Instance, Spin};
use crate::manifest::Manifest;

pub(crate) mod bindings;
mod cache;
mod candidate;

/// Concurrent instances. Each serves many requests, so this is room for thousands of streams; it
/// reserves address space, not memory.
const INSTANCES: u32 = 512;

/// Bytes of a memory or a table that a slot keeps between two instances.
const KEEP_RESIDENT: usize = 1 << 20;

/// A compiled component with its manifest. Cheap to clone; any number of hosts can run it.
#[derive(Clone)]
pub struct Program {
    pub(crate) engine: Engine,
    service: ServicePre<Instance>,
    pub(crate) manifest: Arc<Manifest>,
}

impl Program {
    /// Compiles the manifest's component, or loads it from the cache beside the `.wasm`.
    pub fn load(manifest: &Manifest) -> Result<Self> {
        let source = manifest.source();
        let shown = source.display();
        let wasm = std::fs::read(source)
            .with_context(|| format!("cannot read the component {shown}: has it been built?"))?;
        let engine = engine()?;
        let component = match cache::load(&engine, source, &wasm) {
            Some(component) => component,
            None => {
                let component = Component::from_binary(&engine, &candidate::as_final(&wasm))
                    .map_err(anyhow::Error::from)
                    .with_context(|| format!("{shown} is no component that can be compiled"))?;
                let _ = cache::store(&engine, source, &wasm, &component);
                component
            }
        };
        let linker = linker(&engine)?;
        let service = linker
            .instantiate_pre(&component)
            .and_then(ServicePre::new)
            .map_err(anyhow::Error::from)
            .with_context(|| format!("{shown} does not fit this host"))?;
        Ok(Self {
            engine,
            service,
            manifest: Arc::new(manifest.clone()),
        })
    }

    pub(crate) fn service(&self) -> ProxyPre<Instance> {
        ProxyPre::P3(self.service.clone())
    }
}

fn engine() -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    // A component of Rust is a handful of core instances: its module and the adapters.
    pool.total_component_instances(INSTANCES)
        .total_core_instances(INSTANCES * 8)
        .total_memories(INSTANCES * 2)
        .total_tables(INSTANCES * 4)
        .total_stacks(INSTANCES * 4)
        .max_unused_warm_slots(16)
        // Pages that an instance has written are reset in place: the next one does not fault them in.
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    if cfg!(debug_assertions) {
        // The compiler was not optimised either: the less it does, the better.
        config.cranelift_opt_level(OptLevel::None);
    }
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    if let Ok(engine) = Engine::new(&config) {
        return Ok(engine);
    }
    // The pool reserves terabytes of address space, which a container or a `ulimit -v`
    // can refuse. Without it an instance starts a little more slowly.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
        .map_err(anyhow::Error::from)
        .context("cannot set up the WebAssembly engine")
}

/// WASI 0.2, which Rust's standard library imports, WASI 0.3, and Spin's interfaces.
fn linker(engine: &Engine) -> Result<Linker<Instance>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    bindings::Spin::add_to_linker::<_, Spin>(&mut linker, |it| it)?;
    Ok(linker)
}
