//! What an answer tells the browser of a page of another origin (Fetch standard, 3.2.3: the CORS protocol).

use super::origin::{AllowedOrigins, Sender};
use super::response::{Answer, no_content};

const METHODS: &str = "GET, HEAD, POST, DELETE";
/// What a request for it may have that a page cannot send without asking.
const HEADERS: &str = "authorization, content-type, idempotency-key, last-event-id";
/// What a page can read of an answer, besides its body.
const EXPOSED: &str = "x-turn-id, location, x-context, idempotency-replayed, retry-after";
/// Seconds for which a browser need not ask again; Chromium takes no more.
const MAX_AGE: &str = "7200";

/// The answer to a browser that asks whether its page may send a request. Methods and headers are the same for all
/// paths, so that nothing else has to be known.
pub(crate) fn preflight() -> Answer {
    no_content()
        .with("access-control-allow-methods", METHODS)
        .with("access-control-allow-headers", HEADERS)
        .with("access-control-max-age", MAX_AGE)
}

impl Answer {
    /// The same, for its sender to read if that is a page.
    pub(crate) fn readable_by(self, sender: Sender, allowed: &AllowedOrigins) -> Self {
        if allowed.is_none() {
            return self;
        }
        // Caches keep it apart from the answer to another page, also where this one is to none.
        let answer = self.with("vary", "origin");
        let Sender::Allowed(origin) = sender else {
            return answer;
        };
        let answer = answer.with("access-control-expose-headers", EXPOSED);
        match allowed {
            AllowedOrigins::Any => answer.with("access-control-allow-origin", "*"),
            AllowedOrigins::Listed(_) => answer
                .with("access-control-allow-origin", origin)
                .with("access-control-allow-credentials", "true"),
        }
    }
}
