//! The database's URL, and the password in it that no message may show.

use std::fmt;

use percent_encoding::percent_decode_str;

/// A `database_url`. Holds a password: its `Debug` shows nothing.
#[derive(Clone)]
pub(super) struct DatabaseUrl(String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl")
    }
}

impl DatabaseUrl {
    pub(super) fn new(url: String) -> Self {
        Self(url)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// A host's message as one line without the password: hosts dump several lines, down to a backtrace.
    pub(super) fn redact(&self, message: &str) -> String {
        let lines = message
            .lines()
            .map(str::trim)
            .take_while(|line| !line.starts_with("Stack backtrace"))
            .filter(|line| !line.is_empty());
        let message = lines.collect::<Vec<_>>().join(" ");
        self.passwords().fold(message, |message, password| {
            message.replace(&password, "***")
        })
    }

    /// The password, percent-encoded as in the URL and decoded.
    fn passwords(&self) -> impl Iterator<Item = String> {
        let rest = self.0.split_once("://").map_or(&*self.0, |(_, rest)| rest);
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let of_user = address
            .rsplit_once('@')
            .and_then(|(credentials, _)| credentials.split_once(':'))
            .map(|(_, password)| password);
        let in_query = query
            .split('&')
            .find_map(|parameter| parameter.strip_prefix("password="));
        [of_user, in_query]
            .into_iter()
            .flatten()
            .flat_map(|encoded| {
                let decoded = percent_decode_str(encoded).decode_utf8_lossy();
                [encoded.to_owned(), decoded.into_owned()]
            })
            .filter(|password| !password.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_in_every_form() {
        let known = |url: &str| DatabaseUrl::new(url.into()).passwords().collect::<Vec<_>>();
        assert_eq!(known("postgres://me:a%40b@db/chat"), ["a%40b", "a@b"]);
        assert_eq!(known("postgres://me:s3cr@t@db/chat"), ["s3cr@t", "s3cr@t"]);
        assert_eq!(known("postgres://me@db/chat?password=s%2"), ["s%2", "s%2"]);
        assert!(known("postgres://me@db/chat?application_name=a@b").is_empty());
    }

    #[test]
    fn a_dump_of_the_host_becomes_one_line_without_the_password() {
        let url = DatabaseUrl::new("postgres://me:s3cr%40t@db.example:5432/chat".into());
        let dump = "Error opening s3cr@t\n\nCaused by:\n    refused s3cr%40t\n\nStack backtrace:\n   0: main";
        assert_eq!(url.redact(dump), "Error opening *** Caused by: refused ***");
        assert!(!format!("{url:?}").contains("s3cr"));
    }
}
