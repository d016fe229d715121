//! The client's side of HTTP: its request's bytes in, answers out.
//!
//! Knows status codes and bodies, but no chat.

use std::time::Duration;

use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use spin_sdk::wasip3::{spawn, wit_future, wit_stream};
use spin_sdk::wit_bindgen::{FutureWriter, StreamResult, StreamWriter};

use crate::clock::Ticker;
use crate::error::Rejection;

/// Bytes read of a request's body at once.
const BODY_CHUNK: usize = 16 * 1024;

/// The route: `404` for another path, `405` for another method.
pub fn check_route(request: &Request) -> Result<(), Rejection> {
    let path = request.get_path_with_query().unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    if !matches!(path, "/llmchat" | "/llmchat/") {
        return Err(Rejection::new(404, "Nothing is here: POST to /llmchat/."));
    }
    if !matches!(request.get_method(), Method::Post) {
        return Err(Rejection::new(405, "Only POST is answered here."));
    }
    Ok(())
}

/// How many times as long as for one piece of its body a client has for the whole.
const PIECES: u32 = 4;

/// The whole body, of at most `limit` bytes; `stall` bounds the wait for any of them.
pub async fn read_body(
    request: Request,
    limit: usize,
    ticker: &mut Ticker,
    stall: Duration,
) -> Result<Vec<u8>, Rejection> {
    let too_large = || {
        Rejection::new(
            413,
            format!(
                "The body is larger than {limit} bytes, the operator's limit (max_body_bytes)."
            ),
        )
    };
    let declared = content_length(&request);
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let (_, no_error) = wit_future::new(|| Ok(()));
    let (mut stream, trailers) = Request::consume_body(request, no_error);
    let expected = declared.and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(expected.unwrap_or(BODY_CHUNK));
    let whole = ticker.now().saturating_add(stall.saturating_mul(PIECES));
    loop {
        if body.len() == body.capacity() {
            body.reserve(BODY_CHUNK);
        }
        let deadline = ticker.now().saturating_add(stall).min(whole);
        let read = ticker.timeout_at(deadline, stream.read(body));
        let Some((status, read)) = read.await else {
            return Err(Rejection::new(408, "The body did not come in time."));
        };
        body = read;
        if body.len() > limit {
            return Err(too_large());
        }
        if status == StreamResult::Dropped {
            break;
        }
    }
    match trailers.await {
        Ok(_) => Ok(body),
        Err(_) => Err(Rejection::new(400, "The body broke off.")),
    }
}

fn content_length(request: &Request) -> Option<u64> {
    let values = request.get_headers().get("content-length");
    std::str::from_utf8(values.first()?).ok()?.parse().ok()
}

/// An answer in JSON.
pub fn rejection(rejection: &Rejection) -> Response {
    let mut headers = vec![("content-type", "application/json")];
    if rejection.status == 405 {
        headers.push(("allow", "POST"));
    }
    let json = rejection.to_json();
    let (mut writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    spawn(async move {
        writer.write_all(json).await;
    });
    let (response, _) = Response::new(fields(&headers), Some(reader), trailers);
    let _ = response.set_status_code(rejection.status);
    response
}

/// The head of a stream of events, and the end to write them to.
pub fn event_stream() -> (Response, EventStream) {
    let headers = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    let (writer, reader) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Err(ErrorCode::ConnectionTerminated));
    let client = EventStream {
        open: Some((writer, end)),
    };
    // Its status is 200 without saying so.
    let (response, _) = Response::new(fields(&headers), Some(reader), trailers);
    (response, client)
}

type Trailers = Result<Option<Fields>, ErrorCode>;

/// Headers in one call of the host. Their names and values are valid, and of no forbidden kind.
pub fn fields(headers: &[(&str, &str)]) -> Fields {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    Fields::from_list(&headers).unwrap_or_else(|_| Fields::new())
}

/// The client, as long as it listens.
///
/// Written directly, with no channel in between: a client that reads slowly slows its writer. It
/// ends well only by [`EventStream::close`]; dropped otherwise, it is cut off, so that a client
/// never takes a broken stream for a whole one.
pub struct EventStream {
    open: Option<(StreamWriter<u8>, FutureWriter<Trailers>)>,
}

impl EventStream {
    /// Whether the client is still there, as far as anyone knows.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Sends `bytes` in one write, and hands the emptied buffer back.
    ///
    /// A write that fails means that the client has left; one that makes no progress for longer
    /// than `stall` is taken to mean it.
    pub async fn send(&mut self, bytes: Vec<u8>, ticker: &mut Ticker, stall: Duration) -> Vec<u8> {
        let Some((writer, _)) = &mut self.open else {
            return emptied(bytes);
        };
        let mut since = ticker.now();
        let mut write = Box::pin(writer.write(bytes));
        let left = loop {
            match ticker.or_tick(write.as_mut()).await {
                Some((StreamResult::Complete(_), rest)) if rest.remaining() == 0 => {
                    return emptied(rest.into_vec());
                }
                Some((StreamResult::Complete(_), rest)) => {
                    since = ticker.now();
                    drop(write);
                    write = Box::pin(writer.write_buf(rest));
                }
                Some((_, rest)) => break rest.into_vec(),
                None if ticker.is_past(since, stall) => break Vec::new(),
                None => {}
            }
        };
        drop(write);
        self.open = None;
        emptied(left)
    }

    /// Ends the stream well.
    pub async fn close(self) {
        if let Some((writer, end)) = self.open {
            drop(writer);
            let _ = end.write(Ok(None)).await;
        }
    }
}

fn emptied(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.clear();
    bytes
}
