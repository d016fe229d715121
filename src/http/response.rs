//! The heads of answers: JSON for a rejection, or the start of an event stream.

use super::body::RequestBody;
use super::events::{BodyWriter, EventStream};
use super::fields;
use crate::error::Rejection;
use crate::spin::wasip3::http::types::{ErrorCode, Response};
use crate::spin::wasip3::{spawn, wit_future, wit_stream};

/// A rejection in JSON. The rest of the request's `body` is read only once it is on its way, so that a client
/// that awaits `100 Continue` sends none.
pub(crate) fn rejection(rejection: &Rejection, body: RequestBody) -> Response {
    let json = rejection.to_json();
    let length = json.len().to_string();
    let mut headers = vec![
        ("content-type", "application/json"),
        ("content-length", &length),
        ("cache-control", "no-store"),
    ];
    headers.extend_from_slice(&rejection.headers);
    let (mut writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    spawn(async move {
        writer.write_all(json).await;
        drop(writer);
        body.discard().await;
    });
    let (response, _) = Response::new(fields(&headers), Some(reader), trailers);
    let _ = response.set_status_code(rejection.code.status().as_u16());
    response
}

/// An answer in JSON, with `more` headers.
pub(crate) fn json(status: u16, more: &[(&str, &str)], json: Vec<u8>) -> Response {
    let length = json.len().to_string();
    let mut headers = vec![
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
        ("cache-control", "no-store"),
    ];
    headers.extend_from_slice(more);
    let (mut writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    spawn(async move {
        writer.write_all(json).await;
    });
    let (response, _) = Response::new(fields(&headers), Some(reader), trailers);
    let _ = response.set_status_code(status);
    response
}

/// An answer without a body: there is nothing more.
pub(crate) fn no_content() -> Response {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(fields(&[("cache-control", "no-store")]), None, trailers);
    let _ = response.set_status_code(204);
    response
}

/// The head of an event stream, with `more` headers, and the end that events are written to.
pub(crate) fn event_stream(more: &[(&str, &str)]) -> (Response, EventStream) {
    let mut headers = vec![
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
    ];
    headers.extend_from_slice(more);
    let (writer, reader) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Err(ErrorCode::ConnectionTerminated));
    // Its status is 200 by default.
    let (response, _) = Response::new(fields(&headers), Some(reader), trailers);
    (response, EventStream::new(BodyWriter::new(writer, end)))
}
