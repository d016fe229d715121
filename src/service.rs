//! One request: which route it takes, the checks that every route shares, and the answer.
//!
//! Here a route is added, a header or credential is checked, and a failure becomes a [`Rejection`].
//! Knows no SQL and no Ollama.

use std::rc::Rc;

use http::Method;

use crate::access::{Access, Unauthorized};
use crate::api::route::{self, Route};
use crate::api::{Api, health};
use crate::clock::Ticker;
use crate::config::{self, Config, InvalidVariable};
use crate::conversation::Owner;
use crate::error::{RefusalCode, Rejection};
use crate::http::path::{self, Path};
use crate::http::{
    self as client, Answer, BodyError, EventStream, RequestBody, RequestHead, Sender,
};
use crate::idempotency::{InvalidKey, Key, body_hash};
use crate::log;
use crate::permit::{Permit, REQUESTS_MAX};
use crate::reply::position::LastEventId;
use crate::request::{Changes, ChatRequest, InvalidRequest, Limits, fields_json};
use crate::spin::wasip3::http::types::{Request, Response};
use crate::spin::wasip3::spawn;
use crate::store::{Asked, Database, Deletion, Kind, Limited, Repeat, StoreError, TurnName};
use crate::turn::follow::Watcher;
use crate::turn::{Means, NotBegun, Opened, Turn};

/// Answers a request: with a stream of events, or with a status and JSON.
pub async fn handle(request: Request) -> Response {
    let head = RequestHead::of(&request);
    if health::is_asked(&head) {
        return health::alive().send();
    }
    let config = match config::load().await {
        Ok(config) => config,
        Err(invalid) => {
            drop(head);
            return reject(&invalid.into(), RequestBody::of(request)).send();
        }
    };
    let sender = head.sender(&config.allowed_origins);
    let answer = match may_send(&sender) {
        Ok(()) if head.is_preflight() => client::preflight(),
        may_send => {
            let checked = may_send.and_then(|()| check(&head, &config));
            drop(head);
            let mut body = RequestBody::of(request);
            let answered = match checked {
                Ok(checked) => answer(checked, &mut body, config.clone()).await,
                Err(rejection) => Err(rejection),
            };
            answered.unwrap_or_else(|rejection| reject(&rejection, body))
        }
    };
    answer.readable_by(sender, &config.allowed_origins).send()
}

fn reject(rejection: &Rejection, body: RequestBody) -> Answer {
    if !rejection.detail.is_empty() {
        log::line(format_args!(
            "{}: {} {}",
            rejection.code.as_str(),
            rejection.error,
            rejection.detail
        ));
    }
    client::rejection(rejection, body)
}

async fn answer(
    checked: Checked,
    body: &mut RequestBody,
    config: Rc<Config>,
) -> Result<Answer, Rejection> {
    let Checked {
        route,
        path,
        owner,
        wishes,
    } = checked;
    let mut api = Api::new(config.clone());
    match route {
        Route::Prompt => {
            let key = wishes
                .key
                .map_err(|why| InvalidRequest::of_head("Idempotency-Key", why))?;
            prompt(owner, body, config, key, wishes.last).await
        }
        Route::Again(name) => again(body, api, name).await,
        Route::Turn(name) if wishes.wants_stream => {
            let Api { store, ticker, .. } = api;
            let permit = Permit::take(config.max_concurrent_turns);
            let means = Means {
                store,
                config,
                permit,
            };
            let watched = Watched {
                last: wishes.last,
                is_head: wishes.is_head,
                if_gone: NotBegun::Unknown,
            };
            let answer = watch(name, watched, ticker, means).await?;
            Ok(answer.with("vary", "accept"))
        }
        Route::Turn(name) => api.turn(&name).await,
        Route::Stop(name) => api.stop(&name).await,
        Route::Conversation(name) => api.page(&name, &path).await,
        Route::DeleteConversation(name) => api.delete(&name, Deletion::Conversation).await,
        Route::Models => api.models().await,
        Route::Alive => Ok(health::alive()),
        Route::Ready => Ok(api.ready().await),
        Route::DeleteFrom(TurnName { conversation, turn }) => {
            api.delete(&conversation, Deletion::From(turn)).await
        }
        Route::DeleteTurn(TurnName { conversation, turn }) => {
            api.delete(&conversation, Deletion::Turn(turn)).await
        }
        Route::DeleteReply(TurnName { conversation, turn }) => {
            api.delete(&conversation, Deletion::Reply(turn)).await
        }
    }
}

fn may_send(sender: &Sender) -> Result<(), Rejection> {
    let error = match sender {
        Sender::Own | Sender::Allowed(_) => return Ok(()),
        Sender::Refused => {
            "A browser sent this for a page of another origin, which is not served: the server's operator can name that origin in `allowed_origins`. If the page is this server's own, a proxy in between changes `Host`: let it pass the one that the browser sent."
        }
        Sender::WithCredentials => {
            "A browser sent this with cookies or a login for a page of another origin, and `allowed_origins` is `*`: leave them out (`credentials: \"omit\"`), or let the operator name the origin."
        }
    };
    Err(Rejection::new(RefusalCode::OriginRefused, error))
}

