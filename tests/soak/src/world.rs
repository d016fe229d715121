//! Everything around the clients: database, Ollama, hosts, the network between them, and the faults.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use llmchat_testkit::{Answer, Client, Cluster, Database, Disk, Process, Store, Variables, Wire};
use ollama_stand_in::{Request, Script, Server};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::evidence::{Call, Row, Stored, TurnRow};
use crate::plan::{Fault, Plan, PlannedFault};
use crate::text::{ConversationId, TurnId};

/// The bounds that the hosts run with: short, so that running into one is cheap.
const BOUNDS: [(&str, &str); 8] = [
    ("ollama_connect_timeout", "1s"),
    ("ollama_first_byte_timeout", "1s"),
    ("ollama_idle_timeout", "1s"),
    ("database_timeout", "3s"),
    ("client_stall_timeout", "2s"),
    ("comment_interval", "500ms"),
    ("turn_timeout", "15s"),
    ("checkpoint_interval", "100ms"),
];

/// How long a host that does nothing keeps its turns.
const LEASE: Duration = Duration::from_secs(3);

/// Bytes of a conversation that a model is sent: a long one does not fit.
pub(crate) const HISTORY: usize = 8 << 10;

/// Of the disk that the store is on: more than a run writes. In MiB.
const DISK: usize = 256;

/// One host, and the network around it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) host: Process,
    database: Option<Wire>,
    ollama: Wire,
}

/// The environment of a run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    begun: Instant,
    pub(crate) nodes: Vec<Node>,
    ollama: Server,
    store: Store,
    /// Where the machine lets us have one.
    disk: Option<Disk>,
    _directory: TempDir,
    history: Mutex<History>,
    queue: mpsc::Sender<PlannedFault>,
}

/// What has failed so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// When each host was killed, or came back from a standstill.
    pub(crate) kills: Vec<(usize, Duration)>,
    /// What was done to what, and when, for whoever looks into it.
    pub(crate) timeline: Vec<(Duration, PlannedFault)>,
    /// The number of faults, by name.
    pub(crate) faults: BTreeMap<&'static str, usize>,
}

impl World {
    /// Starts everything, without faults. Returns the queue of faults too, which has an end:
    /// faults for which it has no room are left out.
    pub(crate) async fn start(
        plan: Plan,
        variables: &Variables,
    ) -> Result<(Arc<Self>, mpsc::Receiver<PlannedFault>)> {
        let directory = TempDir::with_prefix("llmchat-soak-")?;
        let ollama = Server::scripted().await?;
        let calls: Mutex<HashMap<TurnId, usize>> = Mutex::default();
        ollama.answer(move |request| {
            let Some(id) = turn_of(request) else {
                return Script::refuse(400, "not of this run");
            };
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            let calls = calls.entry(id).or_default();
            *calls += 1;
            let turn = match id.turn >= plan.turns {
                true => plan.closing(id.conversation),
                false => plan.turn(id),
            };
            turn.script(*calls - 1)
        });
        let mut disk = None;
        let has_disk = Disk::is_possible();
        let store = if plan.has_postgres {
            let database = database().await?;
            if has_disk {
                disk = Some(database.disk(DISK).await?);
            }
            Store::Postgres(database)
        } else {
            if has_disk {
                disk = Some(Disk::new(DISK)?);
            }
            let state = disk.as_ref().map_or(directory.path(), Disk::path);
            Store::Sqlite(state.join("sqlite_db.db"))
        };
        let (queue, faults) = mpsc::channel(4);
        let mut world = Self {
            plan,
            begun: Instant::now(),
            nodes: Vec::new(),
            ollama,
            store,
            disk,
            _directory: directory,
            history: Mutex::default(),
            queue,
        };
        for _ in 0..plan.hosts {
            let node = world.node(variables).await?;
            world.nodes.push(node);
        }
        Ok((Arc::new(world), faults))
    }

    async fn node(&self, variables: &Variables) -> Result<Node> {
        let ollama = Wire::to(self.ollama.address()).await?;
        let mut all: Variables = BOUNDS.map(|(name, value)| (name, value.to_owned())).into();
        all.push(("ollama_url", format!("http://{}", ollama.address())));
        all.push(("turn_lease", format!("{}s", LEASE.as_secs())));
        all.push(("max_history_bytes", HISTORY.to_string()));
        all.push(("api_keys", self.keys()));
        let mut wire = None;
        if let Store::Postgres(database) = &self.store {
            let to_database = Wire::to(database.address()).await?;
            all.push(("database_url", database.url_at(to_database.address())));
            wire = Some(to_database);
        }
        all.extend_from_slice(variables);
        let name = format!("host-{}", self.nodes.len());
        let state = match (&self.store, &self.disk) {
            (Store::Sqlite(_), Some(disk)) => disk.path(),
            _ => self._directory.path(),
        };
        Ok(Node {
            host: Process::start(self._directory.path(), state, &name, all).await?,
            database: wire,
            ollama,
        })
    }

