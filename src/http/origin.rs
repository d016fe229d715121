//! Which page a browser sent a request for, and which pages may send any.
//!
//! Ollama guards itself against pages of other origins by `Host` and `Origin`, which are not forwarded to it, so that
//! guard is kept here. The operator can open it for pages of an app: the answers then tell the browser by the headers of
//! CORS (Fetch standard, 3.2). Takes header values, and knows neither routes nor WASI. A browser always
//! sends `Origin` or `Sec-Fetch-Site` where a page of another origin could change or read something; curl and
//! apps send neither.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::uri::{Authority, Scheme};

/// The pages of other origins that are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedOrigins {
    /// Those of these origins, as browsers write them.
    Listed(Vec<String>),
    /// All, as long as the browser adds nothing that tells who its user is.
    Any,
}

/// The headers of a request that decide it.
#[derive(Debug, Default)]
pub(crate) struct Provenance<'a> {
    /// Every value of `Origin`.
    pub(crate) origins: &'a [Vec<u8>],
    /// Every value of `Sec-Fetch-Site`.
    pub(crate) sites: &'a [Vec<u8>],
    /// What the request was sent to: `Host`, or `:authority`.
    pub(crate) authority: Option<&'a str>,
    /// Whether the browser added what tells who its user is: a cookie, or the login of an authentication of its own.
    pub(crate) has_credentials: bool,
    /// Whether it opens a page that shows no conversation, as a link does.
    pub(crate) is_link: bool,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A page of this server's own origin, or no page.
    Own,
    /// A page of this origin, which may.
    Allowed(String),
    /// A page that may not.
    Refused,
    /// A page that may, if its browser leaves credentials out.
    WithCredentials,
}

impl Provenance<'_> {
    /// Who sent it.
    pub(crate) fn sender(&self, allowed: &AllowedOrigins) -> Sender {
        let is_origin_own = match self.origins {
            [] => None,
            [origin] => Some(self.authority.is_some_and(|own| is_same(origin, own))),
            _ => return Sender::Refused,
        };
        let is_own = match self.sites {
            [] => is_origin_own.unwrap_or(true),
            [site] if site == b"same-origin" || site == b"none" => true,
            [_] => is_origin_own.unwrap_or(self.is_link),
            _ => false,
        };
        match self.origins {
            _ if is_own => Sender::Own,
            [origin] => self.of_other(origin, allowed),
            _ => Sender::Refused,
        }
    }

    fn of_other(&self, origin: &[u8], allowed: &AllowedOrigins) -> Sender {
        let Ok(origin) = std::str::from_utf8(origin) else {
            return Sender::Refused;
        };
        match allowed {
            AllowedOrigins::Any if self.has_credentials => Sender::WithCredentials,
            AllowedOrigins::Any => Sender::Allowed(origin.to_owned()),
            AllowedOrigins::Listed(listed) => {
                match listed.iter().any(|one| one.eq_ignore_ascii_case(origin)) {
                    true => Sender::Allowed(origin.to_owned()),
                    false => Sender::Refused,
                }
            }
        }
    }
}

impl AllowedOrigins {
    /// Whether the operator allows none.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Listed(listed) if listed.is_empty())
    }

    /// Reads `allowed_origins`: origins with white space or commas in between, or `*`.
    pub(crate) fn read(setting: &str) -> Result<Self, String> {
        let entries = setting.split(|c: char| c.is_whitespace() || c == ',');
        let entries: Vec<_> = entries.filter(|entry| !entry.is_empty()).collect();
        if entries == ["*"] {
            return Ok(Self::Any);
        }
        let listed = entries.into_iter().zip(1..).map(|(entry, number)| {
            origin(entry).map_err(|why| {
                format!(
                    "must hold origins like https://app.example, or `*` alone; entry {number} {why}"
                )
            })
        });
        listed.collect::<Result<_, _>>().map(Self::Listed)
    }
}

