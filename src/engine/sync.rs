//! Group commit: one flush makes all batches up to the applied seq durable, for all threads and processes that wait.
//!
//! Whoever gets the sync lock leads; the others sleep on a futex, and look again after a bounded time, since a leader
//! may die.

use std::time::Duration;

use crate::control::{Core, Ends, Word};
use crate::engine::Engine;
use crate::engine::lock::Deadline;
use crate::error::Result;
use crate::format::record::RecordHeader;
use crate::readers::bytes;
use crate::sys::futex;
use crate::sys::lock::Mode;

/// Longest sleep of a follower.
const NAP: Duration = Duration::from_millis(5);
/// Bytes that are written again at a time.
const CHUNK: u64 = 1 << 20;

impl Engine {
    /// Returns when everything up to `seq` is durable, and then visible; `Timeout` if a leader does not get on.
    pub fn wait_durable(&self, seq: u64) -> Result<()> {
        let core = &self.core;
        let deadline = Deadline::new(self.settings.lock_timeout);
        loop {
            let seen = core.get(Word::DurableWake);
            if core.get(Word::Durable) >= seq {
                core.lift(Word::Visible, seq);
                return Ok(());
            }
            core.check_poison()?;
            if self.try_lead()? {
                continue;
            }
            if deadline.is_past() {
                return Err(deadline.error(core, "flush"));
            }
            futex::wait(core.word(Word::DurableWake), seen, NAP);
        }
    }

    /// Finishes the syncs that somebody died in. If one has failed, the system does not tell who opens the store after
    /// that, so he must not begin with what it has left in memory.
    pub fn finish_syncs(&self) -> Result<()> {
        let core = &self.core;
        let mut done = Ok(());
        if core.get(Word::SyncActive) != 0 {
            done = self.try_lead().map(drop);
        }
        let is_left = |byte| core.locks.conflict(byte, 1).map(|holder| holder.is_none());
        if core.get(Word::PagesActive) != 0 && is_left(bytes::CHECKPOINT).map_err(|e| core.io("lock query", None, e))? {
            done = done.and_then(|()| self.checkpoint_anyway().map(drop));
        }
        if let Err(e) = done {
            log::warn!("{}: what a dead process left is for the next flush: {e}", core.path.display());
        }
        core.check_poison()
    }

    /// Flushes, if nobody else does so now.
    fn try_lead(&self) -> Result<bool> {
        let core = &self.core;
        let Some(_leader) = self.sync.try_lock() else { return Ok(false) };
        let failed = |e| core.io("sync lock", None, e);
        if !core.locks.try_byte(bytes::SYNC, Mode::Exclusive).map_err(failed)? {
            return Ok(false);
        }
        let led = core.flush();
        core.locks.unlock_byte(bytes::SYNC).map_err(failed)?;
        let wake = core.word(Word::DurableWake);
        // AcqRel: who sees the new count sees what the flush has raised, or that it failed.
        wake.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        futex::wake_all(wake);
        led.map(|()| true)
    }
}

impl Core {
    /// Makes the log durable from the durable cursor to the applied tail. Under the sync lock.
    fn flush(&self) -> Result<()> {
        self.check_poison()?;
        let (seq, ends) = self.ends();
        // Up to these ends, to which another process may just have grown the file: a sync of what no map reaches fails.
        self.cover()?;
        // Found set: its owner died and may have met an error that it could not tell. Bytes that a failed sync left
        // clean are made dirty again. Those that have left memory since are lost, and what stands there now is old.
        let again = self.get(Word::SyncActive) != 0;
        self.set(Word::SyncActive, self.me().max(1));
        let pieces = self.log_between(self.get(Word::Cursor), ends.tail).map_err(|e| self.cause(e))?;
        if again {
            self.rewrite(&pieces)?;
            self.check_unsynced(seq, ends)?;
        }
        self.sync_ranges(&pieces).map_err(|e| self.poison(e))?;
        // A sync of a page that was lost says that all is well.
        self.proven(Ok(()))?;
        self.set(Word::Cursor, ends.tail);
        self.lift(Word::Durable, seq);
        self.set(Word::SyncActive, 0);
        self.lift(Word::Visible, seq);
        Ok(())
    }

    /// Whole batches lead from the durable cursor to the applied seq and its ends. The chain at the cursor is not
    /// known; what the first batch says of the chain after it is confirmed by the next one, or by the ends.
    fn check_unsynced(&self, applied: u64, ends: Ends) -> Result<()> {
        let cursor = self.get(Word::Cursor);
        let (mut at, mut chain) = (cursor, None);
        let mut seq = self.header_at(cursor).map_or(0, RecordHeader::seq);
        while at != ends.tail {
            let Some(batch) = self.read_batch(at, seq, chain).filter(|_| seq <= applied) else { break };
            (at, chain, seq) = (batch.tail, Some(batch.chain), seq + 1);
        }
        if cursor == ends.tail || (at, chain, seq) == (ends.tail, Some(ends.chain), applied + 1) {
            return Ok(());
        }
        Err(self.poison(self.corrupt(at, "the log that a process could not sync before it died is lost")))
    }

    /// The pieces of the log between two positions, a segment each.
    fn log_between(&self, from: u64, to: u64) -> Result<Vec<(u64, u64)>> {
        let mut pieces = Vec::new();
        let mut at = from;
        loop {
            let (segment, end) = self.segment_at(at)?;
            if (segment..end).contains(&to) && to >= at {
                if to > at {
                    pieces.push((at, to - at));
                }
                return Ok(pieces);
            }
            pieces.push((at, end - at));
            at = self.extent(self.extent_of(segment)).next();
            if at == 0 || pieces.len() as u64 > self.extents() {
                return Err(self.corrupt(segment, "the log from the durable cursor to the tail is broken"));
            }
        }
    }

    /// Writes ranges again as they stand, so that the next sync writes them to the disk.
    pub fn rewrite(&self, ranges: &[(u64, u64)]) -> Result<()> {
        for &(position, len) in ranges {
            let mut at = position;
            while at < position + len {
                let part = CHUNK.min(position + len - at);
                let bytes = self.bytes(at, part).ok_or_else(|| self.corrupt(at, "file too short"))?.to_vec();
                self.write(at, &bytes)?;
                at += part;
            }
        }
        Ok(())
    }
}
