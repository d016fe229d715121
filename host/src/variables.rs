//! Variables: the manifest's `{{ templates }}`, what overrides their defaults, and
//! `spin:variables` for the component.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use wasmtime::component::{Accessor, HasData};

use crate::component::bindings::spin::variables::variables;
use crate::instance::Instance;
use crate::manifest::Manifest;

/// Text with `{{ name }}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

impl Template {
    /// Splits `text` into literal parts and names.
    pub fn parse(text: &str) -> Result<Self> {
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
        Ok(Self(parts))
    }

    /// Whether no variable occurs in it.
    pub fn is_literal(&self) -> bool {
        self.names().next().is_none()
    }

    /// The variables that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Variable(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    fn fill(&self, values: &BTreeMap<String, String>) -> Result<String> {
        self.0.iter().try_fold(String::new(), |text, part| {
            Ok(text
                + match part {
                    Part::Text(part) => part,
                    Part::Variable(name) => values
                        .get(name)
                        .with_context(|| format!("unknown variable `{name}`"))?,
                })
        })
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Variable(name) => write!(f, "{{{{ {name} }}}}"),
        })
    }
}

/// The environment variable that Spin, and this host, reads for a variable.
pub fn environment_name(name: &str) -> String {
    format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase())
}

/// Lower-case letters, digits and single underscores, as Spin has it.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if !name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    {
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

/// The values in force: the application's variables, and the component's view of them.
pub struct Variables {
    application: BTreeMap<String, String>,
    component: BTreeMap<String, String>,
}

// A `Debug` that showed values would show passwords.
impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.application.keys())
            .finish_non_exhaustive()
    }
}

impl Variables {
    /// Defaults from the manifest, overridden by `overrides`.
    pub fn resolve(manifest: &Manifest, overrides: &BTreeMap<String, String>) -> Result<Self> {
        for name in overrides.keys() {
            check_name(name)?;
            ensure!(
                manifest.variables().contains_key(name),
                "no variable `{name}` in the manifest; it has: {}",
                manifest
                    .variables()
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            );
        }
        let application = manifest
            .variables()
            .iter()
            .map(|(name, variable)| {
                let value = overrides
                    .get(name)
                    .or(variable.default.as_ref())
                    .with_context(|| {
                        format!(
                            "variable `{name}` is required: set {}",
                            environment_name(name)
                        )
                    })?;
                Ok((name.clone(), value.clone()))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let component = manifest
            .component_variables()
            .iter()
            .map(|(name, template)| {
                let value = template.fill(&application);
                Ok((
                    name.clone(),
                    value.with_context(|| format!("in variable `{name}`"))?,
                ))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
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

/// `spin:variables` on an instance.
pub(crate) struct SpinVariables;

impl HasData for SpinVariables {
    type Data<'a> = &'a mut Instance;
}

impl variables::Host for &mut Instance {}

impl<T: Send> variables::HostWithStore<T> for SpinVariables {
    async fn get(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, variables::Error>> {
        if let Err(error) = check_name(&name) {
            return Ok(Err(variables::Error::InvalidName(error.to_string())));
        }
        Ok(accessor.with(|mut access| {
            let values = &access.get().services.variables.component;
            values.get(&name).cloned().ok_or_else(|| {
                variables::Error::Undefined(format!("the component has no variable {name:?}"))
            })
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
