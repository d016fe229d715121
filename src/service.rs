//! One request: which route it takes, the checks that every route shares, and the answer.
//!
//! Here a route is added, a header or credential is checked, and a failure becomes a [`Rejection`].
//! Knows no SQL and no Ollama.

use std::rc::Rc;

use http::{Method, StatusCode};
use spin_sdk::wasip3::http::types::{Request, Response};
use spin_sdk::wasip3::spawn;

use crate::clock::Ticker;
use crate::config::{self, Config, InvalidVariable};
use crate::error::Rejection;
use crate::http::{self as client, BodyError};
use crate::log;
use crate::permit::Permit;
use crate::request::{ChatRequest, InvalidRequest};
use crate::store::{Database, Kind, StoreError};
use crate::turn::{NotBegun, Turn};

/// Answers a request: with a stream of events, or with a status and a JSON error.
pub async fn handle(request: Request) -> Response {
    match answer(request).await {
        Ok(response) => response,
        Err(rejection) => {
            if !rejection.detail.is_empty() {
                log::line(format_args!(
                    "{}: {} {}",
                    rejection.status.as_u16(),
                    rejection.error,
                    rejection.detail
                ));
            }
            client::rejection(&rejection)
        }
    }
}

async fn answer(request: Request) -> Result<Response, Rejection> {
    let (method, path) = client::target(&request);
    let route = route(method, &path)?;
    let config = config::load().await?;
    match route {
        Route::Prompt => prompt(request, config).await,
    }
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
            StatusCode::NOT_FOUND,
            "Nothing is here: POST to /llmchat/.",
        )),
    }
}

fn not_allowed(error: &str, allowed: &'static str) -> Rejection {
    Rejection::new(StatusCode::METHOD_NOT_ALLOWED, error).with_header("allow", allowed)
}

async fn prompt(request: Request, config: Rc<Config>) -> Result<Response, Rejection> {
    let permit = Permit::take(config.max_concurrent_turns);
    let mut ticker = Ticker::new(config.timeouts.tick());
    let (limits, stall) = (config.limits, config.timeouts.client_stall);
    let body = client::read_body(request, limits.body_bytes, &mut ticker, stall).await;
    let body = body.map_err(|error| match error {
        BodyError::TooLarge => {
            let limit = limits.body_bytes;
            InvalidRequest::TooLarge { limit }.into()
        }
        BodyError::TimedOut => Rejection::new(
            StatusCode::REQUEST_TIMEOUT,
            "The body did not come in time.",
        ),
        BodyError::BrokeOff => Rejection::new(StatusCode::BAD_REQUEST, "The body broke off."),
    })?;
    let request = ChatRequest::parse(&body, &limits)?;
    drop(body);
    let store = Database::open(config.database_url.as_deref());
    let turn = Turn::begin(request, store, config, &mut ticker, permit).await?;
    let (response, client) = client::event_stream();
    spawn(turn.run(client, ticker));
    Ok(response)
}

impl From<InvalidVariable> for Rejection {
    fn from(invalid: InvalidVariable) -> Self {
        let error = format!("The server's configuration is wrong: {invalid}.");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error).with_detail(invalid.detail())
    }
}

impl From<InvalidRequest> for Rejection {
    fn from(invalid: InvalidRequest) -> Self {
        let status = match invalid {
            InvalidRequest::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            InvalidRequest::Malformed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, invalid.to_string())
    }
}

impl From<NotBegun> for Rejection {
    fn from(reason: NotBegun) -> Self {
        match reason {
            NotBegun::Busy => Self::new(
                StatusCode::CONFLICT,
                "A turn of this conversation is running: send the next prompt when it has ended.",
            ),
            NotBegun::Empty => InvalidRequest::of(
                "messages",
                "nothing to send: the array is empty, and so is the conversation",
            )
            .into(),
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
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_detail(error.to_string())
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
            assert_eq!(rejection.status, StatusCode::NOT_FOUND, "{path}");
            assert!(rejection.headers.is_empty());
        }
    }

    #[test]
    fn another_method_is_refused_with_those_that_are_allowed() {
        for method in [Some(Method::GET), Some(Method::OPTIONS), None] {
            let rejection = route(method, "/llmchat/").unwrap_err();
            assert_eq!(rejection.status, StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(rejection.error, "Only POST is answered here.");
            assert_eq!(rejection.headers, [("allow", "POST")]);
        }
    }

    #[test]
    fn a_failure_is_the_clients_or_the_operators_and_says_so() {
        let store = |kind| StoreError::new(kind, "the database's own message");
        for (rejection, status, in_detail) in [
            (
                Rejection::from(InvalidRequest::TooLarge { limit: 7 }),
                413,
                "",
            ),
            (
                InvalidRequest::of("model", "must not be empty").into(),
                422,
                "",
            ),
            (NotBegun::Empty.into(), 422, ""),
            (NotBegun::Busy.into(), 409, ""),
            (store(Kind::Refused).into(), 422, ""),
            (store(Kind::NotAllowed).into(), 500, "own message"),
            (
                NotBegun::Store(store(Kind::Unavailable)).into(),
                500,
                "own message",
            ),
            (store(Kind::Failed).into(), 500, "own message"),
        ] {
            assert_eq!(rejection.status.as_u16(), status, "{rejection:?}");
            assert!(rejection.detail.contains(in_detail), "{rejection:?}");
            let is_kept_from_client = !rejection.error.contains("own message");
            assert_eq!(
                is_kept_from_client,
                status != 422 || in_detail.is_empty() && !rejection.error.contains("older table"),
                "{rejection:?}"
            );
        }
    }
}
