//! Watching a turn: what is stored of it, and what comes while it runs. From the database alone, so that any instance
//! of any host can.
//!
//! One statement each `checkpoint_interval` reads what is new for all who watch in an instance (see [`super::rota`]).

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::rota::Rota;
use super::{Means, deleted};
use crate::clock::{self, Ticker};
use crate::config::{Config, Timeouts};
use crate::error::{Code, RelayError};
use crate::http::EventStream;
use crate::log;
use crate::permit::Permit;
use crate::reply::catch_up::{CatchUp, Progress};
use crate::reply::kept::{Ending, Kept, Text};
use crate::reply::position::{Attempt, LastEventId, Position};
use crate::reply::sse::COMMENT;
use crate::store::{Database, Followed, News, Standing, State, StoreError, TurnName, TurnView};

thread_local! {
    static FOLLOWERS: RefCell<Vec<Weak<Follower>>> = const { RefCell::new(Vec::new()) };
    static ROTA: Rc<Rota> = Rc::new(Rota::new());
}

/// One who watches: what it has, and what is new.
struct Follower {
    has: RefCell<Followed>,
    /// Until it is taken, nothing more is read.
    news: RefCell<Option<News>>,
}

impl Follower {
    fn start(has: Followed) -> Rc<Self> {
        let follower = Rc::new(Self {
            has: RefCell::new(has),
            news: RefCell::default(),
        });
        FOLLOWERS.with_borrow_mut(|all| all.push(Rc::downgrade(&follower)));
        follower
    }

    /// Waits for what is new.
    async fn next(&self) -> News {
        std::future::poll_fn(|_| match self.news.take() {
            Some(news) => Poll::Ready(news),
            // The timer of the rota wakes this task.
            None => Poll::Pending,
        })
        .await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        FOLLOWERS.with_borrow_mut(|all| all.retain(|one| one.strong_count() > 0));
    }
}

/// Reads what is new for all who watch.
async fn read_news(store: &Database, timeouts: &Timeouts) -> Result<(), StoreError> {
    let followers: Vec<_> =
        FOLLOWERS.with_borrow(|all| all.iter().filter_map(Weak::upgrade).collect());
    let waiting: Vec<_> = followers
        .into_iter()
        .filter(|one| one.news.borrow().is_none())
        .collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let followed: Vec<_> = waiting.iter().map(|one| one.has.borrow().clone()).collect();
    let waiting: Vec<_> = waiting.iter().map(Rc::downgrade).collect();
    let mut ticker = Ticker::new(timeouts.tick());
    let call = async |store: &Database| store.follow(&followed).await;
    for (number, news) in store.retry(&mut ticker, timeouts.database, call).await? {
        if let Some(follower) = waiting.get(number).and_then(Weak::upgrade) {
            follower.news.replace(Some(news));
        }
    }
    Ok(())
}

/// A turn that is watched.
pub(crate) struct Watcher {
    name: TurnName,
    store: Database,
    config: Rc<Config>,
    view: TurnView,
    last: LastEventId,
    created_at: String,
    _permit: Permit,
}

