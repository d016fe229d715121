//! `spin:postgres`: one pool an address, one pooled client a connection resource.
//!
//! As in Spin, a client is cleaned between two uses, and a row stream keeps its client until
//! it has been read to its end or dropped.
#![allow(
    clippy::result_large_err,
    reason = "the size is that of Spin's interface"
)]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use anyhow::{Context as _, Result};
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use futures_util::{Stream, StreamExt as _, stream};
use tokio_postgres::NoTls;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, StreamReader};

use crate::component::bindings::spin::postgres::postgres as wit;
use crate::instance::Instance;
use crate::outbound::Rules;
use crate::rows;

mod client;
mod error;
mod pool;
mod values;

use client::Client;
use pool::Clients;

/// Clients an address in the whole host, as in Spin; more only where there are many threads.
const CLIENTS: usize = 64;

/// The pools of one thread.
pub(crate) struct Pools {
    by_address: Mutex<HashMap<String, Arc<Clients>>>,
    rules: Arc<Rules>,
    /// Clients that each of them may have.
    limit: usize,
}

impl Pools {
    /// Pools for one of `threads`, which share the clients that a host may have.
    pub(crate) fn new(rules: Arc<Rules>, threads: NonZeroUsize) -> Self {
        Self {
            by_address: Mutex::default(),
            rules,
            limit: (CLIENTS / threads).max(pool::FEW),
        }
    }

    async fn client(&self, address: &str) -> Result<Client, wit::Error> {
        let failed = |error: anyhow::Error| wit::Error::ConnectionFailed(format!("{error:#}"));
        let clients = self.clients(address)?;
        clients
            .get()
            .await
            .map(Client::new)
            .context("connecting to PostgreSQL")
            .map_err(failed)
    }

    fn clients(&self, address: &str) -> Result<Arc<Clients>, wit::Error> {
        let mut pools = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = pools.get(address) {
            return Ok(clients.clone());
        }
        let config: tokio_postgres::Config =
            address.parse().map_err(|error: tokio_postgres::Error| {
                wit::Error::ConnectionFailed(error.to_string())
            })?;
        self.check_allowed(&config)?;
        // It is checked here that one is still connected; the next statement cleans it.
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = if config.get_ssl_mode() == SslMode::Disable {
            Manager::from_config(config, NoTls, recycling)
        } else {
            let tls = MakeRustlsConnect::new(self.rules.tls.as_ref().clone());
            Manager::from_config(config, tls, recycling)
        };
        let clients = Clients::new(manager, self.limit)
            .map_err(|error| wit::Error::ConnectionFailed(error.to_string()))?;
        let clients = Arc::new(clients);
        pools.insert(address.to_owned(), clients.clone());
        Ok(clients)
    }

    /// Only addresses that pass get a pool, so this runs once an address.
    fn check_allowed(&self, config: &tokio_postgres::Config) -> Result<(), wit::Error> {
        let refused = |message: String| Err(wit::Error::ConnectionFailed(message));
        let ports = config.get_ports();
        for (index, host) in config.get_hosts().iter().enumerate() {
            let Host::Tcp(host) = host else {
                return refused("a component cannot connect to a Unix socket".to_owned());
            };
            // One port can serve for all the hosts.
            let port = ports
                .get(index)
                .or(if let [port] = ports { Some(port) } else { None })
                .copied();
            match self.rules.allow("postgres", host, port) {
                Ok(true) => {}
                Ok(false) => {
                    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                    return refused(format!("address postgres://{host}{port} is not permitted"));
                }
                Err(error) => return Err(wit::Error::Other(error.to_string())),
            }
        }
        Ok(())
    }
}

/// A connection resource: its client goes back to the pool when this and the row streams
/// read from it are gone.
#[allow(unreachable_pub, reason = "`bindgen!` re-exports it")]
pub struct Connection(Arc<Client>);

/// `spin:postgres` on an instance.
pub(crate) struct SpinPostgres;

impl HasData for SpinPostgres {
    type Data<'a> = &'a mut Instance;
}

impl wit::Host for &mut Instance {}

impl wit::HostConnection for &mut Instance {
    fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

fn client<T>(
    accessor: &Accessor<T, SpinPostgres>,
    connection: &Resource<Connection>,
) -> wasmtime::Result<Arc<Client>> {
    accessor.with(|mut access| Ok(access.get().table.get(connection)?.0.clone()))
}

type QueryResult = (
    Vec<wit::Column>,
    StreamReader<wit::Row>,
    FutureReader<Result<(), wit::Error>>,
);

impl<T: Send> wit::HostConnectionWithStore<T> for SpinPostgres {
    async fn open_async(
        accessor: &Accessor<T, Self>,
        address: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, wit::Error>> {
        let services = accessor.with(|mut access| access.get().services.clone());
        let client = match services.postgres.client(&address).await {
            Ok(client) => client,
            Err(error) => return Ok(Err(error)),
        };
        accessor.with(|mut access| Ok(Ok(access.get().table.push(Connection(Arc::new(client)))?)))
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::ParameterValue>,
    ) -> wasmtime::Result<Result<u64, wit::Error>> {
        let client = client(accessor, &connection)?;
        let parameters = match values::parameters(&parameters) {
            Ok(parameters) => parameters,
            Err(error) => return Ok(Err(wit::Error::ValueConversionFailed(format!("{error:#}")))),
        };
        Ok(client
            .execute(&statement, &parameters)
            .await
            .map_err(error::query_failed))
    }

    async fn query_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<wit::ParameterValue>,
    ) -> wasmtime::Result<Result<QueryResult, wit::Error>> {
        let client = client(accessor, &connection)?;
        let (columns, rows) = match query(client, &statement, &parameters).await {
            Ok(result) => result,
            Err(error) => return Ok(Err(error)),
        };
        let (rows, outcome) = rows::split(rows, || {
            wit::Error::Other("the rows were dropped unread".to_owned())
        });
        accessor.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            let outcome = FutureReader::new(&mut access, outcome)?;
            Ok(Ok((columns, rows, outcome)))
        })
    }
}

/// Runs a query; its columns are, as in Spin, those of the first row.
async fn query(
    client: Arc<Client>,
    statement: &str,
    parameters: &[wit::ParameterValue],
) -> Result<
    (
        Vec<wit::Column>,
        impl Stream<Item = Result<wit::Row, wit::Error>> + use<>,
    ),
    wit::Error,
> {
    let parameters = values::parameters(parameters)
        .map_err(|error| wit::Error::BadParameter(format!("{error:#}")))?;
    let rows = client
        .query(statement, &parameters)
        .await
        .map_err(error::query_failed)?;
    let mut rows = Box::pin(rows.peekable());
    let columns = match rows.as_mut().peek().await {
        Some(Ok(row)) => values::columns(row),
        _ => Vec::new(),
    };
    let rows = rows.map(|row| {
        values::row(&row.map_err(error::query_failed)?)
            .map_err(|error| wit::Error::QueryFailed(wit::QueryError::Text(format!("{error:#}"))))
    });
    // They hold their client until they end.
    let end = stream::poll_fn(move |_| {
        client.finished();
        Poll::Ready(None)
    });
    Ok((columns, rows.chain(end)))
}
