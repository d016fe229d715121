//! The program under test, started as in production, with everything around it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_host::{Host, Manifest, Options, Output, Program, Remains};
use ollama_stand_in::Server;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    Answer, Backend, Client, Cluster, Database, Event, Events, Row, Sqlite, Wire, eventually,
};

/// The component, built by its manifest's command and compiled, once for all tests.
async fn program() -> Result<&'static Program> {
    static PROGRAM: OnceCell<Program> = OnceCell::const_new();
    PROGRAM
        .get_or_try_init(|| async {
            let manifest =
                Manifest::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spin.toml"))?;
            tokio::task::spawn_blocking(move || {
                manifest.build()?;
                Program::load(&manifest)
            })
            .await?
        })
        .await
}

/// What a test changes before the start.
#[derive(Debug)]
pub struct Setup {
    backend: Backend,
    variables: BTreeMap<String, String>,
    drain: Option<Duration>,
    threads: Option<NonZeroUsize>,
    database_wire: bool,
    ollama_wire: bool,
}

impl Setup {
    /// Sets a variable of the manifest.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// How long a stop waits for turns.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.drain = Some(limit);
        self
    }

    /// How many threads serve: one, if nothing is said.
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = NonZeroUsize::new(count);
        self
    }

    /// Puts a [`Wire`] between the component and PostgreSQL.
    pub fn database_wire(mut self) -> Self {
        self.database_wire = true;
        self
    }

    /// Puts a [`Wire`] between the component and Ollama.
    pub fn ollama_wire(mut self) -> Self {
        self.ollama_wire = true;
        self
    }

    /// Starts it all.
    pub async fn start(self) -> Result<TestApp> {
        let Self {
            backend,
            variables: given,
            drain,
            threads,
            database_wire,
            ollama_wire,
        } = self;
        let program = program().await?;
        let state = TempDir::with_prefix("llmchat-test-")?;
        let mut variables = BTreeMap::new();

        let ollama = Server::scripted().await?;
        let ollama_wire = match ollama_wire {
            true => Some(Wire::to(ollama.address()).await?),
            false => None,
        };
        let ollama_address = ollama_wire.as_ref().map_or(ollama.address(), Wire::address);
        variables.insert("ollama_url".to_owned(), format!("http://{ollama_address}"));

        let mut wire = None;
        let database = match backend {
            Backend::Sqlite => None,
            Backend::Postgres => {
                let database = Cluster::shared().await?.database().await?;
                if database_wire {
                    wire = Some(Wire::to(database.address()).await?);
                }
                let address = wire.as_ref().map_or(database.address(), Wire::address);
                variables.insert("database_url".to_owned(), database.url_at(address));
                Some(database)
            }
        };
        variables.extend(given);

        let output = Output::capture();
        let options = Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            variables,
            state_dir: Some(state.path().to_owned()),
            drain: drain.unwrap_or(crate::LONG),
            threads: threads.unwrap_or(NonZeroUsize::MIN),
            output: output.clone(),
            ..Options::default()
        };
        let host = Host::start(program, options.clone()).await?;
        Ok(TestApp {
            client: Client::of(host.address()),
            address: host.address(),
            host: Some(host),
            remains: None,
            options,
            ollama,
            ollama_wire,
            database_wire: wire,
            store: match database {
                Some(database) => Store::Postgres(Box::new(database)),
                None => Store::Sqlite(Sqlite {
                    path: state.path().join("sqlite_db.db"),
                }),
            },
            output,
            _state: state,
        })
    }
}

/// The running program.
pub struct TestApp {
    /// Sends requests to it.
    pub client: Client,
    /// What it takes for Ollama.
    pub ollama: Server,
    /// The network between the two, if it was asked for.
    pub ollama_wire: Option<Wire>,
    database_wire: Option<Wire>,
    address: SocketAddr,
    host: Option<Host>,
    remains: Option<Remains>,
    options: Options,
    store: Store,
    output: Output,
    _state: TempDir,
}

#[derive(Debug)]
enum Store {
    Sqlite(Sqlite),
    Postgres(Box<Database>),
}

/// A prompt of one message.
pub fn prompt(app_id: &str, content: &str) -> Value {
    json!({
        "appID": app_id,
        "model": "stand-in",
        "messages": [{"role": "user", "content": content}],
    })
}

