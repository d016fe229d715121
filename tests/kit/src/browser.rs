//! A page in headless Chromium: no driver, real sockets. The page's script tells the test what it saw by a request to
//! its own server, a [`Site`].

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::Site;
use crate::kept::{self, Kept};

/// A start on a busy machine, and all requests of a page.
const LONG: Duration = Duration::from_secs(60);

/// A browser with one page, gone when dropped.
#[derive(Debug)]
pub struct Browser {
    site: Site,
    log: PathBuf,
    _chromium: Kept,
    _profile: TempDir,
}

impl Browser {
    /// Whether there is one; it is said where there is none, and that a test is left out for it.
    pub fn is_installed() -> bool {
        let is_installed = kept::find("chromium").is_some();
        if !is_installed {
            eprintln!("LEFT OUT: there is no Chromium; `sudo apt-get install chromium` brings it");
        }
        is_installed
    }

    /// Opens the page of `site` under `origin`, one of [`Site::origin`]. Its script finds `given` under that name, and
    /// calls `tell(…)`.
    pub fn open(site: Site, origin: &str, script: &str, given: &Value) -> Result<Self> {
        let chromium = kept::find("chromium").context("Chromium is not installed")?;
        site.show(script, given);
        let profile = TempDir::with_prefix("llmchat-chromium-")?;
        let log = profile.path().join("log");
        let mut arguments = vec![
            "--headless=new".to_owned(),
            // It needs a sandbox that containers and root have not; the pages are ours.
            "--no-sandbox".to_owned(),
            // Containers have little of /dev/shm.
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-background-networking".to_owned(),
            // Tests make their own.
            "--ignore-certificate-errors".to_owned(),
            "--no-first-run".to_owned(),
            // Nothing leaves this machine.
            format!(
                "--host-resolver-rules=MAP *.example {}, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
                Ipv4Addr::LOCALHOST
            ),
        ];
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        arguments.push(format!("{origin}{}", Site::PAGE));
        let chromium = Kept::start(&chromium, &arguments, profile.path(), &log)?;
        Ok(Self {
            site,
            log,
            _chromium: chromium,
            _profile: profile,
        })
    }

    /// What the page tells next; an error if its script failed.
    pub async fn told(&mut self) -> Result<Value> {
        let Ok(told) = timeout(LONG, self.site.told()).await else {
            let log = fs::read_to_string(&self.log)?;
            return Err(anyhow!("the page tells nothing; Chromium wrote:\n{log}"));
        };
        let told = told?;
        if let Some(error) = told.get("thrown") {
            bail!("the page's script failed: {error}");
        }
        Ok(told)
    }
}
