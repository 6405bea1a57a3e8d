//! Compaction: what is dead goes, what lives moves to the front, and the space behind goes back. And the index, which
//! shrinks at checkpoints too.
//!
//! It is made of ordinary commits that only move records, of index changes like those of splits, and of checkpoints:
//! each step holds the writer lock for a moment, and may be the last one.

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::engine::clean::{COMMIT, MOST, Pace, Worth};
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::extent::Kind;
use crate::format::slot::{LINES, SLOTS};
use crate::index::Change;
use crate::index::shrink::{STEP, Thrift};
use crate::log::segment::Front;
use crate::readers::bytes;
use crate::space::{Claim, FRONT};

/// Passes over the store, at most. Each moves into what the one before has freed, which may be little, and the last one
/// finds nothing to do.
const PASSES: usize = 32;
/// After so many of them ...
const MANY_PASSES: usize = 4;
/// ... a file that ends so much of the goal behind it is short enough.
const NEAR: u64 = 16;
/// Passes in a row that gain nothing, after which no more follow.
const FRUITLESS: usize = 3;
/// Segments that are so full, of what records fill of one at best, stay as they are.
const WORTH: u64 = (1 << 16) * 31 / 32;
/// A step walks what a commit does at most, where little of it lives, so that its own record is a small part of what it
/// writes; and moves so many records.
const PACE: Pace = Pace { bytes: MOST, records: 2048 };
/// Checkpoints make pages that are half as full as one that splits.
const PACED: usize = 50;
/// A value of so many bytes is moved to the front.
const LARGE: u64 = 64 << 20;
/// Compaction fills them so far.
const DENSE: usize = 85;
/// Index pages only move.
const MOVE: Thrift = Thrift { fill: 0, tombstones: false };
/// Blocks of extents that a close moves to the front for the sake of a shorter file, if there are so few.
const FEW_BEHIND: u64 = 8;
/// Index pages that are not worth an effort.
const FEW_PAGES: u64 = 64;

/// How far a compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compaction {
    /// Bytes of extents in use, retired ones included.
    pub used_bytes: u64,
    /// Bytes of live records and of the index.
    pub live_bytes: u64,
    /// Bytes of log looked at so far.
    pub walked_bytes: u64,
    /// Bytes of log that this pass is still going to look at. Another pass may follow, which finds less to do.
    pub left_bytes: u64,
}

impl Engine {
    /// Compacts until there is nothing to gain or `go_on` says no; whether it came to the end.
    pub fn compact(&self, go_on: &mut dyn FnMut(Compaction) -> bool) -> Result<bool> {
        let core = &self.core;
        self.checkpoint()?;
        let (mut earlier, mut latest) = (0, 0);
        let go_on = &mut |so_far: Compaction| {
            // Each pass counts anew.
            earlier += if so_far.walked_bytes < latest { latest } else { 0 };
            latest = so_far.walked_bytes;
            go_on(Compaction { walked_bytes: earlier + latest, ..so_far })
        };
        let mut best = [u64::MAX; 3];
        let mut full = None;
        let (mut passes, mut fruitless) = (0, 0);
        while passes < PASSES {
            let thrift = Thrift { fill: DENSE, tombstones: true };
            let goal = core.goal();
            match self.pass(goal, &core.index_to_leave(goal), thrift, core.full(WORTH), go_on)? {
                Ok(true) => (full, passes) = (None, passes + 1),
                Ok(false) => return Ok(false),
                // It ended early, and what it has freed is room for the next one.
                Err(e @ (Error::Full { .. } | Error::MaxSize { .. })) => full = Some(e),
                Err(e) => return Err(e),
            }
            // The end comes forward only with the last extent that lies there.
            let goal = core.goal();
            let now = [core.used(), core.end_in_use(), core.in_use_behind(goal, &[Kind::Log])];
            let has_gained = std::iter::zip(now, best).any(|(now, best)| now < best);
            best = std::array::from_fn(|n| now[n].min(best[n]));
            fruitless = if has_gained { 0 } else { fruitless + 1 };
            // What was in the way when it moved may have gone to the rear; the next pass brings it back, or more.
            let is_near = passes >= MANY_PASSES && now[1] <= goal + goal / NEAR && now[2] == 0;
            if is_near || !has_gained && (now[1] <= goal || fruitless == FRUITLESS) {
                break;
            }
        }
        self.give_back_all()?;
        self.leave_end()?;
        match full {
            Some(full) if self.is_more_to_gain()? => Err(full),
            _ => Ok(true),
        }
    }

