//! The servers that are compared, each a process of its own, and what they run on: one stand-in
//! for Ollama, PostgreSQL, and the compiled component.

mod child;
mod pass_through;
mod postgres;
pub mod serve;

use std::cell::RefCell;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, Result};
use llmchat_host::{Manifest, Program};
use llmchat_testkit::{Client, Database};
use serde::Serialize;

use crate::cli::Options;
use crate::load::{Load, prompts};
use crate::process;
use child::Child;
use postgres::Postgres;

#[derive(Clone, PartialEq, Serialize)]
pub enum Kind {
    /// The stand-in itself: the floor.
    Direct,
    /// A proxy that copies bytes: the limit for anything in the middle.
    PassThrough,
    /// llmchat on SQLite.
    Sqlite,
    /// llmchat on PostgreSQL.
    Postgres,
    /// Another server, started by somebody else.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::PassThrough => "pass-through",
            Self::Sqlite => "llmchat, SQLite",
            Self::Postgres => "llmchat, PostgreSQL",
            Self::Other(name) => name,
        })
    }
}

/// How the stand-in replies.
#[derive(Clone, Copy)]
pub struct Reply {
    pub tokens: usize,
    /// Tokens a second; 0 is full speed.
    pub rate: f64,
}

impl Reply {
    pub fn at_full_speed(tokens: usize) -> Self {
        Self { tokens, rate: 0.0 }
    }
}

/// Where llmchat takes prompts.
const LLMCHAT: &str = "/llmchat/";

/// What the servers run on.
pub struct Environment {
    pub postgres: Option<Postgres>,
    stand_in: RefCell<Child>,
    /// The same each time it is restarted.
    ollama: SocketAddr,
}

/// The component's manifest.
pub fn manifest() -> Result<Manifest> {
    Manifest::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../spin.toml"))
}

impl Environment {
    /// Builds and compiles the component, and starts the stand-in and PostgreSQL.
    pub async fn start(options: &Options) -> Result<Self> {
        let manifest = manifest()?;
        manifest.build()?;
        // Fills the cache of compiled components: no server has to compile it at its start.
        Program::load(&manifest)?;
        let stand_in = start_stand_in(options.stand_in, Reply::at_full_speed(1))?;
        Ok(Self {
            postgres: match options.without_postgres {
                true => None,
                false => Some(Postgres::start().await?),
            },
            ollama: stand_in.address,
            stand_in: RefCell::new(stand_in),
        })
    }

    /// Restarts the stand-in to reply like this from now on. Connections to it break.
    pub fn set_reply(&self, reply: Reply) -> Result<()> {
        let mut stand_in = self.stand_in.borrow_mut();
        stand_in.stop();
        *stand_in = start_stand_in(self.ollama, reply)?;
        Ok(())
    }

    /// Starts a server, llmchat on a new database and with more arguments of [`serve::Serve::Llmchat`].
    pub async fn start_server(&self, kind: Kind, more: &[&str]) -> Result<Server> {
        self.start_server_for(self.ollama, kind, more).await
    }

    /// The same with another Ollama.
    pub async fn start_server_for(
        &self,
        ollama: SocketAddr,
        kind: Kind,
        more: &[&str],
    ) -> Result<Server> {
        let (path, child, database) = match kind {
            Kind::Direct => ("/api/chat", None, None),
            Kind::PassThrough => {
                let child = Child::start(&["pass-through", &ollama.to_string()])?;
                ("/api/chat", Some(child), None)
            }
            _ => {
                let program = std::env::current_exe()?;
                let (child, database) = self.start_llmchat(&program, ollama, &kind, more).await?;
                (LLMCHAT, Some(child), database)
            }
        };
        Ok(Server {
            kind,
            address: child.as_ref().map_or(ollama, |child| child.address),
            path: path.to_owned(),
            pid: child.as_ref().map(|child| child.pid),
            database,
            _child: child,
        })
    }

    /// Starts the llmchat that another build of this program serves.
    pub async fn start_other(&self, program: &Path, kind: &Kind) -> Result<Server> {
        let started = self.start_llmchat(program, self.ollama, kind, &[]).await;
        let (child, database) = started?;
        Ok(Server {
            kind: Kind::Other(format!("{kind}, before")),
            address: child.address,
            path: LLMCHAT.to_owned(),
            pid: Some(child.pid),
            database,
            _child: Some(child),
        })
    }

