//! Why the database did not do what it was asked to, sorted by what can be done about it.

use thiserror::Error;

/// A failure of the database.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind}: {why}")]
pub(crate) struct StoreError {
    pub(crate) kind: Kind,
    /// The message of the database or the host, for the log. Neither repeats passwords.
    pub(crate) why: String,
}

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Kind {
    /// The table is missing or old: migrate and try again.
    #[error("the schema is missing or old")]
    Schema,
    /// The database's role may not create, change or use a table or a function.
    #[error("the role lacks a right")]
    NotAllowed,
    /// A value does not fit into its column (an older table's may be narrower).
    #[error("a value was refused")]
    Refused,
    /// What precedes a prompt is larger than the host hands out at once.
    #[error("the result is too large")]
    TooLarge,
    /// The table or the configuration cannot be used as it is. `why` says what to do, and may be told to
    /// the client.
    #[error("the database cannot be used as it is")]
    Unusable,
    /// No TLS connection comes about, for a reason that stays: above all a certificate that nobody trusts.
    #[error("TLS with the database failed")]
    Tls,
    /// No answer, no connection, too busy: another try may succeed.
    #[error("the database is unavailable")]
    Unavailable,
    /// The server behind this connection takes no writes, since another does now: another connection may
    /// lead there.
    #[error("the database is read-only")]
    ReadOnly,
    /// Anything else: another try would fail in the same way.
    #[error("the database failed")]
    Failed,
}

impl StoreError {
    pub(crate) fn new(kind: Kind, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { kind, why }
    }

    /// A row that the migrations do not make possible.
    pub(super) fn unexpected_row() -> Self {
        Self::new(
            Kind::Failed,
            "the table `chatts` has columns of unexpected types",
        )
    }

    /// Whether the same call would fail in the same way.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self.kind, Kind::Unavailable | Kind::ReadOnly)
    }

    /// What the client may learn: which part failed, and who can do what.
    pub(crate) fn for_client(&self) -> &str {
        match self.kind {
            Kind::NotAllowed => {
                "The database's role may not create, change or use the tables and functions: with one that may, apply the files in `migrations/postgres/`, in order, and run, with the name of the first: GRANT SELECT, INSERT, UPDATE, DELETE ON chatts, chatts_turns, chatts_runs, chatts_parts, chatts_attempts TO …;"
            }
            Kind::Unusable => &self.why,
            Kind::Tls => {
                "TLS with the database failed, as with a self-signed certificate (Debian's PostgreSQL has one): have this machine trust its issuer (`update-ca-certificates`, or the file in SSL_CERT_FILE), or, where the network can be trusted, add `sslmode=disable` to `database_url`."
            }
            Kind::Unavailable | Kind::ReadOnly => {
                "The database cannot be reached or does not answer: try again later."
            }
            Kind::TooLarge => {
                "The conversation is larger than the host reads at once: the operator has to lower `max_history_bytes`."
            }
            Kind::Schema | Kind::Refused | Kind::Failed => {
                "The database failed: the server's log says why."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_to_be_granted_every_table() {
        let readme = include_str!("../../README.md").replace('\n', " ");
        let error = StoreError::new(Kind::NotAllowed, "");
        let turns = include_str!("../../migrations/postgres/0004_turns.sql");
        let created = turns.split("CREATE TABLE IF NOT EXISTS ").skip(1);
        let created = created.filter_map(|it| it.split_whitespace().next());
        let tables = ["chatts"].into_iter().chain(created).collect::<Vec<_>>();
        let grant = format!("DELETE ON {} TO …", tables.join(", "));
        for text in [error.for_client(), &readme] {
            assert!(text.contains(&grant), "{grant}");
        }
    }
}