    /// Whether dead log is left that would be worth a copy. What a reader keeps is not to be gained.
    fn is_more_to_gain(&self) -> Result<bool> {
        let core = &self.core;
        let _writer = self.lock_writer()?;
        let tail = core.head_of(core.ends().1.tail)?;
        let worth = Worth { live: core.full(WORTH), ..COMMIT };
        Ok(self.claim()? == Claim::Move && core.victim(tail, worth).is_some())
    }

    /// What compaction may take: where a reader keeps what was moved, no more than puts may, since nothing comes back
    /// for it. Under the writer lock.
    fn claim(&self) -> Result<Claim> {
        let core = &self.core;
        Ok(if core.horizon()? < core.get(Word::Visible) { Claim::Put } else { Claim::Move })
    }

    /// One pass: the log behind the goal moves to the front, and so do the pages of the index extents that are to be
    /// left and the live records of segments with so little of them. Whether it came to its end; in the inner result,
    /// what of it may have been for want of space.
    fn pass(
        &self,
        goal: u64,
        leave: &[(u64, u64)],
        thrift: Thrift,
        live: u64,
        go_on: &mut dyn FnMut(Compaction) -> bool,
    ) -> Result<Result<bool>> {
        self.leave_tail(goal, live)?;
        let index = self.shrink_index(thrift, leave);
        let cleaned = self.clean_all(goal, live, go_on);
        let passed = index.and(cleaned);
        if passed.is_err() {
            self.checkpoint()?;
        }
        self.settle(goal)?;
        match passed {
            Ok(true) => Ok(self.bring_index(goal).map(|()| true)),
            _ => Ok(passed),
        }
    }

    /// Moves what of the index lies behind the goal to the front. The commits before copied pages to where there was
    /// room; what they replaced in front is free now. So does what lies in extents that are spare, unless somebody
    /// commits meanwhile, who copies pages.
    fn bring_index(&self, goal: u64) -> Result<()> {
        let core = &self.core;
        let is_quiet = core.ends().0 == core.get(Word::Checkpoint);
        let leave = if is_quiet { core.index_to_leave(goal) } else { core.index_extents_behind(goal) };
        let is_directory_behind = core.extent_of(core.root().position()) >= goal && core.room_before(goal).is_some();
        if leave.is_empty() && !is_directory_behind {
            return Ok(());
        }
        if !leave.is_empty() {
            self.shrink_index(MOVE, &leave)?;
        }
        if is_directory_behind {
            let _writer = self.lock_writer()?;
            core.prefer_front(goal);
            core.move_directory(core.root().depth() + 1, Claim::Put)?;
        }
        self.settle(goal)
    }

    /// What was retired is past for whoever begins to read after this, and no checkpoint names it any more. The new
    /// one's blob, and the run for the next, lie in front, where there is room.
    fn settle(&self, goal: u64) -> Result<()> {
        self.commit_nothing(None)?;
        {
            let _writer = self.lock_writer()?;
            self.core.prefer_front(goal);
        }
        self.bring_blobs()?;
        self.checkpoint()?;
        self.bring_blobs()
    }

    /// Moves spare runs for blobs to the front.
    fn bring_blobs(&self) -> Result<()> {
        self.as_checkpointer(|| {
            let _writer = self.lock_writer()?;
            self.core.bring_blobs()
        })
    }

    /// Copies the live records out of all segments that are worth it.
    fn clean_all(&self, goal: u64, live: u64, go_on: &mut dyn FnMut(Compaction) -> bool) -> Result<bool> {
        let core = &self.core;
        // Others may leave more behind than is gained.
        let most = 2 * core.position_of(core.get(Word::LogExtents));
        let mut walked = 0;
        // What this pass writes is left to the next one.
        let before = core.ends().0 + 1;
        while walked < most {
            if !go_on(core.compaction(walked, Worth { live, cutoff: goal, before, ..COMMIT })?) {
                return Ok(false);
            }
            {
                let mut writer = self.lock_writer()?;
                let (_, ends) = core.ends();
                let batch = writer.batch_mut();
                // Moving to the front needs room there.
                let longest = core.unused_before(goal, u64::MAX).max();
                let cutoff = if longest.is_some() { goal } else { u64::MAX };
                let worth =
                    Worth { live, cutoff, before, longest: longest.unwrap_or(0).min(LARGE / core.geometry.extent) };
                let tail = core.head_of(ends.tail)?;
                let to_move = core.left_to_move(tail, worth);
                let Some(cleaning) = self.clean_step(batch, ends, worth, PACE)? else { return Ok(true) };
                walked += cleaning.bytes;
                if batch.is_empty() {
                    batch.push_nothing();
                }
                batch.go_to_front(Front { goal, behind: to_move.saturating_sub(batch.bytes()) });
                self.commit_moved(batch, Some(cleaning), self.claim()?)?;
            }
            self.checkpoint_if_due()?;
        }
        Ok(true)
    }

