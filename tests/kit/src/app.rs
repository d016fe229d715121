//! The program under test, started as in production, with everything around it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result};
use llmchat_host::{Host, Options, Output, Remains, ResponseLimits};
use ollama_stand_in::{Config, Ending, Script, Server};
use tempfile::TempDir;

use crate::component::{self, Platform};
use crate::{
    Answer, Backend, Client, Cluster, Database, Disk, Event, Events, LONG, Lock, Process, Row,
    Store, Wire, prompt, spin, until, within,
};

/// What a test changes before the start.
#[derive(Debug)]
pub struct Setup {
    backend: Backend,
    platform: Platform,
    options: Options,
    has_database_wire: bool,
    has_ollama_wire: bool,
    ollama: Config,
    disk: Option<usize>,
    /// What only our host has.
    native: Option<&'static str>,
}

impl Setup {
    /// Sets a variable of the manifest.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        let variables = &mut self.options.variables;
        variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// How long a stop waits for running turns.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.options.drain = limit;
        self.native = Some("drain");
        self
    }

    /// How long a client may take to send a request.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.options.request_timeout = limit;
        self.native = Some("request_timeout");
        self
    }

    /// Answers for loopback names alone, as the program does on a loopback address.
    pub fn loopback_names(mut self) -> Self {
        self.options.allowed_hosts = Some(Vec::new());
        self.native = Some("rule for names");
        self
    }

    /// How many threads serve; the default is one.
    pub fn threads(mut self, count: usize) -> Self {
        self.options.threads = NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        self.native = Some("threads");
        self
    }

    /// How far its clock is ahead of the right time.
    pub fn clock_ahead(mut self, by: Duration) -> Self {
        self.options.clock_ahead = by;
        self.native = Some("clock that is wrong");
        self
    }

    /// Bytes of the largest row that the host hands out.
    pub fn max_row_bytes(mut self, limit: usize) -> Self {
        self.options.max_row_bytes = limit;
        self.native = Some("max_row_bytes");
        self
    }

    /// Bytes of memory that an instance may have.
    pub fn instance_memory(mut self, limit: usize) -> Self {
        self.options.instances.memory = limit;
        self.native = Some("instance_memory");
        self
    }

    /// Takes work that goes on after the responses for nothing to do, as Spin 4.0 does.
    pub fn as_spin_4_0(mut self) -> Self {
        self.options.instances.finishes = false;
        self.native = Some("rule of our host for idle instances");
        self
    }

    /// Puts a [`Wire`] between the component and PostgreSQL.
    pub fn database_wire(mut self) -> Self {
        self.has_database_wire = true;
        self
    }

    /// Puts a [`Wire`] between the component and Ollama.
    pub fn ollama_wire(mut self) -> Self {
        self.has_ollama_wire = true;
        self
    }

    /// Puts Ollama behind a path and a key, and sets both variables.
    pub fn guarded_ollama(mut self, prefix: &str, key: &str) -> Self {
        self.ollama.prefix = prefix.to_owned();
        self.ollama.key = Some(key.to_owned());
        self
    }

    /// Has the store on a small [`Disk`].
    pub fn disk(mut self, mebibytes: usize) -> Self {
        self.disk = Some(mebibytes);
        self
    }

    /// Starts the program, Ollama and the database.
    pub async fn start(mut self) -> Result<TestApp> {
        let state = TempDir::with_prefix("llmchat-test-")?;
        self.options.state_dir = Some(state.path().to_owned());
        let ollama = Server::scripted_as(self.ollama.clone()).await?;
        let (address, ollama_wire) = wire(self.has_ollama_wire, ollama.address()).await?;
        let prefix = self.ollama.prefix.clone();
        self.default("ollama_url", format!("http://{address}{prefix}"));
        if let Some(key) = self.ollama.key.clone() {
            self.default("ollama_api_key", key);
        }
        if let Platform::Akamai = self.platform {
            self.default("ollama_host", format!("http://{address}"));
        }
        let mut disk = None;
        let (store, database_wire) = match self.backend {
            Backend::Sqlite => {
                disk = self.disk.map(Disk::new).transpose()?;
                let path = disk.as_ref().map_or(state.path(), Disk::path);
                self.options.state_dir = Some(path.to_owned());
                (Store::Sqlite(path.join("sqlite_db.db")), None)
            }
            Backend::Postgres => {
                let database = Cluster::shared().await?.database().await?;
                if let Some(mebibytes) = self.disk {
                    disk = Some(database.disk(mebibytes).await?);
                }
                let (address, wire) = wire(self.has_database_wire, database.address()).await?;
                self.default("database_url", database.url_at(address));
                if let Platform::Akamai = self.platform {
                    self.default("database_host", format!("postgres://{address}"));
                }
                (Store::Postgres(database), wire)
            }
        };
        let mut app = TestApp {
            client: Client::of(self.options.listen),
            host: None,
            remains: None,
            spin: None,
            options: self.options,
            platform: self.platform,
            ollama,
            ollama_wire,
            database_wire,
            store,
            disk,
            state,
        };
        match spin::program() {
            Some(_) => app.start_spin(self.native).await?,
            None => app.start_host().await?,
        }
        Ok(app)
    }

    fn default(&mut self, variable: &str, value: String) {
        let entry = self.options.variables.entry(variable.to_owned());
        entry.or_insert(value);
    }
}

