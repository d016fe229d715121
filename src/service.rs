//! One request: which route it takes, the checks that every route shares, and the answer.
//!
//! Here a route is added, a header or credential is checked, and a failure becomes a [`Rejection`].
//! Knows no SQL and no Ollama.

use std::rc::Rc;

use http::Method;

use crate::api::Api;
use crate::api::route::Route;
use crate::clock::Ticker;
use crate::config::{self, Config, InvalidVariable};
use crate::error::{RefusalCode, Rejection};
use crate::http::path::{self, Path};
use crate::http::{self as client, BodyError, EventStream, RequestBody};
use crate::idempotency::{InvalidKey, Key, body_hash};
use crate::log;
use crate::permit::{Permit, REQUESTS_MAX};
use crate::reply::position::LastEventId;
use crate::request::{Changes, ChatRequest, InvalidRequest, Limits, fields_json};
use crate::spin::wasip3::http::types::{Request, Response};
use crate::spin::wasip3::spawn;
use crate::store::{Asked, Database, Deletion, Kind, Repeat, StoreError, TurnName};
use crate::turn::follow::Watcher;
use crate::turn::{Means, NotBegun, Opened, Turn};

/// Answers a request: with a stream of events, or with a status and JSON.
pub async fn handle(request: Request) -> Response {
    let checked = check(&request).await;
    let head = Head::of(&request);
    let mut body = RequestBody::of(request);
    let answered = match checked {
        Ok((route, path, config)) => answer(route, &path, head, &mut body, config).await,
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

/// The headers that routes read.
struct Head {
    key: Result<Option<Key>, InvalidKey>,
    last: LastEventId,
    wants_stream: bool,
    is_head: bool,
}

impl Head {
    fn of(request: &Request) -> Self {
        let headers = request.get_headers();
        let (method, _) = client::target(request);
        Self {
            key: Key::read(&headers.get("idempotency-key")),
            last: LastEventId::read(&headers.get("last-event-id")),
            wants_stream: headers.get("accept").iter().any(|accept| {
                let accept = accept.to_ascii_lowercase();
                accept
                    .windows(EVENT_STREAM.len())
                    .any(|it| it == EVENT_STREAM)
            }),
            is_head: method == Some(Method::HEAD),
        }
    }
}

const EVENT_STREAM: &[u8] = b"text/event-stream";

async fn answer(
    route: Route,
    path: &Path,
    head: Head,
    body: &mut RequestBody,
    config: Rc<Config>,
) -> Result<Response, Rejection> {
    let mut api = Api::new(config.clone());
    match route {
        Route::Prompt => {
            let key = head
                .key
                .map_err(|why| InvalidRequest::of_head("Idempotency-Key", why))?;
            prompt(body, config, key, head.last).await
        }
        Route::Again(name) => again(body, api, name).await,
        Route::Turn(name) if head.wants_stream => {
            let Api { store, ticker, .. } = api;
            let permit = Permit::take(config.max_concurrent_turns);
            let means = Means {
                store,
                config,
                permit,
            };
            let watched = Watched {
                last: head.last,
                is_head: head.is_head,
                if_gone: NotBegun::Unknown,
            };
            watch(name, watched, &[("vary", "accept")], ticker, means).await
        }
        Route::Turn(name) => api.turn(&name).await,
        Route::Stop(name) => api.stop(&name).await,
        Route::Conversation(app_id) => api.page(&app_id, path).await,
        Route::DeleteConversation(app_id) => api.delete(&app_id, Deletion::Conversation).await,
        Route::DeleteFrom(name) => api.delete(&name.app_id, Deletion::From(name.turn)).await,
        Route::DeleteTurn(name) => api.delete(&name.app_id, Deletion::Turn(name.turn)).await,
        Route::DeleteReply(name) => api.delete(&name.app_id, Deletion::Reply(name.turn)).await,
    }
}

/// What can be checked before the body is read.
async fn check(request: &Request) -> Result<(Route, Path, Rc<Config>), Rejection> {
    if !client::is_own(request) {
        return Err(Rejection::new(
            RefusalCode::OriginRefused,
            "A browser sent this for a page of another origin, which is not served. If the page is this server's own, a proxy in between changes `Host`: let it pass the one that the browser sent.",
        ));
    }
    // Before the route: a GET at the start shows whether the variables are right.
    let config = config::load().await?;
    let (method, path) = client::target(request);
    let path = Path::parse(&path).map_err(InvalidRequest::from)?;
    let route = Route::of(method.as_ref(), &path)?;
    if !client::is_plain(request) {
        return Err(Rejection::new(
            RefusalCode::UnsupportedEncoding,
            "The body is compressed: send it without `content-encoding`.",
        ));
    }
    Ok((route, path, config))
}

/// `POST /llmchat/`.
async fn prompt(
    body: &mut RequestBody,
    config: Rc<Config>,
    key: Option<Key>,
    last: LastEventId,
) -> Result<Response, Rejection> {
    let permit = Permit::take(config.max_concurrent_turns);
    let mut ticker = Ticker::new(config.timeouts.tick());
    let (bytes, limits) = read(body, &config, &permit, &mut ticker).await?;
    let request = ChatRequest::parse(&bytes, &limits)?;
    drop(bytes);
    let store = Database::open(config.database_url.as_deref());
    let means = Means {
        store,
        config,
        permit,
    };
    // Without a key nobody goes on.
    let last = if key.is_some() {
        last
    } else {
        LastEventId::Absent
    };
    let repeat = key.map(|key| Repeat {
        key: key.hash().to_string(),
        body: body_hash(&request).to_string(),
    });
    let opened = Turn::open(request, repeat, &mut ticker, means).await?;
    reply(opened, last, NotBegun::Deleted, ticker).await
}

/// `POST …/turns/{turn}/again`.
async fn again(
    body: &mut RequestBody,
    mut api: Api,
    name: TurnName,
) -> Result<Response, Rejection> {
    let permit = Permit::take(api.config.max_concurrent_turns);
    let (bytes, limits) = read(body, &api.config, &permit, &mut api.ticker).await?;
    let changes = Changes::parse(&bytes, &limits)?;
    drop(bytes);
    let mut asked = Asked {
        model: changes.model.clone(),
        stream: changes.stream,
        fields: None,
    };
    if !changes.fields.is_empty() {
        let before = api.read(&name).await?.asked.fields;
        let fields = changes.apply_to(before.as_deref().unwrap_or("{}"))?;
        asked.fields = Some(fields_json(&fields));
    }
    let Api {
        store,
        config,
        mut ticker,
    } = api;
    let means = Means {
        store,
        config,
        permit,
    };
    let opened = Turn::again(name, asked, &mut ticker, means).await?;
    reply(opened, LastEventId::Absent, NotBegun::Unknown, ticker).await
}

/// Reads the body of a request for a reply.
async fn read(
    body: &mut RequestBody,
    config: &Config,
    permit: &Permit,
    ticker: &mut Ticker,
) -> Result<(Vec<u8>, Limits), Rejection> {
    let mut limits = config.limits;
    limits.body_bytes = limits.body_bytes.min(REQUESTS_MAX);
    let has_room = |bytes| permit.grow(bytes);
    let stall = config.timeouts.client_stall;
    let read = body.read(limits.body_bytes, ticker, stall, has_room).await;
    let bytes = read.map_err(|error| body_failed(error, limits.body_bytes))?;
    permit.resize(bytes.len());
    Ok((bytes, limits))
}

/// The stream of a reply: the turn's own, or that of another request for it.
async fn reply(
    opened: Opened,
    last: LastEventId,
    if_gone: NotBegun,
    ticker: Ticker,
) -> Result<Response, Rejection> {
    match opened {
        Opened::Run(turn) => {
            let context = turn.context().to_string();
            let headers = [("x-context", context.as_str())];
            let (response, client) = turn_stream(turn.name(), &headers);
            let turn = match last {
                LastEventId::Absent => turn,
                _ => turn.restart(),
            };
            spawn(turn.run(client, ticker));
            Ok(response)
        }
        Opened::Watch(name, means) => {
            let headers = [("idempotency-replayed", "true")];
            let watched = Watched {
                last,
                is_head: false,
                if_gone,
            };
            watch(name, watched, &headers, ticker, means).await
        }
    }
}

/// What a client wants of a turn.
struct Watched {
    last: LastEventId,
    /// Nothing but the head.
    is_head: bool,
    /// What it is told where somebody deleted the turn.
    if_gone: NotBegun,
}

/// The stream of a turn that runs, or has ended.
async fn watch(
    name: TurnName,
    watched: Watched,
    headers: &[(&str, &str)],
    mut ticker: Ticker,
    means: Means,
) -> Result<Response, Rejection> {
    let watcher = Watcher::open(name, watched.last, &mut ticker, means).await?;
    let Some(watcher) = watcher else {
        return Err(watched.if_gone.into());
    };
    if watcher.is_known() {
        return Ok(client::no_content());
    }
    let (response, client) = turn_stream(watcher.name(), headers);
    match watched.is_head {
        true => spawn(client.close()),
        false => spawn(watcher.run(client, ticker)),
    }
    Ok(response)
}

/// The head of a turn's stream.
fn turn_stream(name: &TurnName, more: &[(&str, &str)]) -> (Response, EventStream) {
    let id = name.turn.to_string();
    let location = format!("/llmchat/{}/turns/{id}", path::encode(name.app_id.as_str()));
    let mut headers = vec![("x-turn-id", id.as_str()), ("location", &location)];
    headers.extend_from_slice(more);
    client::event_stream(&headers)
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
            InvalidRequest::Malformed(_) | InvalidRequest::Head(_) => RefusalCode::InvalidRequest,
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
            NotBegun::KeyReused => Self::new(
                RefusalCode::IdempotencyKeyReused,
                "The Idempotency-Key was sent with another request before: send a new one with each new prompt.",
            ),
            NotBegun::Deleted => Self::new(
                RefusalCode::TurnDeleted,
                "The turn of this Idempotency-Key was deleted.",
            ),
            NotBegun::Unknown => Self::new(RefusalCode::NotFound, "There is no such turn."),
            NotBegun::NoModel => InvalidRequest::of(
                "model",
                "is not known of this turn, which an older release stored: send one",
            )
            .into(),
            NotBegun::Store(error) => {
                let mut rejection = Self::from(error);
                if rejection.code == RefusalCode::DatabaseFailed {
                    rejection.error.push_str(" Nothing was sent to Ollama.");
                }
                rejection
            }
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
        Self::new(RefusalCode::DatabaseFailed, error.for_client()).with_detail(error.to_string())
    }
}
