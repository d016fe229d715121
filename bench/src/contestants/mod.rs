//! What is measured: each contestant a process of its own, so that its CPU time and memory are its
//! own too, on one stand-in for Ollama.

mod child;
mod pass_through;
mod postgres;
pub mod serve;

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use llmchat_host::variables::environment_name;
use llmchat_host::{Manifest, Program};
use llmchat_testkit::Database;
use serde::Serialize;
use tempfile::TempDir;

use crate::cli::Against;
use crate::load::Target;
use crate::process;
use child::Child;
pub use postgres::{Postgres, Statement};

/// What a contestant is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The stand-in itself: the floor.
    Direct,
    /// A proxy that copies bytes: the limit for anything in the middle.
    PassThrough,
    /// llmchat on SQLite.
    Sqlite,
    /// llmchat on PostgreSQL.
    Postgres,
    /// Another server, started by somebody else.
    Other,
}

impl Role {
    /// llmchat itself, on either database.
    pub fn is_llmchat(self) -> bool {
        matches!(self, Self::Sqlite | Self::Postgres)
    }
}

/// One of those compared.
pub struct Contestant {
    /// What the results call it.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Where its turns are sent.
    pub target: Target,
    /// Its process, if that is known; the stand-in's is not `direct`'s cost.
    pub pid: Option<u32>,
    /// Its PostgreSQL database.
    pub database: Option<Database>,
    _child: Option<Child>,
    _state: Option<TempDir>,
}

/// How the model replies.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// How long.
    pub tokens: usize,
    /// Tokens a second; 0 is full speed.
    pub rate: f64,
}

impl Reply {
    /// As fast as it is taken.
    pub fn at_full_speed(tokens: usize) -> Self {
        Self { tokens, rate: 0.0 }
    }
}

/// Starts contestants.
pub struct Stage {
    stand_in: Child,
    manifest: PathBuf,
    postgres: Option<Postgres>,
}

impl Stage {
    /// Builds the component, and starts the stand-in at `listen` and PostgreSQL.
    pub async fn set_up(listen: std::net::SocketAddr, with_postgres: bool) -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spin.toml");
        let loaded = Manifest::load(&manifest)?;
        loaded.build()?;
        // Compiles it, so that no contestant's start has to.
        Program::load(&loaded)?;
        Ok(Self {
            stand_in: Child::start(&["stand-in", &listen.to_string()], &[])?,
            manifest,
            postgres: match with_postgres {
                true => Some(Postgres::start().await?),
                false => None,
            },
        })
    }

    /// The component's manifest.
    pub fn manifest(&self) -> Result<Manifest> {
        Manifest::load(&self.manifest)
    }

    /// The throw-away PostgreSQL, unless it was left out.
    pub fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// The roles that can be started.
    pub fn roles(&self) -> Vec<Role> {
        let mut roles = vec![Role::Direct, Role::PassThrough, Role::Sqlite];
        roles.extend(self.postgres.is_some().then_some(Role::Postgres));
        roles
    }

    /// Makes the model reply so from now on. Connections to it break.
    pub fn reply(&mut self, reply: Reply) -> Result<()> {
        self.stand_in
            .order(&format!("{} {}", reply.tokens, reply.rate))
    }

    /// Starts a contestant, as if for the first time: its database is new.
    pub async fn start(&self, role: Role) -> Result<Contestant> {
        self.start_from(role, &self.manifest, None).await
    }

    /// llmchat on SQLite, with another manifest or other bounds on its instances.
    pub async fn start_from(
        &self,
        role: Role,
        manifest: &Path,
        requests: Option<usize>,
    ) -> Result<Contestant> {
        let stand_in = self.stand_in.address();
        let (name, child, state, database) = match role {
            Role::Direct => ("direct", None, None, None),
            Role::PassThrough => {
                let child = Child::start(&["pass-through", &stand_in.to_string()], &[])?;
                ("pass-through", Some(child), None, None)
            }
            Role::Sqlite | Role::Postgres => {
                let state = TempDir::with_prefix("llmchat-bench-")?;
                let mut variables =
                    vec![(environment_name("ollama_url"), format!("http://{stand_in}"))];
                let mut database = None;
                if role == Role::Postgres {
                    let postgres = self.postgres.as_ref().context("PostgreSQL was left out")?;
                    let new = postgres.database().await?;
                    let url = new.url_at(new.address());
                    variables.push((environment_name("database_url"), url));
                    database = Some(new);
                }
                let (manifest, directory) = (utf8(manifest)?, utf8(state.path())?);
                let requests = requests.map(|requests| format!("--requests={requests}"));
                let mut arguments = vec!["llmchat", manifest, directory];
                arguments.extend(requests.as_deref());
                let child = Child::start(&arguments, &variables)?;
                let name = match role {
                    Role::Postgres => "llmchat, PostgreSQL",
                    _ => "llmchat, SQLite",
                };
                (name, Some(child), Some(state), database)
            }
            Role::Other => anyhow::bail!("another server is not ours to start"),
        };
        Ok(Contestant {
            name: name.to_owned(),
            role,
            target: Target {
                address: child.as_ref().map_or(stand_in, Child::address),
                path: match role.is_llmchat() {
                    true => "/llmchat/".to_owned(),
                    false => "/api/chat".to_owned(),
                },
                remembers: role.is_llmchat(),
            },
            pid: child.as_ref().map(Child::pid),
            database,
            _child: child,
            _state: state,
        })
    }
}

impl Contestant {
    /// A server that runs already.
    pub fn against(against: &Against) -> Result<Self> {
        let mut addresses = against
            .authority
            .to_socket_addrs()
            .with_context(|| format!("{} has no address", against.authority))?;
        Ok(Self {
            name: against.name.clone(),
            role: Role::Other,
            target: Target {
                address: addresses.next().context("no address")?,
                path: against.path.clone(),
                remembers: true,
            },
            pid: against.pid,
            database: None,
            _child: None,
            _state: None,
        })
    }

    /// CPU seconds that it has used; PostgreSQL's are not its own.
    pub fn cpu_seconds(&self) -> f64 {
        let time = self.pid.map(process::cpu_time);
        match time {
            Some(Ok(time)) => time.as_secs_f64(),
            _ => f64::NAN,
        }
    }

    /// Its memory in KiB.
    pub fn memory(&self) -> f64 {
        let memory = self.pid.map(process::memory);
        match memory {
            Some(Ok(memory)) => memory as f64,
            _ => f64::NAN,
        }
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
