//! What the client sends: the bodies of its prompts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};

/// Makes the body of the next prompt.
pub type Prompts = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// Each begins a conversation; only a server that stores conversations is sent a name for it.
pub fn new_conversations(stored: bool) -> Prompts {
    Arc::new(move || body(stored.then(new_name).as_deref(), 0..1))
}

/// These bodies, again and again.
pub fn cycle(bodies: Vec<Bytes>) -> Prompts {
    let next = AtomicUsize::new(0);
    Arc::new(move || {
        let at = next.fetch_add(1, Ordering::Relaxed) % bodies.len().max(1);
        bodies.get(at).cloned().unwrap_or_default()
    })
}

/// The prompts that store a conversation of `length` messages, replies included.
pub fn seeds(name: &str, length: usize) -> Vec<Bytes> {
    // llmchat takes 1,000 messages in a request; each request adds a reply.
    const AT_ONCE: usize = 500;
    let mut bodies = Vec::new();
    let mut left = length;
    while left > 0 {
        let messages = left.min(AT_ONCE).saturating_sub(1).max(1);
        bodies.push(body(Some(name), 0..messages));
        left = left.saturating_sub(messages + 1);
    }
    bodies
}

/// A name that no conversation had before, not even in an earlier run.
pub fn new_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("bench-{:x}-{number}", now.as_millis())
}

/// Messages of about a hundred bytes, from either side by turns.
pub fn body(conversation: Option<&str>, messages: Range<usize>) -> Bytes {
    let message = |number: usize| {
        let role = ["user", "assistant"].get(number % 2);
        let content = format!(
            "Message {number} says, \"as many do\", a hundred bytes or so: \
             neither long nor short, and with no news."
        );
        json!({"role": role, "content": content})
    };
    let messages: Vec<_> = messages.map(message).collect();
    let mut body = json!({"model": "stand-in", "messages": messages, "stream": true});
    if let (Some(name), Some(fields)) = (conversation, body.as_object_mut()) {
        fields.insert("appID".to_owned(), Value::from(name));
    }
    body.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_their_replies_add_up() {
        for length in [10, 1_000, 10_000] {
            let bodies = seeds("a", length);
            let messages = bodies.iter().map(|body| {
                let body: Value = serde_json::from_slice(body).expect("JSON");
                body["messages"].as_array().map_or(0, Vec::len) + 1
            });
            assert_eq!(messages.sum::<usize>(), length);
        }
    }
}