/// Where to connect for `server`: by way of a wire, if there is to be one.
async fn wire(wanted: bool, server: SocketAddr) -> Result<(SocketAddr, Option<Wire>)> {
    if !wanted {
        return Ok((server, None));
    }
    let wire = Wire::to(server).await?;
    Ok((wire.address(), Some(wire)))
}

/// A second host of a [`TestApp`].
pub struct Another {
    /// Sends requests to it.
    pub client: Client,
    _host: Option<Host>,
    _spin: Option<Process>,
}

/// The running program.
pub struct TestApp {
    /// Sends requests to it.
    pub client: Client,
    /// Its Ollama.
    pub ollama: Server,
    ollama_wire: Option<Wire>,
    database_wire: Option<Wire>,
    host: Option<Host>,
    remains: Option<Remains>,
    spin: Option<Process>,
    options: Options,
    platform: Platform,
    store: Store,
    disk: Option<Disk>,
    state: TempDir,
}

impl TestApp {
    /// The program with its defaults.
    pub async fn start(backend: Backend) -> Result<Self> {
        Self::on(backend).start().await
    }

    /// The program with one variable set.
    pub async fn with(backend: Backend, variable: &str, value: impl ToString) -> Result<Self> {
        Self::on(backend).variable(variable, value).start().await
    }

    /// The program with changes, to be started.
    pub fn on(backend: Backend) -> Setup {
        Setup {
            backend,
            options: Options {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                drain: LONG,
                output: Output::capture(),
                ..Options::default()
            },
            platform: Platform::Spin,
            has_database_wire: false,
            has_ollama_wire: false,
            ollama: Config::default(),
            disk: None,
            native: None,
        }
    }

    /// The program as it is deployed to Akamai Functions, under that platform's limits, with a response's time
    /// as given (there: 30 s).
    pub fn on_akamai(response_time: Duration) -> Setup {
        let mut setup = Self::on(Backend::Postgres);
        setup.platform = Platform::Akamai;
        setup.native = Some("limits of Akamai Functions");
        setup.options.instances.memory = 128 << 20;
        setup.options.responses = ResponseLimits {
            time: Some(response_time),
            bytes: Some(10 << 20),
        };
        setup
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// How many instances of the component there are.
    pub fn instances(&self) -> Result<usize> {
        Ok(self.host("count of instances")?.instances())
    }

    /// How many turns run, those whose client has left included.
    pub fn open_requests(&self) -> Result<usize> {
        Ok(self.host("count of open requests")?.open_requests())
    }

    fn host(&self, what: &str) -> Result<&Host> {
        self.host.as_ref().ok_or_else(|| spin::has_no(what))
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
        self.prompt(app_id, content).await?.read().await
    }

    /// A whole turn, with a reply of one token; returns its path.
    pub async fn turn(&self, app_id: &str, content: &str, reply: &str) -> Result<String> {
        self.ollama.push(Script::reply([reply]));
        let events = self.stream(app_id, content).await?;
        let turn = events.turn().to_owned();
        events.rest().await?;
        Ok(turn)
    }

    /// A turn in mid-stream: Ollama answers with `script`, and the first event has come.
    pub async fn begin(&self, app_id: &str, content: &str, script: Script) -> Result<Events> {
        self.ollama.push(script);
        let mut events = self.stream(app_id, content).await?;
        events.next().await?;
        Ok(events)
    }

    /// Sends a prompt to each of the conversations `app 0`, `app 1`…; returns with their streams.
    pub async fn streams(&self, count: usize) -> Result<Vec<Events>> {
        let mut streams = Vec::new();
        for n in 0..count {
            streams.push(self.stream(&format!("app {n}"), "Hi").await?);
        }
        Ok(streams)
    }

    /// The messages of the `nth` chat request to Ollama, counted from 1.
    pub async fn sent_to_ollama(&self, nth: usize) -> Result<Vec<(String, String)>> {
        let exchange = within("a chat request", self.ollama.chat(nth)).await?;
        exchange.request().messages()
    }

    /// How Ollama's `nth` answer ended, counted from 1.
    pub async fn ollama_ended(&self, nth: usize) -> Result<Ending> {
        within("the end of Ollama's answer", async {
            self.ollama.chat(nth).await.ended().await
        })
        .await
    }

    /// A conversation's rows, in order; none if there is no table yet.
    pub async fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        self.store.rows(app_id).await
    }

    /// The rows as `(role, message)`.
    pub async fn conversation(&self, app_id: &str) -> Result<Vec<(String, String)>> {
        let rows = self.rows(app_id).await?.into_iter();
        Ok(rows.map(|row| (row.role, row.message)).collect())
    }

    /// Waits until the conversation has this many rows.
    pub async fn until_rows(&self, app_id: &str, count: usize) -> Result<()> {
        let enough = async || Ok(self.rows(app_id).await?.len() == count);
        until("the rows of a conversation", enough).await
    }

