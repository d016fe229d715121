//! Under which name a request asks for this server, and whether it may.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, StatusCode, Uri, Version, header};

use super::respond::Refusal;

/// Fills in what the request line leaves out: a component receives an absolute URI. RFC 9112, 3.2:
/// one valid `Host`, which only HTTP/1.0 may omit; the authority of an absolute target has priority.
pub(super) fn complete(parts: &mut Parts, address: SocketAddr) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(invalid("The request has several `Host` headers.")),
        (Some(host), None) => {
            let host = parse(host).ok_or_else(|| invalid("The `Host` header is not valid."));
            Some(host?)
        }
        (None, _) if parts.version == Version::HTTP_10 => None,
        (None, _) => return Err(invalid("The request has no `Host` header.")),
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let authority = match uri.authority.take().or(host) {
        Some(authority) => authority,
        None => Authority::try_from(address.to_string())
            .map_err(|_| invalid("The request has no `Host` header."))?,
    };
    uri.authority = Some(authority);
    uri.scheme = Some(Scheme::HTTP);
    parts.uri = Uri::from_parts(uri).map_err(|_| invalid("The request's target is no path."))?;
    Ok(())
}

fn parse(host: &HeaderValue) -> Option<Authority> {
    let host: Authority = host.to_str().ok()?.parse().ok()?;
    (!host.host().is_empty() && !host.as_str().contains('@')).then_some(host)
}

fn invalid(error: &str) -> Refusal {
    let error = format!("{error} Send one, with the name of this server.");
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_host", error)
}

/// The names under which requests are answered, besides those of the loopback interface; `None`:
/// under any.
#[derive(Clone)]
pub(super) struct AllowedHosts(pub(super) Option<Vec<String>>);

impl AllowedHosts {
    pub(super) fn check(&self, uri: &Uri) -> Result<(), Refusal> {
        let Some(names) = &self.0 else { return Ok(()) };
        let host = uri.host().unwrap_or_default();
        let host = host.strip_suffix('.').unwrap_or(host);
        if is_loopback(host) || names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        // A page whose name was made to lead here could read what it is answered.
        let error = format!(
            "This server does not answer requests for {host:?}. If that is its name, \
             its operator can allow it: `--allow-host {host}`."
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, "origin_refused", error))
    }
}

/// RFC 6761, 6.3: `localhost` and the names below it lead nowhere else.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    match address {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => {
            let host = host.to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use http::Request;

    use super::*;

    fn authority(version: Version, target: &str, hosts: &[&str]) -> Option<String> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        complete(&mut parts, SocketAddr::from(([127, 0, 0, 1], 3000))).ok()?;
        Some(parts.uri.authority().unwrap().to_string())
    }

    #[test]
    fn a_request_has_one_valid_host() {
        let of = |hosts: &[&str]| authority(Version::HTTP_11, "/a", hosts);
        assert_eq!(of(&["a:80"]).unwrap(), "a:80");
        assert_eq!(of(&["[::1]:80"]).unwrap(), "[::1]:80");
        for bad in [
            &[][..],
            &["a", "a"],
            &["a", "b"],
            &[""],
            &[":80"],
            &["a b"],
            &["u@a"],
            &["a/b"],
        ] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn http_1_0_may_omit_it() {
        let of = |hosts: &[&str]| authority(Version::HTTP_10, "/a", hosts);
        assert_eq!(of(&[]).unwrap(), "127.0.0.1:3000");
        assert_eq!(of(&["a"]).unwrap(), "a");
        assert_eq!(of(&["a", "b"]), None);
    }

    #[test]
    fn an_absolute_target_has_priority() {
        let of = |hosts: &[&str]| authority(Version::HTTP_11, "http://evil.example/a", hosts);
        assert_eq!(of(&["localhost"]).unwrap(), "evil.example");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn only_names_of_the_loopback_interface_are_allowed_unasked() {
        let hosts = AllowedHosts(Some(vec!["chat.example".to_owned()]));
        let is_allowed = |authority: &str| {
            let uri: Uri = format!("http://{authority}/").parse().unwrap();
            hosts.check(&uri).is_ok()
        };
        for good in [
            "localhost",
            "LOCALHOST:3000",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1:3000",
            "127.1.2.3",
            "[::1]:3000",
            "[::ffff:127.0.0.1]",
            "chat.example",
            "Chat.Example:443",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "0.0.0.0",
            "[::]",
            "127.0.0.1.nip.io",
            "192.168.1.1",
            "a.chat.example",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
        assert!(
            AllowedHosts(None)
                .check(&Uri::from_static("http://evil.example/"))
                .is_ok()
        );
    }
}
