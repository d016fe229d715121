//! One request: which route it takes, the checks that every route shares, and the answer.
//!
//! Here a route is added, a header or credential is checked, and a failure becomes a [`Rejection`].
//! Knows no SQL and no Ollama.

use std::rc::Rc;

use http::Method;

use crate::clock::Ticker;
use crate::config::{self, Config, InvalidVariable};
use crate::error::{RefusalCode, Rejection};
use crate::http::{self as client, BodyError, RequestBody};
use crate::log;
use crate::permit::{Permit, REQUESTS_MAX};
use crate::request::{ChatRequest, InvalidRequest};
use crate::spin::wasip3::http::types::{Request, Response};
use crate::spin::wasip3::spawn;
use crate::store::{Database, Kind, StoreError};
use crate::turn::{NotBegun, Turn};

/// Answers a request: with a stream of events, or with a status and a JSON error.
pub async fn handle(request: Request) -> Response {
    let checked = check(&request).await;
    let mut body = RequestBody::of(request);
    let answered = match checked {
        Ok((Route::Prompt, config)) => prompt(&mut body, config).await,
        Err(rejection) => Err(rejection),
    };
    match answered {
        Ok(response) => response,
        Err(rejection) => {
            if !rejection.detail.is_empty() {
                log::line(format_args!(
                    "{}: {} {}",
                    rejection.code.as_str(),
                    rejection.error,
                    rejection.detail
                ));
            }
            client::rejection(&rejection, body)
        }
    }
}

/// What can be checked before the body is read.
async fn check(request: &Request) -> Result<(Route, Rc<Config>), Rejection> {
    if !client::is_own(request) {
        return Err(Rejection::new(
            RefusalCode::OriginRefused,
            "A browser sent this for a page of another origin, which is not served. If the page is this server's own, a proxy in between changes `Host`: let it pass the one that the browser sent.",
        ));
    }
    // Before the route: a GET at the start shows whether the variables are right.
    let config = config::load().await?;
    let (method, path) = client::target(request);
    let route = route(method, &path)?;
    if !client::is_plain(request) {
        return Err(Rejection::new(
            RefusalCode::UnsupportedEncoding,
            "The body is compressed: send it without `content-encoding`.",
        ));
    }
    Ok((route, config))
}

/// What can be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// `POST /llmchat/`: a prompt, answered by an event stream.
    Prompt,
}

fn route(method: Option<Method>, path: &str) -> Result<Route, Rejection> {
    match path {
        "/llmchat" | "/llmchat/" => match method {
            Some(Method::POST) => Ok(Route::Prompt),
            _ => Err(not_allowed("Only POST is answered here.", "POST")),
        },
        _ => Err(Rejection::new(
            RefusalCode::NotFound,
            "Nothing is here: POST to /llmchat/.",
        )),
    }
}

fn not_allowed(error: &str, allowed: &'static str) -> Rejection {
    Rejection::new(RefusalCode::MethodNotAllowed, error).with_header("allow", allowed)
}

async fn prompt(body: &mut RequestBody, config: Rc<Config>) -> Result<Response, Rejection> {
    let permit = Permit::take(config.max_concurrent_turns);
    let mut ticker = Ticker::new(config.timeouts.tick());
    let stall = config.timeouts.client_stall;
    let mut limits = config.limits;
    limits.body_bytes = limits.body_bytes.min(REQUESTS_MAX);
    let has_room = |bytes| permit.grow(bytes);
    let read = body.read(limits.body_bytes, &mut ticker, stall, has_room);
    let body = read
        .await
        .map_err(|error| body_failed(error, limits.body_bytes))?;
    permit.resize(body.len());
    let request = ChatRequest::parse(&body, &limits)?;
    drop(body);
    let store = Database::open(config.database_url.as_deref());
    let turn = Turn::begin(request, store, config, &mut ticker, permit).await?;
    let (response, client) = client::event_stream(&turn.context().to_string());
    spawn(turn.run(client, ticker));
    Ok(response)
}

fn body_failed(error: BodyError, limit: usize) -> Rejection {
    match error {
        BodyError::TooLarge => InvalidRequest::TooLarge { limit }.into(),
        BodyError::TimedOut => {
            Rejection::new(RefusalCode::Timeout, "The body did not come in time.")
        }
        BodyError::NoRoom => Rejection::new(
            RefusalCode::Overloaded,
            "The bodies of other requests take up the memory: send this one again later.",
        ),
        BodyError::BrokeOff => Rejection::new(RefusalCode::BodyBrokeOff, "The body broke off."),
    }
}

