//! The command line, and what it says about the manifest and its variables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use llmchat_host::variables::environment_name;
use llmchat_host::{InstanceLimits, Manifest, ResponseLimits};

const MANIFEST: &str = "spin.toml";

/// Builds the chat component and serves it, without Spin.
///
/// Reads spin.toml and the same SPIN_VARIABLE_… environment variables as Spin.
/// With no database set, conversations are kept in SQLite, in the directory .spin.
#[derive(Parser)]
#[command(name = "llmchat-runner", version, verbatim_doc_comment)]
pub(crate) struct Cli {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub(crate) listen: SocketAddr,

    /// Answer requests for this host name too. On a loopback address only loopback names are
    /// answered, elsewhere all if none is given
    #[arg(long = "allow-host", value_name = "NAME", value_parser = host_name)]
    allowed_hosts: Vec<String>,

    /// Answer from a built-in stand-in instead of Ollama: no model, made-up text
    #[arg(long)]
    stand_in: bool,

    /// How fast the stand-in answers
    #[arg(
        long,
        value_name = "TOKENS/S",
        default_value_t = 30.0,
        requires = "stand_in"
    )]
    stand_in_rate: f64,

    /// Set a variable, such as ollama_url or database_url, or with NAME=@FILE to what a file holds;
    /// overrides the environment
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<Setting>,

    /// The manifest [default: spin.toml here, or that of the workspace this was built from]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// The build profile of the manifest to build and run, such as spin-4-0 [default: none]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,

    /// Where SQLite's file is kept [default: .spin beside the manifest, as with Spin]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Seconds that SIGINT, SIGTERM and SIGHUP leave to replies in progress
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) drain: Duration,

    /// Threads that serve [default: as many as the machine has cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The memory that one instance of the component may have
    #[arg(long, value_name = "BYTES", default_value_t = InstanceLimits::default().memory)]
    pub(crate) max_instance_memory: usize,

    /// Break a response off after so many seconds, as some platforms do [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_response_time: Option<Duration>,

    /// Break a response off after so many bytes, as some platforms do [default: never]
    #[arg(long, value_name = "BYTES")]
    max_response_bytes: Option<u64>,

    /// Run the component as it is, without building it first
    #[arg(long)]
    pub(crate) no_build: bool,
}

/// A variable that the command line sets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    value: String,
    /// It stands in the command line itself, which other users of the machine can read.
    is_shown: bool,
}

/// As in Spin, but for the line end after a file's last line, which is no part of the value.
fn variable(text: &str) -> Result<Setting> {
    let Some((name, value)) = text.split_once('=') else {
        bail!("it should look like name=value or name=@file");
    };
    let Some(file) = value.strip_prefix('@') else {
        return Ok(Setting {
            name: name.to_owned(),
            value: value.to_owned(),
            is_shown: true,
        });
    };
    // One message: clap does not show the cause of an error.
    let content =
        std::fs::read_to_string(file).map_err(|error| anyhow!("cannot read {file}: {error}"))?;
    let line = content.strip_suffix('\n').unwrap_or(&content);
    let value = line.strip_suffix('\r').unwrap_or(line);
    Ok(Setting {
        name: name.to_owned(),
        value: value.to_owned(),
        is_shown: false,
    })
}

/// Without a port: the name counts.
fn host_name(text: &str) -> Result<String> {
    match text.parse::<http::uri::Authority>() {
        Ok(name) if name.as_str() == name.host() => Ok(text.trim_end_matches('.').to_owned()),
        _ => bail!("it should be a name or an address, without scheme and port"),
    }
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// The name that `name` is most like, if it is at all.
fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a String> {
    let likeness = |other: &&String| strsim::jaro(name, other);
    let nearest = names
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&nearest) > 0.85).then_some(nearest)
}

