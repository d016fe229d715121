//! The client's side of HTTP: a request's bytes in, answers and event streams out.
//!
//! Knows statuses, headers and bodies, but no route and no chat.

use http::Method;

use crate::spin::wasip3::http::types::{Fields, Method as WasiMethod, Request};

mod body;
mod cors;
mod events;
mod origin;
pub(crate) mod path;
mod response;

pub(crate) use body::{BodyError, RequestBody};
pub(crate) use cors::preflight;
#[cfg(test)]
pub(crate) use events::tests;
pub(crate) use events::{BodyWriter, EventStream, Sink};
pub(crate) use origin::{AllowedOrigins, Sender};
pub(crate) use response::{Answer, event_stream, json, no_content, rejection};

/// The head of a request: read once, since each look is a call of the host. Gone before the body is read.
pub(crate) struct RequestHead<'a> {
    request: &'a Request,
    headers: Fields,
    /// `None` where no route has it.
    pub(crate) method: Option<Method>,
    /// With the query.
    pub(crate) path: String,
}

impl<'a> RequestHead<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        Self {
            request,
            headers: request.get_headers(),
            method: method(&request.get_method()),
            path: request.get_path_with_query().unwrap_or_default(),
        }
    }

    /// Every value of a header.
    pub(crate) fn values(&self, name: &str) -> Vec<Vec<u8>> {
        self.headers.get(name)
    }

    /// Who sent it.
    pub(crate) fn sender(&self, allowed: &AllowedOrigins) -> Sender {
        let (origins, sites) = (self.values("origin"), self.values("sec-fetch-site"));
        if origins.is_empty() && sites.is_empty() {
            return Sender::Own;
        }
        let authority = self.request.get_authority().or_else(|| {
            let host = self.values("host").into_iter().next()?;
            String::from_utf8(host).ok()
        });
        // Not into a frame of theirs, where they could lay something over it.
        let is_link = self.method == Some(Method::GET)
            && self.path.split('?').next() == Some("/")
            && self.values("sec-fetch-mode") == [b"navigate"]
            && self.values("sec-fetch-dest") == [b"document"];
        origin::Provenance {
            origins: &origins,
            sites: &sites,
            authority: authority.as_deref(),
            has_credentials: self.headers.has("cookie") || has_login(&self.values("authorization")),
            is_link,
        }
        .sender(allowed)
    }

    /// Whether a browser asks whether it may send a request (Fetch standard, 3.2.2).
    pub(crate) fn is_preflight(&self) -> bool {
        self.method == Some(Method::OPTIONS)
            && self.headers.has("origin")
            && self.headers.has("access-control-request-method")
    }

    /// Whether the body is sent as it is, and not compressed.
    pub(crate) fn is_plain(&self) -> bool {
        let encodings = self.values("content-encoding");
        encodings
            .iter()
            .all(|encoding| encoding.eq_ignore_ascii_case(b"identity"))
    }
}

/// Whether there is a credential that browsers add by themselves; a key is the page's own.
fn has_login(authorization: &[Vec<u8>]) -> bool {
    !authorization.iter().all(|value| bearer(value).is_some())
}

/// The key in a value of `authorization`: the scheme in any case, then spaces (RFC 9110, 11.4).
pub(crate) fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"bearer ".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
    is_bearer.then(|| token.trim_ascii())
}

/// A standard method; no route has any other.
fn method(method: &WasiMethod) -> Option<Method> {
    Some(match method {
        WasiMethod::Get => Method::GET,
        WasiMethod::Head => Method::HEAD,
        WasiMethod::Post => Method::POST,
        WasiMethod::Put => Method::PUT,
        WasiMethod::Delete => Method::DELETE,
        WasiMethod::Connect => Method::CONNECT,
        WasiMethod::Options => Method::OPTIONS,
        WasiMethod::Trace => Method::TRACE,
        WasiMethod::Patch => Method::PATCH,
        WasiMethod::Other(_) => return None,
    })
}

/// Headers in one host call. Their names and values are valid, and not forbidden.
pub(crate) fn fields<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Fields {
    let headers: Vec<_> = headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    Fields::from_list(&headers).unwrap_or_else(|_| Fields::new())
}
