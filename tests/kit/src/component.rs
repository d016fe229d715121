//! The component under test, built by its manifest's command.

use std::path::Path;

use anyhow::Result;
use llmchat_host::{Manifest, Program};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// The build that `LLMCHAT_PROFILE` names, such as `spin-4-0`; without it the default build.
pub(crate) fn profile() -> Option<String> {
    let profile = std::env::var("LLMCHAT_PROFILE").ok();
    profile.filter(|name| !name.is_empty())
}

/// Which manifest is tested.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Platform {
    Spin,
    Akamai,
}

impl Platform {
    /// The manifest, whose component has been built once for all tests.
    pub(crate) async fn manifest(self) -> Result<&'static Manifest> {
        static SPIN: OnceCell<Manifest> = OnceCell::const_new();
        static AKAMAI: OnceCell<Manifest> = OnceCell::const_new();
        let (cell, path, profile) = match self {
            Self::Spin => (&SPIN, "spin.toml", profile()),
            Self::Akamai => (&AKAMAI, "deploy/akamai/spin.toml", None),
        };
        let load = || async {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            let manifest = Manifest::load_profile(root.join(path), profile.as_deref())?;
            spawn_blocking(move || manifest.build().map(|()| manifest)).await?
        };
        cell.get_or_try_init(load).await
    }

    /// The component, compiled once for all tests.
    pub(crate) async fn program(self) -> Result<&'static Program> {
        static SPIN: OnceCell<Program> = OnceCell::const_new();
        static AKAMAI: OnceCell<Program> = OnceCell::const_new();
        let cell = match self {
            Self::Spin => &SPIN,
            Self::Akamai => &AKAMAI,
        };
        let load = || async {
            let manifest = self.manifest().await?;
            spawn_blocking(move || Program::load(manifest)).await?
        };
        cell.get_or_try_init(load).await
    }
}
