//! The operator's settings: Spin variables, read in one place.
//!
//! A variable is declared in `spin.toml`, with its default, and read here under the same name. Tests hold
//! the two and the README's table together.

use std::cell::OnceCell;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use strum::{EnumString, VariantNames};
use thiserror::Error;

use crate::access::{self, Access};
use crate::clock::SHORTEST_TICK;
use crate::http::AllowedOrigins;
use crate::reply::Whitespace;
use crate::request::Limits;
use crate::secret::Secret;
use crate::spin::variables;
use crate::store::OwnerLimits;
use crate::upstream::OllamaUrl;

/// The settings of a turn. Has no `Debug`, since it holds a password.
pub(crate) struct Config {
    /// PostgreSQL's URL, with its password; `None` is the host's SQLite.
    pub(crate) database_url: Option<String>,
    pub(crate) ollama_url: OllamaUrl,
    /// What Ollama, or what guards it, wants to be shown.
    pub(crate) ollama_api_key: Option<Secret>,
    /// How white space in a completion is stored.
    pub(crate) completion_whitespace: Whitespace,
    /// What happens to a turn whose client has left.
    pub(crate) on_disconnect: OnDisconnect,
    /// Whether a conversation has one turn at a time.
    pub(crate) is_exclusive: bool,
    /// Turns that one instance runs at the same time.
    pub(crate) max_concurrent_turns: usize,
    /// What an owner may have.
    pub(crate) owner_limits: OwnerLimits,
    /// What a request may hold.
    pub(crate) limits: Limits,
    /// Bytes of the longest line from Ollama.
    pub(crate) max_line_bytes: usize,
    /// Bytes of the longest completion.
    pub(crate) max_completion_bytes: usize,
    /// Bytes of the events of a reply, its last one excepted.
    pub(crate) max_stream_bytes: usize,
    pub(crate) timeouts: Timeouts,
    /// Pages of other origins that are answered.
    pub(crate) allowed_origins: AllowedOrigins,
    /// Whose a request is.
    pub(crate) access: Access,
}

/// The bounds on waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Silence towards the client before a comment line breaks it.
    pub(crate) comment_interval: Duration,
    /// A client that takes no byte, or sends none of its body, for so long has left.
    pub(crate) client_stall: Duration,
    /// Connecting to Ollama.
    pub(crate) ollama_connect: Duration,
    /// From the request to Ollama's first byte: a model may have to be loaded.
    pub(crate) ollama_first_byte: Duration,
    /// Between two bytes from Ollama.
    pub(crate) ollama_idle: Duration,
    /// One call of the database, all its tries included.
    pub(crate) database: Duration,
    /// Between two checkpoints of a running turn.
    pub(crate) checkpoint_interval: Duration,
    /// After which a turn that has had no checkpoint counts as left by its host.
    pub(crate) turn_lease: Duration,
    /// The whole turn, up to the storing of its reply.
    pub(crate) turn: Duration,
}

impl Timeouts {
    /// The tick of a turn's clock: short enough for the shortest of its bounds.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = [
            self.comment_interval,
            self.client_stall,
            // Its first try gets a seventh of it.
            self.database / 7,
            self.ollama_first_byte,
            self.ollama_idle,
            // The first checkpoint waits for a tick.
            self.checkpoint_interval,
            self.turn,
        ]
        .into_iter()
        .min()
        .unwrap_or_default();
        (shortest / 4).clamp(SHORTEST_TICK, Duration::from_secs(5))
    }
}

/// What happens to a turn whose client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum OnDisconnect {
    /// It goes on, and its reply is stored.
    Finish,
    /// Ollama is made to stop by closing the connection; what has arrived is stored.
    Cancel,
}

/// What happens to a prompt for a conversation in which a turn is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
enum OnBusy {
    /// Both turns run.
    Interleave,
    /// The prompt is refused.
    Reject,
}

/// A variable with a value that cannot be used. Does not repeat the value, which may be secret.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("the variable `{name}` {must_be}")]
pub(crate) struct InvalidVariable {
    name: &'static str,
    must_be: String,
    /// The host's message, for the log.
    host: String,
}

