//! Variables: the manifest's `{{ templates }}`, the values that override defaults, and
//! `spin:variables` for the component.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use wasmtime::component::Accessor;

use crate::component::bindings::spin::variables::variables;
use crate::instance::{Instance, Spin, services};
use crate::manifest::Manifest;

/// Text with `{{ name }}` in it.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Variable(String),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (name, tail) = after
                .split_once("}}")
                .with_context(|| format!("`{{{{` without `}}}}` in {text:?}"))?;
            parts.push(Part::Variable(name.trim().to_owned()));
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }

    pub(crate) fn is_literal(&self) -> bool {
        self.names().next().is_none()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    fn fill(&self, values: &BTreeMap<String, String>) -> Result<String> {
        let filled = self.parts.iter().map(|part| match part {
            Part::Text(text) => Ok(text.as_str()),
            Part::Variable(name) => values
                .get(name)
                .map(String::as_str)
                .with_context(|| format!("unknown variable `{name}`")),
        });
        filled.collect()
    }
}

/// The environment variable from which Spin, and this host, reads a variable.
pub fn environment_name(name: &str) -> String {
    format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase())
}

/// Lower-case letters, digits and single underscores, as in Spin.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let reason = if name.is_empty() {
        "it is empty"
    } else if !name.chars().all(is_allowed) {
        "only lower-case letters, digits and underscores are allowed"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it must start with a letter"
    } else if name.ends_with('_') || name.contains("__") {
        "an underscore must stand between two other characters"
    } else {
        return Ok(());
    };
    bail!("{name:?} is no variable name: {reason}")
}

/// The values of one run.
pub struct Variables {
    application: BTreeMap<String, String>,
    component: BTreeMap<String, String>,
}

impl Variables {
    /// Takes `overrides`, then the manifest's defaults. An override that the manifest does not
    /// declare, and a required variable without a value, are errors.
    pub fn resolve(manifest: &Manifest, overrides: &BTreeMap<String, String>) -> Result<Self> {
        let declared = manifest.variables();
        for name in overrides.keys() {
            check_name(name)?;
            ensure!(
                declared.contains_key(name),
                "no variable `{name}` in the manifest; it has: {}",
                Vec::from_iter(declared.keys().map(String::as_str)).join(", "),
            );
        }
        let application = declared.iter().map(|(name, default)| {
            let value = overrides.get(name).or(default.as_ref());
            let value = value.with_context(|| {
                let environment = environment_name(name);
                format!("variable `{name}` is required: set {environment}")
            })?;
            Ok((name.clone(), value.clone()))
        });
        let application = application.collect::<Result<_>>()?;
        let component = manifest.component_variables.iter().map(|(name, template)| {
            let value = template.fill(&application);
            let value = value.with_context(|| format!("in variable `{name}`"))?;
            Ok((name.clone(), value))
        });
        let component = component.collect::<Result<_>>()?;
        Ok(Self {
            application,
            component,
        })
    }

    /// The value of one of the application's variables.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.application.get(name).map(String::as_str)
    }

    pub(crate) fn fill(&self, template: &Template) -> Result<String> {
        template.fill(&self.application)
    }
}

impl variables::Host for &mut Instance {}

impl<T: Send> variables::HostWithStore<T> for Spin {
    async fn get(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, variables::Error>> {
        if let Err(error) = check_name(&name) {
            return Ok(Err(variables::Error::InvalidName(error.to_string())));
        }
        let values = &services(accessor).variables.component;
        Ok(values.get(&name).cloned().ok_or_else(|| {
            variables::Error::Undefined(format!("the component has no variable {name:?}"))
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_template_is_filled_from_the_variables() {
        let values = BTreeMap::from([
            ("host".to_owned(), "db".to_owned()),
            ("none".to_owned(), String::new()),
        ]);
        for (text, filled) in [
            ("", ""),
            ("plain", "plain"),
            ("{{ host }}", "db"),
            ("{{host}}:{{ none }}5432", "db:5432"),
            ("a } b", "a } b"),
        ] {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.fill(&values).unwrap(), filled, "{text}");
            assert_eq!(template.is_literal(), !text.contains("{{"), "{text}");
        }
        assert!(Template::parse("{{ host").is_err());
        let unknown = Template::parse("{{ hosts }}")
            .unwrap()
            .fill(&values)
            .unwrap_err();
        assert_eq!(unknown.to_string(), "unknown variable `hosts`");
    }

    #[test]
    fn names_are_those_that_spin_takes() {
        for good in ["a", "a1", "database_url", "a_1_b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "_a", "a_", "a__b", "a-b", "ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