    /// The number of rows of all conversations.
    pub async fn row_count(&self) -> Result<usize> {
        self.store.row_count().await
    }

    /// Runs SQL on its database.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.store.execute(sql).await
    }

    /// The first column, which is text, of a query's rows.
    pub async fn query(&self, sql: &str) -> Result<Vec<String>> {
        self.store.query(sql).await
    }

    /// Keeps it from writing to its table.
    pub async fn lock(&self) -> Result<Lock> {
        self.store.lock().await
    }

    /// Its database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its PostgreSQL database.
    pub fn postgres(&self) -> Result<&Database> {
        match &self.store {
            Store::Postgres(database) => Ok(database),
            Store::Sqlite(_) => anyhow::bail!("this test runs on SQLite"),
        }
    }

    /// The network between it and PostgreSQL.
    pub fn database_wire(&self) -> Result<&Wire> {
        let wire = self.database_wire.as_ref();
        wire.context("there is no wire to the database")
    }

    /// The disk that its store is on.
    pub fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("there is no small disk")
    }

    /// The network between it and Ollama.
    pub fn ollama_wire(&self) -> Result<&Wire> {
        let wire = self.ollama_wire.as_ref();
        wire.context("there is no wire to Ollama")
    }

    /// What the component and the host have logged.
    pub fn log(&self) -> Result<String> {
        match &self.spin {
            Some(spin) => spin.log(),
            None => Ok(self.options.output.text()),
        }
    }

    /// Stops it as SIGTERM would; returns when its turns have ended, with the number of those that
    /// were cut off.
    pub async fn stop(&mut self) -> Result<usize> {
        let host = self.host.take();
        let host = host.ok_or_else(|| spin::has_no("turns that end after a stop"))?;
        Ok(host.stop().await)
    }

    /// Ends it as a crash would: at once, in the middle of whatever it did.
    pub async fn crash(&mut self) -> Result<()> {
        self.remains = self.host.take().map(|host| host.remains());
        match &self.spin {
            Some(spin) => spin.kill().await,
            None => Ok(()),
        }
    }

    /// Starts it again on the same database; our host at another address.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(spin) = &self.spin {
            return spin.up().await;
        }
        if let Some(remains) = self.remains.take() {
            // A crash leaves no thread behind; here one may still be waiting for SQLite's lock.
            until("the end of the crashed host", async || Ok(!remains.any())).await?;
        }
        self.start_host().await
    }

    /// Another host on the same database and the same Ollama, until it is dropped. Its clock is right.
    pub async fn another(&self) -> Result<Another> {
        self.another_with(&[]).await
    }

    /// Another host, with these variables instead.
    pub async fn another_with(&self, changes: &[(&str, &str)]) -> Result<Another> {
        let mut variables = self.options.variables.clone();
        for (name, value) in changes {
            variables.insert((*name).into(), (*value).into());
        }
        if spin::program().is_none() {
            let program = self.platform.program().await?;
            let options = Options {
                clock_ahead: Duration::ZERO,
                variables,
                ..self.options.clone()
            };
            let host = Host::start(program, options).await?;
            return Ok(Another {
                client: Client::of(host.address()),
                _host: Some(host),
                _spin: None,
            });
        }
        let state_dir = self.options.state_dir.as_deref();
        let state_dir = state_dir.unwrap_or(self.state.path());
        let spin = Process::start(self.state.path(), state_dir, "another", variables).await?;
        Ok(Another {
            client: Client::of(spin.address()),
            _host: None,
            _spin: Some(spin),
        })
    }

    /// A host of the previous release on the same database and the same Ollama, with these variables besides. `None`
    /// where this clone does not have it.
    pub async fn previous_release(&self, variables: &[(&str, &str)]) -> Result<Option<Another>> {
        self.host("component of the previous release")?;
        if !component::has_previous() {
            eprintln!(
                "LEFT OUT: the previous release is not in this clone; `git fetch --unshallow` brings it"
            );
            return Ok(None);
        }
        let mut options = self.options.clone();
        let is_shared = |name: &str| ["ollama_url", "database_url"].contains(&name);
        options.variables.retain(|name, _| is_shared(name));
        for (name, value) in variables {
            options.variables.insert((*name).into(), (*value).into());
        }
        let host = Host::start(Platform::Previous.program().await?, options).await?;
        Ok(Some(Another {
            client: Client::of(host.address()),
            _host: Some(host),
            _spin: None,
        }))
    }

    async fn start_host(&mut self) -> Result<()> {
        let host = Host::start(self.platform.program().await?, self.options.clone()).await?;
        self.client = Client::of(host.address());
        self.host = Some(host);
        Ok(())
    }

    async fn start_spin(&mut self, native: Option<&str>) -> Result<()> {
        if let Some(what) = native {
            return Err(spin::has_no(what));
        }
        let state_dir = self.options.state_dir.as_deref();
        let state_dir = state_dir.unwrap_or(self.state.path());
        let variables = self.options.variables.clone();
        let spin = Process::start(self.state.path(), state_dir, "spin", variables).await?;
        self.client = Client::of(spin.address());
        self.spin = Some(spin);
        Ok(())
    }
}
