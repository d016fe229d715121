//! The client's side of HTTP: a request's bytes in, answers and event streams out.
//!
//! Knows statuses, headers and bodies, but no route and no chat.

use http::Method;

use crate::spin::wasip3::http::types::{Fields, Method as WasiMethod, Request};

mod body;
mod events;
mod origin;
pub(crate) mod path;
mod response;

pub(crate) use body::{BodyError, RequestBody};
#[cfg(test)]
pub(crate) use events::tests;
pub(crate) use events::{BodyWriter, EventStream, Sink};
pub(crate) use response::{event_stream, json, no_content, rejection};

/// A request's method, and its path with the query.
pub(crate) fn target(request: &Request) -> (Option<Method>, String) {
    let path = request.get_path_with_query().unwrap_or_default();
    (method(&request.get_method()), path)
}

/// Whether the request comes from no page, or from one of this server's own origin.
pub(crate) fn is_own(request: &Request) -> bool {
    let headers = request.get_headers();
    let (origins, sites) = (headers.get("origin"), headers.get("sec-fetch-site"));
    if origins.is_empty() && sites.is_empty() {
        return true;
    }
    let authority = request.get_authority().or_else(|| {
        let host = headers.get("host").into_iter().next()?;
        String::from_utf8(host).ok()
    });
    origin::Provenance {
        origins: &origins,
        sites: &sites,
        authority: authority.as_deref(),
    }
    .is_own()
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
pub(crate) fn fields(headers: &[(&str, &str)]) -> Fields {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    Fields::from_list(&headers).unwrap_or_else(|_| Fields::new())
}
