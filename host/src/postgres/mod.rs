//! `spin:postgres`: one pool an address, one pooled client a connection resource.
//!
//! As in Spin, a statement is prepared and executed on every call, and a client that goes
//! back to the pool is cleaned before it is used again. A row stream keeps its client
//! until it has been read to its end or dropped.
#![allow(
    clippy::result_large_err,
    reason = "the size is that of Spin's interface"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use futures_util::StreamExt as _;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{NoTls, Row, RowStream};
use tokio_postgres_rustls::MakeRustlsConnect;
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, StreamReader};

use crate::component::bindings::spin::postgres::postgres as wit;
use crate::instance::Instance;
use crate::outbound::Outbound;
use crate::rows;

mod error;
mod values;

/// Clients an address, as in Spin.
const POOL_SIZE: usize = 64;

/// The pools of one host.
pub(crate) struct Pools {
    by_address: Mutex<HashMap<String, Pool>>,
    outbound: Arc<Outbound>,
}

impl Pools {
    pub(crate) fn new(outbound: Arc<Outbound>) -> Self {
        Self {
            by_address: Mutex::default(),
            outbound,
        }
    }

    async fn client(&self, address: &str) -> Result<Object, wit::Error> {
        let failed = |error: anyhow::Error| wit::Error::ConnectionFailed(format!("{error:#}"));
        let pool = self.pool(address)?;
        pool.get()
            .await
            .context("connecting to PostgreSQL")
            .map_err(failed)
    }

    fn pool(&self, address: &str) -> Result<Pool, wit::Error> {
        let mut pools = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(address) {
            return Ok(pool.clone());
        }
        let config: tokio_postgres::Config =
            address.parse().map_err(|error: tokio_postgres::Error| {
                wit::Error::ConnectionFailed(error.to_string())
            })?;
        self.check_allowed(&config)?;
        let cleaning = ManagerConfig {
            recycling_method: RecyclingMethod::Clean,
        };
        let manager = if config.get_ssl_mode() == SslMode::Disable {
            Manager::from_config(config, NoTls, cleaning)
        } else {
            let tls = MakeRustlsConnect::new(self.outbound.tls.as_ref().clone());
            Manager::from_config(config, tls, cleaning)
        };
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .build()
            .map_err(|error| wit::Error::ConnectionFailed(error.to_string()))?;
        pools.insert(address.to_owned(), pool.clone());
        Ok(pool)
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
            match self.outbound.allow("postgres", host, port) {
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
pub struct Connection(Arc<Object>);

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
) -> wasmtime::Result<Arc<Object>> {
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
            .execute_raw(&statement, parameters)
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
        let (rows, outcome) =
            rows.split(|| wit::Error::Other("the query was abandoned".to_owned()));
        accessor.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            let outcome = FutureReader::new(&mut access, outcome)?;
            Ok(Ok((columns, rows, outcome)))
        })
    }
}

type Rows = rows::Receiver<wit::Row, wit::Error>;

async fn query(
    client: Arc<Object>,
    statement: &str,
    parameters: &[wit::ParameterValue],
) -> Result<(Vec<wit::Column>, Rows), wit::Error> {
    let parameters = values::parameters(parameters)
        .map_err(|error| wit::Error::BadParameter(format!("{error:#}")))?;
    let rows = client
        .query_raw(statement, parameters)
        .await
        .map_err(error::query_failed)?;
    let mut rows = Box::pin(rows);
    // As in Spin, the columns are those of the first row.
    let first = rows.next().await;
    let columns = match &first {
        Some(Ok(row)) => values::columns(row),
        _ => Vec::new(),
    };
    let (sender, receiver) = rows::channel();
    match first {
        Some(first) => {
            tokio::spawn(relay(client, first, rows, sender));
        }
        None => {
            let _ = sender.outcome.send(Ok(()));
        }
    }
    Ok((columns, receiver))
}

/// Passes rows on until there are none or nobody wants them.
async fn relay(
    client: Arc<Object>,
    first: Result<Row, tokio_postgres::Error>,
    mut rows: std::pin::Pin<Box<RowStream>>,
    sender: rows::Sender<wit::Row, wit::Error>,
) {
    let mut next = Some(first);
    let outcome = loop {
        let row = match next {
            None => break Ok(()),
            Some(Err(error)) => break Err(error::query_failed(error)),
            Some(Ok(row)) => row,
        };
        match values::row(&row) {
            Err(error) => {
                break Err(wit::Error::QueryFailed(wit::QueryError::Text(format!(
                    "{error:#}"
                ))));
            }
            Ok(row) => {
                if sender.rows.send(row).await.is_err() {
                    break Ok(());
                }
            }
        }
        tokio::select! {
            biased;
            () = sender.rows.closed() => break Ok(()),
            row = rows.next() => next = row,
        }
    };
    // Back to the pool first: whoever hears the outcome may want it next.
    drop((rows, client));
    let _ = sender.outcome.send(outcome);
}
