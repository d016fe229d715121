//! What the stand-in says by itself: Ollama's endpoints, and a reply that nobody could take for a
//! model's.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::exchange::Request;
use crate::wire::{self, LineStart, Metrics};
use crate::{Config, http};

/// What to do with a request.
pub(crate) enum Answer {
    /// An answer in one piece.
    Whole {
        status: u16,
        content_type: Option<&'static str>,
        body: String,
    },
    /// `POST /api/chat`
    Chat,
}

const JSON: Option<&str> = Some("application/json; charset=utf-8");
const TEXT: Option<&str> = Some("text/plain; charset=utf-8");

/// Ollama's routes and its checks of who asks.
pub(crate) fn route(request: &Request, config: &Config) -> Answer {
    let whole = |status, content_type, body: &str| Answer::Whole {
        status,
        content_type,
        body: body.to_owned(),
    };
    let foreign_host = request.header("host").is_none_or(|host| !is_local(host));
    let foreign_origin = request.header("origin").is_some_and(|origin| {
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        !is_local(host)
    });
    if config.listen.ip().is_loopback() && foreign_host || foreign_origin {
        return whole(403, None, "");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    match (request.method.as_str(), path) {
        ("POST", "/api/chat") => Answer::Chat,
        ("GET" | "HEAD", "/") => {
            whole(200, TEXT, "This is a stand-in for Ollama: no model is here")
        }
        ("GET" | "HEAD", "/api/version") => whole(
            200,
            JSON,
            &json!({"version": concat!(env!("CARGO_PKG_VERSION"), "-stand-in")}).to_string(),
        ),
        ("GET" | "HEAD", "/api/tags") => whole(200, JSON, &tags()),
        (_, "/" | "/api/chat" | "/api/version" | "/api/tags") => {
            whole(405, TEXT, "405 method not allowed")
        }
        _ => whole(404, TEXT, "404 page not found"),
    }
}

fn tags() -> String {
    let model = json!({
        "name": wire::MODEL,
        "model": wire::MODEL,
        "modified_at": wire::now(),
        "size": 0,
        "digest": "",
        "details": {"family": "none: a stand-in", "parameter_size": "0"},
    });
    json!({ "models": [model] }).to_string()
}

/// As Ollama: what is loopback, private or a name of this machine's own may ask.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    match name.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => {
            name == "localhost"
                || [".localhost", ".local", ".internal"]
                    .iter()
                    .any(|end| name.ends_with(end))
        }
    }
}

/// A reply that is about to be streamed.
pub(crate) struct Reply {
    pub(crate) model: String,
    /// As JSON strings, so that streaming is copying.
    pub(crate) tokens: Vec<String>,
    pub(crate) stream: bool,
    prompt_tokens: usize,
    started: Instant,
    /// `load` where there was nothing to answer, and then no token.
    reason: &'static str,
}

