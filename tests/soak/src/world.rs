//! Everything around the clients: database, Ollama, hosts, the wires between them, and what fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use llmchat_testkit::{Cluster, Database, Row, Sqlite, Wire, eventually};
use ollama_stand_in::{Script, Server};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::auditor::Asked;
use crate::hosts::{self, Host};
use crate::plan::{Fault, Plan, PlannedFault, TurnId};

/// The bounds that the hosts run with: short, so that running into one is cheap.
const BOUNDS: [(&str, &str); 7] = [
    ("ollama_connect_timeout", "1s"),
    ("ollama_first_byte_timeout", "1s"),
    ("ollama_idle_timeout", "1s"),
    ("database_timeout", "3s"),
    ("client_stall_timeout", "2s"),
    ("comment_interval", "500ms"),
    ("turn_timeout", "15s"),
];

/// One host, and the network around it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) host: Host,
    database: Option<Wire>,
    ollama: Wire,
}

/// Where conversations are kept.
#[derive(Debug)]
pub(crate) enum Store {
    Postgres(Box<Database>),
    Sqlite(Sqlite),
}

/// What the run is made in.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    begun: Instant,
    pub(crate) places: Vec<Place>,
    pub(crate) ollama: Server,
    pub(crate) store: Store,
    _directory: TempDir,
    kills: Mutex<Vec<(usize, Duration)>>,
    faults: Mutex<BTreeMap<&'static str, usize>>,
    /// Faults wait in a line; those for which there is no place are left out.
    line: mpsc::Sender<PlannedFault>,
}

impl World {
    /// Sets it up: all is well.
    pub(crate) async fn start(
        plan: Plan,
        variables: &[(String, String)],
    ) -> Result<(Arc<Self>, mpsc::Receiver<PlannedFault>)> {
        let program = hosts::build().await?;
        let directory = TempDir::with_prefix("llmchat-soak-")?;
        let ollama = Server::scripted().await?;
        ollama.answer(move |request| match turn_of(request) {
            Some(id) if id.turn >= plan.turns => plan.closing(id.conversation).script(),
            Some(id) => plan.turn(id).script(),
            None => Script::refuse(400, "not of this run"),
        });
        let store = match plan.has_postgres {
            true => Store::Postgres(Box::new(database().await?)),
            false => Store::Sqlite(Sqlite {
                path: directory.path().join("state/sqlite_db.db"),
            }),
        };
        let mut places = Vec::new();
        for number in 0..plan.hosts {
            places.push(
                place(
                    &program,
                    directory.path(),
                    number,
                    &store,
                    &ollama,
                    variables,
                )
                .await?,
            );
        }
        let (line, waiting) = mpsc::channel(4);
        let world = Self {
            plan,
            begun: Instant::now(),
            places,
            ollama,
            store,
            _directory: directory,
            kills: Mutex::default(),
            faults: Mutex::default(),
            line,
        };
        Ok((Arc::new(world), waiting))
    }

    /// Since the beginning of the run.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Counts a fault.
    pub(crate) fn count(&self, fault: &'static str) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        *faults.entry(fault).or_default() += 1;
    }

