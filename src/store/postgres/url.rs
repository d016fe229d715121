//! The database's URL: what is added to it, what is wrong with it, and the password in it that no message
//! may show.

use std::fmt;

use percent_encoding::percent_decode_str;

/// A connection that died silently is noticed soon: one without traffic is probed, which also keeps it from
/// being forgotten on the way, and one whose data nobody acknowledges is closed. In seconds, as
/// tokio-postgres reads them. Without these a component in Spin could not get rid of such a connection,
/// which returns to its pool.
const DEFAULTS: [(&str, &str); 6] = [
    ("connect_timeout", "2"),
    ("tcp_user_timeout", "5"),
    ("keepalives_idle", "15"),
    ("keepalives_interval", "5"),
    ("keepalives_retries", "2"),
    // Nor does a connection get into the pool that was made while a failover left nothing to write to.
    ("target_session_attrs", "read-write"),
];

const FORM: &str = "write it as postgres://user:password@host/database, special characters in the password percent-encoded (`@` is %40)";

/// What tokio-postgres 0.7 reads besides: the text ones and the choices.
const PARAMETERS: [(&str, &[&str]); 13] = [
    ("user", &[]),
    ("password", &[]),
    ("dbname", &[]),
    ("options", &[]),
    ("application_name", &[]),
    ("host", &[]),
    ("hostaddr", &[]),
    ("sslmode", &["disable", "prefer", "require"]),
    ("sslnegotiation", &["postgres", "direct"]),
    ("target_session_attrs", &["any", "read-write", "read-only"]),
    ("channel_binding", &["disable", "prefer", "require"]),
    ("load_balance_hosts", &["disable", "random"]),
    ("keepalives", &["0", "1"]),
];

/// And the numbers.
const NUMBERS: [&str; 6] = [
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
];

/// A `database_url`. Holds a password: its `Debug` shows nothing.
#[derive(Clone)]
pub(super) struct DatabaseUrl(String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl")
    }
}

