//! Answers: JSON, nothing, or the start of an event stream.

use std::borrow::Cow;

use http::StatusCode;

use super::body::RequestBody;
use super::events::{BodyWriter, EventStream};
use super::fields;
use crate::error::Rejection;
use crate::spin::wasip3::http::types::{ErrorCode, Fields, Response};
use crate::spin::wasip3::{spawn, wit_future, wit_stream};
use crate::spin::wit_bindgen::{FutureReader, StreamReader};

/// An answer whose head can still be added to.
pub(crate) struct Answer {
    status: StatusCode,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: Body,
}

enum Body {
    None,
    /// With what is left of the request's.
    Whole(Vec<u8>, Option<RequestBody>),
    Stream(StreamReader<u8>, FutureReader<Trailers>),
}

/// No browser takes what people and models write for a page or a script.
const NO_SNIFFING: (&str, Cow<'static, str>) = ("x-content-type-options", Cow::Borrowed("nosniff"));

type Trailers = Result<Option<Fields>, ErrorCode>;

impl Answer {
    /// The same with a header. Values of `vary` are put together.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        let value = value.into();
        let same = self.headers.iter_mut().find(|(other, _)| *other == name);
        match same {
            Some((_, first)) if name == "vary" => *first = format!("{first}, {value}").into(),
            _ => self.headers.push((name, value)),
        }
        self
    }

    /// Its head, and what sends its body.
    pub(crate) fn send(self) -> Response {
        let headers = self.headers.iter();
        let headers = fields(headers.map(|(name, value)| (*name, value.as_ref())));
        let no_trailers = || wit_future::new(|| Ok(None)).1;
        let (body, trailers) = match self.body {
            Body::None => (None, no_trailers()),
            Body::Stream(body, trailers) => (Some(body), trailers),
            Body::Whole(bytes, unread) => {
                let (mut writer, reader) = wit_stream::new();
                spawn(async move {
                    writer.write_all(bytes).await;
                    drop(writer);
                    // Only once it is on its way, so that a client that awaits `100 Continue` sends none.
                    if let Some(unread) = unread {
                        unread.discard().await;
                    }
                });
                (Some(reader), no_trailers())
            }
        };
        let (response, _) = Response::new(headers, body, trailers);
        let _ = response.set_status_code(self.status.as_u16());
        response
    }
}

/// A rejection in JSON. The rest of the request's `body` is read and forgotten.
pub(crate) fn rejection(rejection: &Rejection, body: RequestBody) -> Answer {
    let headers = rejection.headers.iter();
    headers.fold(
        whole(rejection.code.status(), rejection.to_json(), Some(body)),
        |answer, (name, value)| answer.with(name, value.clone()),
    )
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, json: Vec<u8>) -> Answer {
    whole(status, json, None)
}

fn whole(status: StatusCode, json: Vec<u8>, unread: Option<RequestBody>) -> Answer {
    let length = json.len().to_string();
    Answer {
        status,
        headers: vec![
            ("content-type", "application/json".into()),
            NO_SNIFFING,
            ("content-length", length.into()),
            ("cache-control", "no-store".into()),
        ],
        body: Body::Whole(json, unread),
    }
}

/// An answer without a body: there is nothing more.
pub(crate) fn no_content() -> Answer {
    Answer {
        status: StatusCode::NO_CONTENT,
        headers: vec![("cache-control", "no-store".into())],
        body: Body::None,
    }
}

/// An event stream, and the end that events are written to.
pub(crate) fn event_stream() -> (Answer, EventStream) {
    let (writer, reader) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Err(ErrorCode::ConnectionTerminated));
    let answer = Answer {
        status: StatusCode::OK,
        headers: vec![
            ("content-type", "text/event-stream; charset=utf-8".into()),
            NO_SNIFFING,
            ("cache-control", "no-cache, no-transform".into()),
            ("x-accel-buffering", "no".into()),
        ],
        body: Body::Stream(reader, trailers),
    };
    (answer, EventStream::new(BodyWriter::new(writer, end)))
}