    /// All faults so far, by kind.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, usize> {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When each host was killed.
    pub(crate) fn kills(&self) -> Vec<(usize, Duration)> {
        self.kills
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes a fault happen, in its time.
    pub(crate) fn plan_fault(self: &Arc<Self>, planned: PlannedFault) {
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(planned.after).await;
            if world.line.try_send(planned).is_err() {
                world.count("(left out: other faults were in the way)");
            }
        });
    }

    /// Lets one fault happen, and mends it.
    pub(crate) async fn fail(&self, planned: PlannedFault) -> Result<()> {
        let PlannedFault {
            fault, host, lasts, ..
        } = planned;
        let place = self.places.get(host).context("no such host")?;
        self.count(fault.name());
        match fault {
            Fault::DatabaseRestart | Fault::DatabaseCrash => {
                return Cluster::shared()
                    .await?
                    .restart(fault == Fault::DatabaseCrash)
                    .await
                    .context("PostgreSQL's restart");
            }
            Fault::HostKill => {
                let kill = (host, self.now());
                self.kills
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(kill);
                place.host.kill().await?;
                tokio::time::sleep(lasts / 4).await;
                return place.host.up().await;
            }
            Fault::HostStop => {
                place.host.stop().await?;
                return place.host.up().await;
            }
            _ => {}
        }
        let wire = match fault.is_of_postgres() {
            true => place
                .database
                .as_ref()
                .context("there is no wire to a database")?,
            false => &place.ollama,
        };
        match fault {
            Fault::DatabaseCut | Fault::OllamaCut => wire.cut(),
            Fault::DatabaseRefuse | Fault::OllamaDown => {
                wire.refuse();
                wire.cut();
            }
            Fault::DatabaseDelay => wire.delay(lasts / 10),
            Fault::DatabaseHold => wire.hold(),
            _ => wire.swallow_answers(),
        }
        tokio::time::sleep(lasts).await;
        wire.mend();
        if fault == Fault::DatabaseSwallow {
            // Half an answer is worse than none.
            wire.cut();
        }
        Ok(())
    }

    /// What Ollama was asked.
    pub(crate) async fn asked(&self) -> Result<Vec<Asked>> {
        let chats = self.ollama.requests(0).await;
        // The hosts look for its version when they start.
        let requests = chats.iter().map(|chat| chat.request());
        let asked = requests
            .filter(|request| request.path == "/api/chat")
            .map(|request| {
                Ok(Asked {
                    id: turn_of(request).context("a request that nobody made")?,
                    messages: request.messages()?,
                })
            });
        asked.collect()
    }

    /// All rows, by conversation, once nobody writes any more; and how many there are in all.
    pub(crate) async fn rows(&self) -> Result<(BTreeMap<usize, Vec<Row>>, usize)> {
        let mut rows = BTreeMap::new();
        let all = "SELECT message FROM chatts";
        let total = match &self.store {
            Store::Postgres(database) => {
                let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'llmchat-tests'";
                for place in &self.places {
                    place.database.as_ref().inspect(|wire| wire.cut());
                }
                eventually("the end of what the hosts left behind", async || {
                    Ok((database.query(others).await? == ["0"]).then_some(()))
                })
                .await?;
                database
                    .query(all)
                    .await
                    .context("cannot count the rows")?
                    .len()
            }
            Store::Sqlite(sqlite) => sqlite.query(all)?.len(),
        };
        for conversation in 0..self.plan.conversations {
            let app_id = app_id(conversation);
            let of_it = match &self.store {
                Store::Postgres(database) => database.rows(&app_id).await?,
                Store::Sqlite(sqlite) => sqlite.rows(&app_id)?,
            };
            rows.insert(conversation, of_it);
        }
        Ok((rows, total))
    }

    /// What the hosts have logged.
    pub(crate) fn log(&self) -> Result<String> {
        let logs: Result<Vec<_>> = self.places.iter().map(|place| place.host.log()).collect();
        Ok(logs?.concat())
    }

    /// Keeps the logs for whoever looks into a failure; says where.
    pub(crate) fn keep_logs(&self) -> Result<std::path::PathBuf> {
        let kept = std::env::temp_dir().join(format!("llmchat-soak-{}.log", self.plan.seed));
        std::fs::write(&kept, self.log()?)?;
        Ok(kept)
    }

    /// Stops every host in order.
    pub(crate) async fn stop(&self) -> Result<()> {
        for place in &self.places {
            place.host.stop().await?;
        }
        Ok(())
    }
}

/// The conversation's `appID`.
pub(crate) fn app_id(conversation: usize) -> String {
    format!("soak-{conversation}")
}

/// The turn that a request of llmchat's is made for.
fn turn_of(request: &ollama_stand_in::Request) -> Option<TurnId> {
    let body = request.json().ok()?;
    TurnId::parse(body.get("options")?.get("turn")?.as_str()?)
}

async fn database() -> Result<Database> {
    let database = Cluster::shared().await?.database().await?;
    // On a connection of its own: the one that the kit keeps would not survive the first restart.
    let client = database.connect().await?;
    // Every statement of thousands of turns: nobody reads that.
    client
        .batch_execute("ALTER SYSTEM SET log_statement = 'none'")
        .await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(database)
}

async fn place(
    program: &Path,
    directory: &Path,
    number: usize,
    store: &Store,
    ollama: &Server,
    variables: &[(String, String)],
) -> Result<Place> {
    let ollama = Wire::to(ollama.address()).await?;
    let mut settings: Vec<_> = BOUNDS
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    settings.push((
        "ollama_url".to_owned(),
        format!("http://{}", ollama.address()),
    ));
    let mut wire = None;
    if let Store::Postgres(database) = store {
        let to_database = Wire::to(database.address()).await?;
        settings.push((
            "database_url".to_owned(),
            database.url_at(to_database.address()),
        ));
        wire = Some(to_database);
    }
    settings.extend_from_slice(variables);
    Ok(Place {
        host: Host::start(program, directory, &format!("host-{number}"), settings).await?,
        database: wire,
        ollama,
    })
}
