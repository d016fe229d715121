//! `allowed_outbound_hosts`: what a component may connect to, by Spin's rules.
//!
//! An entry is `scheme://host:port`. `*` stands for any scheme, any host, any port or any
//! subdomain (`*.example.com`); a host may be a network (`10.0.0.0/8`), a port a range
//! (`8000..9000`, the end excluded). An entry whose variables leave it empty is skipped.
//! One that does not parse closes *all* the ways out: the component is not to run with
//! less of a fence than was meant.

use std::net::IpAddr;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use url::Host;

use crate::manifest::Manifest;
use crate::variables::Variables;

/// The entries, or why there are none.
#[derive(Debug)]
pub(crate) struct AllowedHosts(Result<Vec<Entry>, String>);

impl AllowedHosts {
    pub(crate) fn resolve(manifest: &Manifest, variables: &Variables) -> Self {
        let entries = manifest
            .allowed_outbound_hosts()
            .iter()
            .filter_map(|template| {
                let text = match variables.fill(template) {
                    Ok(text) => text,
                    Err(error) => return Some(Err(error)),
                };
                let skipped = matches!(text.as_str(), "" | "http://" | "https://");
                if skipped && !template.is_literal() {
                    return None;
                }
                // The value is left out: a variable in it may be a secret.
                Some(
                    Entry::parse(&text)
                        .with_context(|| format!("allowed_outbound_hosts entry \"{template}\"")),
                )
            });
        Self(
            entries
                .collect::<Result<_>>()
                .map_err(|error| format!("{error:#}")),
        )
    }

    /// Why nothing at all is allowed, where an entry does not parse.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }

    /// Whether a connection may be made; an error where the entries are broken.
    pub(crate) fn allow(&self, scheme: &str, host: &str, port: Option<u16>) -> Result<bool> {
        let entries = match &self.0 {
            Ok(entries) => entries,
            Err(broken) => bail!("no outbound call is allowed: {broken}"),
        };
        let Ok(host) = Host::parse(host) else {
            return Ok(false);
        };
        let port = port.or_else(|| default_port(scheme));
        Ok(entries.iter().any(|entry| {
            entry
                .scheme
                .as_ref()
                .is_none_or(|allowed| allowed == scheme)
                && entry.host.allows(&host)
                && entry
                    .ports
                    .as_ref()
                    .is_none_or(|ports| port.is_some_and(|port| ports.contains(&port)))
        }))
    }
}

/// `None` is `*`.
#[derive(Debug)]
struct Entry {
    scheme: Option<String>,
    host: HostPattern,
    ports: Option<Range<u16>>,
}

#[derive(Debug)]
enum HostPattern {
    Any,
    /// Requests to the application itself, which this host does not chain.
    Itself,
    Subdomain(String),
    Network(IpAddr, u8),
    Exact(Host),
}

impl Entry {
    fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .context("it has no scheme (`http://`, `*://`)")?;
        ensure!(
            scheme == "*" || !scheme.is_empty() && scheme.chars().all(char::is_alphabetic),
            "its scheme must be letters, or `*`",
        );
        let (host, port) = match rest.rsplit_once(':') {
            // The colons of `[::1]` belong to the host.
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (rest, ""),
        };
        let (port, path) = port.split_once('/').unwrap_or((port, ""));
        ensure!(path.is_empty(), "it must not have a path");
        Ok(Self {
            scheme: (scheme != "*").then(|| scheme.to_owned()),
            host: HostPattern::parse(host.trim())?,
            ports: parse_ports(port, scheme)?,
        })
    }
}

fn parse_ports(port: &str, scheme: &str) -> Result<Option<Range<u16>>> {
    let number = |text: &str| text.parse::<u16>().context("its port is no number");
    let one = |port: u16| port..port.saturating_add(1);
    Ok(match (port, port.split_once("..")) {
        ("*", _) => None,
        ("", _) => Some(one(
            default_port(scheme).context("it needs a port: its scheme has no usual one")?
        )),
        (_, Some((start, end))) => Some(number(start)?..number(end)?),
        (_, None) => Some(one(number(port)?)),
    })
}

