//! The body of a chat request: the client's fields, and the messages of a conversation in their midst.

use serde_json::value::RawValue;

use crate::conversation::{Message, push_json};

/// A past of more bytes is sent from where it is; a smaller one is copied, to be sent in one write with the rest.
const COPIED_AT_MOST: usize = 64 * 1024;

/// The body of a `POST /api/chat`, of which the past may still be missing.
#[derive(Debug)]
pub struct Body {
    head: Vec<u8>,
    /// Messages as JSON objects with commas in between.
    past: Vec<u8>,
    /// Likewise.
    prompt: Vec<u8>,
    tail: Vec<u8>,
}

impl Body {
    /// A body with the client's own fields as they were sent, and no past yet.
    pub fn new<'a>(
        model: &str,
        prompt: impl IntoIterator<Item = &'a Message>,
        stream: bool,
        fields: &[(String, Box<RawValue>)],
    ) -> Self {
        let mut head = br#"{"model":"#.to_vec();
        push_str(&mut head, model);
        head.extend_from_slice(br#","messages":["#);
        let mut messages = Vec::new();
        push_json(&mut messages, prompt);
        let mut tail = br#"],"stream":"#.to_vec();
        tail.extend_from_slice(if stream { b"true" } else { b"false" });
        for (name, value) in fields {
            tail.push(b',');
            push_str(&mut tail, name);
            tail.push(b':');
            tail.extend_from_slice(value.get().as_bytes());
        }
        tail.push(b'}');
        Self {
            head,
            past: Vec::new(),
            prompt: messages,
            tail,
        }
    }

    /// The same with the messages that precede the prompt.
    pub fn with_past(mut self, past: String) -> Self {
        self.past = past.into_bytes();
        self
    }

    /// The same with another prompt: JSON objects with commas in between.
    pub fn with_prompt(mut self, prompt: String) -> Self {
        self.prompt = prompt.into_bytes();
        self
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.past.is_empty() && self.prompt.is_empty()
    }

    /// The body in one or a few pieces, to be written one after the other.
    pub fn into_pieces(mut self) -> Vec<Vec<u8>> {
        if !self.past.is_empty() && !self.prompt.is_empty() {
            self.past.push(b',');
        }
        self.prompt.append(&mut self.tail);
        if self.past.len() > COPIED_AT_MOST {
            return vec![self.head, self.past, self.prompt];
        }
        self.head.append(&mut self.past);
        self.head.append(&mut self.prompt);
        vec![self.head]
    }
}

fn push_str(json: &mut Vec<u8>, text: &str) {
    // Serialising a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content: &str) -> Message {
        Message {
            role: "user".to_owned().try_into().unwrap(),
            content: content.to_owned().try_into().unwrap(),
        }
    }

    #[test]
    fn a_body_is_the_model_the_messages_and_the_clients_fields() {
        let options = serde_json::from_str(r#"{ "seed" : 1e2 }"#).unwrap();
        let fields = [("options".to_owned(), options)];
        let past = r#"{"role":"user","content":"a"}"#;
        let hi = r#"{"role":"user","content":"hi"}"#;
        for (past, prompt, messages) in [
            ("", &[message("hi")][..], hi.to_owned()),
            (past, &[message("hi")], format!("{past},{hi}")),
            (past, &[], past.to_owned()),
            ("", &[], String::new()),
        ] {
            let body = Body::new("llama\"3", prompt, false, &fields).with_past(past.into());
            assert_eq!(body.is_empty(), messages.is_empty());
            let pieces = body.into_pieces();
            assert_eq!(pieces.len(), 1);
            assert_eq!(
                String::from_utf8(pieces.concat()).unwrap(),
                format!(
                    r#"{{"model":"llama\"3","messages":[{messages}],"stream":false,"options":{{ "seed" : 1e2 }}}}"#
                )
            );
        }
    }

    #[test]
    fn a_large_past_is_not_copied() {
        let past = format!(
            r#"{{"role":"user","content":"{}"}}"#,
            "x".repeat(COPIED_AT_MOST)
        );
        let (address, text) = (past.as_ptr(), past.clone());
        let pieces = Body::new("m", &[message("hi")], true, &[])
            .with_past(past)
            .into_pieces();
        assert_eq!(pieces[1].as_ptr(), address);
        let body: serde_json::Value = serde_json::from_slice(&pieces.concat()).unwrap();
        assert_eq!(
            body["messages"][0],
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        );
        assert_eq!(body["messages"][1]["content"], "hi");
    }
}
