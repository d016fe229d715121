//! Where turns are sent, and what is in them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};

/// The model's name in every request; the stand-in takes any.
const MODEL: &str = "stand-in";

/// A server that takes prompts.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it takes them.
    pub path: String,
    /// It keeps conversations; others are sent them whole.
    pub remembers: bool,
}

/// Makes the body of the next turn.
#[derive(Clone)]
pub struct Prompts(Arc<dyn Fn() -> Bytes + Send + Sync>);

impl Prompts {
    /// A new conversation each time.
    pub fn fresh(target: &Target) -> Self {
        let target = target.clone();
        Self(Arc::new(move || {
            body(&target, &new_conversation(), &[message(0)])
        }))
    }

    /// Conversations that the server knows already, one after the other.
    pub fn in_conversations(target: &Target, names: &[String]) -> Self {
        let bodies = names
            .iter()
            .map(|name| body(target, name, &[message(0)]))
            .collect();
        Self::cycle(bodies)
    }

    /// A conversation of `length` messages, sent whole each time.
    pub fn with_history(target: &Target, length: usize) -> Self {
        let messages: Vec<_> = (0..=length).map(message).collect();
        Self::cycle(vec![body(target, "", &messages)])
    }

    fn cycle(bodies: Vec<Bytes>) -> Self {
        let next = AtomicU64::new(0);
        Self(Arc::new(move || {
            let at = next.fetch_add(1, Ordering::Relaxed) as usize % bodies.len().max(1);
            bodies.get(at).cloned().unwrap_or_default()
        }))
    }

    /// The next one.
    pub fn next(&self) -> Bytes {
        (self.0)()
    }
}

/// The bodies that put a conversation of `length` messages, replies included, into a server.
pub fn seeds(target: &Target, name: &str, length: usize) -> Vec<Bytes> {
    // llmchat takes 1,000 messages in a request; each request adds a reply.
    const AT_ONCE: usize = 500;
    let mut bodies = Vec::new();
    let mut left = length;
    while left > 0 {
        let messages = left.min(AT_ONCE).saturating_sub(1).max(1);
        let messages: Vec<_> = (0..messages).map(message).collect();
        bodies.push(body(target, name, &messages));
        left = left.saturating_sub(messages.len() + 1);
    }
    bodies
}

/// The name of a conversation that nobody had before.
pub fn new_conversation() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let start = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("bench-{:x}-{number}", start.as_millis())
}

fn body(target: &Target, conversation: &str, messages: &[Value]) -> Bytes {
    let mut body = json!({"model": MODEL, "messages": messages, "stream": true});
    if let (true, Some(fields)) = (target.remembers, body.as_object_mut()) {
        fields.insert("appID".to_owned(), conversation.into());
    }
    body.to_string().into()
}

/// A message of about a hundred bytes; the sides take turns.
fn message(number: usize) -> Value {
    let role = if number.is_multiple_of(2) {
        "user"
    } else {
        "assistant"
    };
    json!({
        "role": role,
        "content": format!("Message {number} says, \"as many do\", a hundred bytes or so: neither long nor short, and with no news."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_their_replies_add_up() {
        let target = Target {
            address: ([127, 0, 0, 1], 1).into(),
            path: "/".to_owned(),
            remembers: true,
        };
        for length in [10, 1_000, 10_000] {
            let bodies = seeds(&target, "a", length);
            let messages: usize = bodies
                .iter()
                .map(|body| {
                    let body: Value = serde_json::from_slice(body).expect("JSON");
                    body["messages"].as_array().map_or(0, Vec::len) + 1
                })
                .sum();
            assert_eq!(messages, length);
        }
    }
}