    async fn start_llmchat(
        &self,
        program: &Path,
        ollama: SocketAddr,
        kind: &Kind,
        more: &[&str],
    ) -> Result<(Child, Option<Database>)> {
        let mut arguments = vec!["llmchat".to_owned(), ollama.to_string()];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let mut database = None;
        if *kind == Kind::Postgres {
            let postgres = self.postgres.as_ref().context("PostgreSQL was left out")?;
            let new = postgres.cluster.database().await?;
            arguments.push(format!("--database-url={}", new.url_at(new.address())));
            database = Some(new);
        }
        Ok((Child::start_program(program, &arguments)?, database))
    }
}

fn start_stand_in(listen: SocketAddr, Reply { tokens, rate }: Reply) -> Result<Child> {
    let [listen, tokens, rate] = [listen.to_string(), tokens.to_string(), rate.to_string()];
    Child::start(&["stand-in", &listen, &tokens, &rate])
}

pub struct Server {
    pub kind: Kind,
    address: SocketAddr,
    path: String,
    /// `None` if it is not known, and for [`Kind::Direct`].
    pid: Option<i32>,
    pub database: Option<Database>,
    _child: Option<Child>,
}

impl Server {
    /// A server that runs already: `http://HOST:PORT/PATH=NAME`, or `…=NAME@PID`.
    pub fn running(text: &str) -> Result<Self> {
        let (url, name) = text.rsplit_once('=').context("--against: no URL=NAME")?;
        let rest = url.strip_prefix("http://");
        let rest = rest.context("--against: not an http:// URL")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, "llmchat/"));
        let (host, port) = host.rsplit_once(':').unwrap_or((host, "80"));
        let mut addresses = format!("{host}:{port}").to_socket_addrs()?;
        let (name, pid) = match name.rsplit_once('@') {
            Some((name, pid)) => (name, Some(pid.parse().context("--against: the PID")?)),
            None => (name, None),
        };
        Ok(Self {
            kind: Kind::Other(name.to_owned()),
            address: addresses.next().context("--against: no address")?,
            path: format!("/{path}"),
            pid,
            database: None,
            _child: None,
        })
    }

    /// Whether it stores conversations; the others are sent them whole.
    pub fn stores_conversations(&self) -> bool {
        !matches!(self.kind, Kind::Direct | Kind::PassThrough)
    }

    /// A client of it that reads events whole, each request on a connection of its own.
    pub fn client(&self) -> Client {
        Client::of(self.address)
    }

    /// Load on it, on kept connections, by prompts that each begin a conversation.
    pub fn load(&self, reply: Reply) -> Load {
        Load {
            address: self.address,
            path: self.path.clone(),
            prompts: prompts::new_conversations(self.stores_conversations()),
            authorization: None,
            // Another server may have another way to send a reply.
            tokens: (!matches!(self.kind, Kind::Other(_))).then_some(reply.tokens),
            fresh_connections: false,
            time_tokens: false,
        }
    }

    /// Its CPU seconds, without PostgreSQL's; `NaN` if they are not known.
    pub fn cpu_seconds(&self) -> f64 {
        let seconds = self.pid.and_then(|pid| process::cpu_seconds(pid).ok());
        seconds.unwrap_or(f64::NAN)
    }

    /// Its memory in KiB; `NaN` if it is not known.
    pub fn memory(&self) -> f64 {
        let memory = self.pid.and_then(|pid| process::memory(pid).ok());
        memory.map_or(f64::NAN, |memory| memory as f64)
    }

    /// Its open connections to PostgreSQL; `NaN` if it has no database there.
    pub async fn connections(&self) -> Result<f64> {
        match &self.database {
            Some(database) => postgres::connections(database).await,
            None => Ok(f64::NAN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_a_url_and_a_name() -> Result<()> {
        let server = Server::running("http://127.0.0.1:3001/llmchat/=python@17")?;
        assert_eq!(server.address, "127.0.0.1:3001".parse()?);
        assert_eq!(server.path, "/llmchat/");
        assert_eq!(
            (server.kind.to_string(), server.pid),
            ("python".to_owned(), Some(17))
        );
        assert!(Server::running("127.0.0.1:3001").is_err());
        Ok(())
    }
}