    /// Goes on in a segment in front if the one at the tail, which is no victim, is far behind, or would be left with
    /// much room over.
    fn leave_tail(&self, goal: u64, live: u64) -> Result<()> {
        let core = &self.core;
        let tail = core.ends().1.tail;
        // Beside writers, which may have left it by now.
        let (position, end) = core.segment_at(tail)?;
        let (head, worth) = (core.extent_of(position), Worth { live, cutoff: goal, ..COMMIT });
        let to_move = core.left_to_move(head, worth);
        let over = (end - tail).saturating_sub(to_move);
        let lives = core.extent(head).live();
        let is_sparse = over > core.geometry.extent.max(core.live_log() / 64) && worth.covers(lives, end - position);
        if is_sparse || core.extent_of(end - 1) >= goal && core.room_before(goal).is_some() {
            self.commit_nothing(Some(Front { goal, behind: to_move + lives }))?;
        }
        Ok(())
    }

    /// Does without the extents behind the last one in use, whose table takes space as long as they are counted. The
    /// file keeps its length until the last process closes it: others have it mapped.
    fn leave_end(&self) -> Result<()> {
        let core = &self.core;
        self.wait_durable(core.ends().0)?;
        self.as_checkpointer(|| {
            let _writer = self.lock_writer()?;
            core.leave_extents(core.end_of_use())
        })
    }

