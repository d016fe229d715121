//! Spin in place of our host: `LLMCHAT_SPIN` is the path of its program.

use std::ffi::OsString;

use anyhow::{Error, anyhow};

/// The program, if the tests are to run on Spin.
pub(crate) fn program() -> Option<OsString> {
    std::env::var_os("LLMCHAT_SPIN")
}

/// What a test is told that needs more of its host than Spin has.
pub(crate) fn has_no(what: &str) -> Error {
    anyhow!(
        "Spin has no {what}: such a test belongs below `native::`, and is left out with `--skip native::`"
    )
}
