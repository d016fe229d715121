//! The listening server: its configuration, and for tests the scripts and the recorded requests.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connection;
use crate::exchange::{Exchange, Request};
use crate::script::Script;

/// Any free port of the loopback interface.
pub(crate) const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Connections that may wait to be accepted: a thousand clients at once must not have to retry.
const BACKLOG: u32 = 4096;

/// Where a stand-in listens, and the pace and length of its built-in reply.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 means any free port.
    pub listen: SocketAddr,
    /// Tokens per second; `None` is as fast as the client reads.
    pub rate: Option<f64>,
    /// Tokens per reply; `None` is the built-in text, once.
    pub tokens: Option<usize>,
    /// What stands before its paths, as behind a gateway: empty, or `/like/this`.
    pub prefix: String,
    /// The bearer token without which nobody is answered.
    pub key: Option<String>,
    /// Whether a line on stderr says how each answer ended.
    pub logs: bool,
}

impl Config {
    /// The path of a request as Ollama has it. `None` outside of the prefix.
    pub(crate) fn path<'a>(&self, request: &'a Request) -> Option<&'a str> {
        let path = request.path.split('?').next()?;
        path.strip_prefix(&*self.prefix)
    }

    /// Whether the request has the key, if there is one.
    pub(crate) fn admits(&self, request: &Request) -> bool {
        let bearer = request.header("authorization");
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        self.key.is_none() || bearer == self.key.as_deref()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ANY_PORT.into(),
            rate: None,
            tokens: None,
            prefix: String::new(),
            key: None,
            logs: false,
        }
    }
}

/// A running stand-in. Dropping it stops it and cuts its connections.
pub struct Server {
    shared: Arc<Shared>,
    /// The one task that accepts: a set aborts its tasks when dropped.
    _task: JoinSet<()>,
}

/// What the connections share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// `None`: the built-in reply answers.
    scripts: Option<Mutex<Scripts>>,
    exchanges: watch::Sender<Vec<Arc<Exchange>>>,
}

struct Scripts {
    queue: VecDeque<Script>,
    /// For requests other than chat requests, by their paths.
    others: HashMap<&'static str, Script>,
    /// Answers when the queue is empty.
    fallback: Box<dyn Fn(&Request) -> Script + Send>,
}

impl Server {
    /// Starts a server that answers chat requests with the built-in reply.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::listen(config, None).await
    }

    /// Starts a server on a free port that answers chat requests with the test's scripts, and
    /// records all requests.
    pub async fn scripted() -> anyhow::Result<Self> {
        Self::scripted_as(Config::default()).await
    }

    /// Like [`Server::scripted`], configured otherwise.
    pub async fn scripted_as(config: Config) -> anyhow::Result<Self> {
        let scripts = Scripts {
            queue: VecDeque::new(),
            others: HashMap::new(),
            fallback: Box::new(|_| Script::refuse(500, "the test has no script for this request")),
        };
        Self::listen(config, Some(Mutex::new(scripts))).await
    }

    async fn listen(mut config: Config, scripts: Option<Mutex<Scripts>>) -> anyhow::Result<Self> {
        let listener =
            bind(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
        config.listen = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            scripts,
            exchanges: watch::Sender::default(),
        });
        let _task = [accept(listener, shared.clone())].into_iter().collect();
        Ok(Self { shared, _task })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.shared.config.listen
    }

    /// Its URL, as `OLLAMA_URL` takes it.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address(), self.shared.config.prefix)
    }

    /// Answers one chat request with this script. Scripts are used in the order of the pushes.
    pub fn push(&self, script: Script) {
        if let Some(mut scripts) = self.shared.scripts() {
            scripts.queue.push_back(script);
        }
    }

    /// Answers every chat request for which no script was pushed.
    pub fn always(&self, script: Script) {
        self.answer(move |_| script.clone());
    }

    /// Like [`Server::always`], with a script that depends on the request.
    pub fn answer(&self, answer: impl Fn(&Request) -> Script + Send + 'static) {
        if let Some(mut scripts) = self.shared.scripts() {
            scripts.fallback = Box::new(answer);
        }
    }

    /// Answers every request for this path with this script, such as `/api/tags`.
    pub fn answer_at(&self, path: &'static str, script: Script) {
        if let Some(mut scripts) = self.shared.scripts() {
            scripts.others.insert(path, script);
        }
    }

    /// Waits for `count` requests of any kind, and returns all that have arrived.
    pub async fn requests(&self, count: usize) -> Vec<Arc<Exchange>> {
        let mut exchanges = self.shared.exchanges.subscribe();
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = exchanges.wait_for(|all| all.len() >= count).await;
        exchanges.borrow().clone()
    }

    /// Waits for the `nth` chat request, counted from 1.
    pub async fn chat(&self, nth: usize) -> Arc<Exchange> {
        let mut exchanges = self.shared.exchanges.subscribe();
        let index = nth.saturating_sub(1);
        loop {
            if let Some(exchange) = self.shared.chats(&exchanges.borrow_and_update()).nth(index) {
                return exchange.clone();
            }
            let _ = exchanges.changed().await;
        }
    }

    /// The number of chat requests that have arrived.
    pub fn chats(&self) -> usize {
        self.shared.chats(&self.shared.exchanges.borrow()).count()
    }

    /// The number of requests for one of Ollama's paths that have arrived.
    pub fn requests_at(&self, path: &str) -> usize {
        let exchanges = self.shared.exchanges.borrow();
        self.shared.requests_at(path, &exchanges).count()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.shared.config).finish()
    }
}

impl Shared {
    /// The script for a request that has one of its own by its path.
    pub(crate) fn script_at(&self, path: &str) -> Option<Script> {
        self.scripts()?.others.get(path).cloned()
    }

    /// The script for a chat request; `None` asks for the built-in reply.
    pub(crate) fn script_for(&self, request: &Request) -> Option<Script> {
        let mut scripts = self.scripts()?;
        let pushed = scripts.queue.pop_front();
        Some(pushed.unwrap_or_else(|| (scripts.fallback)(request)))
    }

    /// Keeps the exchange for the test. Without one it is not kept: the list only grows.
    pub(crate) fn record(&self, exchange: &Arc<Exchange>) {
        if self.scripts.is_some() {
            self.exchanges.send_modify(|all| all.push(exchange.clone()));
        }
    }

    /// Says how an answer ended. (`eprintln!` would panic once stderr is closed.)
    pub(crate) fn log(&self, exchange: &Exchange) {
        if self.config.logs {
            let _ = writeln!(io::stderr(), "{exchange}");
        }
    }

    fn requests_at<'a>(
        &self,
        path: &str,
        exchanges: &'a [Arc<Exchange>],
    ) -> impl Iterator<Item = &'a Arc<Exchange>> {
        let is_at = move |it: &&Arc<Exchange>| self.config.path(it.request()) == Some(path);
        exchanges.iter().filter(is_at)
    }

    fn chats<'a>(&self, exchanges: &'a [Arc<Exchange>]) -> impl Iterator<Item = &'a Arc<Exchange>> {
        self.requests_at("/api/chat", exchanges)
    }

    fn scripts(&self) -> Option<MutexGuard<'_, Scripts>> {
        let scripts = self.scripts.as_ref()?;
        Some(scripts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until this future is dropped, which drops the connections too.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // An error is a client that broke the protocol: its connection is closed.
                connections.spawn(connection::serve(stream, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
