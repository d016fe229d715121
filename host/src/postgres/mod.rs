//! `spin:postgres`: a pool for each address, a pooled client for each connection resource.
//!
//! As in Spin, a client is cleaned between two uses, and a row stream keeps its client until
//! it has been read to its end or dropped.
#![allow(
    clippy::result_large_err,
    reason = "the size is that of Spin's interface"
)]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::Poll;

use anyhow::Context as _;
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio_postgres::NoTls;
use tokio_postgres::config::Host;
use tokio_postgres_rustls::MakeRustlsConnect;
use wasmtime::component::{Accessor, FutureReader, Resource, StreamReader};

use crate::component::bindings::spin::postgres::postgres as wit;
use crate::instance::{Instance, Spin, push, resource, services};
use crate::outbound::Rules;
use crate::rows;

mod address;
mod client;
mod error;
mod pool;
mod values;

use address::Address;
use client::Client;
use pool::Clients;

/// Clients for one address in the whole host, as in Spin; more only where there are many threads.
const CLIENTS: usize = 64;

/// The pools of one thread.
pub(crate) struct Pools {
    by_address: Mutex<HashMap<String, Arc<Clients>>>,
    rules: Arc<Rules>,
    /// Clients that each pool may have.
    limit: usize,
    max_row_bytes: usize,
}

impl Pools {
    /// Pools for one of `threads`, which share the clients that a host may have.
    pub(crate) fn new(rules: Arc<Rules>, threads: NonZeroUsize, max_row_bytes: usize) -> Self {
        Self {
            by_address: Mutex::default(),
            rules,
            limit: (CLIENTS / threads).max(pool::FEW),
            max_row_bytes,
        }
    }

    async fn client(&self, address: &str) -> Result<Arc<Client>, wit::Error> {
        let client = self.clients(address)?.get().await;
        let client = client.context("connecting to PostgreSQL");
        client
            .map(|client| Arc::new(Client::new(client)))
            .map_err(|error| connection_failed(format_args!("{error:#}")))
    }

    fn clients(&self, address: &str) -> Result<Arc<Clients>, wit::Error> {
        let mut pools = self.by_address.lock();
        if let Some(clients) = pools.get(address) {
            return Ok(clients.clone());
        }
        let url = Address::parse(address).map_err(|error| connection_failed(chain(&error)))?;
        self.check_allowed(&url.config)?;
        // The driver's words, by which a component knows that trying again is of no use.
        let tls = url.tls().context("error performing TLS handshake");
        let tls = tls.map_err(|error| connection_failed(chain(&error)))?;
        // It only checks that a client is still connected; the next statement cleans it.
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = match tls {
            None => Manager::from_config(url.config, NoTls, recycling),
            Some(tls) => Manager::from_config(url.config, MakeRustlsConnect::new(tls), recycling),
        };
        let clients = Clients::new(manager, self.limit).map_err(connection_failed)?;
        let clients = Arc::new(clients);
        pools.insert(address.to_owned(), clients.clone());
        Ok(clients)
    }

    /// Only an address that passes gets a pool, so this runs once for each.
    fn check_allowed(&self, config: &tokio_postgres::Config) -> Result<(), wit::Error> {
        // Where there are addresses, they are dialled; the hosts beside them are mere names.
        let addresses = config.get_hostaddrs().iter().map(|ip| Ok(ip.to_string()));
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(host) => Ok(host.clone()),
            Host::Unix(_) => Err(connection_failed(
                "a component cannot connect to a Unix socket",
            )),
        });
        let dialled: Vec<_> = match config.get_hostaddrs().is_empty() {
            true => hosts.collect::<Result<_, _>>()?,
            false => addresses.collect::<Result<_, _>>()?,
        };
        let ports = config.get_ports();
        for (index, host) in dialled.iter().enumerate() {
            // One port can serve for all the hosts.
            let port = ports.get(index).or(ports.first()).copied();
            match self.rules.allow("postgres", host, port) {
                Ok(true) => {}
                Ok(false) => {
                    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                    let host = match host.contains(':') {
                        true => format!("[{host}]"),
                        false => host.clone(),
                    };
                    let address = format_args!("address postgres://{host}{port} is not permitted");
                    return Err(connection_failed(address));
                }
                Err(error) => return Err(wit::Error::Other(error.to_string())),
            }
        }
        Ok(())
    }
}

/// An error with its causes.
fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

fn connection_failed(error: impl ToString) -> wit::Error {
    wit::Error::ConnectionFailed(error.to_string())
}

/// A connection resource: its client returns to the pool once this and the row streams read from
/// it are dropped.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub struct Connection(Arc<Client>);

impl wit::Host for &mut Instance {}

impl wit::HostConnection for &mut Instance {
    fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

type QueryResult = (
    Vec<wit::Column>,
    StreamReader<wit::Row>,
    FutureReader<Result<(), wit::Error>>,
);

impl<T: Send> wit::HostConnectionWithStore<T> for Spin {
    async fn open_async(
        accessor: &Accessor<T, Self>,
        address: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, wit::Error>> {
        let client = services(accessor).postgres.client(&address).await;
        push(accessor, client.map(Connection))
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::ParameterValue>,
    ) -> wasmtime::Result<Result<u64, wit::Error>> {
        let Connection(client) = resource(accessor, &connection)?;
        let parameters = match values::parameters(parameters) {
            Ok(parameters) => parameters,
            Err(error) => return Ok(Err(wit::Error::ValueConversionFailed(format!("{error:?}")))),
        };
        let affected = client.execute(&statement, &parameters).await;
        Ok(affected.map_err(error::query_failed))
    }

    async fn query_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::ParameterValue>,
    ) -> wasmtime::Result<Result<QueryResult, wit::Error>> {
        let Connection(client) = resource(accessor, &connection)?;
        let max_row_bytes = services(accessor).postgres.max_row_bytes;
        let (columns, rows) = match query(client, &statement, parameters, max_row_bytes).await {
            Ok(result) => result,
            Err(error) => return Ok(Err(error)),
        };
        let (rows, outcome) = rows::readers(accessor, rows, wit::Error::Other)?;
        Ok(Ok((columns, rows, outcome)))
    }
}

/// Runs a query; its columns are, as in Spin, those of the first row.
async fn query(
    client: Arc<Client>,
    statement: &str,
    parameters: Vec<wit::ParameterValue>,
    max_row_bytes: usize,
) -> Result<
    (
        Vec<wit::Column>,
        impl Stream<Item = Result<wit::Row, wit::Error>> + use<>,
    ),
    wit::Error,
> {
    let parameters = values::parameters(parameters)
        .map_err(|error| wit::Error::BadParameter(format!("{error:?}")))?;
    let rows = client.query(statement, &parameters).await;
    let mut rows = Box::pin(rows.map_err(error::query_failed)?.peekable());
    let columns = match rows.as_mut().peek().await {
        Some(Ok(row)) => values::columns(row),
        _ => Vec::new(),
    };
    let holder = client.clone();
    let rows = rows.map(move |row| {
        let row = row.inspect_err(|error| holder.failed(error));
        // Debug forms, as in Spin.
        let row = values::row(&row.map_err(error::query_failed)?);
        let row = row.map_err(|error| error::text(format!("{error:?}")))?;
        let bytes = row.iter().map(values::size).sum();
        rows::check_size(bytes, max_row_bytes).map_err(error::text)?;
        Ok(row)
    });
    // They hold their client until they end.
    let end = stream::poll_fn(move |_| {
        client.finished();
        Poll::Ready(None)
    });
    Ok((columns, rows.chain(end)))
}
