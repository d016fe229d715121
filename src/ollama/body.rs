//! The body of a chat request, written as the conversation comes from the database.

use serde_json::value::RawValue;

/// A body of `POST /api/chat` under construction.
#[derive(Debug)]
pub struct ChatBody {
    json: Vec<u8>,
    /// Where the first message goes: what comes before it never changes.
    start: usize,
    /// Messages so far; those that were appended together count as one.
    messages: usize,
}

impl ChatBody {
    /// A body with the model, and so far without messages.
    pub fn new(model: &str) -> Self {
        let mut json = br#"{"model":"#.to_vec();
        push_str(&mut json, model);
        json.extend_from_slice(br#","messages":["#);
        Self {
            start: json.len(),
            json,
            messages: 0,
        }
    }

    /// Appends a message of the conversation.
    pub fn push(&mut self, role: &str, content: &str) {
        if self.messages > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(br#"{"role":"#);
        push_str(&mut self.json, role);
        self.json.extend_from_slice(br#","content":"#);
        push_str(&mut self.json, content);
        self.json.push(b'}');
        self.messages += 1;
    }

    /// Appends messages that are JSON already, with commas in between; none, if it is empty.
    pub fn push_json(&mut self, messages: &str) {
        if messages.is_empty() {
            return;
        }
        if self.messages > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(messages.as_bytes());
        self.messages += 1;
    }

    /// Forgets the messages: the conversation is read anew.
    pub fn clear(&mut self) {
        self.json.truncate(self.start);
        self.messages = 0;
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The whole body, with the client's own fields as they came.
    pub fn finish(mut self, stream: bool, fields: &[(String, Box<RawValue>)]) -> Vec<u8> {
        self.json.extend_from_slice(br#"],"stream":"#);
        self.json
            .extend_from_slice(if stream { b"true" } else { b"false" });
        for (name, value) in fields {
            self.json.push(b',');
            push_str(&mut self.json, name);
            self.json.push(b':');
            self.json.extend_from_slice(value.get().as_bytes());
        }
        self.json.push(b'}');
        self.json
    }
}

fn push_str(json: &mut Vec<u8>, text: &str) {
    // Serialising a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}
