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

/// A request's method, and its path with the query.
pub(crate) fn target(request: &Request) -> (Option<Method>, String) {
    let path = request.get_path_with_query().unwrap_or_default();
    (method(&request.get_method()), path)
}

/// Who sent a request.
pub(crate) fn sender(request: &Request, allowed: &AllowedOrigins) -> Sender {
    let headers = request.get_headers();
    let (origins, sites) = (headers.get("origin"), headers.get("sec-fetch-site"));
    if origins.is_empty() && sites.is_empty() {
        return Sender::Own;
    }
    let authority = request.get_authority().or_else(|| {
        let host = headers.get("host").into_iter().next()?;
        String::from_utf8(host).ok()
    });
    let is_link = || {
        let (method, path) = target(request);
        let mode = headers.get("sec-fetch-mode");
        method == Some(Method::GET) && path == "/" && mode == [b"navigate"]
    };
    origin::Provenance {
        origins: &origins,
        sites: &sites,
        authority: authority.as_deref(),
        has_cookie: headers.has("cookie"),
        is_link: origins.is_empty() && is_link(),
    }
    .sender(allowed)
}

/// Whether a browser asks whether it may send a request (Fetch standard, 3.2.2).
pub(crate) fn is_preflight(request: &Request) -> bool {
    let headers = request.get_headers();
    method(&request.get_method()) == Some(Method::OPTIONS)
        && headers.has("origin")
        && headers.has("access-control-request-method")
}

/// Every value of a request's header.
pub(crate) fn values(request: &Request, name: &str) -> Vec<Vec<u8>> {
    request.get_headers().get(name)
}

/// Whether the body is sent as it is, and not compressed.
pub(crate) fn is_plain(request: &Request) -> bool {
    let encodings = request.get_headers().get("content-encoding");
    encodings
        .iter()
        .all(|encoding| encoding.eq_ignore_ascii_case(b"identity"))
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
