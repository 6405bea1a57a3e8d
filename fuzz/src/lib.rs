//! The targets, which `tests/fuzz/` has, so that an ordinary `cargo test` replays what was found with the same code.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/common/mod.rs"]
pub mod common;
#[path = "../../tests/fuzz/targets.rs"]
pub mod targets;