    /// The setting of this name: the keys of all owners, and of one who has no conversations.
    fn keys(&self) -> String {
        let Plan { owners, seed, .. } = self.plan;
        let owners = (owners > 0).then_some(0..=owners);
        let entry = |owner| format!("{OWNER}{owner}:{}\n", token(seed, owner));
        owners.into_iter().flatten().map(entry).collect()
    }

    /// The value of `authorization` with an owner's key.
    pub(crate) fn authorization(&self, owner: usize) -> Option<String> {
        let Plan { owners, seed, .. } = self.plan;
        (owners > 0).then(|| format!("Bearer {}", token(seed, owner)))
    }

    /// Sends a request of an owner's; returns with the head of the answer.
    pub(crate) async fn ask(
        &self,
        host: usize,
        owner: usize,
        (method, path): (&str, &str),
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Answer> {
        let authorization = self.authorization(owner);
        let authorization = authorization
            .iter()
            .map(|it| ("authorization", it.as_str()));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        let client = self.client(host)?;
        client.request_with(method, path, &headers, body).await
    }

    /// A client of a host, without a key.
    pub(crate) fn client(&self, host: usize) -> Result<Client> {
        let node = self.nodes.get(host).context("no such host")?;
        Ok(Client::of(node.host.address()))
    }

    /// The time since the beginning of the run.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a fault.
    pub(crate) fn count(&self, fault: &'static str) {
        *self.history().faults.entry(fault).or_default() += 1;
    }

    /// Puts a fault into the queue when its time has come.
    pub(crate) fn schedule(self: &Arc<Self>, planned: PlannedFault) {
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(planned.after).await;
            if world.queue.try_send(planned).is_err() {
                world.count("(left out: too many other faults)");
            }
        });
    }

    /// Makes a fault happen, and repairs it.
    pub(crate) async fn fail(&self, planned: PlannedFault) -> Result<()> {
        let (fault, lasts) = (planned.fault, planned.lasts);
        let node = self.nodes.get(planned.host).context("no such host")?;
        let database = || node.database.as_ref().context("no wire to a database");
        self.count(fault.into());
        self.history().timeline.push((self.now(), planned));
        match fault {
            Fault::DatabaseRestart | Fault::DatabaseCrash => {
                let cluster = Cluster::shared().await?;
                return cluster.restart(fault == Fault::DatabaseCrash).await;
            }
            Fault::DatabaseReadOnly => return self.read_only(lasts).await,
            Fault::DiskFull => {
                let Some(disk) = &self.disk else {
                    self.count("(left out: no disk to fill)");
                    return Ok(());
                };
                disk.fill()?;
                tokio::time::sleep(lasts).await;
                return disk.free();
            }
            Fault::HostKill => {
                self.history().kills.push((planned.host, self.now()));
                node.host.kill().await?;
                tokio::time::sleep(lasts / 4).await;
                return node.host.up().await;
            }
            Fault::HostStop => {
                if !Process::drains() {
                    self.history().kills.push((planned.host, self.now()));
                }
                node.host.stop().await?;
                return node.host.up().await;
            }
            Fault::HostFreeze => {
                node.host.freeze().await?;
                tokio::time::sleep(LEASE + lasts).await;
                // It finds its clients' time over.
                self.history().kills.push((planned.host, self.now()));
                return node.host.thaw().await;
            }
            Fault::DatabaseCut => database()?.cut(),
            Fault::DatabaseSilence => database()?.silence(),
            Fault::DatabaseRefuse => database()?.take_down(),
            Fault::DatabaseDelay => database()?.delay(lasts / 10),
            Fault::DatabaseHold => database()?.hold(),
            Fault::DatabaseSwallow => database()?.swallow_answers(),
            Fault::OllamaCut => node.ollama.cut(),
            Fault::OllamaDown => node.ollama.take_down(),
        }
        tokio::time::sleep(lasts).await;
        node.ollama.restore();
        if let Some(wire) = &node.database {
            wire.restore();
            if fault == Fault::DatabaseSwallow {
                // Half an answer is worse than none.
                wire.cut();
            }
        }
        Ok(())
    }

    /// The server takes no writes for a while, as in a failover. Connections that are open notice.
    async fn read_only(&self, lasts: Duration) -> Result<()> {
        let Store::Postgres(database) = &self.store else {
            return Ok(());
        };
        for (is, lasts) in [("on", lasts), ("off", Duration::ZERO)] {
            let set = format!("ALTER SYSTEM SET default_transaction_read_only = {is}");
            database.execute(&set).await?;
            database.execute("SELECT pg_reload_conf()").await?;
            tokio::time::sleep(lasts).await;
        }
        Ok(())
    }

    /// The chat requests that Ollama has received.
    pub(crate) async fn calls(&self) -> Result<Vec<Call>> {
        let exchanges = self.ollama.requests(0).await;
        // The hosts ask for its version when they start.
        let requests = exchanges.iter().map(|exchange| exchange.request());
        let calls = requests
            .filter(|request| request.path == "/api/chat")
            .map(|request| {
                Ok(Call {
                    id: turn_of(request).context("a request that nobody made")?,
                    messages: request.messages()?,
                    body: String::from_utf8_lossy(&request.body).into_owned(),
                })
            });
        calls.collect()
    }

    /// All that is stored, once nobody writes any more.
    pub(crate) async fn stored(&self) -> Result<Stored> {
        let order = match &self.store {
            Store::Sqlite(_) => "turn_start, turn_id, rowid",
            Store::Postgres(database) => {
                let wires = self.nodes.iter().filter_map(|node| node.database.as_ref());
                wires.for_each(Wire::cut);
                database.until_unused().await?;
                "coalesce(turn_start, time), turn_id, seq"
            }
        };
        let mut stored = Stored::default();
        for row in self.table("chatts", order, &mut stored).await? {
            stored.row_count += 1;
            let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
            let rows = stored.rows.entry(conversation_of(&row, self.plan.owners));
            rows.or_default().push(Row {
                role: text("name").unwrap_or_default(),
                message: text("message").unwrap_or_default(),
                raw: text("raw"),
                thinking: text("thinking"),
                calls: text("calls"),
                status: text("status").unwrap_or_default(),
                turn: text("turn_id").unwrap_or_default(),
                id: text("id").unwrap_or_default(),
            });
        }
        for row in self.table("chatts_turns", "turn_id", &mut stored).await? {
            let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
            let columns = row.as_object().context("a turn is no object")?.iter();
            let columns = columns
                .filter(|(name, value)| !(value.is_null() || NAMES.contains(&name.as_str())));
            stored.turns.push(TurnRow {
                turn: text("turn_id").unwrap_or_default(),
                state: text("state").unwrap_or_default(),
                code: text("code"),
                attempt: text("attempt"),
                reply_id: text("reply_id"),
                columns: columns.map(|(name, _)| name.clone()).collect(),
            });
        }
        stored.runs = turns_of(&self.table("chatts_runs", "turn_id", &mut stored).await?);
        stored.parts = turns_of(&self.table("chatts_parts", "turn_id", &mut stored).await?);
        Ok(stored)
    }

    /// A table's rows, as objects of all columns.
    async fn table(&self, table: &str, order: &str, stored: &mut Stored) -> Result<Vec<Value>> {
        let object = match &self.store {
            Store::Postgres(_) => format!("CAST(to_json({table}) AS text)"),
            Store::Sqlite(_) => {
                let columns = format!(
                    "SELECT group_concat(format('%Q, \"%w\"', name, name)) FROM pragma_table_info('{table}')"
                );
                let columns = self.store.query(&columns).await?;
                format!("json_object({})", columns.concat())
            }
        };
        let select = format!("SELECT {object} FROM {table} ORDER BY {order}");
        let mut rows = Vec::new();
        for row in self.store.query(&select).await? {
            let value = serde_json::from_str(&row)?;
            stored
                .whole
                .push((conversation_of(&value, self.plan.owners), row));
            rows.push(value);
        }
        Ok(rows)
    }

    /// What the hosts have logged.
    pub(crate) fn log(&self) -> Result<String> {
        self.nodes.iter().map(|node| node.host.log()).collect()
    }

    /// Stops every host, in an orderly way.
    pub(crate) async fn stop(&self) -> Result<()> {
        for node in &self.nodes {
            node.host.stop().await?;
        }
        Ok(())
    }
}

