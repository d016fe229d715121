//! What `spin.toml` says: the component, its variables and what it may reach.
//!
//! One component, served over HTTP, is all that this host runs. What the manifest asks
//! for and the host does not have is refused here rather than missed at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::variables::{Template, check_name};

mod build;
mod file;

/// A manifest, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    path: PathBuf,
    name: String,
    source: PathBuf,
    build: Option<build::Build>,
    variables: BTreeMap<String, Variable>,
    component_variables: BTreeMap<String, Template>,
    allowed_outbound_hosts: Vec<Template>,
    sqlite_databases: BTreeSet<String>,
    routes: Vec<Route>,
}

/// One of the application's variables.
#[derive(Debug, Clone)]
pub struct Variable {
    /// `None`: it is required.
    pub default: Option<String>,
    /// Not to be shown.
    pub secret: bool,
}

impl Manifest {
    /// Reads a `spin.toml`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the manifest {}", path.display()))?;
        Self::parse(path, &text).with_context(|| format!("in the manifest {}", path.display()))
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let file: file::File = toml::from_str(text)?;
        ensure!(
            file.spin_manifest_version == 2,
            "spin_manifest_version must be 2"
        );

        let mut triggers = file.trigger.http.into_iter();
        let first = triggers
            .next()
            .context("no [[trigger.http]]: there is nothing to serve")?;
        let id = first.component;
        let mut routes = vec![Route::parse(&first.route)?];
        for trigger in triggers {
            ensure!(
                trigger.component == id,
                "this host runs one component; the triggers name `{id}` and `{}`",
                trigger.component,
            );
            routes.push(Route::parse(&trigger.route)?);
        }
        let component = file
            .component
            .into_iter()
            .find_map(|(name, component)| (name == id).then_some(component))
            .with_context(|| format!("no [component.{id}]"))?;

        let dir = path.parent().unwrap_or(Path::new(""));
        let variables = file
            .variables
            .into_iter()
            .map(|(name, variable)| {
                check_name(&name)?;
                ensure!(
                    variable.required != variable.default.is_some(),
                    "variable `{name}` needs either a default or `required = true`",
                );
                Ok((
                    name,
                    Variable {
                        default: variable.default,
                        secret: variable.secret,
                    },
                ))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let template = |text: &str| {
            let template = Template::parse(text)?;
            if let Some(name) = template.names().find(|name| !variables.contains_key(*name)) {
                bail!("{text:?} names `{name}`, which is not in [variables]");
            }
            Ok(template)
        };
        Ok(Self {
            path: path.to_owned(),
            name: file.application.name,
            source: dir.join(&component.source),
            build: component.build.map(|build| build::Build {
                command: build.command,
                dir: dir.join(build.workdir.unwrap_or_default()),
            }),
            component_variables: component
                .variables
                .iter()
                .map(|(name, text)| {
                    check_name(name)?;
                    Ok((name.clone(), template(text)?))
                })
                .collect::<Result<_>>()?,
            allowed_outbound_hosts: component
                .allowed_outbound_hosts
                .iter()
                .map(|text| template(text))
                .collect::<Result<_>>()?,
            sqlite_databases: component.sqlite_databases,
            variables,
            routes,
        })
    }

    /// The application's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the manifest lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The component's `.wasm`.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The application's variables by name.
    pub fn variables(&self) -> &BTreeMap<String, Variable> {
        &self.variables
    }

    /// Where Spin keeps what outlives a run, and this host too: `.spin` beside the manifest.
    pub fn state_dir(&self) -> PathBuf {
        self.path.with_file_name(".spin")
    }

    /// Runs the build command, if there is one.
    pub fn build(&self) -> Result<()> {
        self.build.as_ref().map_or(Ok(()), build::Build::run)
    }

    pub(crate) fn component_variables(&self) -> &BTreeMap<String, Template> {
        &self.component_variables
    }

    pub(crate) fn allowed_outbound_hosts(&self) -> &[Template] {
        &self.allowed_outbound_hosts
    }

    pub(crate) fn sqlite_databases(&self) -> &BTreeSet<String> {
        &self.sqlite_databases
    }

    pub(crate) fn serves(&self, path: &str) -> bool {
        self.routes.iter().any(|route| route.matches(path))
    }
}

/// A trigger's route: one path, or with `/...` everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    path: String,
    below: bool,
}

impl Route {
    fn parse(route: &str) -> Result<Self> {
        ensure!(
            route.starts_with('/'),
            "route {route:?} must start with `/`"
        );
        ensure!(
            !route.contains("/:"),
            "route {route:?}: this host has no named segments"
        );
        let (path, below) = match route.strip_suffix("/...") {
            Some(path) => (path, true),
            None => (route, false),
        };
        // `/a` and `/a/` are the same route to Spin.
        Ok(Self {
            path: path.trim_end_matches('/').to_owned(),
            below,
        })
    }

    fn matches(&self, path: &str) -> bool {
        match path.strip_prefix(&self.path) {
            Some("" | "/") => true,
            Some(rest) => self.below && rest.starts_with('/'),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const SMALL: &str = r#"
        spin_manifest_version = 2
        [application]
        name = "small"
        [application.trigger.http]
        base = "/"
        [[trigger.http]]
        route = "/..."
        component = "it"
        [variables]
        url = { default = "http://localhost:1", secret = true }
        [component.it]
        source = "it.wasm"
        allowed_outbound_hosts = ["{{ url }}"]
        sqlite_databases = ["default"]
        [component.it.variables]
        upstream = "{{ url }}/api"
        [component.it.build]
        command = "true"
    "#;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse(Path::new("app/spin.toml"), text)
    }

    #[test]
    fn paths_are_relative_to_the_manifest() {
        let manifest = parse(SMALL).unwrap();
        assert_eq!(manifest.source(), Path::new("app/it.wasm"));
        assert_eq!(manifest.state_dir(), Path::new("app/.spin"));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        for (from, to, error) in [
            ("= 2", "= 1", "spin_manifest_version must be 2"),
            (
                r#"component = "it""#,
                r#"component = "other""#,
                "no [component.other]",
            ),
            (
                "{{ url }}/api",
                "{{ uri }}/api",
                "names `uri`, which is not in [variables]",
            ),
            ("url = {", "URL = {", "only lower-case letters"),
            (
                r#"default = "http://localhost:1","#,
                "",
                "needs either a default or",
            ),
            (r#""/...""#, r#""/:id""#, "no named segments"),
            (
                r#""it.wasm""#,
                r#"{ url = "https://example.com/it.wasm" }"#,
                "source",
            ),
            (
                r#"source = "it.wasm""#,
                "source = \"it.wasm\"\nfiles = [\"a\"]",
                "files",
            ),
        ] {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL, "{from}");
            let message = format!("{:#}", parse(&text).unwrap_err());
            assert!(message.contains(error), "{message}");
        }
    }

    #[test]
    fn routes_match_as_in_spin() {
        for (route, path, matches) in [
            ("/...", "/", true),
            ("/...", "/any/path", true),
            ("/a", "/a", true),
            ("/a", "/a/", true),
            ("/a", "/ab", false),
            ("/a", "/a/b", false),
            ("/a/...", "/a", true),
            ("/a/...", "/a/b/c", true),
            ("/a/...", "/ab", false),
            ("/", "/", true),
            ("/", "/a", false),
        ] {
            assert_eq!(
                Route::parse(route).unwrap().matches(path),
                matches,
                "{route} {path}"
            );
        }
    }
}
