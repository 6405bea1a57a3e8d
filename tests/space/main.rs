//! Space: what is deleted or overwritten goes back, to the store and to the file system, and nothing else does.
//!
//! Stores of tiny extents, so that checkpoints, cleaning, holes and cuts come often. `SLOTDB_ROUNDS` makes the random
//! histories longer, `SLOTDB_SEED` replays one.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

mod blocks;
mod bounds;
mod compaction;
mod full;
mod ledger;
mod table;
