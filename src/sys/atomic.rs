//! The cells that processes share, and the fence between them.
//!
//! They are the standard library's, except under `--cfg loom`, where every operation of a run goes to a model of weak
//! memory instead.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, fence};

#[cfg(loom)]
pub mod model;
#[cfg(loom)]
pub use model::{AtomicU64, fence};