impl DatabaseUrl {
    /// The operator's URL, with [`DEFAULTS`] for what it lacks.
    pub(super) fn new(mut url: String) -> Self {
        let Some(query) = Parts::of(&url).map(|parts| parts.query) else {
            return Self(url);
        };
        let mut separator = match query {
            None => "?",
            Some(query) if query.is_empty() || query.ends_with('&') => "",
            Some(_) => "&",
        };
        let mut added = String::new();
        for (name, value) in DEFAULTS {
            if parameters(query.unwrap_or_default()).all(|(key, _)| key != name) {
                added.extend([separator, name, "=", value]);
                separator = "&";
            }
        }
        url.push_str(&added);
        Self(url)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The same database in other words: hosts pool connections by their URL's text, so this one's are
    /// others.
    pub(super) fn other_pool(&self) -> Self {
        let end = if Parts::of(&self.0).is_some() {
            '&'
        } else {
            ' '
        };
        Self(format!("{}{end}", self.0))
    }

    /// What is wrong with it, for a driver that could not read it.
    pub(super) fn complaint(&self) -> String {
        let what = self.find_fault();
        format!("`database_url` is not a valid PostgreSQL URL: {what}.")
    }

    fn find_fault(&self) -> String {
        let Some(parts) = Parts::of(&self.0) else {
            return "it must begin with `postgres://`".to_owned();
        };
        if !self.is_unambiguous() {
            return FORM.to_owned();
        }
        let is_number = |key: &str| NUMBERS.contains(&key);
        let choices = |key: &str| {
            let known = PARAMETERS.iter().find(|(name, _)| *name == key);
            known.map(|(_, choices)| *choices)
        };
        for (key, value) in parameters(parts.query.unwrap_or_default()) {
            match choices(key) {
                None if !is_number(key) => {
                    return format!("the driver does not know the parameter `{key}`: leave it out");
                }
                None if value.parse::<u32>().is_err() => {
                    return format!("`{key}` must be a number");
                }
                Some(choices @ [_, ..]) if !choices.contains(&value) => {
                    return format!("`{key}` must be one of {}", choices.join(", "));
                }
                _ => {}
            }
        }
        FORM.to_owned()
    }

    /// A host's message as one line without the password: hosts dump several lines, down to a backtrace.
    pub(super) fn redact(&self, message: &str) -> String {
        if !self.is_unambiguous() {
            return format!(
                "the message is withheld, since it may quote the password in `database_url`: {FORM}"
            );
        }
        let message = self
            .passwords()
            .fold(message.to_owned(), |message, password| {
                message.replace(&password, "***")
            });
        let lines = message
            .lines()
            .map(str::trim)
            .take_while(|line| !line.starts_with("Stack backtrace"))
            .filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ")
    }

    /// Whether a part of the password would be taken for a host, which hosts print that refuse to connect.
    pub(super) fn has_two_ends_of_a_password(&self) -> bool {
        self.0.matches('@').count() > 1
    }

    /// Whether it is certain where the password ends: otherwise a piece of it may have been taken for a
    /// host, a port, a database or a parameter.
    fn is_unambiguous(&self) -> bool {
        let Some(parts) = Parts::of(&self.0) else {
            return false;
        };
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let has_port = |host: &str| {
            let port = host.rsplit_once(':').map(|(_, port)| port);
            host.ends_with(']') || port.is_none_or(is_port)
        };
        let is_address = match parts.credentials {
            Some(_) => parts.authority.split(',').all(has_port),
            // What looks like a port may be the password of a URL without a host.
            None => !parts.authority.contains(':'),
        };
        is_address && !self.has_two_ends_of_a_password() && !self.0.contains("password=")
    }

    /// The password, percent-encoded as in the URL and decoded.
    fn passwords(&self) -> impl Iterator<Item = String> {
        let credentials = Parts::of(&self.0).and_then(|parts| parts.credentials);
        let password = credentials.and_then(|it| it.split_once(':'));
        password
            .into_iter()
            .flat_map(|(_, encoded)| {
                let decoded = percent_decode_str(encoded).decode_utf8_lossy();
                [encoded.to_owned(), decoded.into_owned()]
            })
            .filter(|password| !password.is_empty())
    }
}

/// A URL as tokio-postgres takes it apart: the first `@` ends the credentials, whatever they hold.
#[derive(Clone, Copy)]
struct Parts<'a> {
    credentials: Option<&'a str>,
    /// Hosts and ports.
    authority: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// `None` where this is no URL; tokio-postgres also reads `key=value` pairs.
    fn of(url: &'a str) -> Option<Self> {
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme))?;
        let (credentials, rest) = match rest.split_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (address, query) = match rest.split_once('?') {
            Some((address, query)) => (address, Some(query)),
            None => (rest, None),
        };
        let authority = address.split_once('/').map_or(address, |(it, _)| it);
        Some(Self {
            credentials,
            authority,
            query,
        })
    }
}