    /// A commit of nothing, so that there is a seq after all that was retired; in a new segment, if it is asked for.
    /// Where there is no room for it, it is left out; whether it was made.
    pub fn commit_nothing(&self, in_new_segment: Option<Front>) -> Result<bool> {
        let mut writer = self.lock_writer()?;
        let batch = writer.batch_mut();
        batch.push_nothing();
        if let Some(front) = in_new_segment {
            batch.go_to_front(front);
            batch.leave_segment();
        }
        match self.commit_moved(batch, None, self.claim()?) {
            Ok(_) => Ok(true),
            Err(Error::Full { .. } | Error::MaxSize { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Merges index pages and moves those of the extents that are to be left, a few under the writer lock at a time.
    fn shrink_index(&self, thrift: Thrift, leave: &[(u64, u64)]) -> Result<()> {
        let core = &self.core;
        if !leave.is_empty() {
            let _writer = self.lock_writer()?;
            leave.iter().try_for_each(|&(n, _)| core.leave_index_extent(n))?;
        }
        let mut cursor = Some(0);
        while let Some(mut at) = cursor {
            let _writer = self.lock_writer()?;
            if !leave.is_empty() {
                // Those in front first.
                core.set(Word::PageHint, 0);
                core.prefer_front(u64::MAX);
            }
            // What only moves takes no more than it gives back.
            let pages = if thrift == MOVE { STEP.min(leave.iter().map(|&(_, used)| used).sum()) } else { STEP };
            core.ensure_pages(pages, self.claim()?)?;
            let (applied, ends) = core.ends();
            let busy = [core.head_of(ends.tail)?];
            let change = Change { seq: applied + 1, busy: &busy };
            core.set(Word::WriterActive, core.me().max(1));
            core.add(Word::IndexSteps, 1);
            for _ in 0..STEP {
                cursor = core.shrink_at(at, thrift, change)?;
                let Some(next) = cursor else { break };
                at = next;
            }
            if cursor.is_none() {
                core.halve_directory()?;
            }
            core.set(Word::WriterActive, 0);
            if cursor.is_none() {
                core.fit_directory(Claim::Put)?;
            }
        }
        Ok(())
    }

    /// Gives index pages back at a checkpoint if the index has four times the slots that its keys need: first those
    /// that are sparse, and at a later one, once these are free, those that keep extents from becoming free.
    pub fn shrink_index_if_sparse(&self) -> Result<()> {
        let core = &self.core;
        let pages = core.pages_in_use();
        let slots = pages * (LINES * SLOTS) as u64;
        let needed = core.index_extents_for(pages + pages / 4) + 1;
        let spare = core.emptiest_index_extents(needed);
        // They are a third full at least when all pages were copied since the last checkpoint and since the freeze of
        // the next.
        let leave = if spare.len() as u64 > 2 * needed { spare } else { Vec::new() };
        let is_sparse = pages > FEW_PAGES && slots > 4 * core.ends().1.live_keys;
        if is_sparse || !leave.is_empty() {
            {
                // What gives way is free only after a commit and the next checkpoint; until then commits copy pages.
                let _writer = self.lock_writer()?;
                core.ensure_free(Kind::Index, core.index_extents_for(pages) + 1, Claim::Put)?;
            }
            self.shrink_index(Thrift { fill: PACED, tombstones: is_sparse }, &leave)?;
        }
        Ok(())
    }

    /// Moves the pages of the emptiest index extents into the others, where `copies` pages are left over then; whether
    /// there was anything to move. The extents become free after a commit and the next checkpoint.
    pub fn leave_spare_index_extents(&self, copies: u64) -> Result<bool> {
        let core = &self.core;
        let spare = core.get(Word::FreePages).saturating_sub(copies.max(STEP)) / core.geometry.slot_pages();
        let extents = core.index_extents();
        let leave = core.emptiest_index_extents((extents.len() as u64).saturating_sub(spare));
        if leave.is_empty() {
            return Ok(false);
        }
        self.shrink_index(MOVE, &leave)?;
        Ok(true)
    }

    /// Moves the pages of nearly empty index extents, as copies leave many of them behind, if that makes many free.
    fn leave_index_extents(&self, worth: u64) -> Result<()> {
        let core = &self.core;
        let pages = core.pages_in_use();
        let spare = core.emptiest_index_extents(core.index_extents_for(pages));
        let to_move: u64 = spare.iter().map(|&(_, used)| used).sum();
        if (spare.len() as u64) < worth || to_move > pages / 4 {
            return Ok(());
        }
        self.shrink_index(MOVE, &spare)?;
        self.commit_nothing(None)?;
        self.checkpoint()
    }

    /// Gives back the space that a store does without while nobody uses it, where that is worth it and little has to
    /// move: at most a fourth of the index, and few of the extents.
    fn tighten(&self, worth: u64) -> Result<()> {
        let core = &self.core;
        if core.get(Word::Retired) + core.get(Word::RetiredPages) / core.geometry.pages() >= worth {
            self.commit_nothing(None)?;
            self.checkpoint()?;
        }
        let goal = core.used() + core.standing_reserve();
        let behind = core.in_use_behind(goal, &[Kind::Log, Kind::Index]);
        if behind > 0 && behind <= worth.max(FEW_BEHIND * core.geometry.block()) && core.extents() >= goal + 2 * worth {
            self.pass(goal, &core.index_extents_behind(goal), MOVE, 0, &mut |_| true)??;
        }
        self.leave_index_extents(worth)?;
        if core.get(Word::Free) >= core.standing_reserve() + worth {
            self.give_back_all()?;
        }
        Ok(())
    }

    /// Makes a checkpoint that does without what lies behind the last extent in use, if that is worth it: the length
    /// that the file may be cut to. The caller is alone on the store and about to leave it.
    pub fn cut(&self) -> Result<Option<u64>> {
        let core = &self.core;
        let readers = core.locks.conflict(bytes::READ_ONLY, 1).map_err(|e| core.io("lock query", None, e))?;
        if readers.is_some() {
            return Ok(None);
        }
        let worth = (core.used() / 32).max(2);
        if let Err(e) = self.tighten(worth) {
            log::warn!("{}: the file stays as large as it is: {e}", core.path.display());
        }
        // Whoever opens the store next finds room for a blob.
        core.free_spare_blobs()?;
        if core.extent_of(core.file_len()?) - core.end_in_use() < 2 * worth {
            return Ok(None);
        }
        if core.is_blob_last() {
            core.set(Word::FreeHint, FRONT);
            self.checkpoint_anyway()?;
        }
        let (before, end) = (core.extents(), core.end_in_use());
        // The log that a flush still goes through may lie behind the end, retired.
        self.wait_durable(core.ends().0)?;
        core.set(Word::FreeHint, FRONT);
        core.set(Word::Extents, end);
        core.recount();
        core.fill_holes(core.next_blob());
        // The directory and the table may lie behind the end: nobody reads them any more, and the map still has them.
        let cut = match core.get(Word::Free) >= core.next_blob() {
            true => self.checkpoint_anyway(),
            false => Ok(false),
        };
        if !matches!(cut, Ok(true)) {
            core.set(Word::Extents, before);
            core.recount();
            return cut.map(|_| None);
        }
        // The checkpoint may have found it too short for its image.
        Ok(Some(core.position_of(core.extents())))
    }
}

impl Core {
    fn compaction(&self, walked_bytes: u64, worth: Worth) -> Result<Compaction> {
        let used_bytes = self.position_of(self.used());
        let live_bytes = self.live_log().saturating_add(self.pages_in_use() * PAGE);
        let left_bytes = self.left_to_walk(self.head_of(self.ends().1.tail)?, worth);
        Ok(Compaction { used_bytes, live_bytes, walked_bytes, left_bytes })
    }
}