impl Cli {
    pub(crate) fn manifest(&self) -> Result<PathBuf> {
        if let Some(path) = &self.manifest {
            return Ok(path.clone());
        }
        let here = PathBuf::from(MANIFEST);
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(MANIFEST);
        match [here, built_from].into_iter().find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => bail!("there is no {MANIFEST} here; `--manifest` says where it is"),
        }
    }

    /// From the environment, overridden by the command line.
    pub(crate) fn variables(&self, manifest: &Manifest) -> BTreeMap<String, String> {
        let environment = manifest.variables().keys().filter_map(|name| {
            let value = std::env::var(environment_name(name)).ok()?;
            Some((name.clone(), value))
        });
        let set = self.variables.iter();
        let set = set.map(|it| (it.name.clone(), it.value.clone()));
        environment.chain(set).collect()
    }

    /// What is set in a way that the operator should think about.
    pub(crate) fn warnings(&self, manifest: &Manifest) -> Vec<String> {
        let shown = self
            .variables
            .iter()
            .filter(|it| it.is_shown && manifest.is_secret(&it.name));
        let shown = shown.map(|Setting { name, .. }| {
            let environment = environment_name(name);
            format!("{name} is a secret, and every user of this machine can read a command line: set {environment}, or {name}=@FILE")
        });
        shown.chain(Self::misspelled(manifest)).collect()
    }

    /// Environment variables that look like ours and are not, with the name that was meant.
    fn misspelled(manifest: &Manifest) -> impl Iterator<Item = String> {
        let names = manifest
            .variables()
            .keys()
            .map(|name| environment_name(name));
        let names: Vec<String> = names.collect();
        std::env::vars_os().filter_map(move |(name, _)| {
            let name = name.into_string().ok()?;
            let is_unknown = name.starts_with("SPIN_VARIABLE_") && !names.contains(&name);
            is_unknown.then(|| match nearest(&name, &names) {
                Some(meant) => format!("{name} has no effect: is {meant} meant?"),
                None => format!("{name} has no effect: there is no such variable"),
            })
        })
    }

    /// Pages of the web can make their own name lead to a loopback address.
    pub(crate) fn allowed_hosts(&self) -> Option<Vec<String>> {
        let is_restricted = self.listen.ip().is_loopback() || !self.allowed_hosts.is_empty();
        is_restricted.then(|| self.allowed_hosts.clone())
    }

    pub(crate) fn response_limits(&self) -> ResponseLimits {
        ResponseLimits {
            time: self.max_response_time,
            bytes: self.max_response_bytes,
        }
    }

    pub(crate) fn stand_in(&self) -> Option<ollama_stand_in::Config> {
        self.stand_in.then(|| ollama_stand_in::Config {
            rate: Some(self.stand_in_rate),
            ..ollama_stand_in::Config::default()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_misspelled_name_leads_to_the_one_that_was_meant() {
        let names = ["SPIN_VARIABLE_OLLAMA_URL", "SPIN_VARIABLE_DATABASE_URL"].map(str::to_owned);
        for (name, meant) in [
            ("SPIN_VARIABLE_OLAMA_URL", Some(&names[0])),
            ("SPIN_VARIABLE_DATABASEURL", Some(&names[1])),
            ("SPIN_VARIABLE_XYZ", None),
        ] {
            assert_eq!(nearest(name, &names), meant, "{name}");
        }
    }

    #[test]
    fn an_allowed_host_is_a_name_or_an_address() {
        for good in ["chat.example", "192.168.1.2", "[fe80::1]"] {
            assert_eq!(host_name(good).unwrap(), good);
        }
        for bad in ["", "http://chat.example", "chat.example:80", "a b", "u@a"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_may_contain_an_equals_sign() {
        let set = variable("a=b=c").unwrap();
        assert_eq!((&*set.name, &*set.value), ("a", "b=c"));
        assert!(variable("a").is_err());
    }

    #[test]
    fn a_value_may_be_in_a_file() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("secret");
        let value = || Ok::<_, anyhow::Error>(variable(&format!("a=@{}", file.display()))?.value);
        let error = format!("{:#}", value().unwrap_err());
        assert!(error.contains(&*file.to_string_lossy()), "{error}");
        for (content, expected) in [
            ("", ""),
            ("postgres://u:p@h/d", "postgres://u:p@h/d"),
            ("v\n", "v"),
            ("v\r\n", "v"),
            ("v\n\n", "v\n"),
        ] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(value().unwrap(), expected, "{content:?}");
        }
    }
}
