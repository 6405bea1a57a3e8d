//! The keeper: a thread that gives the writer lock back when the process that keeps it is idle or somebody wants it,
//! and meanwhile brings the next segment into memory.
//!
//! The committer leaves the file lock taken after an Eventual commit. All that can be done with it happens under the
//! mutex of the process, so the keeper never meets a commit half-way. It starts with the first lock that is kept, and
//! ends on close.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::control::Word;
use crate::engine::Engine;
use crate::sys::futex;

/// The lock is kept for so long without a commit.
const IDLE: Duration = Duration::from_millis(2);

/// The thread and what it waits for.
#[derive(Default)]
pub struct Keeper {
    thread: Mutex<Option<JoinHandle<()>>>,
    /// There is a lock to look after; or the store closes.
    busy: AtomicBool,
    closing: AtomicBool,
    /// A segment was opened, so another one will be.
    ahead: AtomicBool,
    asleep: Mutex<()>,
    wake: Condvar,
}

impl Engine {
    /// Makes sure that somebody will give the lock back; false if there is no thread for it.
    pub fn start_keeper(&self) -> bool {
        let keeper = &self.keeper;
        if keeper.busy.load(Ordering::Relaxed) {
            return true;
        }
        let mut thread = keeper.thread.lock();
        if keeper.closing.load(Ordering::Relaxed) {
            return false;
        }
        keeper.busy.store(true, Ordering::Relaxed);
        if thread.is_some() {
            let _asleep = keeper.asleep.lock();
            keeper.wake.notify_one();
            return true;
        }
        let Some(engine) = self.this.upgrade() else { return false };
        let spawned = std::thread::Builder::new().name("slotdb-keeper".into()).spawn(move || engine.keep());
        *thread = spawned.inspect_err(|e| log::warn!("no thread to keep the writer lock: {e}")).ok();
        keeper.busy.store(thread.is_some(), Ordering::Relaxed);
        thread.is_some()
    }

    /// Gives a kept lock back and ends the thread.
    pub fn stop_keeper(&self) {
        let keeper = &self.keeper;
        let thread = {
            let mut thread = keeper.thread.lock();
            keeper.closing.store(true, Ordering::Relaxed);
            let _asleep = keeper.asleep.lock();
            keeper.wake.notify_one();
            thread.take()
        };
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("{}: the keeper thread panicked", self.core.path.display());
        }
        let mut writer = self.writer.lock();
        if writer.kept {
            self.release_flock(&mut writer);
        }
    }

    /// A segment was opened: the next one is brought into memory before it is needed, since the first access to so much
    /// takes the kernel half a millisecond and more.
    pub fn look_ahead(&self) {
        self.keeper.ahead.store(true, Ordering::Relaxed);
    }

    fn keep(&self) {
        let keeper = &self.keeper;
        while !keeper.closing.load(Ordering::Relaxed) {
            if keeper.busy.load(Ordering::Relaxed) {
                self.watch();
                if keeper.ahead.swap(false, Ordering::Relaxed) {
                    self.core.populate_next();
                }
                continue;
            }
            let mut asleep = keeper.asleep.lock();
            if !keeper.busy.load(Ordering::Relaxed) && !keeper.closing.load(Ordering::Relaxed) {
                keeper.wake.wait(&mut asleep);
            }
        }
    }

    /// One look at a kept lock, after a nap that ends early when somebody wants it.
    fn watch(&self) {
        let wanted = self.core.word(Word::WriterWanted);
        let seen = self.core.get(Word::WriterWanted);
        let commits = self.writer.lock().commits;
        if self.core.get(Word::WriterWaiting) == 0 {
            futex::wait(wanted, seen, IDLE);
        }
        let mut writer = self.writer.lock();
        let idle = writer.commits == commits;
        if writer.kept && (idle || self.core.get(Word::WriterWaiting) != 0) {
            self.release_flock(&mut writer);
        }
        if !writer.kept {
            // Under the writer's mutex, so that the next one to keep the lock sees it.
            self.keeper.busy.store(false, Ordering::Relaxed);
        }
    }
}