impl Watcher {
    /// Reads the turn; `None` where there is none.
    pub(crate) async fn open(
        name: TurnName,
        last: LastEventId,
        ticker: &mut Ticker,
        means: Means,
    ) -> Result<Option<Self>, StoreError> {
        let Means {
            store,
            config,
            permit,
        } = means;
        let limit = config.timeouts.database;
        let read = async |store: &Database| store.turn(&name).await;
        let Some(view) = store.retry(ticker, limit, read).await? else {
            return Ok(None);
        };
        Ok(Some(Self {
            last,
            created_at: clock::rfc3339(view.started.unwrap_or_default()).unwrap_or_default(),
            name,
            store,
            config,
            view,
            _permit: permit,
        }))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &TurnName {
        &self.name
    }

    /// Whether the client has all of it.
    pub(crate) fn is_known(&self) -> bool {
        kept(&self.view, &self.created_at).is_known_to(self.last)
    }

    /// Sends what the client lacks, until the turn has ended.
    pub(crate) async fn run(self, client: EventStream, ticker: Ticker) {
        let is_busy = Cell::new(false);
        let (store, timeouts) = (self.store.clone(), self.config.timeouts);
        let rota = ROTA.with(Rc::clone);
        let tending = rota.tend(timeouts.checkpoint_interval, &is_busy, async || {
            if let Err(error) = read_news(&store, &timeouts).await {
                log::line(format_args!(
                    "turns that are followed were not read: {error}"
                ));
            }
        });
        let is_due = Cell::new(true);
        clock::alongside(self.watch(client, ticker), tending, &is_due, &is_busy).await;
    }

    async fn watch(mut self, mut client: EventStream, mut ticker: Ticker) {
        let timeouts = self.config.timeouts;
        let end = ticker.deadline_from_start(timeouts.turn);
        // The error that ends it must be told after its time is over.
        let send_end =
            ticker.deadline_from_start(timeouts.turn.saturating_add(timeouts.client_stall));
        let mut catch_up = CatchUp::new(self.name.turn, self.last);
        let mut events = COMMENT.to_vec();
        let mut progress = catch_up.send(&kept(&self.view, &self.created_at), &mut events);
        let follower = Follower::start(self.followed(&catch_up));
        let mut comment_due = ticker.about(timeouts.comment_interval);
        loop {
            if !events.is_empty() {
                client
                    .send(&mut events, &mut ticker, timeouts.client_stall, send_end)
                    .await;
                comment_due = ticker.about(timeouts.comment_interval);
            }
            if progress == Progress::Ended {
                return client.close().await;
            }
            if !client.is_open() {
                return;
            }
            follower.has.replace(self.followed(&catch_up));
            let mut next = pin!(follower.next());
            let news = loop {
                let news = ticker.or_tick(next.as_mut()).await;
                if news.is_some() || ticker.is_past(end) || ticker.is_past(comment_due) {
                    break news;
                }
            };
            progress = match news {
                _ if ticker.is_past(end) => {
                    let error = RelayError::new(
                        Code::TurnTimeout,
                        "the turn was followed for as long as the operator allows (turn_timeout): ask for it again",
                    );
                    crate::reply::write_error(&error, &mut events);
                    Progress::Ended
                }
                Some(news) => {
                    self.tell(news, &mut catch_up, &mut ticker, &mut events)
                        .await
                }
                None => {
                    events.extend_from_slice(COMMENT);
                    Progress::Waiting
                }
            };
        }
    }

    /// Appends what is new.
    async fn tell(
        &mut self,
        news: News,
        catch_up: &mut CatchUp,
        ticker: &mut Ticker,
        events: &mut Vec<u8>,
    ) -> Progress {
        let attempt = news.attempt.map(Attempt::from);
        match (news.standing, attempt) {
            (Standing::Running, Some(attempt)) => {
                self.view.attempt = Some(attempt.id());
                let text = Text {
                    from: news.from,
                    content: &news.content,
                    thinking: &news.thinking,
                    calls: &news.calls,
                };
                let kept = Kept {
                    attempt,
                    model: self.view.asked.model.as_deref().unwrap_or_default(),
                    created_at: &self.created_at,
                    text,
                    ending: Ending::Running,
                };
                catch_up.send(&kept, events)
            }
            (Standing::Deleted, _) => {
                crate::reply::write_error(&deleted(), events);
                Progress::Ended
            }
            _ => {
                let limit = self.config.timeouts.database;
                let read = async |store: &Database| store.turn(&self.name).await;
                match self.store.retry(ticker, limit, read).await {
                    Ok(Some(view)) => self.view = view,
                    Ok(None) => {
                        crate::reply::write_error(&deleted(), events);
                        return Progress::Ended;
                    }
                    Err(error) => {
                        log::line(format_args!("turn {}: {error}", self.name.turn));
                        let text = format!(
                            "The turn could not be read: ask for it again. {}",
                            error.for_client()
                        );
                        let error = RelayError::new(Code::DatabaseFailed, text);
                        crate::reply::write_error(&error, events);
                        return Progress::Ended;
                    }
                }
                catch_up.send(&kept(&self.view, &self.created_at), events)
            }
        }
    }

    fn followed(&self, catch_up: &CatchUp) -> Followed {
        Followed {
            name: self.name.clone(),
            attempt: Attempt::from(self.view.attempt.unwrap_or_default()),
            known: catch_up.from(),
        }
    }
}

/// What is stored of a turn, as it is sent to those who watch.
fn kept<'a>(view: &'a TurnView, created_at: &'a str) -> Kept<'a> {
    let ending = match (view.state, &view.final_line, &view.code) {
        (State::Running, ..) => Ending::Running,
        (_, Some(line), _) => Ending::Line(line),
        (_, None, Some(code)) if code == Code::TurnOrphaned.as_str() => Ending::Unknown {
            text: ORPHANED,
            code,
        },
        (_, None, Some(code)) => Ending::Error {
            text: view.error.as_deref().unwrap_or(DELETED),
            code,
        },
        // An orphan that was to stop, and may come back with more: posting again, or stopping again, stores the outcome.
        (State::Stopped, ..) if view.ended.is_none() => Ending::Unknown {
            text: ORPHANED,
            code: Code::TurnOrphaned.as_str(),
        },
        (State::Stopped, ..) => Ending::Receipt { reason: "stopped" },
        // Of an older release, which did not keep the error.
        (State::Partial | State::Failed, ..) => Ending::Error {
            text: "The reply broke off; what came of it is kept",
            code: Code::OllamaEndedEarly.as_str(),
        },
        (State::Complete, ..) => Ending::Receipt { reason: "stop" },
    };
    Kept {
        attempt: Attempt::from(view.attempt.unwrap_or_default()),
        model: view.asked.model.as_deref().unwrap_or_default(),
        created_at,
        text: Text {
            from: Position::default(),
            content: &view.content,
            thinking: &view.thinking,
            calls: &view.calls,
        },
        ending,
    }
}

/// Of all codes, the one that is stored without a text.
const DELETED: &str = "The reply was deleted: ask for another one";
const ORPHANED: &str = "The host that asked the model has not been heard of for too long; what came is kept: post the prompt again with its Idempotency-Key, and the model is asked anew";
