//! Spin's SDK, of the version that this build is for: all other modules name it by way of this one.
//!
//! SDK 7 has WASI 0.3.0, which Spin 4.1 was the first to run. SDK 6 has its release candidate of 2026-03-15, which
//! Spin 4.0 runs, and 4.1 too. The two differ in nothing that is used here.

#[cfg(all(feature = "sqlite", not(feature = "spin-4-0")))]
pub(crate) use spin_sdk::sqlite;
#[cfg(not(feature = "spin-4-0"))]
pub(crate) use spin_sdk::{pg, variables, wasip3, wit_bindgen};
#[cfg(all(feature = "sqlite", feature = "spin-4-0"))]
pub(crate) use spin_sdk_6::sqlite;
#[cfg(feature = "spin-4-0")]
pub(crate) use spin_sdk_6::{pg, variables, wasip3, wit_bindgen};
