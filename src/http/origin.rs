//! Whether a browser sent a request for a page of another origin.
//!
//! Ollama guards itself against such pages by `Host` and `Origin`, which are not forwarded to it, so that
//! guard is kept here. Takes header values, and knows neither routes nor WASI. A browser always sends at
//! least one of the two headers where a page of another origin could change or read something; curl and
//! apps send neither.

use http::uri::{Authority, Scheme};

/// The headers of a request that decide it.
#[derive(Debug, Default)]
pub(crate) struct Provenance<'a> {
    /// Every value of `Origin`.
    pub(crate) origins: &'a [Vec<u8>],
    /// Every value of `Sec-Fetch-Site`.
    pub(crate) sites: &'a [Vec<u8>],
    /// What the request was sent to: `Host`, or `:authority`.
    pub(crate) authority: Option<&'a str>,
}

impl Provenance<'_> {
    /// Whether the request may come from a page of this server's own origin, or from no page.
    pub(crate) fn is_own(&self) -> bool {
        let is_origin_own = match self.origins {
            [] => None,
            [origin] => Some(self.authority.is_some_and(|own| is_same(origin, own))),
            _ => return false,
        };
        match self.sites {
            [] => is_origin_own.unwrap_or(true),
            [site] if site == b"same-origin" || site == b"none" => true,
            _ => is_origin_own.unwrap_or(false),
        }
    }
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
        let host = authority.host().to_ascii_lowercase();
        let port = match authority.as_str().len() == authority.host().len() {
            true => default,
            false => authority.port_u16()?,
        };
        Some((host, port))
    };
    parts(authority).is_some_and(|theirs| parts(own) == Some(theirs))
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
        }
        .is_own()
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
}
