//! A memory-mapped, crash-safe key-value store in one file that many unrelated processes share.
//!
//! ```
//! # fn main() -> slotdb::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("store.slotdb");
//! let db = slotdb::Db::create(&path)?;
//! db.put(b"answer", b"42")?; // on the disk when it returns
//! assert_eq!(db.get(b"answer")?.as_deref(), Some(&b"42"[..]));
//!
//! let mut txn = db.begin_write()?; // all or nothing, one writer at a time
//! txn.put(b"a", b"1")?;
//! txn.delete(b"answer")?;
//! txn.commit()?;
//!
//! let snapshot = db.begin_read()?; // does not change, whatever others commit
//! for pair in snapshot.iter() {
//!     let (key, value) = pair?;
//!     println!("{key:?} = {value:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Any number of processes may have the store open. Readers take no lock and make no system call; writers wait for
//! each other; a process that is killed at any instant leaves nothing to repair. See `README.md` for the guarantees
//! and limits.
//!
//! # What to keep in mind
//!
//! - A thread has one write transaction of a store at a time, and calls [`Db::put`] and [`Db::delete`] outside of it:
//!   they would wait for it until [`Options::lock_timeout`].
//! - A snapshot keeps the space of all that is replaced while it lives. End it, and begin another one.
//! - A forked child opens the store anew; what it inherited answers [`Error::Forked`].
//! - [`Error::InDoubt`] does not mean "no": read what is there before trying again.
//! - Copy the file while nobody has it open; beside others, copy what a snapshot reads, as `kvctl dump` does.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod blobs;
mod control;
mod db;
mod engine;
mod error;
#[doc(hidden)]
pub mod fault;
mod folio;
mod format;
mod geometry;
mod growth;
mod guard;
mod index;
mod log;
mod options;
mod pages;
mod reach;
mod readers;
#[cfg(feature = "faults")]
#[doc(hidden)]
pub mod sim;
mod space;
mod stats;
#[allow(unsafe_code)]
mod sys;
mod txn;

#[cfg(all(test, loom))]
#[path = "../tests/order/mod.rs"]
mod order;

pub use db::Db;
pub use engine::check::{Checking, Fault};
pub use engine::compact::Compaction;
pub use error::{Error, Held, Holder, Result};
pub use options::{Durability, Options, WriterLock};
pub use stats::{PinInfo, ProcessInfo, Seqs, Stats};
pub use txn::read::ReadTxn;
pub use txn::scan::Iter;
pub use txn::write::WriteTxn;

/// Most bytes of a key.
pub const MAX_KEY: usize = 65_535;
/// Most bytes of a value.
pub const MAX_VALUE: u64 = u32::MAX as u64;
