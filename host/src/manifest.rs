//! `spin.toml`: the component, its variables and what it may connect to.
//!
//! This host runs one component, served over HTTP. What the manifest requires and the host does
//! not have is refused here rather than missed at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::variables::{Template, check_name};

use build::Build;

mod build;
mod file;

/// A manifest, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    path: PathBuf,
    name: String,
    source: PathBuf,
    build: Option<Build>,
    variables: BTreeMap<String, Option<String>>,
    secrets: BTreeSet<String>,
    pub(crate) component_variables: BTreeMap<String, Template>,
    pub(crate) allowed_outbound_hosts: Vec<Template>,
    pub(crate) sqlite_databases: BTreeSet<String>,
    routes: Vec<Route>,
}

impl Manifest {
    /// Reads a `spin.toml`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_profile(path, None)
    }

    /// Reads a `spin.toml` with what a build profile has instead (`--profile` to Spin).
    pub fn load_profile(path: impl AsRef<Path>, profile: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the manifest {}", path.display()))?;
        Self::parse(path, &text, profile)
            .with_context(|| format!("in the manifest {}", path.display()))
    }

    fn parse(path: &Path, text: &str, profile: Option<&str>) -> Result<Self> {
        let mut file: file::File = toml::from_str(text)?;
        ensure!(
            file.spin_manifest_version == 2,
            "spin_manifest_version must be 2"
        );

        let triggers = &file.trigger.http;
        let id = &triggers
            .first()
            .context("no [[trigger.http]]: there is nothing to serve")?
            .component;
        for trigger in triggers {
            ensure!(
                trigger.component == *id,
                "this host runs one component; the triggers name `{id}` and `{}`",
                trigger.component,
            );
        }
        let routes = triggers.iter().map(|trigger| Route::parse(&trigger.route));
        let routes = routes.collect::<Result<_>>()?;
        let component = file.component.remove(id);
        let mut component = component.with_context(|| format!("no [component.{id}]"))?;
        if let Some(name) = profile {
            let Some(profile) = component.profile.remove(name) else {
                let names: Vec<_> = component.profile.into_keys().collect();
                ensure!(
                    !names.is_empty(),
                    "the component has no build profiles: leave `{name}` out"
                );
                let names = names.join("`, `");
                bail!("there is no profile `{name}` of the component, only `{names}`");
            };
            component.source = profile.source.unwrap_or(component.source);
            if let Some(build) = profile.build {
                component.build = Some(Build::with(build.command, component.build));
            }
        }

        let secrets = file.variables.iter().filter(|(_, it)| it.secret);
        let secrets = secrets.map(|(name, _)| name.clone()).collect();
        let variables = file.variables.into_iter().map(|(name, variable)| {
            check_name(&name)?;
            ensure!(
                variable.required != variable.default.is_some(),
                "variable `{name}` needs either a default or `required = true`",
            );
            Ok((name, variable.default))
        });
        let variables = variables.collect::<Result<BTreeMap<_, _>>>()?;
        let template = |text: &String| {
            let template = Template::parse(text)?;
            if let Some(name) = template.names().find(|name| !variables.contains_key(*name)) {
                bail!("{text:?} names `{name}`, which is not in [variables]");
            }
            Ok(template)
        };
        let component_variables = component.variables.iter().map(|(name, text)| {
            check_name(name)?;
            Ok((name.clone(), template(text)?))
        });
        let allowed_outbound_hosts = component.allowed_outbound_hosts.iter().map(template);
        Ok(Self {
            path: path.to_owned(),
            name: file.application.name,
            source: path.with_file_name(component.source),
            build: component.build,
            component_variables: component_variables.collect::<Result<_>>()?,
            allowed_outbound_hosts: allowed_outbound_hosts.collect::<Result<_>>()?,
            sqlite_databases: component.sqlite_databases,
            variables,
            secrets,
            routes,
        })
    }

    /// The application's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of the manifest itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The component's `.wasm`.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The application's variables with their defaults; one without is required.
    pub fn variables(&self) -> &BTreeMap<String, Option<String>> {
        &self.variables
    }

    /// Whether one of the application's variables is a secret.
    pub fn is_secret(&self, name: &str) -> bool {
        self.secrets.contains(name)
    }

    /// Where Spin, and this host, keep what outlives a run: `.spin` beside the manifest.
    pub fn state_dir(&self) -> PathBuf {
        self.path.with_file_name(".spin")
    }

    /// Runs the build command, if there is one.
    pub fn build(&self) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        self.build.as_ref().map_or(Ok(()), |build| build.run(dir))
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
        Manifest::parse(Path::new("app/spin.toml"), text, None)
    }

    #[test]
    fn paths_are_relative_to_the_manifest() {
        let manifest = parse(SMALL).unwrap();
        assert_eq!(manifest.source(), Path::new("app/it.wasm"));
        assert_eq!(manifest.state_dir(), Path::new("app/.spin"));
    }

    #[test]
    fn a_profile_has_its_own_component_and_build() {
        let text = format!(
            "{SMALL}\n[component.it.profile.old]\nsource = \"old.wasm\"\nbuild.command = \"false\"\n\
             [component.it.profile.same]\n"
        );
        let load = |profile| Manifest::parse(Path::new("app/spin.toml"), &text, profile);
        for (profile, source, builds) in [
            (None, "app/it.wasm", true),
            (Some("old"), "app/old.wasm", false),
            (Some("same"), "app/it.wasm", true),
        ] {
            let manifest = load(profile).unwrap();
            assert_eq!(manifest.source(), Path::new(source));
            let build = manifest.build.unwrap().run(Path::new("."));
            assert_eq!(build.is_ok(), builds, "{profile:?}");
        }
        let error = format!("{:#}", load(Some("odl")).unwrap_err());
        assert!(error.contains("no profile `odl`") && error.contains("`old`, `same`"));
        let none = Manifest::parse(Path::new("spin.toml"), SMALL, Some("old")).unwrap_err();
        assert!(format!("{none:#}").contains("has no build profiles"));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let with_files = "source = \"it.wasm\"\nfiles = [\"a\"]";
        for (from, to, error) in [
            ("= 2", "= 1", "spin_manifest_version must be 2"),
            (r#"= "it""#, r#"= "other""#, "no [component.other]"),
            ("{{ url }}/", "{{ u }}/", "names `u`, which is not in [vari"),
            ("url = {", "URL = {", "only lower-case letters"),
            ("default =", "description =", "needs either a default or"),
            (r#""/...""#, r#""/:id""#, "no named segments"),
            (r#""it.wasm""#, r#"{ url = "https://a/it.wasm" }"#, "source"),
            (r#"source = "it.wasm""#, with_files, "files"),
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
            let parsed = Route::parse(route).unwrap();
            assert_eq!(parsed.matches(path), matches, "{route} {path}");
        }
    }
}