impl From<InvalidVariable> for Rejection {
    fn from(invalid: InvalidVariable) -> Self {
        let error = format!("The server's configuration is wrong: {invalid}.");
        Self::new(RefusalCode::Misconfigured, error).with_detail(invalid.detail())
    }
}

impl From<InvalidRequest> for Rejection {
    fn from(invalid: InvalidRequest) -> Self {
        let code = match invalid {
            InvalidRequest::ContextTooLarge { .. } => RefusalCode::ContextTooLarge,
            InvalidRequest::TooLarge { .. } => RefusalCode::TooLarge,
            InvalidRequest::Malformed(_) => RefusalCode::InvalidRequest,
        };
        Self::new(code, invalid.to_string())
    }
}

impl From<NotBegun> for Rejection {
    fn from(reason: NotBegun) -> Self {
        match reason {
            NotBegun::Busy => Self::new(
                RefusalCode::Busy,
                "A turn of this conversation is running: send the next prompt when it has ended.",
            ),
            NotBegun::Empty => InvalidRequest::of(
                "messages",
                "nothing to send: the array is empty, and so is the conversation",
            )
            .into(),
            NotBegun::TooLarge { limit } => InvalidRequest::ContextTooLarge { limit }.into(),
            NotBegun::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        if error.kind == Kind::Refused {
            let why = format_args!(
                "too long for a column of this database's older table: {}",
                error.why
            );
            return InvalidRequest::of("appID or messages", why).into();
        }
        let message = format!("{} Nothing was sent to Ollama.", error.for_client());
        Self::new(RefusalCode::DatabaseFailed, message).with_detail(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_posted_to_one_path_with_or_without_its_slash() {
        for path in ["/llmchat", "/llmchat/"] {
            assert_eq!(route(Some(Method::POST), path).unwrap(), Route::Prompt);
        }
        for path in [
            "",
            "/",
            "/llmchat//",
            "/llmchat/a",
            "/LLMCHAT/",
            "/llmchats",
        ] {
            let rejection = route(Some(Method::POST), path).unwrap_err();
            assert_eq!(rejection.code, RefusalCode::NotFound, "{path}");
            assert!(rejection.headers.is_empty());
        }
    }

    #[test]
    fn another_method_is_refused_with_those_that_are_allowed() {
        for method in [Some(Method::GET), Some(Method::OPTIONS), None] {
            let rejection = route(method, "/llmchat/").unwrap_err();
            assert_eq!(rejection.code, RefusalCode::MethodNotAllowed);
            assert_eq!(rejection.error, "Only POST is answered here.");
            assert_eq!(rejection.headers, [("allow", "POST")]);
        }
    }

    /// Every failure that is an answer.
    fn rejections() -> Vec<Rejection> {
        let store = |kind| StoreError::new(kind, "the database's own message");
        let body = |error| body_failed(error, 7);
        let mut all = vec![
            route(None, "/").unwrap_err(),
            route(None, "/llmchat").unwrap_err(),
            InvalidRequest::of("model", "must not be empty").into(),
            NotBegun::Empty.into(),
            NotBegun::Busy.into(),
            NotBegun::Store(store(Kind::Schema)).into(),
        ];
        all.extend(
            [
                BodyError::TooLarge,
                BodyError::TimedOut,
                BodyError::BrokeOff,
                BodyError::NoRoom,
            ]
            .map(body),
        );
        let kinds = [
            Kind::NotAllowed,
            Kind::Refused,
            Kind::TooLarge,
            Kind::Unavailable,
            Kind::Failed,
        ];
        all.extend(kinds.map(|kind| store(kind).into()));
        all
    }

    #[test]
    fn what_only_the_operator_can_fix_is_in_the_log_and_not_in_the_answer() {
        for rejection in rejections() {
            let is_operators = rejection.code.status().is_server_error()
                // Time alone fixes it.
                && rejection.code != RefusalCode::Overloaded;
            let told = rejection.error.contains("database's own message");
            let logged = rejection.detail.contains("database's own message");
            assert_eq!(logged, is_operators, "{rejection:?}");
            // A value that does not fit is the client's to shorten.
            let is_value = rejection.error.contains("too long for a column");
            assert_eq!(told, is_value, "{rejection:?}");
        }
    }
}
