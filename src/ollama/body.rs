//! The body of a chat request, around the messages of a conversation.

use serde_json::value::RawValue;

use crate::conversation::Messages;

/// Begins the body of a `POST /api/chat`: the model, and the array for the messages.
pub fn begin(model: &str) -> Messages {
    let mut json = br#"{"model":"#.to_vec();
    push_str(&mut json, model);
    json.extend_from_slice(br#","messages":"#);
    Messages::append_to(json)
}

/// Completes a body that [`begin`] began, with the client's own fields as they were sent.
pub fn finish(messages: Messages, stream: bool, fields: &[(String, Box<RawValue>)]) -> Vec<u8> {
    let mut json = messages.finish();
    json.extend_from_slice(br#","stream":"#);
    json.extend_from_slice(if stream { b"true" } else { b"false" });
    for (name, value) in fields {
        json.push(b',');
        push_str(&mut json, name);
        json.push(b':');
        json.extend_from_slice(value.get().as_bytes());
    }
    json.push(b'}');
    json
}

fn push_str(json: &mut Vec<u8>, text: &str) {
    // Serialising a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_model_the_messages_and_the_clients_fields() {
        let mut messages = begin("llama\"3");
        messages.push("user", "hi");
        let options = serde_json::from_str(r#"{ "seed" : 1e2 }"#).unwrap();
        let body = finish(messages, false, &[("options".into(), options)]);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"model":"llama\"3","messages":[{"role":"user","content":"hi"}],"stream":false,"options":{ "seed" : 1e2 }}"#
        );
    }
}
