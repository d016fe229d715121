//! What the documents name exists: tests, files, variables.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llmchat::error::{Code, RefusalCode};
use strum::VariantArray as _;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Each text between `open` and `close`.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .filter_map(move |rest| Some(rest.split_once(close)?.0))
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let guarantees = read("docs/guarantees.md");
    let named: Vec<_> = guarantees
        .split('`')
        .filter_map(|quoted| quoted.rsplit_once("::"))
        .collect();
    assert!(named.len() > 40, "{} tests named", named.len());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/tests/e2e");
    for (module, test) in named {
        // A file, or a module in one.
        let file = |module: &str| folder.join(module.replace("::", "/")).with_extension("rs");
        let inner = module.rsplit_once("::").filter(|_| !file(module).exists());
        let source = fs::read_to_string(file(inner.map_or(module, |(outer, _)| outer))).unwrap();
        let tests = match inner {
            Some((_, inner)) => source.split(&format!("mod {inner} {{")).nth(1),
            None => Some(&*source),
        };
        let is_there = tests.is_some_and(|it| it.contains(&format!("async fn {test}(")));
        assert!(is_there, "{module}::{test}");
    }
}

#[test]
fn every_row_of_the_guarantees_names_its_test() {
    for row in read("docs/guarantees.md")
        .lines()
        .filter(|line| line.starts_with('|'))
    {
        let heads = ["| moment", "| page", "| request", "| ---"];
        let is_head = heads.iter().any(|head| row.starts_with(head));
        assert!(is_head || row.contains("::"), "{row}");
    }
}

/// A heading's name in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches(['#', ' ']).to_lowercase();
    let kept = kept.replace(|c: char| !c.is_alphanumeric() && !"- ".contains(c), "");
    kept.replace(' ', "-")
}

#[test]
fn every_link_leads_to_a_file_or_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in [
        "README.md",
        "docs/api.md",
        "docs/guarantees.md",
        "deploy/akamai/README.md",
        "deploy/container/README.md",
        "deploy/spinkube/README.md",
    ] {
        let text = read(document);
        for target in between(&text, "](", ")").filter(|target| !target.starts_with("http")) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => root.join(document),
                path => root.join(document).with_file_name(path),
            };
            assert!(file.exists(), "{document} links to {target}");
            if !heading.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let leads = headings.any(|line| anchor(line) == heading);
                assert!(leads, "{document} links to {target}");
            }
        }
    }
}

#[test]
fn the_readme_lists_every_variable_with_its_default() {
    let manifest = read("spin.toml");
    let readme = read("README.md");
    for section in manifest.split("[variables.").skip(1) {
        let name = section.split_once(']').unwrap().0;
        let default = between(section, "default = \"", "\"").next().unwrap();
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}`")))
            .unwrap_or_else(|| panic!("the README does not list {name}"));
        let shown = match default {
            "" => "empty".to_owned(),
            default => format!("`{default}`"),
        };
        assert!(row.contains(&shown), "{name} is {shown} by default: {row}");
    }
}

#[test]
fn the_page_of_the_interface_lists_every_code() {
    let page = read("docs/api.md");
    let table = between(&page, "| `code` | |", "\n\n").next().unwrap();
    let cells = table.lines().filter_map(|row| row.split('|').nth(1));
    let listed: BTreeSet<_> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let codes = Code::VARIANTS.iter().map(|code| code.as_str());
    assert_eq!(listed, codes.collect());
}

#[test]
fn the_page_of_the_interface_lists_every_refusal_with_its_status() {
    let page = read("docs/api.md");
    let table = between(&page, "| status | refusal |", "\n\n")
        .next()
        .unwrap();
    let quoted = |cell: &str| -> BTreeSet<String> {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let mut listed = BTreeSet::new();
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(quoted).collect();
        let codes = RefusalCode::VARIANTS
            .iter()
            .filter(|code| cells[2].contains(code.as_str()));
        let statuses: BTreeSet<_> = codes
            .map(|code| code.status().as_str().to_owned())
            .collect();
        assert_eq!(cells[1], statuses, "{row}");
        listed.extend(cells[2].clone());
    }
    let codes = RefusalCode::VARIANTS
        .iter()
        .map(|code| code.as_str().to_owned());
    assert_eq!(listed, codes.collect());
}