impl TestApp {
    /// The program as it is by default.
    pub async fn start(backend: Backend) -> Result<Self> {
        Self::on(backend).start().await
    }

    /// The program with changes.
    pub fn on(backend: Backend) -> Setup {
        Setup {
            backend,
            variables: BTreeMap::new(),
            drain: None,
            threads: None,
            database_wire: false,
            ollama_wire: false,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many instances of the component there are.
    pub fn instances(&self) -> usize {
        self.host.as_ref().map_or(0, Host::instances)
    }

    /// Sends a prompt; returns with the head of the answer.
    pub async fn prompt(&self, app_id: &str, content: &str) -> Result<Answer> {
        self.client.prompt(&prompt(app_id, content)).await
    }

    /// Sends a prompt; returns with its stream.
    pub async fn stream(&self, app_id: &str, content: &str) -> Result<Events> {
        self.prompt(app_id, content).await?.events().await
    }

    /// Sends a prompt and reads the whole answer.
    pub async fn ask(&self, app_id: &str, content: &str) -> Result<Vec<Event>> {
        self.stream(app_id, content).await?.rest().await
    }

    /// A conversation's rows, in their order; none if there is no table yet.
    pub async fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        match &self.store {
            Store::Sqlite(sqlite) if sqlite.has_table()? => sqlite.rows(app_id),
            Store::Postgres(database) if database.has_table().await? => database.rows(app_id).await,
            _ => Ok(Vec::new()),
        }
    }

    /// The same as `(role, message)`.
    pub async fn conversation(&self, app_id: &str) -> Result<Vec<(String, String)>> {
        let rows = self.rows(app_id).await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.role, row.message))
            .collect())
    }

    /// All rows, of any conversation.
    pub async fn row_count(&self) -> Result<usize> {
        let sql = "SELECT message FROM chatts";
        Ok(match &self.store {
            Store::Sqlite(sqlite) if sqlite.has_table()? => sqlite.query(sql)?.len(),
            Store::Postgres(database) if database.has_table().await? => {
                database.query(sql).await?.len()
            }
            _ => 0,
        })
    }

    /// Runs SQL on its database.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        match &self.store {
            Store::Sqlite(sqlite) => sqlite.execute(sql),
            Store::Postgres(database) => database.execute(sql).await,
        }
    }

    /// Its PostgreSQL database.
    pub fn postgres(&self) -> Result<&Database> {
        match &self.store {
            Store::Postgres(database) => Ok(database),
            Store::Sqlite(_) => anyhow::bail!("this test runs on SQLite"),
        }
    }

    /// Its SQLite database.
    pub fn sqlite(&self) -> Result<&Sqlite> {
        match &self.store {
            Store::Sqlite(sqlite) => Ok(sqlite),
            Store::Postgres(_) => anyhow::bail!("this test runs on PostgreSQL"),
        }
    }

    /// The network between it and PostgreSQL.
    pub fn database_wire(&self) -> Result<&Wire> {
        self.database_wire
            .as_ref()
            .context("there is no wire to the database")
    }

    /// The network between it and Ollama.
    pub fn ollama_wire(&self) -> Result<&Wire> {
        self.ollama_wire
            .as_ref()
            .context("there is no wire to Ollama")
    }

    /// What the component and the host have logged.
    pub fn log(&self) -> String {
        self.output.text()
    }

    /// Stops it as SIGTERM would: returns when its turns have ended; how many were cut off.
    pub async fn stop(&mut self) -> usize {
        match self.host.take() {
            Some(host) => host.stop().await,
            None => 0,
        }
    }

    /// Ends it as a crash would: at once, in the middle of whatever it did.
    pub fn crash(&mut self) {
        self.remains = self.host.take().map(|host| host.remains());
    }

    /// Starts it again, at another address, on the same database.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(remains) = self.remains.take() {
            // A crash leaves no thread behind; here one may still be waiting for SQLite's lock.
            eventually("the end of the crashed host", async || {
                Ok((!remains.any()).then_some(()))
            })
            .await?;
        }
        let host = Host::start(program().await?, self.options.clone()).await?;
        self.address = host.address();
        self.client = Client::of(self.address);
        self.host = Some(host);
        Ok(())
    }

    /// Turns that are open, those whose client has left included.
    pub fn open_turns(&self) -> usize {
        self.host.as_ref().map_or(0, Host::open_turns)
    }
}
