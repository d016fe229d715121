//! `spin.toml` as it is written. Tables that only other hosts or tools read are skipped;
//! keys of the component that would change what it can do must be known here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::build::{Build, Commands};

#[derive(Deserialize)]
pub(super) struct File {
    pub(super) spin_manifest_version: u32,
    pub(super) application: Application,
    pub(super) trigger: Triggers,
    #[serde(default)]
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) component: BTreeMap<String, Component>,
}

#[derive(Deserialize)]
pub(super) struct Application {
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Triggers {
    #[serde(default)]
    pub(super) http: Vec<HttpTrigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpTrigger {
    pub(super) route: String,
    pub(super) component: String,
    #[serde(rename = "id")]
    _id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    pub(super) default: Option<String>,
    #[serde(default)]
    pub(super) required: bool,
    #[serde(default)]
    pub(super) secret: bool,
    #[serde(rename = "description")]
    _description: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Component {
    pub(super) source: PathBuf,
    #[serde(default)]
    pub(super) variables: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    pub(super) sqlite_databases: BTreeSet<String>,
    pub(super) build: Option<Build>,
    #[serde(default)]
    pub(super) profile: BTreeMap<String, Profile>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "tool")]
    _tool: Option<IgnoredAny>,
}

/// What another build of the component has instead.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) source: Option<PathBuf>,
    pub(super) build: Option<ProfileBuild>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileBuild {
    pub(super) command: Commands,
}