/// An origin as browsers write it (HTML standard, 7.1.1): in lower case, without its scheme's default port.
fn origin(entry: &str) -> Result<String, &'static str> {
    match entry {
        "*" => return Err("is `*`, which stands for all"),
        "null" => return Err("is `null`, which any page can make its origin"),
        _ if !entry.is_ascii() => return Err("must be written in ASCII (xn--…)"),
        _ => {}
    }
    let entry = entry.to_ascii_lowercase();
    let (scheme, rest) = entry.split_once("://").ok_or("has no scheme")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("has a path");
    }
    let is_host = !authority.contains(['@', '*']);
    let parsed: Option<Authority> = authority.parse().ok().filter(|_| is_host);
    let (Ok(_), Some(parsed)) = (scheme.parse::<Scheme>(), parsed) else {
        return Err("has no host, or something that is none");
    };
    let (host, port) = parts(&parsed).ok_or("has a port that is none")?;
    if !is_canonical(host) {
        return Err("has an address that browsers write otherwise");
    }
    Ok(match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

/// Whether a host is no address, or one as browsers write it (URL standard, 3.5).
fn is_canonical(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        let parsed = address.parse::<Ipv6Addr>();
        return parsed.is_ok_and(|parsed| parsed.to_string() == address);
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with(|c: char| c.is_ascii_digit());
    !is_number || host.parse::<Ipv4Addr>().is_ok()
}

/// Whether an `Origin` has this host and port. Its scheme only gives the default port: behind a proxy that
/// terminates TLS, the scheme that arrives here is not the browser's.
fn is_same(origin: &[u8], own: &str) -> bool {
    let Some((scheme, authority)) = std::str::from_utf8(origin)
        .ok()
        .and_then(|origin| origin.split_once("://"))
    else {
        return false;
    };
    let default = match scheme.parse::<Scheme>() {
        Ok(scheme) if scheme == Scheme::HTTP => 80,
        Ok(scheme) if scheme == Scheme::HTTPS => 443,
        _ => return false,
    };
    let parts = |authority: &str| {
        // Neither header may name a user, and `evil@host` must not pass for `host`.
        let authority: Authority = authority
            .parse()
            .ok()
            .filter(|_| !authority.contains('@'))?;
        let (host, port) = parts(&authority)?;
        Some((host.to_ascii_lowercase(), port.unwrap_or(default)))
    };
    parts(authority).is_some_and(|theirs| parts(own) == Some(theirs))
}

/// Host and port; `None` where what stands for the port is none.
fn parts(authority: &Authority) -> Option<(&str, Option<u16>)> {
    let host = authority.host();
    match authority.as_str().len() == host.len() {
        true => Some((host, None)),
        false => Some((host, Some(authority.port_u16()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_own(origins: &[&str], sites: &[&str], authority: Option<&str>) -> bool {
        let bytes = |values: &[&str]| -> Vec<Vec<u8>> {
            values
                .iter()
                .map(|value| value.as_bytes().to_vec())
                .collect()
        };
        let (origins, sites) = (bytes(origins), bytes(sites));
        Provenance {
            origins: &origins,
            sites: &sites,
            authority,
            ..Provenance::default()
        }
        .sender(&AllowedOrigins::Listed(Vec::new()))
            == Sender::Own
    }

    #[test]
    fn a_request_of_no_page_passes() {
        assert!(is_own(&[], &[], Some("localhost:3000")));
        assert!(is_own(&[], &[], None));
        assert!(is_own(&[], &["none"], Some("localhost:3000")));
    }

    #[test]
    fn a_page_of_the_servers_own_origin_passes() {
        assert!(is_own(&["https://what.ever"], &["same-origin"], None));
        for (origin, authority) in [
            ("http://localhost:3000", "localhost:3000"),
            ("http://LOCALHOST:3000", "localhost:3000"),
            ("http://localhost:3000", "LocalHost:3000"),
            ("http://[::1]:3000", "[::1]:3000"),
            ("http://[::1]", "[::1]:80"),
            ("https://chat.example", "chat.example"),
            ("https://chat.example", "chat.example:443"),
            ("https://chat.example:443", "chat.example"),
            ("http://chat.example", "chat.example:80"),
        ] {
            assert!(is_own(&[origin], &[], Some(authority)), "{origin}");
            assert!(
                is_own(&[origin], &["same-site"], Some(authority)),
                "{origin}"
            );
        }
    }

    #[test]
    fn a_page_of_another_origin_is_refused_whatever_the_browser_says_of_the_site() {
        for origin in [
            "https://evil.example",
            "http://localhost",
            "http://localhost:3001",
            "http://localhost:3000.evil.example",
            "http://evil@localhost:3000",
            "http://localhost:3000@evil.example",
            "http://localhost:3000/",
            "http://localhost:",
            "http://127.0.0.1:3000",
            "file://localhost:3000",
            "null",
            "localhost:3000",
            "",
            "*",
        ] {
            for sites in [&[][..], &["cross-site"], &["same-site"], &["else"]] {
                assert!(
                    !is_own(&[origin], sites, Some("localhost:3000")),
                    "{origin}"
                );
            }
        }
        assert!(!is_own(&["http://localhost"], &[], None));
        assert!(!is_own(&[], &["cross-site"], Some("localhost")));
        assert!(!is_own(&[], &["same-site"], Some("localhost")));
    }

    #[test]
    fn a_header_that_is_there_twice_is_refused() {
        let own = "http://localhost";
        assert!(!is_own(&[own, own], &[], Some("localhost")));
        assert!(!is_own(&[own, own], &["same-origin"], Some("localhost")));
        assert!(!is_own(&[], &["none", "none"], Some("localhost")));
    }

    fn sender(allowed: &str, origin: &str, has_credentials: bool) -> Sender {
        Provenance {
            origins: &[origin.as_bytes().to_vec()],
            sites: &[b"cross-site".to_vec()],
            authority: Some("localhost:3000"),
            has_credentials,
            ..Provenance::default()
        }
        .sender(&AllowedOrigins::read(allowed).unwrap())
    }

    #[test]
    fn a_page_of_a_listed_origin_may() {
        let allowed = "https://App.Example/, http://localhost:5173\n capacitor://localhost,https://b.example:443 http://[::1]:80";
        for origin in [
            "https://app.example",
            "http://localhost:5173",
            "capacitor://localhost",
            "https://b.example",
            "http://[::1]",
        ] {
            for has_credentials in [true, false] {
                let sender = sender(allowed, origin, has_credentials);
                assert_eq!(sender, Sender::Allowed(origin.to_owned()));
            }
        }
        for origin in [
            "http://app.example",
            "https://app.example:444",
            "https://app.example.evil.example",
            "https://evil.app.example",
            "https://app.example/",
            "null",
            "",
            "*",
        ] {
            assert_eq!(sender(allowed, origin, false), Sender::Refused, "{origin}");
        }
    }

    #[test]
    fn under_a_star_every_page_may_as_long_as_nothing_tells_who_its_user_is() {
        for origin in ["https://app.example", "null"] {
            let allowed = Sender::Allowed(origin.to_owned());
            assert_eq!(sender("*", origin, false), allowed);
            assert_eq!(sender("*", origin, true), Sender::WithCredentials);
        }
    }

    #[test]
    fn a_link_of_another_page_may_open_a_page() {
        let sites = [b"cross-site".to_vec()];
        let link = Provenance {
            sites: &sites,
            is_link: true,
            ..Provenance::default()
        };
        let nobody = AllowedOrigins::Listed(Vec::new());
        assert_eq!(link.sender(&nobody), Sender::Own);
        let origins = [b"https://evil.example".to_vec()];
        let form = Provenance {
            origins: &origins,
            ..link
        };
        assert_eq!(form.sender(&nobody), Sender::Refused);
    }

    #[test]
    fn an_entry_that_is_no_origin_is_told_by_its_number() {
        for (setting, why) in [
            ("https://a.example/app", "entry 1 has a path"),
            (
                "https://a.example https://b.example/?",
                "entry 2 has a path",
            ),
            ("null", "entry 1 is `null`"),
            ("https://a.example, *", "entry 2 is `*`"),
            ("app.example", "entry 1 has no scheme"),
            ("https://", "entry 1 has no host"),
            ("https://*.example", "entry 1 has no host"),
            ("https://u@a.example", "entry 1 has no host"),
            ("https://a.example:port", "entry 1 has a port"),
            ("https://a.example:99999", "entry 1 has a port"),
            ("https://bücher.example", "entry 1 must be written in ASCII"),
            ("http://[0:0:0:0:0:0:0:1]", "entry 1 has an address"),
            ("http://[::0001]:80", "entry 1 has an address"),
            ("http://127.1", "entry 1 has an address"),
            ("http://0x7f.1", "entry 1 has an address"),
            ("http://127.0.0.01", "entry 1 has an address"),
        ] {
            let error = AllowedOrigins::read(setting).unwrap_err();
            assert!(error.contains(why), "{setting}: {error}");
        }
        assert!(AllowedOrigins::read(" ").unwrap().is_none());
    }
}