/// The names and values in a query.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(url: &str) -> DatabaseUrl {
        DatabaseUrl::new(url.into())
    }

    #[test]
    fn what_bounds_a_dead_connection_is_added_where_the_operator_did_not_say_it() {
        let all = "connect_timeout=2&tcp_user_timeout=5&keepalives_idle=15&keepalives_interval=5&keepalives_retries=2&target_session_attrs=read-write";
        for (given, expected) in [
            ("postgres://db", format!("postgres://db?{all}")),
            ("postgresql://me:pw@db:5432/chat", format!("postgresql://me:pw@db:5432/chat?{all}")),
            ("postgres://db/chat?", format!("postgres://db/chat?{all}")),
            ("postgres://db/chat?sslmode=disable", format!("postgres://db/chat?sslmode=disable&{all}")),
            ("postgres://db/chat?sslmode=disable&", format!("postgres://db/chat?sslmode=disable&{all}")),
            // The password has a `?`.
            ("postgres://me:p?w@db/chat", format!("postgres://me:p?w@db/chat?{all}")),
            ("postgres://%2Frun%2Fpostgresql/chat", format!("postgres://%2Frun%2Fpostgresql/chat?{all}")),
            (
                "postgres://db?keepalives_idle=7&tcp_user_timeout=1&connect_timeout=9",
                "postgres://db?keepalives_idle=7&tcp_user_timeout=1&connect_timeout=9&keepalives_interval=5&keepalives_retries=2&target_session_attrs=read-write".to_owned(),
            ),
            ("host=db user=me", "host=db user=me".to_owned()),
        ] {
            assert_eq!(url(given).as_str(), expected);
        }
        let complete = format!("postgres://db?{all}");
        assert_eq!(url(&complete).as_str(), complete);
        assert_eq!(url(&complete).other_pool().as_str(), format!("{complete}&"));
    }

    #[test]
    fn a_password_is_known_in_every_form() {
        let known = |text: &str| url(text).passwords().collect::<Vec<_>>();
        assert_eq!(known("postgres://me:a%40b@db/chat"), ["a%40b", "a@b"]);
        assert_eq!(known("postgres://me:s%2/@db/chat"), ["s%2/", "s%2/"]);
        assert!(known("postgres://me@db/chat?application_name=a@b").is_empty());
    }

    #[test]
    fn a_dump_of_the_host_becomes_one_line_without_the_password() {
        let url = url("postgres://me:s3cr%40t@db.example:5432/chat");
        let dump = "Error opening s3cr@t\n\nCaused by:\n    refused s3cr%40t\n\nStack backtrace:\n   0: main";
        assert_eq!(url.redact(dump), "Error opening *** Caused by: refused ***");
        assert!(!format!("{url:?}").contains("s3cr"));
    }

    #[test]
    fn what_the_driver_does_not_read_is_named() {
        for (given, expected) in [
            ("me:pw@db/chat", "must begin with `postgres://`"),
            ("mysql://me:pw@db/chat", "must begin with `postgres://`"),
            ("postgres://me:p@w@db/chat", "`@` is %40"),
            ("postgres://me:pw", "`@` is %40"),
            ("postgres://me:pw@db:port/chat", "`@` is %40"),
            (
                "postgres://me:pw@db/chat?schema=x",
                "the parameter `schema`",
            ),
            (
                "postgres://db/chat?sslmode=disable&pgbouncer=true",
                "the parameter `pgbouncer`",
            ),
            ("postgres://me:pw@db/chat?lonely", "the parameter `lonely`"),
            (
                "postgres://me:pw@db/chat?sslmode=verify-full",
                "`sslmode` must be one of disable, prefer, require",
            ),
            (
                "postgres://me:pw@db/chat?connect_timeout=5s",
                "`connect_timeout` must be a number",
            ),
            ("postgres://me@db/chat?password=a&schema=x", "`@` is %40"),
        ] {
            let complaint = url(given).complaint();
            assert!(complaint.contains(expected), "{given}: {complaint}");
            assert!(!complaint.contains("pw"), "{given}: {complaint}");
        }
    }

    proptest! {
        /// The host's messages quote what the driver took the URL for: user, host, port, database, or a
        /// parameter's name.
        #[test]
        fn no_piece_of_a_password_is_shown_wherever_it_stands_in_the_url(
            password in "[QXZ79@/?#%:&= ]{4,12}",
            place in 0_usize..7,
        ) {
            let text = match place {
                0 => format!("postgres://me:{password}@db.example:5432/chat"),
                1 => format!("postgresql://me:{password}@[::1]/chat?sslmode=disable"),
                // With an `@` it would have a host.
                2 => format!("postgres://me:{}", password.replace('@', "/")),
                3 => format!("postgres://db.example/chat?user=me&password={password}"),
                4 => format!("host=db password={password}"),
                5 => password.clone(),
                _ => format!("mysql://me:{password}@db/chat"),
            };
            let url = url(&text);
            let quoted = Parts::of(url.as_str()).map(|parts| parts.authority.to_owned());
            let dump = format!("cannot connect to {} as {password}", quoted.unwrap_or_default());
            for shown in [url.redact(&dump), url.complaint(), format!("{url:?}")] {
                for piece in password.as_bytes().windows(4) {
                    let piece = String::from_utf8_lossy(piece);
                    prop_assert!(!shown.contains(&*piece), "{text}: {shown}");
                }
            }
        }
    }
}
