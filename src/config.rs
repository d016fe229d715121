//! The operator's settings: Spin variables, read in one place.
//!
//! Each has its default in `spin.toml`; the names here are the names there.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use spin_sdk::variables;

use crate::error::Rejection;
use crate::transcode::Whitespace;

/// What a turn is run by. Never shown: it holds a password.
pub struct Config {
    /// PostgreSQL's URL, with its password; `None` is the host's SQLite.
    pub database_url: Option<String>,
    /// Where Ollama listens.
    pub ollama_url: OllamaUrl,
    /// What is stored of a completion's white space.
    pub completion_whitespace: Whitespace,
    /// What becomes of a turn whose client has left.
    pub on_disconnect: OnDisconnect,
    /// How long a turn holds its conversation between two renewals; `None` where prompts may
    /// overlap.
    pub lease: Option<Duration>,
    /// Turns that one instance runs at the same time.
    pub max_concurrent_turns: usize,
    /// Messages in one request.
    pub max_messages: usize,
    /// Bytes of the largest request body.
    pub max_body_bytes: usize,
    /// Bytes of the longest line from Ollama.
    pub max_line_bytes: usize,
    /// Bytes of the longest completion.
    pub max_completion_bytes: usize,
    /// The bounds on waits.
    pub timeouts: Timeouts,
}

/// The bounds on waits.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Silence towards the client before a comment line breaks it.
    pub comment_interval: Duration,
    /// A client that takes no byte, or sends none of its body, for so long is taken for gone.
    pub client_stall: Duration,
    /// Connecting to Ollama.
    pub ollama_connect: Duration,
    /// From the request to Ollama's first byte: a model may have to be loaded.
    pub ollama_first_byte: Duration,
    /// Between two bytes from Ollama.
    pub ollama_idle: Duration,
    /// One call of the database, tries made again included.
    pub database: Duration,
    /// The whole turn, up to the storing of its reply.
    pub turn: Duration,
}

impl Timeouts {
    /// The step of a turn's clock: fine enough for the shortest of its bounds.
    pub fn tick(&self) -> Duration {
        let shortest = [
            self.comment_interval,
            self.client_stall,
            self.database,
            self.ollama_first_byte,
            self.ollama_idle,
            self.turn,
        ]
        .into_iter()
        .min()
        .unwrap_or_default();
        (shortest / 4).clamp(SHORTEST / 2, Duration::from_secs(5))
    }
}

/// What becomes of a turn whose client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It goes on, and its reply is stored.
    Finish,
    /// Ollama is told to stop by closing the connection; what has come is stored.
    Cancel,
}

/// Scheme and authority of Ollama's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaUrl {
    /// `https` instead of `http`.
    pub is_https: bool,
    /// Host and port.
    pub authority: String,
}

/// A variable with a value that cannot be used. Does not repeat the value, which may be secret.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidVariable {
    name: &'static str,
    must_be: String,
    /// The host's words, for the log.
    detail: String,
}

impl fmt::Display for InvalidVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the variable `{}` {}", self.name, self.must_be)
    }
}

impl From<InvalidVariable> for Rejection {
    fn from(invalid: InvalidVariable) -> Self {
        Self {
            status: 500,
            error: format!("The server's configuration is wrong: {invalid}."),
            detail: format!(
                "Set it with SPIN_VARIABLE_{}. {}",
                invalid.name.to_uppercase(),
                invalid.detail
            ),
        }
    }
}

/// The settings, read when an instance serves its first request: a variable may be a round trip
/// to a vault. An instance is short-lived (128 requests at most on Spin), so a change is soon seen.
pub async fn load() -> Result<Rc<Config>, InvalidVariable> {
    thread_local! {
        static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
    }
    if let Some(config) = CONFIG.with(|config| config.get().cloned()) {
        return Ok(config);
    }
    let config = Rc::new(read().await?);
    Ok(CONFIG.with(|cell| cell.get_or_init(|| config).clone()))
}

