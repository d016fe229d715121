//! `allowed_outbound_hosts`: what a component may connect to, by Spin's rules. Makes no connection.
//!
//! An entry is `scheme://host:port`. `*` stands for any scheme, any host, any port or any
//! subdomain (`*.example.com`); a host may be a network (`10.0.0.0/8`), a port a range
//! (`8000..9000`, the end excluded). An entry whose variables leave it empty is skipped.
//! One that does not parse blocks *every* outbound connection: the component must not run with
//! fewer restrictions than were meant.

use std::net::IpAddr;
use std::ops::Range;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use url::Host;

use crate::manifest::Manifest;
use crate::variables::Variables;

/// Whether `allowed_outbound_hosts` of the component has an address; an error if its entries are broken.
pub fn may_call(
    manifest: &Manifest,
    variables: &Variables,
    scheme: &str,
    host: &str,
    port: Option<u16>,
) -> Result<bool> {
    AllowedHosts::resolve(manifest, variables).allow(scheme, host, port)
}

/// The entries, or why there are none.
pub(crate) struct AllowedHosts(Result<Vec<Entry>, String>);

impl AllowedHosts {
    pub(crate) fn resolve(manifest: &Manifest, variables: &Variables) -> Self {
        let entries = manifest.allowed_outbound_hosts.iter().map(|template| {
            let text = variables.fill(template)?;
            let is_empty = matches!(text.as_str(), "" | "http://" | "https://");
            if is_empty && !template.is_literal() {
                return Ok(None);
            }
            // The message has the template, not the text: a variable in it may be a secret.
            let entry = Entry::parse(&text)
                .with_context(|| format!("allowed_outbound_hosts entry \"{}\"", template.text))?;
            Ok(Some(entry))
        });
        Self::new(entries.filter_map(Result::transpose))
    }

    fn new(entries: impl Iterator<Item = Result<Entry>>) -> Self {
        let entries = entries.collect::<Result<_>>();
        Self(entries.map_err(|error| format!("{error:#}")))
    }

    /// Why nothing at all is allowed, if an entry does not parse.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }

    /// Whether a connection may be made; an error if the entries are broken.
    pub(crate) fn allow(&self, scheme: &str, host: &str, port: Option<u16>) -> Result<bool> {
        let entries = self.0.as_ref();
        let entries = entries.map_err(|broken| anyhow!("no outbound call is allowed: {broken}"))?;
        // PostgreSQL's driver leaves the brackets of `[::1]` out.
        let host = match host.parse() {
            Ok(address) => Host::Ipv6(address),
            Err(_) => match Host::parse(host) {
                Ok(host) => host,
                Err(_) => return Ok(false),
            },
        };
        let port = port.or_else(|| default_port(scheme));
        Ok(entries
            .iter()
            .any(|entry| entry.allows(scheme, &host, port)))
    }
}

/// `None` is `*`.
struct Entry {
    scheme: Option<String>,
    host: HostPattern,
    ports: Option<Range<u16>>,
}

enum HostPattern {
    Any,
    /// Requests to the application itself, which this host does not chain.
    Itself,
    Subdomain(String),
    Network(IpNet),
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

    fn allows(&self, scheme: &str, host: &Host, port: Option<u16>) -> bool {
        let in_range = |ports: &Range<u16>| port.is_some_and(|port| ports.contains(&port));
        self.scheme.as_ref().is_none_or(|allowed| allowed == scheme)
            && self.host.allows(host)
            && self.ports.as_ref().is_none_or(in_range)
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
        if let Ok(network) = host.parse() {
            return Ok(Self::Network(network));
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
        match self {
            Self::Any => true,
            Self::Itself => false,
            Self::Subdomain(suffix) => {
                matches!(host, Host::Domain(domain) if domain.ends_with(suffix))
            }
            Self::Network(network) => match host {
                Host::Domain(_) => false,
                Host::Ipv4(address) => network.contains(&IpAddr::V4(*address)),
                Host::Ipv6(address) => network.contains(&IpAddr::V6(*address)),
            },
            Self::Exact(exact) => host == exact,
        }
    }
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

    fn hosts(entries: &[&str]) -> AllowedHosts {
        AllowedHosts::new(entries.iter().map(|entry| Entry::parse(entry)))
    }

    #[test]
    fn an_entry_allows_what_it_allows_in_spin() {
        for (entry, scheme, host, port, allowed) in [
            ("http://host:11434", "http", "host", Some(11434), true),
            ("http://host:11434/", "http", "HOST", Some(11434), true),
            ("http://host:11434", "https", "host", Some(11434), false),
            ("http://localhost:1", "http", "127.0.0.1", Some(1), false),
            ("http://host:11434", "http", "host", None, false),
            ("http://a.example", "http", "a.example", None, true),
            ("http://a.example", "http", "a.example", Some(80), true),
            ("http://a.example", "http", "a.example", Some(81), false),
            ("https://a.example/", "https", "a.example", Some(443), true),
            ("postgres://db", "postgres", "db", None, true),
            ("postgres://host:*", "postgres", "host", Some(1), true),
            ("*://*:*", "anything", "any.where", None, true),
            ("*://a.example:7", "http", "a.example", Some(7), true),
            ("https://*.example", "https", "a.b.example", None, true),
            ("https://*.a.example", "https", "a.example", None, false),
            ("https://*.a.example", "https", "ba.example", None, false),
            ("http://h:8000..9000", "http", "h", Some(8000), true),
            ("http://h:8000..9000", "http", "h", Some(9000), false),
            ("http://[::1]:80", "http", "[::1]", Some(80), true),
            ("http://[::1]", "http", "[::1]", None, true),
            ("postgres://[::1]:*", "postgres", "::1", Some(7), true),
            ("postgres://[::1]:*", "postgres", "::2", Some(7), false),
            ("http://10.0.0.0/8:80", "http", "10.1.2.3", None, true),
            ("http://10.0.0.0/8:80", "http", "11.1.2.3", None, false),
            ("http://10.0.0.0/8:80", "http", "ten", None, false),
            ("http://0.0.0.0/0:80", "http", "11.1.2.3", None, true),
            ("http://self", "http", "self", None, false),
        ] {
            let result = hosts(&[entry]).allow(scheme, host, port).unwrap();
            assert_eq!(result, allowed, "{entry} {scheme} {host} {port:?}");
        }
    }

    #[test]
    fn one_bad_entry_blocks_every_connection() {
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
            "http://10.0.0.0/33",
        ] {
            let hosts = hosts(&["http://good", bad]);
            assert!(hosts.broken().is_some(), "{bad}");
            assert!(hosts.allow("http", "good", None).is_err(), "{bad}");
        }
    }
}