impl HostPattern {
    fn parse(host: &str) -> Result<Self> {
        match host {
            "*" => return Ok(Self::Any),
            "self" | "self.alt" => return Ok(Self::Itself),
            _ => {}
        }
        if let Some((address, length)) = host.split_once('/')
            && let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>())
        {
            ensure!(
                length <= if address.is_ipv4() { 32 } else { 128 },
                "its network is too narrow"
            );
            return Ok(Self::Network(address, length));
        }
        let host = host.strip_suffix('/').unwrap_or(host);
        ensure!(!host.contains('/'), "it must not have a path");
        if let Some(domain) = host.strip_prefix("*.") {
            return match Host::parse(domain) {
                Ok(Host::Domain(domain)) if !domain.contains('*') => {
                    Ok(Self::Subdomain(format!(".{domain}")))
                }
                _ => bail!("`*.` must be followed by a domain"),
            };
        }
        ensure!(
            !host.contains('*'),
            "`*` can only be a whole host or its first part"
        );
        Ok(Self::Exact(
            Host::parse(host).context("its host is not valid")?,
        ))
    }

    fn allows(&self, host: &Host) -> bool {
        let address = match host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::V4(*address)),
            Host::Ipv6(address) => Some(IpAddr::V6(*address)),
        };
        match self {
            Self::Any => true,
            Self::Itself => false,
            Self::Subdomain(suffix) => {
                matches!(host, Host::Domain(domain) if domain.ends_with(suffix))
            }
            Self::Network(network, length) => {
                address.is_some_and(|it| is_in(it, *network, *length))
            }
            Self::Exact(exact) => host == exact,
        }
    }
}

fn is_in(address: IpAddr, network: IpAddr, length: u8) -> bool {
    // Left-aligned, so that one shift serves both families.
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let host_bits = 128 - u32::from(length);
    address.is_ipv4() == network.is_ipv4()
        && bits(address).checked_shr(host_bits) == bits(network).checked_shr(host_bits)
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        "postgres" => Some(5432),
        "mysql" => Some(3306),
        "redis" => Some(6379),
        "mqtt" => Some(1883),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn allowed(entries: &[&str]) -> AllowedHosts {
        let entries = entries
            .iter()
            .map(|entry| Entry::parse(entry))
            .collect::<Result<_>>();
        AllowedHosts(entries.map_err(|error| format!("{error:#}")))
    }

    #[test]
    fn an_entry_allows_what_it_allows_in_spin() {
        for (entry, scheme, host, port, allow) in [
            (
                "http://localhost:11434",
                "http",
                "localhost",
                Some(11434),
                true,
            ),
            (
                "http://localhost:11434/",
                "http",
                "LOCALHOST",
                Some(11434),
                true,
            ),
            (
                "http://localhost:11434",
                "https",
                "localhost",
                Some(11434),
                false,
            ),
            (
                "http://localhost:11434",
                "http",
                "127.0.0.1",
                Some(11434),
                false,
            ),
            ("http://localhost:11434", "http", "localhost", None, false),
            ("http://example.com", "http", "example.com", None, true),
            ("http://example.com", "http", "example.com", Some(80), true),
            ("http://example.com", "http", "example.com", Some(81), false),
            (
                "https://example.com/",
                "https",
                "example.com",
                Some(443),
                true,
            ),
            ("postgres://db", "postgres", "db", None, true),
            (
                "postgres://localhost:*",
                "postgres",
                "localhost",
                Some(1),
                true,
            ),
            ("*://*:*", "anything", "any.where", None, true),
            ("*://example.com:7", "http", "example.com", Some(7), true),
            (
                "https://*.example.com",
                "https",
                "a.b.example.com",
                None,
                true,
            ),
            ("https://*.example.com", "https", "example.com", None, false),
            (
                "https://*.example.com",
                "https",
                "badexample.com",
                None,
                false,
            ),
            ("http://h:8000..9000", "http", "h", Some(8000), true),
            ("http://h:8000..9000", "http", "h", Some(9000), false),
            ("http://[::1]:80", "http", "[::1]", Some(80), true),
            ("http://[::1]", "http", "[::1]", None, true),
            ("http://10.0.0.0/8:80", "http", "10.1.2.3", None, true),
            ("http://10.0.0.0/8:80", "http", "11.1.2.3", None, false),
            ("http://10.0.0.0/8:80", "http", "ten", None, false),
            ("http://0.0.0.0/0:80", "http", "11.1.2.3", None, true),
            ("http://self", "http", "self", None, false),
        ] {
            let result = allowed(&[entry]).allow(scheme, host, port).unwrap();
            assert_eq!(result, allow, "{entry} {scheme} {host} {port:?}");
        }
    }

    #[test]
    fn one_bad_entry_closes_every_way_out() {
        for bad in [
            "",
            "*",
            "localhost",
            "localhost:80",
            "http://",
            "postgres://",
            "unknown://host",
            "http://host/path",
            "http://host:80/path",
            "http://user@host:80",
            "http://host:port",
            "http://a.*.b",
            "ht-tp://host",
        ] {
            let hosts = allowed(&["http://good", bad]);
            assert!(hosts.broken().is_some(), "{bad}");
            assert!(hosts.allow("http", "good", None).is_err(), "{bad}");
        }
    }
}