/// What a request comes to before its body is read.
struct Checked {
    route: Route,
    path: Path,
    owner: Owner,
    wishes: Wishes,
}

/// What headers say of the answer.
struct Wishes {
    key: Result<Option<Key>, InvalidKey>,
    last: LastEventId,
    wants_stream: bool,
    is_head: bool,
}

impl Wishes {
    fn of(head: &RequestHead<'_>) -> Self {
        Self {
            key: Key::read(&head.values("idempotency-key")),
            last: LastEventId::read(&head.values("last-event-id")),
            wants_stream: head.values("accept").iter().any(|accept| {
                let accept = accept.to_ascii_lowercase();
                accept
                    .windows(EVENT_STREAM.len())
                    .any(|it| it == EVENT_STREAM)
            }),
            is_head: head.method == Some(Method::HEAD),
        }
    }
}

const EVENT_STREAM: &[u8] = b"text/event-stream";

fn check(head: &RequestHead<'_>, config: &Config) -> Result<Checked, Rejection> {
    let path = Path::parse(&head.path).map_err(InvalidRequest::from);
    let owner = match &path {
        Ok(path) if route::needs_no_key(path) => Owner::default(),
        _ => owner(head, &config.access)?,
    };
    let path = path?;
    let route = Route::of(head.method.as_ref(), &path, &owner)?;
    if !head.is_plain() {
        return Err(Rejection::new(
            RefusalCode::UnsupportedEncoding,
            "The body is compressed: send it without `content-encoding`.",
        ));
    }
    Ok(Checked {
        route,
        path,
        owner,
        wishes: Wishes::of(head),
    })
}

/// Whose request it is.
fn owner(head: &RequestHead<'_>, access: &Access) -> Result<Owner, Unauthorized> {
    let values = |is_read: bool, name: &str| match is_read {
        true => head.values(name),
        false => Vec::new(),
    };
    let authorization = values(!access.keys.is_empty(), "authorization");
    let header = access.owner_header.as_deref();
    let named = values(header.is_some(), header.unwrap_or_default());
    access.owner(&authorization, &named)
}

/// `POST /llmchat/`.
async fn prompt(
    owner: Owner,
    body: &mut RequestBody,
    config: Rc<Config>,
    key: Option<Key>,
    last: LastEventId,
) -> Result<Answer, Rejection> {
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
    let opened = Turn::open(owner, request, repeat, &mut ticker, means).await?;
    reply(opened, last, NotBegun::Deleted, ticker).await
}

/// `POST …/turns/{turn}/again`.
async fn again(body: &mut RequestBody, mut api: Api, name: TurnName) -> Result<Answer, Rejection> {
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
) -> Result<Answer, Rejection> {
    match opened {
        Opened::Run(turn) => {
            let context = turn.context().to_string();
            let (answer, client) = turn_stream(turn.name());
            let turn = match last {
                LastEventId::Absent => turn,
                _ => turn.restart(),
            };
            spawn(turn.run(client, ticker));
            Ok(answer.with("x-context", context))
        }
        Opened::Watch(name, means) => {
            let watched = Watched {
                last,
                is_head: false,
                if_gone,
            };
            let answer = watch(name, watched, ticker, means).await?;
            Ok(answer.with("idempotency-replayed", "true"))
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
    mut ticker: Ticker,
    means: Means,
) -> Result<Answer, Rejection> {
    let watcher = Watcher::open(name, watched.last, &mut ticker, means).await?;
    let Some(watcher) = watcher else {
        return Err(watched.if_gone.into());
    };
    if watcher.is_known() {
        return Ok(client::no_content());
    }
    let (answer, client) = turn_stream(watcher.name());
    match watched.is_head {
        true => spawn(client.close()),
        false => spawn(watcher.run(client, ticker)),
    }
    Ok(answer)
}

/// The head of a turn's stream.
fn turn_stream(name: &TurnName) -> (Answer, EventStream) {
    let id = name.turn.to_string();
    let app_id = path::encode(name.conversation.app_id.as_str());
    let location = format!("/llmchat/{app_id}/turns/{id}");
    let (answer, client) = client::event_stream();
    (
        answer.with("x-turn-id", id).with("location", location),
        client,
    )
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

impl From<Unauthorized> for Rejection {
    fn from(reason: Unauthorized) -> Self {
        Self::new(RefusalCode::Unauthorized, reason.to_string())
            .with_header("www-authenticate", "Bearer realm=\"llmchat\"")
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
            NotBegun::Limited(Limited::PerMinute(seconds)) => Self::new(
                RefusalCode::RateLimited,
                format!("That would be more turns within a minute than this server allows: send it again in {seconds} s."),
            )
            .with_header("retry-after", seconds.to_string()),
            NotBegun::Limited(Limited::Running) => Self::new(
                RefusalCode::RateLimited,
                "That would be more turns at the same time than this server allows: send it again when one has ended.",
            )
            .with_header("retry-after", "1"),
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