impl InvalidVariable {
    /// For the log: how to set the variable, and the host's message.
    pub(crate) fn detail(&self) -> String {
        let name = self.name.to_ascii_uppercase();
        format!("Set it with SPIN_VARIABLE_{name}. {}", self.host)
    }
}

/// The settings, read when an instance serves its first request: a variable may be a round trip to a vault.
/// An instance is short-lived (128 requests at most on Spin), so that a change is soon seen.
pub(crate) async fn load() -> Result<Rc<Config>, InvalidVariable> {
    thread_local! {
        static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
    }
    if let Some(config) = CONFIG.with(|config| config.get().cloned()) {
        return Ok(config);
    }
    let get = async |name| {
        let value = variables::get(name).await;
        value.map_err(|error| error.to_string())
    };
    let config = Rc::new(read(Source { get }).await?);
    Ok(CONFIG.with(|cell| cell.get_or_init(|| config).clone()))
}

async fn read<G>(source: Source<G>) -> Result<Config, InvalidVariable>
where
    G: AsyncFn(&'static str) -> Result<String, String>,
{
    let on_busy = source.get("on_busy", choice::<OnBusy>).await?;
    let allowed_origins = source.get("allowed_origins", AllowedOrigins::read).await?;
    let access = Access {
        keys: source.get("api_keys", access::keys).await?,
        owner_header: source.get("owner_header", access::owner_header).await?,
    };
    if allowed_origins == AllowedOrigins::Any && access.owner_header.is_some() {
        return Err(InvalidVariable {
            name: "allowed_origins",
            must_be: "must name the origins where `owner_header` is set: any page could use its visitors' logins at the gateway".into(),
            host: String::new(),
        });
    }
    Ok(Config {
        database_url: source.get("database_url", database_url).await?,
        ollama_url: source.get("ollama_url", OllamaUrl::parse).await?,
        ollama_api_key: source.get("ollama_api_key", ollama_api_key).await?,
        completion_whitespace: source.get("completion_whitespace", choice).await?,
        on_disconnect: source.get("on_disconnect", choice).await?,
        is_exclusive: on_busy == OnBusy::Reject,
        max_concurrent_turns: source.get("max_concurrent_turns", count).await?,
        owner_limits: OwnerLimits {
            per_minute: source.get("max_turns_per_minute", limit).await?,
            running: source.get("max_running_turns", limit).await?,
        },
        limits: Limits {
            body_bytes: source.get("max_body_bytes", count).await?,
            messages: source.get("max_messages", count).await?,
            history_bytes: source.get("max_history_bytes", count).await?,
        },
        max_line_bytes: source.get("max_line_bytes", count).await?,
        max_completion_bytes: source.get("max_completion_bytes", count).await?,
        max_stream_bytes: source.get("max_stream_bytes", count).await?,
        timeouts: Timeouts {
            comment_interval: source.get("comment_interval", duration).await?,
            client_stall: source.get("client_stall_timeout", duration).await?,
            ollama_connect: source.get("ollama_connect_timeout", duration).await?,
            ollama_first_byte: source.get("ollama_first_byte_timeout", duration).await?,
            ollama_idle: source.get("ollama_idle_timeout", duration).await?,
            database: source.get("database_timeout", duration).await?,
            checkpoint_interval: source.get("checkpoint_interval", duration).await?,
            turn_lease: source.get("turn_lease", duration).await?,
            turn: source.get("turn_timeout", duration).await?,
        },
        allowed_origins,
        access,
    })
}

/// Where values come from: Spin in the component, `spin.toml`'s defaults in unit tests.
struct Source<G> {
    get: G,
}

impl<G: AsyncFn(&'static str) -> Result<String, String>> Source<G> {
    async fn get<T>(
        &self,
        name: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<T, InvalidVariable> {
        let (must_be, host) = match (self.get)(name).await {
            Ok(value) => match parse(value.trim()) {
                Ok(value) => return Ok(value),
                Err(must_be) => (must_be, String::new()),
            },
            Err(error) => ("cannot be read".to_owned(), error),
        };
        Err(InvalidVariable {
            name,
            must_be,
            host,
        })
    }
}

fn choice<T: FromStr + VariantNames>(value: &str) -> Result<T, String> {
    let names = T::VARIANTS;
    let must_be = |_| format!("must be `{}`", names.join("` or `"));
    value.parse().map_err(must_be)
}

fn database_url(value: &str) -> Result<Option<String>, String> {
    let has_sqlite = cfg!(feature = "sqlite");
    if value.is_empty() && has_sqlite {
        return Ok(None);
    }
    if value.starts_with("postgres://") || value.starts_with("postgresql://") {
        return Ok(Some(value.to_owned()));
    }
    let must_be = "must be a URL like postgres://user:password@host/database";
    Err(match has_sqlite {
        true => format!("{must_be}, or empty for SQLite"),
        false => format!("{must_be}: this build of llmchat has no SQLite"),
    })
}

fn ollama_api_key(value: &str) -> Result<Option<Secret>, String> {
    let key = (!value.is_empty()).then(|| Secret::new("ollama_api_key", value));
    key.transpose()
}

fn count(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("must be a whole number, 1 or more".into()),
    }
}

/// A count that may be without a limit.
fn limit(value: &str) -> Result<u64, String> {
    let must_be = |_| "must be a whole number, or 0 for no limit".to_owned();
    value.parse().map_err(must_be)
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
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    use futures_util::FutureExt as _;

    use super::*;

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

    #[test]
    fn only_with_sqlite_may_the_database_url_be_empty() {
        assert_eq!(database_url("").is_ok(), cfg!(feature = "sqlite"));
    }

    fn manifest() -> toml::Table {
        include_str!("../spin.toml").parse().unwrap()
    }

    fn akamai() -> toml::Table {
        let manifest = include_str!("../deploy/akamai/spin.toml");
        manifest.parse().unwrap()
    }

    /// The defaults in `spin.toml`, by the variable's name.
    fn defaults() -> BTreeMap<String, String> {
        let manifest = manifest();
        let variables = manifest["variables"].as_table().unwrap();
        let default = |variable: &toml::Value| variable["default"].as_str().unwrap().to_owned();
        let defaults = variables
            .iter()
            .map(|(name, it)| (name.clone(), default(it)));
        let mut defaults: BTreeMap<_, _> = defaults.collect();
        if cfg!(not(feature = "sqlite")) {
            let url = "postgres://localhost/llmchat".to_owned();
            defaults.insert("database_url".to_owned(), url);
        }
        defaults
    }

    /// Reads the settings from `variables`, and which were read.
    fn read_from(
        variables: &BTreeMap<String, String>,
    ) -> (Result<Config, InvalidVariable>, BTreeSet<String>) {
        let asked = RefCell::new(BTreeSet::new());
        let get = async |name: &'static str| {
            asked.borrow_mut().insert(name.to_owned());
            variables.get(name).cloned().ok_or("undefined".to_owned())
        };
        let config = read(Source { get }).now_or_never().unwrap();
        (config, asked.into_inner())
    }

    /// The default settings, changed.
    pub(crate) fn config(changes: &[(&str, &str)]) -> Rc<Config> {
        let mut variables = defaults();
        for (name, value) in changes {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        Rc::new(read_from(&variables).0.ok().unwrap())
    }

    /// They only extend `allowed_outbound_hosts`.
    const HOSTS: [&str; 2] = ["database_host", "ollama_host"];

    #[test]
    fn every_variable_in_the_manifest_is_read_and_has_a_valid_default() {
        let mut defaults = defaults();
        for host in HOSTS {
            assert!(defaults.remove(host).is_some(), "{host}");
        }
        let (config, read) = read_from(&defaults);
        assert!(config.is_ok());
        assert_eq!(read, defaults.into_keys().collect());
    }

    #[test]
    fn the_component_has_every_variable_under_its_own_name() {
        let manifest = manifest();
        let given = manifest["component"]["llmchat"]["variables"].as_table();
        let given = given.unwrap().iter();
        let given = given.map(|(name, it)| (name.clone(), it.as_str().unwrap().to_owned()));
        let names = defaults()
            .into_keys()
            .filter(|name| !HOSTS.contains(&name.as_str()));
        let expected = names.map(|name| (name.clone(), format!("{{{{ {name} }}}}")));
        assert_eq!(given.collect::<BTreeMap<_, _>>(), expected.collect());
    }

    #[test]
    fn on_akamai_functions_there_are_the_same_variables_with_values_for_its_limits() {
        let (manifest, akamai) = (manifest(), akamai());
        let given = |manifest: &toml::Table| manifest["component"]["llmchat"]["variables"].clone();
        assert_eq!(given(&akamai), given(&manifest));
        let mut variables = defaults();
        let all: Vec<_> = variables.keys().cloned().collect();
        let its = akamai["variables"].as_table().unwrap();
        assert_eq!(its.keys().cloned().collect::<Vec<_>>(), all);
        for (name, variable) in its {
            match variable.get("default").and_then(toml::Value::as_str) {
                Some(default) => drop(variables.insert(name.clone(), default.to_owned())),
                None => assert_eq!(variable["required"].as_bool(), Some(true), "{name}"),
            }
        }
        let config = read_from(&variables).0.ok().unwrap();
        let Timeouts {
            turn,
            database,
            client_stall,
            ..
        } = config.timeouts;
        assert!(turn + database + client_stall < Duration::from_secs(30));
        assert!(config.max_stream_bytes + 2 * config.max_line_bytes <= 10 << 20);
    }

    #[test]
    fn a_limit_is_a_whole_number_and_0_is_none() {
        for (text, number) in [("0", 0), ("1", 1), ("18446744073709551615", u64::MAX)] {
            assert_eq!(limit(text), Ok(number));
        }
        for wrong in ["", "-1", "1.5", "10/s", "none", "18446744073709551616"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_page_may_only_where_no_gateway_knows_its_visitor() {
        let mut variables = defaults();
        variables.insert("owner_header".to_owned(), "x-user".to_owned());
        assert!(read_from(&variables).0.is_ok());
        variables.insert("allowed_origins".to_owned(), "*".to_owned());
        let invalid = read_from(&variables).0.err().unwrap().to_string();
        assert!(invalid.contains("`allowed_origins` must name"), "{invalid}");
        variables.insert("owner_header".to_owned(), String::new());
        assert!(read_from(&variables).0.is_ok());
    }

    #[test]
    fn a_choice_names_what_can_be_chosen() {
        let mut variables = defaults();
        for (name, value, must_be) in [
            ("on_busy", "queue", "`interleave` or `reject`"),
            ("on_disconnect", "", "`finish` or `cancel`"),
            (
                "completion_whitespace",
                "Collapse",
                "`collapse` or `preserve`",
            ),
        ] {
            let default = variables.insert(name.to_owned(), value.to_owned());
            let invalid = read_from(&variables).0.err().unwrap();
            assert_eq!(
                invalid.to_string(),
                format!("the variable `{name}` must be {must_be}")
            );
            variables.extend(default.map(|value| (name.to_owned(), value)));
        }
        variables.remove("turn_timeout");
        let invalid = read_from(&variables).0.err().unwrap();
        assert_eq!(
            invalid.to_string(),
            "the variable `turn_timeout` cannot be read"
        );
        assert!(invalid.detail().contains("SPIN_VARIABLE_TURN_TIMEOUT"));
        assert!(invalid.detail().contains("undefined"));
    }

    #[test]
    fn the_clock_ticks_often_enough_for_the_shortest_bound() {
        let (config, _) = read_from(&defaults());
        let timeouts = config.ok().unwrap().timeouts;
        assert_eq!(timeouts.tick(), timeouts.checkpoint_interval / 4);
        let slow = Timeouts {
            checkpoint_interval: timeouts.checkpoint_interval * 10,
            ..timeouts
        };
        assert_eq!(slow.tick(), timeouts.database / 7 / 4);
        let short = Timeouts {
            database: Duration::from_millis(10),
            ..timeouts
        };
        assert_eq!(short.tick(), SHORTEST_TICK);
    }
}
