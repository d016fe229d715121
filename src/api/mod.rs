//! The routes besides the prompt: a turn, a conversation, the models, the server's health.

use std::rc::Rc;

use http::StatusCode;

use crate::clock::Ticker;
use crate::config::Config;
use crate::conversation::ConversationName;
use crate::error::{RefusalCode, Rejection};
use crate::http::path::Path;
use crate::http::{self as client, Answer};
use crate::request::InvalidRequest;
use crate::store::{Database, Deletion, Stopped, TurnName, TurnView};

pub(crate) mod health;
mod models;
pub(crate) mod route;
mod view;

/// Rows that one statement deletes at most.
const DELETED_AT_ONCE: usize = 5000;
/// Messages of a page, unless the request says how many.
const PAGE: usize = 50;
const PAGE_MAX: usize = 1000;

/// What the routes have in common.
pub(crate) struct Api {
    pub(crate) store: Database,
    pub(crate) config: Rc<Config>,
    pub(crate) ticker: Ticker,
}

impl Api {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Self {
            store: Database::open(config.database_url.as_deref()),
            ticker: Ticker::new(config.timeouts.tick()),
            config,
        }
    }

    /// `GET …/turns/{turn}`, as JSON.
    pub(crate) async fn turn(&mut self, name: &TurnName) -> Result<Answer, Rejection> {
        let view = self.read(name).await?;
        Ok(client::json(StatusCode::OK, view::turn(name.turn, &view)).with("vary", "accept"))
    }

    /// `POST …/turns/{turn}/stop`.
    pub(crate) async fn stop(&mut self, name: &TurnName) -> Result<Answer, Rejection> {
        let limit = self.config.timeouts.database;
        let stop = async |store: &Database| store.stop(name).await;
        let status = match self.store.retry(&mut self.ticker, limit, stop).await? {
            Stopped::Running => StatusCode::ACCEPTED,
            Stopped::Ended => StatusCode::OK,
            Stopped::Unknown => return Err(unknown()),
        };
        let view = self.read(name).await?;
        Ok(client::json(status, view::turn(name.turn, &view)))
    }

    /// The deletions: in pieces, until all is gone that was there when the request came.
    pub(crate) async fn delete(
        &mut self,
        conversation: &ConversationName,
        deletion: Deletion,
    ) -> Result<Answer, Rejection> {
        let limit = self.config.timeouts.database;
        let mut until = None;
        loop {
            let delete = async |store: &Database| {
                let delete = store.delete(conversation, deletion, until, DELETED_AT_ONCE);
                delete.await
            };
            match self.store.retry(&mut self.ticker, limit, delete).await? {
                Some(next) => until = next,
                None => return Ok(client::no_content()),
            }
        }
    }

    /// `GET /llmchat/{appID}`.
    pub(crate) async fn page(
        &mut self,
        conversation: &ConversationName,
        path: &Path,
    ) -> Result<Answer, Rejection> {
        let limit = path.parameter("limit").map_err(InvalidRequest::from)?;
        let limit = limit.map_or(Ok(PAGE), |limit| messages(&limit))?;
        let before = path.parameter("before").map_err(InvalidRequest::from)?;
        let before = before
            .map(|before| route::id("before", &before))
            .transpose()?;
        let max_bytes = self.config.limits.history_bytes;
        let read =
            async |store: &Database| store.page(conversation, before, limit, max_bytes).await;
        let timeout = self.config.timeouts.database;
        let page = self.store.retry(&mut self.ticker, timeout, read).await?;
        let page = page.ok_or_else(|| {
            let error = "The message that the page should end before is gone: begin with the newest page again.";
            Rejection::new(RefusalCode::CursorGone, error)
        })?;
        Ok(client::json(
            StatusCode::OK,
            view::page(&conversation.app_id, &page),
        ))
    }

    /// A turn as it stands.
    pub(crate) async fn read(&mut self, name: &TurnName) -> Result<TurnView, Rejection> {
        let limit = self.config.timeouts.database;
        let read = async |store: &Database| store.turn(name).await;
        let view = self.store.retry(&mut self.ticker, limit, read).await?;
        view.ok_or_else(unknown)
    }
}

/// How many messages a page is to have at most.
fn messages(limit: &str) -> Result<usize, InvalidRequest> {
    let is_number = !limit.is_empty() && limit.bytes().all(|byte| byte.is_ascii_digit());
    // Too large a number counts as the most.
    let number = is_number.then(|| limit.parse().unwrap_or(PAGE_MAX));
    match number {
        Some(number @ 1..) => Ok(PAGE_MAX.min(number)),
        _ => {
            let why = "must be a whole number, 1 or more (more than 1000 count as 1000)";
            Err(InvalidRequest::of_head("limit", why))
        }
    }
}

fn unknown() -> Rejection {
    Rejection::new(RefusalCode::NotFound, "There is no such turn.")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_page_has_one_to_a_thousand_messages() {
        let huge = "9".repeat(100);
        for (limit, messages) in [
            ("1", 1),
            ("050", 50),
            ("1000", 1000),
            ("1001", 1000),
            (&huge, 1000),
        ] {
            assert_eq!(super::messages(limit), Ok(messages), "{limit}");
        }
        for wrong in ["", "0", "-1", "+1", "1.0", "1e3", "a", " 1", "\u{0661}"] {
            assert!(super::messages(wrong).is_err(), "{wrong}");
        }
    }
}