async fn read() -> Result<Config, InvalidVariable> {
    let is_exclusive = variable("on_busy", |value| match value {
        "interleave" => Ok(false),
        "reject" => Ok(true),
        _ => Err("must be `interleave` or `reject`".into()),
    })
    .await?;
    let lease = variable("busy_lease", duration).await?;
    Ok(Config {
        lease: is_exclusive.then_some(lease),
        max_concurrent_turns: variable("max_concurrent_turns", count).await?,
        max_messages: variable("max_messages", count).await?,
        database_url: variable("database_url", database_url).await?,
        ollama_url: variable("ollama_url", ollama_url).await?,
        completion_whitespace: variable("completion_whitespace", |value| match value {
            "collapse" => Ok(Whitespace::Collapse),
            "preserve" => Ok(Whitespace::Preserve),
            _ => Err("must be `collapse` or `preserve`".into()),
        })
        .await?,
        on_disconnect: variable("on_disconnect", |value| match value {
            "finish" => Ok(OnDisconnect::Finish),
            "cancel" => Ok(OnDisconnect::Cancel),
            _ => Err("must be `finish` or `cancel`".into()),
        })
        .await?,
        max_body_bytes: variable("max_body_bytes", count).await?,
        max_line_bytes: variable("max_line_bytes", count).await?,
        max_completion_bytes: variable("max_completion_bytes", count).await?,
        timeouts: Timeouts {
            comment_interval: variable("comment_interval", duration).await?,
            client_stall: variable("client_stall_timeout", duration).await?,
            ollama_connect: variable("ollama_connect_timeout", duration).await?,
            ollama_first_byte: variable("ollama_first_byte_timeout", duration).await?,
            ollama_idle: variable("ollama_idle_timeout", duration).await?,
            database: variable("database_timeout", duration).await?,
            turn: variable("turn_timeout", duration).await?,
        },
    })
}

async fn variable<T>(
    name: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, InvalidVariable> {
    let invalid = |must_be: String, detail: String| InvalidVariable {
        name,
        must_be,
        detail,
    };
    match variables::get(name).await {
        Ok(value) => parse(value.trim()).map_err(|must_be| invalid(must_be, String::new())),
        Err(error) => Err(invalid("cannot be read".into(), error.to_string())),
    }
}

fn database_url(value: &str) -> Result<Option<String>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    if value.starts_with("postgres://") || value.starts_with("postgresql://") {
        return Ok(Some(value.to_owned()));
    }
    Err("must be a URL like postgres://user:password@host/database, or empty for SQLite".into())
}

fn ollama_url(value: &str) -> Result<OllamaUrl, String> {
    let must_be = || "must be scheme, host and port alone, like http://localhost:11434".to_owned();
    let (scheme, rest) = value.split_once("://").ok_or_else(must_be)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let is_https = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(must_be()),
    };
    if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
        return Err(must_be());
    }
    Ok(OllamaUrl {
        is_https,
        authority: authority.to_owned(),
    })
}

fn count(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("must be a whole number, 1 or more".into()),
    }
}

const SHORTEST: Duration = Duration::from_millis(10);

fn duration(value: &str) -> Result<Duration, String> {
    let duration = match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(value).ok(),
    };
    duration
        .filter(|duration| *duration >= SHORTEST)
        .ok_or_else(|| format!("must be a duration like 500ms, 15s or 10m, {SHORTEST:?} or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ollama_url_is_scheme_host_and_port() {
        let local = OllamaUrl {
            is_https: false,
            authority: "localhost:11434".into(),
        };
        assert_eq!(ollama_url("http://localhost:11434"), Ok(local.clone()));
        assert_eq!(ollama_url("http://localhost:11434/"), Ok(local));
        assert!(ollama_url("https://ollama.example").is_ok_and(|url| url.is_https));
        for wrong in [
            "",
            "localhost:11434",
            "ftp://x",
            "http://",
            "http://x/api",
            "http://u:p@x",
        ] {
            assert!(ollama_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units_and_a_bare_number_is_seconds() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("15s", 15_000),
            ("2m", 120_000),
            ("30", 30_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for wrong in ["", "0", "soon", "-1", "1ms"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_database_url_is_not_repeated() {
        let error = database_url("host=db password=s3cret").unwrap_err();
        assert!(!error.contains("s3cret"));
    }
}
