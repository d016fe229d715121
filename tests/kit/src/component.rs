//! The component under test, built by its manifest's command, and that of the previous release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use llmchat_host::{Manifest, Program};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// The build that `LLMCHAT_PROFILE` names, such as `spin-4-0`; without it the default build.
pub(crate) fn profile() -> Option<String> {
    let profile = std::env::var("LLMCHAT_PROFILE").ok();
    profile.filter(|name| !name.is_empty())
}

/// The commit of the previous release, which may run beside this one on one database while that is being deployed. It
/// is built from the repository's history rather than kept as a binary or as statements copied from it: what runs is
/// what was released, its migrations and retries included.
const PREVIOUS: &str = "727934fb2ee853b7055ecfa6227f19755669b4f7";

/// Which manifest is tested.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Platform {
    Spin,
    Akamai,
    Previous,
}

impl Platform {
    /// The manifest, whose component has been built once for all tests.
    pub(crate) async fn manifest(self) -> Result<&'static Manifest> {
        static SPIN: OnceCell<Manifest> = OnceCell::const_new();
        static AKAMAI: OnceCell<Manifest> = OnceCell::const_new();
        static PREVIOUS: OnceCell<Manifest> = OnceCell::const_new();
        let (cell, path, profile) = match self {
            Self::Spin => (&SPIN, "spin.toml", profile()),
            Self::Akamai => (&AKAMAI, "deploy/akamai/spin.toml", None),
            Self::Previous => (&PREVIOUS, "spin.toml", None),
        };
        let load = || async {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            spawn_blocking(move || {
                let root = match self {
                    Self::Previous => previous(&root)?,
                    Self::Spin | Self::Akamai => root,
                };
                let manifest = Manifest::load_profile(root.join(path), profile.as_deref())?;
                manifest.build().map(|()| manifest)
            })
            .await?
        };
        cell.get_or_try_init(load).await
    }

    /// The component, compiled once for all tests.
    pub(crate) async fn program(self) -> Result<&'static Program> {
        static SPIN: OnceCell<Program> = OnceCell::const_new();
        static AKAMAI: OnceCell<Program> = OnceCell::const_new();
        static PREVIOUS: OnceCell<Program> = OnceCell::const_new();
        let cell = match self {
            Self::Spin => &SPIN,
            Self::Akamai => &AKAMAI,
            Self::Previous => &PREVIOUS,
        };
        let load = || async {
            let manifest = self.manifest().await?;
            spawn_blocking(move || Program::load(manifest)).await?
        };
        cell.get_or_try_init(load).await
    }
}

/// Whether this clone has the previous release: a shallow one, or a copy of the files alone, has not.
pub(crate) fn has_previous() -> bool {
    let found = Command::new("git")
        .args(["cat-file", "-e", &format!("{PREVIOUS}^{{commit}}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

/// The files of the previous release. They stay, and with them what was built from them.
fn previous(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/previous").join(PREVIOUS);
    if folder.exists() {
        return Ok(folder);
    }
    let partly = folder.with_extension("partly");
    fs::create_dir_all(&partly)?;
    let mut archive = Command::new("git")
        .args(["archive", PREVIOUS])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run git")?;
    let files = archive.stdout.take().context("git without an output")?;
    let unpacked = Command::new("tar")
        .args(["-x", "-C"])
        .arg(&partly)
        .stdin(files)
        .status()
        .context("cannot run tar")?;
    ensure!(
        archive.wait()?.success() && unpacked.success(),
        "cannot unpack the previous release, {PREVIOUS}"
    );
    fs::rename(&partly, &folder)?;
    Ok(folder)
}
