//! Whether the server is alive, and whether it is ready: for what starts it anew, or sends it requests.
//!
//! Needs no key, and so tells in words of ours alone what is wrong: no address, no name, nothing that Ollama or the
//! database said.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::future::join;
use http::{Method, StatusCode};
use serde::Serialize;

use super::Api;
use crate::clock::{self, Clock as _, Monotonic, SHORTEST_TICK, Ticker, nanoseconds};
use crate::config::Config;
use crate::http::{self as client, Answer, RequestHead};
use crate::log;
use crate::ollama::object;
use crate::store::{Database, Kind, StoreError};

/// How long the database and Ollama are waited for, at the same time.
const LIMIT: Duration = Duration::from_secs(3);
/// Bytes of Ollama's answer.
const VERSION_MAX: usize = 64 * 1024;
/// How long an answer holds, for all who ask this instance: who asks often asks neither of the two more often.
const HOLDS: Duration = Duration::from_secs(1);
/// How often a request looks whether another one has the answer: they cannot wake each other.
const LOOK: Duration = Duration::from_millis(25);

thread_local! {
    static LATEST: RefCell<Option<(u64, Readiness)>> = const { RefCell::new(None) };
    static IS_ASKING: Cell<bool> = const { Cell::new(false) };
}

/// What is wrong with each of the two; `ok` if nothing is.
#[derive(Clone, Serialize)]
struct Readiness {
    status: &'static str,
    database: Cow<'static, str>,
    ollama: Cow<'static, str>,
}

/// Whether a request asks for [`alive`], which is answered before anything else.
pub(crate) fn is_asked(head: &RequestHead<'_>) -> bool {
    let path = head.path.split('?').next().unwrap_or_default();
    matches!(path, "/healthz" | "/healthz/")
        && matches!(head.method, Some(Method::GET | Method::HEAD))
}

/// `GET /healthz`: whoever reads this was answered.
pub(crate) fn alive() -> Answer {
    let answer = client::json(StatusCode::OK, br#"{"status":"ok"}"#.to_vec());
    // Any page may know it, and the settings have not been read.
    answer.with("access-control-allow-origin", "*")
}

impl Api {
    /// `GET /readyz`.
    pub(crate) async fn ready(&self) -> Answer {
        let readiness = loop {
            if let Some(latest) = latest() {
                break latest;
            }
            match Asking::start() {
                Some(asking) => break asking.ask(&self.store, &self.config).await,
                None => clock::sleep(LOOK).await,
            }
        };
        // Serialising strings into memory cannot fail.
        let json = serde_json::to_vec(&readiness).unwrap_or_default();
        match readiness.status {
            READY => client::json(StatusCode::OK, json),
            _ => client::json(StatusCode::SERVICE_UNAVAILABLE, json).with("retry-after", "1"),
        }
    }
}

const READY: &str = "ready";
const OK: Cow<'static, str> = Cow::Borrowed("ok");

/// What was found a moment ago.
fn latest() -> Option<Readiness> {
    LATEST.with_borrow(|latest| {
        let (found, readiness) = latest.as_ref()?;
        let age = Monotonic.now().saturating_sub(*found);
        (age < nanoseconds(HOLDS)).then(|| readiness.clone())
    })
}

/// While one request asks for all.
struct Asking;

impl Asking {
    fn start() -> Option<Self> {
        // Not `then_some`, whose value is dropped where another one asks, and would end that.
        (!IS_ASKING.replace(true)).then(|| Self)
    }

    async fn ask(self, store: &Database, config: &Config) -> Readiness {
        let (database, ollama) = join(database(store, config), ollama(config)).await;
        let is_ready = database.is_ok() && ollama.is_ok();
        let readiness = Readiness {
            status: if is_ready { READY } else { "not ready" },
            database: database.err().unwrap_or(OK),
            ollama: ollama.err().unwrap_or(OK),
        };
        LATEST.set(Some((Monotonic.now(), readiness.clone())));
        readiness
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        IS_ASKING.set(false);
    }
}

async fn database(store: &Database, config: &Config) -> Result<(), Cow<'static, str>> {
    let limit = LIMIT.min(config.timeouts.database);
    // Its first try gets a seventh.
    let mut ticker = Ticker::new((limit / 28).max(SHORTEST_TICK));
    let ping = async |store: &Database| store.ping().await;
    let pinged = store.retry(&mut ticker, limit, ping).await;
    pinged.map_err(|error| {
        log::line(format_args!("not ready: {error}"));
        what_is_wrong(&error)
    })
}

fn what_is_wrong(error: &StoreError) -> Cow<'static, str> {
    match error.kind {
        Kind::Unavailable | Kind::ReadOnly => {
            "cannot be reached, takes no writes, or does not answer in time: is it running, and is `database_url` its address?".into()
        }
        Kind::Unusable | Kind::Tls => error.for_client().to_owned().into(),
        _ => "failed, or refused the login: the server's log says why".into(),
    }
}

async fn ollama(config: &Config) -> Result<(), Cow<'static, str>> {
    let limit = LIMIT.min(config.timeouts.ollama_first_byte);
    let version = object::get(config, "/api/version", VERSION_MAX, limit).await;
    version
        .map(drop)
        .map_err(|failure| failure.briefly().into())
}
