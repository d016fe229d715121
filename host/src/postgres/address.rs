//! A database's URL: the driver's configuration, and libpq's TLS parameters, which the driver does
//! not know. Makes no connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::outbound::tls::{self, Roots, Trust};

/// After so much silence the server is asked for a sign of life…
const KEEPALIVE: Duration = Duration::from_secs(30);
/// …so often…
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// …and so many times before the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay without an acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// What a URL says.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) config: Config,
    mode: Mode,
    root: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

/// `sslmode`, as in libpq. `allow` is `prefer`: what does not verify may as well begin encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            // Not quoted: in a URL that is wrong it could be part of the password.
            _ => bail!(
                "invalid value for `sslmode`: it is disable, allow, prefer, require, verify-ca or verify-full"
            ),
        })
    }
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (base, query) = split(url);
        let mut mode = None;
        let (mut root, mut certificate, mut key) = (None, None, None);
        let mut rest = String::from(base);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let path = || PathBuf::from(&*percent_decode_str(value).decode_utf8_lossy());
            match name {
                "sslmode" => mode = Some(Mode::parse(value)?),
                "sslrootcert" => root = Some(path()),
                "sslcert" => certificate = Some(path()),
                "sslkey" => key = Some(path()),
                _ => {
                    rest.push(if rest.len() == base.len() { '?' } else { '&' });
                    rest.push_str(parameter);
                }
            }
        }
        let is_system = root.as_deref() == Some(Path::new("system"));
        let mode = match mode {
            None if is_system => Mode::VerifyFull,
            None => Mode::Prefer,
            Some(mode) => mode,
        };
        ensure!(
            !is_system || matches!(mode, Mode::VerifyFull | Mode::Disable),
            "`sslrootcert=system` needs `sslmode=verify-full`"
        );
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => bail!("`sslcert` and `sslkey` need each other"),
        };
        let mut config: Config = rest.parse()?;
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        keep_alive(&mut config);
        Ok(Self {
            config,
            mode,
            root,
            identity,
        })
    }

    /// How connections are encrypted, if they are.
    pub(super) fn tls(&self) -> Result<Option<ClientConfig>> {
        let root = self.root.clone().or_else(default_root);
        let roots = || match root.as_deref() {
            Some(root) if root == Path::new("system") => Ok(tls::system_roots().into()),
            Some(root) => Roots::of(root),
            None => Ok(tls::public_roots().into()),
        };
        let trust = match self.mode {
            Mode::Disable => return Ok(None),
            Mode::Prefer => Trust::Anyone,
            // As in libpq: with a file of roots it verifies.
            Mode::Require => match root.as_deref().filter(|root| root.is_file()) {
                Some(_) => Trust::Signed(roots()?),
                None => Trust::Anyone,
            },
            Mode::VerifyCa => Trust::Signed(roots()?),
            Mode::VerifyFull => Trust::Named(roots()?),
        };
        let identity = self.identity.as_ref();
        let identity = identity.map(|(certificate, key)| (&**certificate, &**key));
        tls::trusting(trust, identity).map(Some)
    }
}

/// The parameters begin after the password, which may contain anything.
fn split(url: &str) -> (&str, &str) {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let host = url.find('@').unwrap_or(0);
    let query = url.get(host..).and_then(|rest| rest.find('?'));
    match query.filter(|_| is_url).map(|at| url.split_at(host + at)) {
        Some((base, query)) => (base, query.trim_start_matches('?')),
        None => (url, ""),
    }
}

fn default_root() -> Option<PathBuf> {
    let root = std::env::home_dir()?.join(".postgresql/root.crt");
    root.is_file().then_some(root)
}

/// Notices a server that is gone without a word, unless the URL has times of its own.
fn keep_alive(config: &mut Config) {
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(KEEPALIVE);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(UNACKNOWLEDGED);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn sslmode_is_libpqs() {
        for (query, mode, sent) in [
            ("", Mode::Prefer, SslMode::Prefer),
            ("?sslmode=disable", Mode::Disable, SslMode::Disable),
            ("?sslmode=allow", Mode::Prefer, SslMode::Prefer),
            (
                "?connect_timeout=3&sslmode=require",
                Mode::Require,
                SslMode::Require,
            ),
            (
                "?sslmode=verify-ca&connect_timeout=3",
                Mode::VerifyCa,
                SslMode::Require,
            ),
            ("?sslmode=verify-full", Mode::VerifyFull, SslMode::Require),
            ("?sslrootcert=system", Mode::VerifyFull, SslMode::Require),
        ] {
            let address = Address::parse(&format!("postgres://me:a?b@db/x{query}")).unwrap();
            assert_eq!(address.mode, mode, "{query}");
            assert_eq!(address.config.get_ssl_mode(), sent, "{query}");
            assert_eq!(address.config.get_password(), Some(&b"a?b"[..]), "{query}");
            assert_eq!(address.config.get_dbname(), Some("x"), "{query}");
            let timeout = query
                .contains("connect_timeout")
                .then_some(Duration::from_secs(3));
            assert_eq!(
                address.config.get_connect_timeout().copied(),
                timeout,
                "{query}"
            );
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_without_the_password() {
        for (query, why) in [
            ("sslmode=s3cret", "invalid value for `sslmode`"),
            ("sslmode=require&sslrootcert=system", "verify-full"),
            ("sslcert=a", "`sslkey`"),
            ("schema=x", "unknown option `schema`"),
        ] {
            let url = format!("postgres://me:s3cret@db/x?{query}");
            let error = format!("{:#}", Address::parse(&url).unwrap_err());
            assert!(error.contains(why), "{query}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_url_keeps_its_own_times() {
        let address =
            Address::parse("postgres://db/x?tcp_user_timeout=7&keepalives_idle=9").unwrap();
        let config = address.config;
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(7)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(9));
        let config = Address::parse("postgres://db/x").unwrap().config;
        assert_eq!(config.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED));
        assert_eq!(config.get_keepalives_idle(), KEEPALIVE);
    }
}