/// The conversation's `appID`, which is that of other owners' too.
pub(crate) fn app_id(conversation: ConversationId) -> String {
    format!("{APP}{}", conversation.app)
}

/// Of a row in the database.
fn conversation_of(row: &Value, owners: usize) -> ConversationId {
    let number = |column: &str, prefix: &str| {
        let text = row.get(column)?.as_str()?;
        text.strip_prefix(prefix)?.parse().ok()
    };
    ConversationId {
        owner: match owners {
            0 => 0,
            _ => number("owner", OWNER).unwrap_or(usize::MAX),
        },
        app: number("appid", APP).unwrap_or(usize::MAX),
    }
}

fn turns_of(rows: &[Value]) -> Vec<String> {
    let turns = rows.iter().filter_map(|row| row.get("turn_id")?.as_str());
    turns.map(str::to_owned).collect()
}

const OWNER: &str = "owner-";
const APP: &str = "soak-";

fn token(seed: u64, owner: usize) -> String {
    format!("key-{seed}-{owner}")
}

/// What names a turn, and is there always.
const NAMES: [&str; 4] = ["owner", "appid", "turn_id", "state"];

/// The turn that a request of llmchat's is made for.
fn turn_of(request: &Request) -> Option<TurnId> {
    let body = request.json().ok()?;
    TurnId::parse(body.get("options")?.get("turn")?.as_str()?)
}

async fn database() -> Result<Database> {
    let database = Cluster::shared().await?.database().await?;
    // Nobody reads the statements of thousands of turns.
    let without_log = "ALTER SYSTEM SET log_statement = 'none'";
    database.execute(without_log).await?;
    database.execute("SELECT pg_reload_conf()").await?;
    Ok(database)
}
