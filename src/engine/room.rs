//! Room where the file cannot grow: what is dead makes room for what comes.
//!
//! The cleaner of commits leaves a third of the log dead, and needs space for what it moves. At `max_size` or on a full
//! disk neither is to be had, so there the standing reserve pays: one segment of live records at a time moves into it,
//! and the checkpoint that follows frees the segments that they came from.

use std::sync::atomic::Ordering;

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::engine::clean::COMMIT;
use crate::error::{Error, Result};
use crate::format::extent::Kind;
use crate::format::record::RECORD_HEADER;
use crate::space::Claim;

/// Segments that are moved for the sake of one commit, at most. One that is a tenth dead gains a tenth.
const ROUNDS: u64 = 16;
/// Rounds that one of them may take where there are few pages for copies.
const ROUNDS_EACH: u64 = 5;
/// Steps in which a segment's worth of records moves.
const STEPS: u64 = 8;

impl Engine {
    /// After a commit that has taken the last free extent of a file that cannot grow: makes room for the next one.
    pub fn make_room_if_short(&self) {
        let core = &self.core;
        let free = core.get(Word::Free);
        if !core.cannot_grow() || free > core.standing_reserve() {
            return;
        }
        // Until another extent is taken, or so much more log is written, there is no more to find.
        let state = (core.ends().1.tail / (core.geometry.extent / 4), free);
        if std::mem::replace(&mut *self.short_at.lock(), state) != state {
            self.make_room(0);
        }
    }

    /// Frees what can be freed for a batch of so many bytes: what only waits for a checkpoint, and dead log.
    pub fn make_room(&self, bytes: u64) {
        let need = 1 + bytes / self.core.geometry.extent;
        let round = || -> Result<bool> {
            self.checkpoint()?;
            Ok(!self.has_room(need)? && self.move_one_segment()?)
        };
        for _ in 0..ROUNDS + need {
            match round() {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => return log::warn!("{}: no room could be made: {e}", self.core.path.display()),
            }
        }
    }

    /// Whether the file has, or gets, room for that many extents beside the standing reserve.
    fn has_room(&self, need: u64) -> Result<bool> {
        let _writer = self.lock_writer()?;
        match self.core.ensure_free(Kind::Log, need, Claim::Put) {
            Ok(()) => Ok(true),
            Err(Error::Full { .. } | Error::MaxSize { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Moves a segment's worth of live records out of the segments with the least live share; whether any moved.
    fn move_one_segment(&self) -> Result<bool> {
        let core = &self.core;
        // A segment that is begun must be done within a few rounds, each with as many copies of index pages as there is
        // room for: deletes rely on what it has taken of the reserve.
        let ends = core.ends().1;
        let records = core.geometry.extent / (RECORD_HEADER + ends.live_bytes / ends.live_keys.max(1));
        let copies = core.room_for_copies();
        if copies < core.pages_in_use() && copies * ROUNDS_EACH < records {
            return Ok(false);
        }
        let step = core.geometry.extent / STEPS;
        let mut moved = false;
        for _ in 0..STEPS {
            // An old snapshot keeps what is moved, and its own copy too: nothing would be gained.
            if core.oldest_pin() < core.get(Word::Checkpoint) {
                return Ok(false);
            }
            let mut writer = self.lock_writer()?;
            let (_, ends) = core.ends();
            let batch = writer.batch_mut();
            let Some(cleaning) = self.clean_step(batch, ends, COMMIT, step)? else { break };
            if core.room_for_copies() < core.growth(batch)?.pages() {
                break;
            }
            if batch.is_empty() {
                batch.push_nothing();
            }
            match self.commit_moved(batch, Some(cleaning)) {
                Ok(_) => moved = true,
                Err(Error::Full { .. } | Error::MaxSize { .. }) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(moved)
    }
}

impl Core {
    /// Index pages that can be had; an extent of them belongs to the reserve.
    fn room_for_copies(&self) -> u64 {
        let own = self.geometry.pages() - self.geometry.map_pages();
        let is_whole = self.get(Word::Free) >= self.standing_reserve();
        self.get(Word::FreePages) + if is_whole { own } else { 0 }
    }

    /// Whether the next growth is going to be refused, as far as this process knows.
    fn cannot_grow(&self) -> bool {
        let (extents, max) = (self.extents(), self.get(Word::MaxSize));
        max != 0 && self.position_of(extents + 1) > max || self.refused.load(Ordering::Relaxed) == extents
    }
}
