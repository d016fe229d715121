//! A stand-in for Ollama: its wire format to the byte, and no model.
//!
//! Three users: somebody who wants to see llmchat run without a model ([`Server::start`]), tests
//! that decide what Ollama does and when ([`Server::scripted`]), and the benchmark.
//!
//! [`wire`] makes Ollama's lines, `ollama` is what the stand-in answers by itself, [`Script`] what
//! a test makes it answer, [`Exchange`] what a test sees of it, `http` the socket's side.

mod exchange;
mod http;
mod ollama;
mod script;
mod serve;
pub mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use exchange::{Ending, Exchange, Request};
pub use script::{Gate, Script};

/// How the stand-in answers what no script answers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 is a free one.
    pub listen: SocketAddr,
    /// Tokens a second; `None` is as fast as the socket takes them.
    pub rate: Option<f64>,
    /// The length of a reply; `None` is as long as what it has to say.
    pub tokens: Option<usize>,
    /// Keep what was asked, for [`Server::requests`]: for tests, since it grows.
    pub record: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            rate: None,
            tokens: None,
            record: false,
        }
    }
}

/// A running stand-in. It stops, and cuts its connections, when this is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    scripts: Option<Mutex<Scripts>>,
    exchanges: watch::Sender<Vec<Exchange>>,
    pub(crate) accepted: AtomicU64,
    pub(crate) open: AtomicU64,
}

type Answer = Box<dyn Fn(&Request) -> Script + Send>;

#[derive(Default)]
struct Scripts {
    queue: VecDeque<Script>,
    always: Option<Answer>,
}

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scripts", self.queue.len())
    }
}

/// Connections that may wait to be accepted: a thousand clients at once must not have to try again.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Server {
    /// Starts to listen, and to answer with its own reply.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::listen(config, None).await
    }

    /// Starts on a free port. It answers `POST /api/chat` only as the test says.
    pub async fn scripted() -> anyhow::Result<Self> {
        Self::scripted_at(Config::default().listen).await
    }

    /// The same at a given address: an Ollama that comes back.
    pub async fn scripted_at(listen: SocketAddr) -> anyhow::Result<Self> {
        let config = Config {
            listen,
            record: true,
            ..Config::default()
        };
        Self::listen(config, Some(Mutex::default())).await
    }

    async fn listen(mut config: Config, scripts: Option<Mutex<Scripts>>) -> anyhow::Result<Self> {
        let listener =
            bind(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
        config.listen = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            scripts,
            exchanges: watch::Sender::default(),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
        });
        let task = tokio::spawn(serve::accept(listener, shared.clone()));
        Ok(Self { shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.config.listen
    }

    /// What `OLLAMA_URL` would be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The answer to the next chat request that no earlier script answers.
    pub fn push(&self, script: Script) {
        self.with_scripts(|scripts| scripts.queue.push_back(script));
    }

    /// The answer to every chat request for which no script was pushed.
    pub fn always(&self, script: Script) {
        self.answer(move |_| script.clone());
    }

    /// The same, made for the request.
    pub fn answer(&self, answer: impl Fn(&Request) -> Script + Send + 'static) {
        self.with_scripts(|scripts| scripts.always = Some(Box::new(answer)));
    }

    /// Waits until this many requests of any kind have come, and returns all that have.
    pub async fn requests(&self, count: usize) -> Vec<Exchange> {
        let mut exchanges = self.shared.exchanges.subscribe();
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = exchanges.wait_for(|all| all.len() >= count).await;
        exchanges.borrow().clone()
    }

    /// Waits for the `nth` chat request, counted from 1.
    pub async fn chat(&self, nth: usize) -> Exchange {
        let mut exchanges = self.shared.exchanges.subscribe();
        loop {
            let found = chats(&exchanges.borrow_and_update())
                .nth(nth.saturating_sub(1))
                .cloned();
            if let Some(exchange) = found {
                return exchange;
            }
            let _ = exchanges.changed().await;
        }
    }

    /// How many chat requests have come so far.
    pub fn chats(&self) -> usize {
        chats(&self.shared.exchanges.borrow()).count()
    }

    /// Connections accepted so far.
    pub fn connections_accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn connections_open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Runs until the process ends.
    pub async fn run(mut self) -> anyhow::Result<()> {
        (&mut self.task).await.context("the stand-in stopped")
    }

    fn with_scripts(&self, change: impl FnOnce(&mut Scripts)) {
        if let Some(scripts) = &self.shared.scripts {
            change(&mut scripts.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// What a script says to a chat request; `None` if this stand-in answers by itself.
    pub(crate) fn script_for(&self, request: &Request) -> Option<Script> {
        let mut scripts = self
            .scripts
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let pushed = scripts.queue.pop_front();
        let script = pushed.or_else(|| scripts.always.as_ref().map(|answer| answer(request)));
        Some(
            script
                .unwrap_or_else(|| Script::refuse(500, "the test has no script for this request")),
        )
    }

    pub(crate) fn record(&self, exchange: &Exchange) {
        if self.config.record {
            self.exchanges.send_modify(|all| all.push(exchange.clone()));
        }
    }
}

fn chats(exchanges: &[Exchange]) -> impl Iterator<Item = &Exchange> {
    exchanges
        .iter()
        .filter(|exchange| exchange.request().path == "/api/chat")
}

/// An address at which nothing listens: connecting to it is refused for as long as this lives.
#[derive(Debug)]
pub struct Refused {
    address: SocketAddr,
    // Bound and not listening: nobody else is given the port meanwhile.
    _socket: TcpSocket,
}

impl Refused {
    /// Takes a free port.
    pub fn new() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(Config::default().listen)?;
        Ok(Self {
            address: socket.local_addr()?,
            _socket: socket,
        })
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address itself.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address that does not react: connecting to it neither succeeds nor fails.
#[derive(Debug)]
pub struct Unresponsive {
    address: SocketAddr,
    _listener: TcpListener,
    // They fill the queue of connections that nobody accepts; what comes after them waits.
    _queue: Vec<TcpStream>,
}

impl Unresponsive {
    /// Takes a free port.
    pub async fn new() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(Config::default().listen)?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut queue = Vec::new();
        // A connection that the queue still takes comes about at once.
        let at_once = Duration::from_millis(200);
        while let Ok(connected) = timeout(at_once, TcpStream::connect(address)).await {
            queue.push(connected?);
        }
        Ok(Self {
            address,
            _listener: listener,
            _queue: queue,
        })
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address itself.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
