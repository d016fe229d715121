//! The path of a request, and its query: split as they were sent, then each part decoded once (RFC 3986, section
//! 2.4), so that an encoded `/` is part of a name. And the encoding of names in URLs that are written.
//!
//! Knows no routes. A `+` is itself: only forms mean a space by it.

use std::borrow::Cow;

use percent_encoding::{
    AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_decode_str, utf8_percent_encode,
};
use thiserror::Error;

/// Why a path or a parameter cannot be read, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum InvalidPath {
    /// A `%` without two hexadecimal digits.
    #[error(
        "a `%` must begin an escape of two hexadecimal digits: write `%25` for the character itself"
    )]
    Escape,
    /// Escapes of bytes that are no text.
    #[error("its escapes must be those of UTF-8: encode every character by its UTF-8 bytes")]
    NotUtf8,
    /// U+0000.
    #[error("must not contain a NUL character (`%00`): PostgreSQL cannot hold it")]
    Nul,
    /// A parameter that is there twice.
    #[error("the parameter `{0}` is there more than once: send it once")]
    Twice(&'static str),
}

/// The path of a request, in decoded segments, and its query.
#[derive(Debug)]
pub(crate) struct Path {
    segments: Vec<String>,
    query: String,
}

impl Path {
    /// Splits and decodes the path of a request; one slash at its end is ignored.
    pub(crate) fn parse(path_and_query: &str) -> Result<Self, InvalidPath> {
        let (path, query) = path_and_query
            .split_once('?')
            .unwrap_or((path_and_query, ""));
        let mut segments = path
            .strip_prefix('/')
            .unwrap_or(path)
            .split('/')
            .map(|segment| decode(segment).map(Cow::into_owned))
            .collect::<Result<Vec<_>, _>>()?;
        segments.pop_if(|last| last.is_empty());
        Ok(Self {
            segments,
            query: query.to_owned(),
        })
    }

    /// The segments, for a match.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The value of a parameter, if it is there. Parameters that nobody asks for are ignored.
    pub(crate) fn parameter(
        &self,
        name: &'static str,
    ) -> Result<Option<Cow<'_, str>>, InvalidPath> {
        let mut values = self.query.split('&').filter_map(|parameter| {
            let (its_name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (decode(its_name).ok()? == name).then_some(value)
        });
        let value = values.next().map(decode).transpose()?;
        match values.next() {
            None => Ok(value),
            Some(_) => Err(InvalidPath::Twice(name)),
        }
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, InvalidPath> {
    // The crate's decoder leaves what is no escape as it is.
    let mut escapes = text.split('%').skip(1).map(str::as_bytes);
    let is_escape = |after: &[u8]| matches!(after, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    if !escapes.all(is_escape) {
        return Err(InvalidPath::Escape);
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| InvalidPath::NotUtf8)?;
    match decoded.contains('\0') {
        true => Err(InvalidPath::Nul),
        false => Ok(decoded),
    }
}

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A name as a segment of a path or as the value of a parameter.
pub(crate) fn encode(name: &str) -> PercentEncode<'_> {
    utf8_percent_encode(name, RESERVED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(path: &str) -> Result<Vec<String>, InvalidPath> {
        Path::parse(path).map(|path| path.segments)
    }

    fn parameter(path: &str) -> Result<Option<String>, InvalidPath> {
        let path = Path::parse(path)?;
        let value = path.parameter("from")?;
        Ok(value.map(Cow::into_owned))
    }

    #[test]
    fn a_path_is_split_and_then_decoded() {
        for (path, expected) in [
            ("", &[][..]),
            ("/", &[]),
            ("/?a/b", &[]),
            ("*", &["*"]),
            ("/llmchat", &["llmchat"]),
            ("/llmchat/?a/b", &["llmchat"]),
            ("/a/b/c", &["a", "b", "c"]),
            ("/a%2Fb/c%3fd", &["a/b", "c?d"]),
            ("/%252F", &["%2F"]),
            ("/a+b%20c", &["a+b c"]),
            ("/%F0%9f%98%80/é", &["😀", "é"]),
            ("/%2e%2E/.", &["..", "."]),
        ] {
            assert_eq!(segments(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn one_slash_at_the_end_is_ignored_and_no_other() {
        for (path, expected) in [
            ("/a/", &["a"][..]),
            ("/a//", &["a", ""]),
            ("//", &[""]),
            ("//a", &["", "a"]),
            ("/a//b", &["a", "", "b"]),
            ("/a%2F", &["a/"]),
        ] {
            assert_eq!(segments(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for (text, expected) in [
            ("%", InvalidPath::Escape),
            ("%2", InvalidPath::Escape),
            ("%%20", InvalidPath::Escape),
            ("a%2gb", InvalidPath::Escape),
            ("%+1", InvalidPath::Escape),
            ("%é", InvalidPath::Escape),
            ("%ff", InvalidPath::NotUtf8),
            ("%C0%80", InvalidPath::NotUtf8),
            ("%ed%a0%80", InvalidPath::NotUtf8),
            ("a%00", InvalidPath::Nul),
        ] {
            assert_eq!(segments(&format!("/x/{text}/y")), Err(expected), "{text}");
            assert_eq!(
                parameter(&format!("/?from={text}")),
                Err(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn a_parameter_is_decoded_like_a_segment() {
        for (query, expected) in [
            ("", None),
            ("?", None),
            ("?before=1&limit=2", None),
            ("?from", Some("")),
            ("?from=", Some("")),
            ("?a&from=b&%ff=%", Some("b")),
            ("?fr%6fm=a+b%26c=d?e", Some("a+b&c=d?e")),
            ("?FROM=x", None),
        ] {
            let value = parameter(&format!("/a{query}")).unwrap();
            assert_eq!(value.as_deref(), expected, "{query}");
        }
        let twice = Err(InvalidPath::Twice("from"));
        assert_eq!(parameter("/?from=a&from=a"), twice);
    }

    #[test]
    fn unreserved_characters_stay_and_escapes_are_in_upper_case() {
        let encoded = |name| encode(name).to_string();
        assert_eq!(encoded("azAZ09-._~"), "azAZ09-._~");
        assert_eq!(
            encoded("a/b +?#%é😀"),
            "a%2Fb%20%2B%3F%23%25%C3%A9%F0%9F%98%80"
        );
        assert_eq!(
            encoded("!$&'()*,;=:@"),
            "%21%24%26%27%28%29%2A%2C%3B%3D%3A%40"
        );
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(name in "[^\\x00]{1,20}") {
            let path = Path::parse(&format!("/llmchat/{0}?from={0}", encode(&name))).unwrap();
            prop_assert_eq!(path.segments(), ["llmchat", &name]);
            let value = path.parameter("from").unwrap();
            prop_assert_eq!(value.as_deref(), Some(name.as_str()));
        }
    }
}