impl Reply {
    /// The stand-in's own reply to a chat request; `Err` has a status and words.
    pub(crate) fn to(body: &[u8], tokens: Option<usize>) -> Result<Self, (u16, String)> {
        let refuse = |words: &str| (400, words.to_owned());
        if body.is_empty() {
            return Err(refuse("missing request body"));
        }
        let body: Value =
            serde_json::from_slice(body).map_err(|error| refuse(&error.to_string()))?;
        let model = body
            .get("model")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if model.is_empty() {
            return Err(refuse("model is required"));
        }
        let messages = match body.get("messages") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(messages)) => messages.as_slice(),
            Some(_) => return Err(refuse("messages is no array")),
        };
        let content = |message: &Value| {
            let content = message.get("content").and_then(Value::as_str);
            content.unwrap_or_default().to_owned()
        };
        let text = messages
            .last()
            .map(|last| speech(messages.len(), &content(last)));
        let prompt_tokens = messages
            .iter()
            .map(|m| content(m).split_whitespace().count())
            .sum();
        Ok(Self {
            model: model.to_owned(),
            reason: if text.is_some() { "stop" } else { "load" },
            stream: text.is_some() && body.get("stream").and_then(Value::as_bool).unwrap_or(true),
            tokens: text.map_or_else(Vec::new, |text| tokenize(&text, tokens)),
            prompt_tokens,
            started: Instant::now(),
        })
    }

    /// All of it as the one object of `"stream": false`.
    pub(crate) fn whole(&self) -> String {
        let texts = self
            .tokens
            .iter()
            .map(|token| serde_json::from_str::<String>(token));
        let content: String = texts.map(Result::unwrap_or_default).collect();
        self.last(&content)
    }

    /// The last line of the stream, framed, and what ends the body.
    pub(crate) fn end(&self) -> Vec<u8> {
        let line = self.last("");
        let mut out = Vec::with_capacity(line.len() + 32);
        http::open_chunk(&mut out, line.len() + 1);
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\n\r\n");
        out.extend_from_slice(http::LAST_CHUNK);
        out
    }

    fn last(&self, content: &str) -> String {
        let metrics = Metrics {
            total: self.started.elapsed().max(Duration::from_nanos(4)),
            prompt_tokens: self.prompt_tokens,
            tokens: self.tokens.len(),
        };
        metrics.last_line(&self.model, &wire::now(), content, self.reason)
    }
}

/// Appends one line as one chunk.
pub(crate) fn push_token(out: &mut Vec<u8>, start: &LineStart, created_at: &str, token: &str) {
    http::open_chunk(out, start.line_len(token.len()) + 1);
    start.write(out, created_at.as_bytes(), token);
    out.extend_from_slice(b"\n\r\n");
}

/// It shows how much of the conversation arrived, and that no model read it.
fn speech(messages: usize, last: &str) -> String {
    let plural = if messages == 1 { "" } else { "s" };
    let mut quoted: String = last.chars().take(200).collect();
    if quoted.len() < last.len() {
        quoted.push('…');
    }
    format!(
        "I am the stand-in for Ollama: no model is behind these words. \
         Your conversation has {messages} message{plural}; the last one was: {quoted}"
    )
}

/// Cuts a text into pieces of a model's size: words with the space before them, long ones in two.
/// Repeats or shortens it to `count` tokens.
fn tokenize(text: &str, count: Option<usize>) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for character in text.chars() {
        if !piece.is_empty() && (character == ' ' || piece.chars().count() >= 6) {
            pieces.push(wire::json_string(&std::mem::take(&mut piece)));
        }
        piece.push(character);
    }
    pieces.push(wire::json_string(&piece));
    match count {
        None => pieces,
        Some(count) => {
            let again = std::iter::once("\" And\"".to_owned())
                .chain(pieces.clone())
                .cycle();
            pieces.into_iter().chain(again).take(count).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_says_that_no_model_is_there_and_what_it_was_sent() {
        let body = json!({"model": "m", "messages": [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three, »please«"},
        ]});
        let reply = Reply::to(body.to_string().as_bytes(), None).ok();
        let whole: Value =
            serde_json::from_str(&reply.map(|r| r.whole()).unwrap_or_default()).unwrap_or_default();
        assert_eq!(
            whole.pointer("/message/content").and_then(Value::as_str),
            Some(
                "I am the stand-in for Ollama: no model is behind these words. \
                 Your conversation has 3 messages; the last one was: Three, »please«"
            )
        );
    }

    #[test]
    fn a_reply_has_as_many_tokens_as_asked_for() {
        for count in [0, 1, 5, 2_000] {
            assert_eq!(
                tokenize("Some words and a quite-long-one", Some(count)).len(),
                count
            );
        }
    }

    #[test]
    fn only_this_machines_names_may_ask() {
        for host in [
            "localhost",
            "localhost:11434",
            "127.0.0.1:1",
            "[::1]:80",
            "box.local",
            "10.1.2.3",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "example.com",
            "example.com:11434",
            "8.8.8.8",
            "localhost.example.com",
            "",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
