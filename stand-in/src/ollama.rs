//! Ollama's endpoints, and the built-in reply, which nobody could take for a model's.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::exchange::Request;
use crate::http;
use crate::server::Config;
use crate::wire;

/// The answer to any request but a chat request (`POST /api/chat`), which has `None`.
pub(crate) fn route(request: &Request, config: &Config) -> Option<Vec<u8>> {
    const JSON: Option<&str> = Some(wire::JSON);
    const TEXT: Option<&str> = Some("text/plain; charset=utf-8");
    const GREETING: &str =
        "This is a stand-in for Ollama, which counts 4 bytes as a token: no model is here";
    const NOT_ALLOWED: &str = "405 method not allowed";

    let answer = |status, content_type, body: &str| match request.method.as_str() {
        "HEAD" => Some(http::head(status, content_type, Some(body.len()))),
        _ => Some(http::whole(status, content_type, body.as_bytes())),
    };
    let foreign_host = request.header("host").is_none_or(|host| !is_local(host));
    let foreign_origin = request.header("origin").is_some_and(|origin| {
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        !is_local(host)
    });
    if config.listen.ip().is_loopback() && foreign_host || foreign_origin {
        return answer(403, None, "");
    }
    if !config.admits(request) {
        return answer(401, JSON, &wire::error("unauthorized"));
    }
    match (
        request.method.as_str(),
        config.path(request).unwrap_or_default(),
    ) {
        ("POST", "/api/chat") => None,
        ("GET" | "HEAD", "/") => answer(200, TEXT, GREETING),
        ("GET" | "HEAD", "/api/version") => answer(200, JSON, &version()),
        ("GET" | "HEAD", "/api/tags") => answer(200, JSON, &tags()),
        (_, "/" | "/api/chat" | "/api/version" | "/api/tags") => answer(405, TEXT, NOT_ALLOWED),
        _ => answer(404, TEXT, "404 page not found"),
    }
}

fn version() -> String {
    json!({"version": concat!(env!("CARGO_PKG_VERSION"), "-stand-in")}).to_string()
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

/// Whether Ollama takes this `Host` or `Origin` for its own network: loopback and private
/// addresses, and local names.
fn is_local(host: &str) -> bool {
    const SUFFIXES: [&str; 3] = [".localhost", ".local", ".internal"];
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    match name.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) if name == "localhost" => true,
        Err(_) => SUFFIXES.iter().any(|suffix| name.ends_with(suffix)),
    }
}

/// The built-in reply to one chat request.
pub(crate) struct Reply {
    /// Escaped, like the tokens, so that streaming is copying.
    pub(crate) model: String,
    pub(crate) tokens: Vec<String>,
    pub(crate) stream: bool,
    /// `load` for a request without messages, whose reply has no tokens.
    reason: &'static str,
    started: Instant,
    prompt_tokens: usize,
    reply_tokens: usize,
}

impl Reply {
    /// Replies to the body of a chat request, in `count` tokens. An error is for the client.
    pub(crate) fn to(body: &[u8], count: Option<usize>) -> anyhow::Result<Self> {
        ensure!(!body.is_empty(), "missing request body");
        let body: Value = serde_json::from_slice(body)?;
        let model = text(&body, "model");
        ensure!(!model.is_empty(), "model is required");
        let messages = match body.get("messages") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(messages)) => messages.as_slice(),
            Some(_) => bail!("messages is no array"),
        };
        let contents: Vec<_> = messages.iter().map(|m| text(m, "content")).collect();
        let sent = contents.iter().map(|text| text.len()).sum();
        let reply = contents.last().map(|last| speech(contents.len(), last));
        let (tokens, said) = reply
            .as_deref()
            .map_or_else(Default::default, |text| tokenize(text, count));
        let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self {
            model: wire::escape(model),
            stream: stream && reply.is_some(),
            prompt_tokens: wire::tokens_in(sent),
            reply_tokens: wire::tokens_in(said),
            reason: if reply.is_some() { "stop" } else { "load" },
            tokens,
            started: Instant::now(),
        })
    }

    /// The last line of a stream (without content), or the one object of `"stream": false`.
    pub(crate) fn last_line(&self, content: &str) -> String {
        // A load has no metrics, as with Ollama.
        let took = match self.tokens.is_empty() {
            true => Duration::ZERO,
            false => self.started.elapsed(),
        };
        let done = wire::finish(self.reason, took, self.prompt_tokens, self.reply_tokens);
        wire::line(&self.model, &wire::now(), content, &done).concat()
    }
}

/// A field's text; like Go's zero value, it is empty where there is none.
fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    let text = object.get(field).and_then(Value::as_str);
    text.unwrap_or_default()
}

/// Shows how much of the conversation arrived, and that no model read it.
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

/// Cuts a text into escaped tokens of a model's size: words with the space before them, long ones
/// in pieces. With a count it repeats or shortens the text to that many tokens. Also returns the bytes of
/// the whole, unescaped.
fn tokenize(text: &str, count: Option<usize>) -> (Vec<String>, usize) {
    let mut tokens = Vec::new();
    let mut token = String::new();
    for character in text.chars() {
        if !token.is_empty() && (character == ' ' || token.chars().count() >= 6) {
            tokens.push(std::mem::take(&mut token));
        }
        token.push(character);
    }
    tokens.push(token);
    if count.is_some() {
        tokens.push(" And".to_owned());
    }
    let count = count.unwrap_or(tokens.len());
    let bytes = tokens.iter().cycle().take(count).map(String::len).sum();
    let escaped: Vec<_> = tokens.iter().map(|token| wire::escape(token)).collect();
    (escaped.into_iter().cycle().take(count).collect(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_as_many_tokens_as_configured() {
        for count in [0, 1, 5, 2_000] {
            let (tokens, bytes) = tokenize("Some words and a \"quite-long\" one", Some(count));
            assert_eq!(tokens.len(), count);
            assert_eq!(tokens.concat().replace("\\\"", "\"").len(), bytes);
        }
    }

    #[test]
    fn only_local_names_and_addresses_are_accepted() {
        let local = "localhost localhost:11434 127.0.0.1:1 [::1]:80 box.local 10.1.2.3";
        for host in local.split(' ') {
            assert!(is_local(host), "{host}");
        }
        let foreign = " example.com example.com:11434 8.8.8.8 localhost.example.com";
        for host in foreign.split(' ') {
            assert!(!is_local(host), "{host}");
        }
    }
}
