//! The writer lock: a mutex in the process, then `flock` between processes. Whoever gets it finishes first what a dead
//! writer left behind.
//!
//! Waiters try again after short sleeps on a futex: a release wakes one of them, a death wakes nobody.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::log::append::Batch;
use crate::sys::lock::Mode;
use crate::sys::{futex, host};

/// Longest sleep between two tries: nobody tells of a death.
const NAP: Duration = Duration::from_millis(5);
/// Tries before the first sleep.
const SPINS: u32 = 20;

/// The writer lock, held.
pub struct WriterGuard<'a> {
    engine: &'a Engine,
    /// Memory for this writer's batch.
    pub batch: MutexGuard<'a, Batch>,
}

impl Engine {
    /// Takes the writer lock and brings the state in order: a dead writer's batch is finished or dropped.
    pub fn lock_writer(&self) -> Result<WriterGuard<'_>> {
        let core = &self.core;
        if !core.writable {
            return Err(Error::ReadOnly { path: core.path.clone() });
        }
        let deadline = Deadline::new(self.settings.lock_timeout);
        let Some(batch) = self.writer.try_lock_until(deadline.end) else {
            return Err(deadline.error(core, "writer lock"));
        };
        self.flock(&deadline)?;
        let mut guard = WriterGuard { engine: self, batch };
        guard.batch.clear();
        core.set(Word::HolderSince, host::coarse_now());
        core.set(Word::Holder, core.me());
        core.check_poison()?;
        if core.get(Word::WriterActive) != 0 {
            self.take_over()?;
        }
        Ok(guard)
    }

    fn flock(&self, deadline: &Deadline) -> Result<()> {
        let core = &self.core;
        let failed = |e| core.io("flock", None, e);
        let mut tries = 0;
        loop {
            if core.locks.try_flock().map_err(failed)? {
                if tries > SPINS {
                    // Others may sleep beside us: the release must wake one.
                    core.set(Word::WriterWaiting, 1);
                }
                return Ok(());
            }
            if deadline.is_past() {
                return Err(deadline.error(core, "writer lock"));
            }
            tries += 1;
            if tries <= SPINS {
                std::hint::spin_loop();
                continue;
            }
            let seen = core.get(Word::WriterWake);
            core.set(Word::WriterWaiting, 1);
            if core.locks.try_flock().map_err(failed)? {
                return Ok(());
            }
            futex::wait(core.word(Word::WriterWake), seen, NAP.min(deadline.left()));
        }
    }

    fn unlock_writer(&self) {
        let core = &self.core;
        core.set(Word::Holder, 0);
        if let Err(e) = core.locks.unlock_flock() {
            log::error!("{}: the writer lock could not be released: {e}", core.path.display());
        }
        if core.get(Word::WriterWaiting) != 0 {
            core.set(Word::WriterWaiting, 0);
            let wake = core.word(Word::WriterWake);
            // AcqRel: a waiter that saw the old count finds the lock free.
            wake.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            futex::wake_one(wake);
        }
    }
}

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        if !self.engine.is_forked() {
            self.engine.unlock_writer();
        }
    }
}

/// The end of a wait.
pub struct Deadline {
    start: Instant,
    end: Instant,
}

impl Deadline {
    /// A wait that begins now.
    pub fn new(timeout: Duration) -> Deadline {
        let start = Instant::now();
        // A century is as good as for ever, and no clock overflows.
        let end = start + timeout.min(Duration::from_secs(100 * 365 * 86400));
        Deadline { start, end }
    }

    /// When it ends.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// Whether it is over.
    pub fn is_past(&self) -> bool {
        Instant::now() >= self.end
    }

    /// How long it has been.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The error of a wait in vain, which names the holder.
    pub fn error(&self, core: &Core, what: &'static str) -> Error {
        let holder = if what == "writer lock" { core.holder() } else { None };
        Error::Timeout { path: core.path.clone(), what, waited: self.elapsed(), holder }
    }
}

/// Takes a byte lock with tries until the deadline; false if that passed.
pub fn wait_for_byte(core: &Core, byte: u64, mode: Mode, deadline: &Deadline) -> Result<bool> {
    let mut nap = Duration::from_micros(50);
    loop {
        if core.locks.try_byte(byte, mode).map_err(|e| core.io("lock", None, e))? {
            return Ok(true);
        }
        if deadline.is_past() {
            return Ok(false);
        }
        std::thread::sleep(nap.min(deadline.left()));
        nap = (nap * 2).min(NAP);
    }
}
