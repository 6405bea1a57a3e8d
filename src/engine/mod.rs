//! The protocols: one a file. Lock order: registry < checkpoint < writer < sync.

pub mod check;
pub mod checkpoint;
pub mod clean;
pub mod commit;
pub mod compact;
pub mod create;
pub mod extents;
pub mod keeper;
pub mod lock;
pub mod open;
pub mod recover;
pub mod room;
pub mod sync;
pub mod takeover;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::control::{Core, Word};
use crate::engine::keeper::Keeper;
use crate::engine::lock::Writer;
use crate::error::{Error, Result};
use crate::fault;
use crate::options::WriterLock;
use crate::sys::fork;

/// One open store in this process, shared by all its handles.
pub struct Engine {
    /// Disk, map, shared words.
    pub core: Core,
    /// The writer of this process: outer half of the writer lock, and the memory of its batches.
    writer: Mutex<Writer>,
    /// The flush leader of this process.
    sync: Mutex<()>,
    /// The checkpointer of this process.
    checkpoint: Mutex<()>,
    /// A checkpoint that runs beside the commits.
    background: Mutex<Option<JoinHandle<()>>>,
    /// The last checkpoint found holes beside index pages without space.
    unbacked: AtomicBool,
    /// The thread that gives the writer lock back when it is idle.
    keeper: Keeper,
    settings: Settings,
    /// Forks before this handle was made.
    fork_generation: u64,
    this: Weak<Engine>,
}

/// What the first opener in this process asked for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of log that begin a checkpoint; none: in proportion to the index.
    pub checkpoint_bytes: Option<u64>,
    /// How long to wait for locks.
    pub lock_timeout: Duration,
    /// How long the writer lock is kept.
    pub writer_lock: WriterLock,
    /// Share of the log that may be dead before commits clean.
    pub max_dead_ratio: f64,
    /// Bytes that a small store may be longer than what lives in it.
    pub slack: u64,
}

impl Engine {
    /// The engine of an open store.
    pub fn new(core: Core, settings: Settings) -> Arc<Engine> {
        Arc::new_cyclic(|this| Engine {
            core,
            writer: Mutex::default(),
            sync: Mutex::default(),
            checkpoint: Mutex::default(),
            background: Mutex::default(),
            unbacked: AtomicBool::new(false),
            keeper: Keeper::default(),
            settings,
            fork_generation: fork::generation(),
            this: this.clone(),
        })
    }

    /// Every public call begins here: a handle from before a fork is the parent's.
    #[inline]
    pub fn check_fork(&self) -> Result<()> {
        if self.is_forked() {
            return Err(Error::Forked { path: self.core.path.clone() });
        }
        Ok(())
    }

    /// Whether this is a forked child that has inherited the handle; or a test's process that is dead.
    #[inline]
    pub fn is_forked(&self) -> bool {
        fork::generation() != self.fork_generation || fault::is_over()
    }

    /// Bytes of log that a recovery would replay.
    pub fn log_since_checkpoint(&self) -> u64 {
        let (_, ends) = self.core.ends();
        ends.log_total.saturating_sub(self.core.get(Word::CheckpointLog))
    }
}
