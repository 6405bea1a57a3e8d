//! The writer lock: a mutex in the process, then `flock` between processes. Whoever gets it finishes first what a dead
//! writer left behind.
//!
//! Waiters try again after short sleeps on a futex: a release wakes them, a death wakes nobody. After an Eventual
//! commit the file lock may be kept (see `keeper`), so that a busy process does not ask the kernel for each commit.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::log::append::Batch;
use crate::options::WriterLock;
use crate::sys::atomic::AtomicU64;
use crate::sys::lock::Mode;
use crate::sys::{futex, host};

/// Longest sleep between two tries: nobody tells of a death.
const NAP: Duration = Duration::from_millis(5);
/// Tries before the first sleep.
const SPINS: u32 = 20;
/// Longest sleep of a process that has handed the lock over and wants it again.
const HAND_OVER: Duration = Duration::from_micros(500);
/// Times the lock is given back while somebody waits, and taken again before he has woken up, until he is waited for.
const QUANTUM: u64 = 32;
/// Eventual commits that give the lock back at once after others wanted it.
const CONTENDED: u64 = 256;

/// What the writer of this process works with; its mutex is the inner half of the writer lock.
#[derive(Default)]
pub struct Writer {
    /// Memory for the batch.
    pub batch: Batch,
    /// The file lock is kept from an earlier commit.
    pub kept: bool,
    /// Commits under the file lock since it was taken, for the keeper to see idleness.
    pub commits: u64,
    /// Times the lock was given back while somebody waited, since he was last waited for.
    wanted: u64,
    /// Commits that are not to keep the lock.
    contended: u64,
    /// The lock was last given back to somebody who waited, when this many had got it so.
    handed_over: Option<u64>,
}

/// The writer lock, held.
pub struct WriterGuard<'a> {
    engine: &'a Engine,
    writer: MutexGuard<'a, Writer>,
    /// Whether the file lock may be kept for the next commit.
    pub keep: bool,
}

impl WriterGuard<'_> {
    /// The batch of this writer.
    pub fn batch(&self) -> &Batch {
        &self.writer.batch
    }

    /// The batch of this writer, to add to.
    pub fn batch_mut(&mut self) -> &mut Batch {
        &mut self.writer.batch
    }
}

impl Engine {
    /// Takes the writer lock and brings the state in order: a dead writer's batch is finished or dropped.
    pub fn lock_writer(&self) -> Result<WriterGuard<'_>> {
        let core = &self.core;
        if !core.writable {
            return Err(Error::ReadOnly { path: core.path.clone() });
        }
        let mut writer = match self.writer.try_lock() {
            Some(writer) if writer.kept => writer,
            held => self.wait_for_writer(held)?,
        };
        writer.kept = false;
        writer.batch.clear();
        let guard = WriterGuard { engine: self, writer, keep: false };
        core.check_poison()?;
        core.cover()?;
        if core.get(Word::WriterActive) != 0 {
            self.take_over()?;
        }
        core.check_map()?;
        Ok(guard)
    }

    /// Takes both halves of the writer lock, or the other one.
    fn wait_for_writer<'a>(&'a self, held: Option<MutexGuard<'a, Writer>>) -> Result<MutexGuard<'a, Writer>> {
        let core = &self.core;
        let deadline = Deadline::new(self.settings.lock_timeout);
        let Some(mut writer) = held.or_else(|| self.writer.try_lock_until(deadline.end)) else {
            return Err(deadline.error(core, "writer lock"));
        };
        if !writer.kept {
            self.flock(&mut writer, &deadline)?;
            core.set(Word::HolderSince, host::coarse_now());
            core.set(Word::Holder, core.me());
        }
        Ok(writer)
    }

    /// Takes the file lock. Each failed try is followed by a short sleep, which a release ends.
    fn flock(&self, writer: &mut Writer, deadline: &Deadline) -> Result<()> {
        let core = &self.core;
        if let Some(taken) = writer.handed_over.take() {
            // Whoever was woken needs a moment to take it; without this a busy process would starve the others.
            futex::wait(core.word(Word::WriterTaken), taken, HAND_OVER);
        }
        for _ in 0..SPINS {
            if self.try_flock()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        writer.contended = CONTENDED;
        loop {
            let seen = core.get(Word::WriterWake);
            core.set(Word::WriterWaiting, 1);
            count_up(core.word(Word::WriterWanted), futex::wake_all);
            if self.try_flock()? {
                break;
            }
            if deadline.is_past() {
                return Err(deadline.error(core, "writer lock"));
            }
            futex::wait(core.word(Word::WriterWake), seen, NAP.min(deadline.left()));
            if self.try_flock()? {
                // Others may sleep beside us: the release must wake one.
                core.set(Word::WriterWaiting, 1);
                break;
            }
        }
        count_up(core.word(Word::WriterTaken), futex::wake_all);
        Ok(())
    }

    fn try_flock(&self) -> Result<bool> {
        self.core.locks.try_flock().map_err(|e| self.core.io("flock", None, e))
    }

    /// Gives the file lock back, and wakes one who waits.
    pub fn release_flock(&self, writer: &mut Writer) {
        let core = &self.core;
        (writer.kept, writer.commits) = (false, 0);
        let taken = core.get(Word::WriterTaken);
        core.set(Word::Holder, 0);
        if let Err(e) = core.locks.unlock_flock() {
            log::error!("{}: the writer lock could not be released: {e}", core.path.display());
        }
        if core.get(Word::WriterWaiting) != 0 {
            core.set(Word::WriterWaiting, 0);
            (writer.contended, writer.wanted) = (CONTENDED, writer.wanted + 1);
            if writer.wanted == QUANTUM {
                (writer.wanted, writer.handed_over) = (0, Some(taken));
            }
            count_up(core.word(Word::WriterWake), futex::wake_one);
        }
    }

    /// Keeps the file lock if that is allowed and nobody else has wanted it of late. While others do, a kept lock costs
    /// them a wait for the keeper, and one that is given back costs two system calls.
    fn keep_flock(&self, writer: &mut Writer) -> bool {
        let wanted = self.core.get(Word::WriterWaiting) != 0 || writer.contended > 0;
        writer.contended = writer.contended.saturating_sub(1);
        if self.settings.writer_lock != WriterLock::Adaptive || wanted || !self.start_keeper() {
            return false;
        }
        writer.commits += 1;
        writer.kept = true;
        true
    }
}

/// Counts, and wakes who waits on the count.
fn count_up(cell: &AtomicU64, wake: fn(&AtomicU64)) {
    // AcqRel: who sees the new count sees what was done before it.
    cell.fetch_add(1, Ordering::AcqRel);
    wake(cell);
}

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        if self.engine.is_forked() || self.keep && self.engine.keep_flock(&mut self.writer) {
            return;
        }
        self.engine.release_flock(&mut self.writer);
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
        let number = match what {
            "writer lock" => core.get(Word::Holder),
            "flush" => core.get(Word::SyncActive),
            _ => 0,
        };
        let holder = core.holder(number);
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
