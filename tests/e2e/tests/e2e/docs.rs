//! `docs/api.md` tells the truth: its commands run as they stand, one after the other in one shell, and print what it
//! shows.
//!
//! A `text` block is what the `sh` block before it prints; one without prints nothing. On the page `…` is any text, or,
//! alone in a line, any lines. An id, the short form of an attempt, and a time stand for others, the same for
//! the same everywhere.

use std::collections::HashMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use llmchat_testkit::{Backend, TestApp, on_both_stores};
use ollama_stand_in::{Config, Server};
use regex_lite::{Regex, escape};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
/// The page's first block, but for the tokens per second in between.
const START: [&str; 2] = [
    "cargo run -- --stand-in --stand-in-rate ",
    " --state-dir \"$(mktemp -d)\"",
];
/// Where the page has it listen.
const ADDRESS: &str = "127.0.0.1:3000";

const UUID: &str = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
const TIME: &str = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z";
const ATTEMPT: &str = r"\b[0-9a-f]{8}\b";

on_both_stores! {
    async fn the_commands_of_the_page_print_what_it_shows(backend: Backend) -> Result<()> {
        let page = fs::read_to_string(PAGE)?;
        let mut blocks = blocks(&page)?;
        let (start, _) = blocks.remove(0);
        let rate = start.strip_prefix(START[0]).and_then(|rest| rest.strip_suffix(START[1]));
        let rate: f64 = rate.context("the first block is another command")?.parse()?;
        ensure!(blocks.len() > 10, "{} blocks", blocks.len());

        let ollama = Server::start(Config { rate: Some(rate), ..Config::default() }).await?;
        let app = TestApp::with(backend, "ollama_url", ollama.url()).await?;
        let commands: Vec<_> = blocks.iter().map(|(commands, _)| *commands).collect();
        let printed = run(&commands, &app.address().to_string()).await?;
        let mut known = Known::default();
        for ((commands, shown), printed) in blocks.into_iter().zip(printed) {
            known.check(shown, &printed).with_context(|| {
                format!("{commands}\nis to print\n\n{shown}\nand printed\n\n{printed}")
            })?;
        }
        Ok(())
    }
}

/// The page's `sh` blocks, each with what it is to print.
fn blocks(page: &str) -> Result<Vec<(&str, &str)>> {
    let mut blocks = Vec::new();
    for block in page.split("\n```").skip(1).step_by(2) {
        match block.split_once('\n') {
            Some(("sh", commands)) => blocks.push((commands, "")),
            Some(("text", shown)) => match blocks.last_mut() {
                Some((_, nothing @ "")) => *nothing = shown,
                _ => bail!("no command prints this:\n{shown}"),
            },
            _ => {}
        }
    }
    Ok(blocks)
}

/// Runs the blocks in one shell; returns what each printed.
async fn run(blocks: &[&str], address: &str) -> Result<Vec<String>> {
    let directory = TempDir::with_prefix("llmchat-docs-")?;
    let file = |number: usize| directory.path().join(format!("printed-{number}"));
    let script = blocks.iter().enumerate().map(|(number, commands)| {
        let commands = commands.replace(ADDRESS, address);
        format!("{{\n{commands}\n}} >{} 2>&1\n", file(number).display())
    });
    let mut shell = Command::new("bash");
    shell
        .arg("-c")
        .arg(script.collect::<String>())
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = timeout(Duration::from_secs(180), shell.status()).await;
    ended.context("the commands did not end")??;
    let read = |number| Ok(fs::read_to_string(file(number))?);
    (0..blocks.len()).map(read).collect()
}

/// What the ids and times of the page stand for.
#[derive(Default)]
struct Known(HashMap<String, String>);

impl Known {
    /// Compares a block with what was printed, and learns what its ids and times stand for.
    fn check(&mut self, shown: &str, printed: &str) -> Result<()> {
        let (pattern, unknown) = self.pattern(shown)?;
        let printed = lines(printed).concat();
        let found = pattern.captures(&printed);
        let found = found.context("docs/api.md shows something else than its commands print")?;
        for (name, value) in unknown.iter().zip(found.iter().skip(1)) {
            let value = value.context("no value")?.as_str();
            self.learn(name, value)?;
            // An attempt, whose short form is in the ids of events.
            if name.len() == 36 && name.get(14..15) == Some("4") {
                let short = |id: &str| id.get(..8).map(str::to_owned).unwrap_or_default();
                self.learn(&short(name), &short(value))?;
            }
        }
        Ok(())
    }

    fn learn(&mut self, name: &str, value: &str) -> Result<()> {
        if !name.contains(':') {
            let mut others = self.0.iter().filter(|(other, _)| *other != name);
            if let Some((other, _)) = others.find(|(_, known)| *known == value) {
                bail!("{name} and {other} are both {value}");
            }
        }
        let known = self.0.entry(name.to_owned()).or_insert(value.to_owned());
        ensure!(known == value, "{name} was {known} before, and is {value}");
        Ok(())
    }

    /// What the block must match, and what its groups stand for.
    fn pattern(&self, shown: &str) -> Result<(Regex, Vec<String>)> {
        let wild = Regex::new(&format!("{UUID}|{TIME}|{ATTEMPT}|…"))?;
        let mut pattern = String::from(r"\A");
        let mut unknown = Vec::new();
        for line in lines(shown) {
            if line == "…\n" {
                pattern.push_str(r"(?:.*\n)*?");
                continue;
            }
            let mut at = 0;
            for found in wild.find_iter(&line) {
                pattern.push_str(&escape(line.get(at..found.start()).unwrap_or_default()));
                at = found.end();
                let name = found.as_str();
                match (name, self.0.get(name)) {
                    ("…", _) => pattern.push_str(".*"),
                    (_, Some(value)) => pattern.push_str(&escape(value)),
                    (_, None) => {
                        let kind = match name.len() {
                            36 => UUID,
                            8 => ATTEMPT,
                            _ => TIME,
                        };
                        pattern.push_str(&format!("({kind})"));
                        unknown.push(name.to_owned());
                    }
                }
            }
            pattern.push_str(&escape(line.get(at..).unwrap_or_default()));
        }
        pattern.push_str(r"\z");
        Ok((Regex::new(&pattern)?, unknown))
    }
}

/// The lines of a text, without the space at their ends, and without empty lines at its end.
fn lines(text: &str) -> Vec<String> {
    let lines = text.trim_end().lines();
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}
