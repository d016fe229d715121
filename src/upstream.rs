//! Where Ollama is, as the operator writes it.

use http::uri::{Authority, PathAndQuery};

/// Ollama's address, and what stands before its own paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OllamaUrl {
    /// `https` instead of `http`.
    pub(crate) is_https: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Without a slash at its end, so that it is empty or begins with one; encoded as it was written.
    prefix: String,
}

impl OllamaUrl {
    /// Reads an `ollama_url`; an error says what it must be.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let must_be = |what| {
            Err(format!(
                "must be scheme, host and port, and perhaps a path, like http://localhost:11434 or https://ai.example/ollama: {what}"
            ))
        };
        let (is_https, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return must_be("it begins with neither http:// nor https://"),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return must_be("it has a space, or a character that is not ASCII (percent-encode it)");
        }
        if rest.contains(['?', '#']) {
            return must_be("it has a query or a fragment");
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return must_be("it has a user or a password (a key goes into `ollama_api_key`)");
        }
        let has_port =
            |it: &Authority| it.host().len() == authority.len() || it.port_u16().is_some();
        if !authority
            .parse()
            .is_ok_and(|it: Authority| !it.host().is_empty() && has_port(&it))
        {
            return must_be("its host or its port is none");
        }
        let prefix = path.strip_suffix('/').unwrap_or(path);
        let is_dots = |segment: &str| {
            let decoded = segment.to_ascii_lowercase().replace("%2e", ".");
            matches!(&*decoded, "." | "..")
        };
        match prefix
            .split('/')
            .skip(1)
            .find(|it| it.is_empty() || is_dots(it))
        {
            Some("") => return must_be("its path has two slashes in a row"),
            Some(_) => return must_be("its path has a segment `.` or `..`"),
            None => {}
        }
        if !prefix.is_empty() && prefix.parse::<PathAndQuery>().is_err() {
            return must_be("its path has a character that must be percent-encoded");
        }
        Ok(Self {
            is_https,
            authority: authority.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// The whole path of one of Ollama's own.
    pub(crate) fn path(&self, own: &str) -> String {
        format!("{}{own}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ollama_url_is_scheme_host_port_and_perhaps_a_path() {
        for (url, is_https, authority, path) in [
            (
                "http://localhost:11434",
                false,
                "localhost:11434",
                "/api/chat",
            ),
            (
                "http://localhost:11434/",
                false,
                "localhost:11434",
                "/api/chat",
            ),
            (
                "https://ollama.example",
                true,
                "ollama.example",
                "/api/chat",
            ),
            ("http://[::1]:11434", false, "[::1]:11434", "/api/chat"),
            ("https://a.example/b", true, "a.example", "/b/api/chat"),
            (
                "https://a.example:8443/b/c/",
                true,
                "a.example:8443",
                "/b/c/api/chat",
            ),
            (
                "http://a/b%2Fc%20d/@e:f",
                false,
                "a",
                "/b%2Fc%20d/@e:f/api/chat",
            ),
            ("http://a/...", false, "a", "/.../api/chat"),
        ] {
            let parsed = OllamaUrl::parse(url).unwrap();
            let parts = (
                parsed.is_https,
                &*parsed.authority,
                parsed.path("/api/chat"),
            );
            assert_eq!(parts, (is_https, authority, path.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_reason_and_not_repeated() {
        for (wrong, why) in [
            ("", "neither http"),
            ("localhost:11434", "neither http"),
            ("ftp://x", "neither http"),
            ("http://", "host"),
            ("http:///path", "host"),
            ("http://:80", "host"),
            ("http://x:", "port"),
            ("http://x:port", "port"),
            ("http://x:99999", "port"),
            ("http://u:s3cret@x", "user"),
            ("http://s3cret@x/y", "user"),
            ("http://x?y", "query"),
            ("http://x/y?z=1", "query"),
            ("http://x/y#z", "fragment"),
            ("http://x/y z", "space"),
            ("http://x/y\nz", "space"),
            ("http://x y", "space"),
            ("http://x/\u{e9}", "ASCII"),
            ("http://\u{e9}", "ASCII"),
            ("http://x/..", "`..`"),
            ("http://x/../y", "`..`"),
            ("http://x/y/./z", "`..`"),
            ("http://x/y/%2E%2e", "`..`"),
            ("http://x//", "slashes"),
            ("http://x/y//z", "slashes"),
            ("http://x/<y>", "percent-encoded"),
        ] {
            let error = OllamaUrl::parse(wrong).unwrap_err();
            let (_, reason) = error.rsplit_once(": ").unwrap();
            assert!(reason.contains(why), "{wrong:?}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
