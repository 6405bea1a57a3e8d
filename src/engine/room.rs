//! Room where the file cannot grow: what is dead makes room for what comes.
//!
//! The cleaner of commits leaves a third of the log dead, and takes space for what it moves. At `max_size` or on a full
//! disk neither is to be had. There the cleaning reserve pays: live records move into it out of the segments with the
//! least of them, and the checkpoint that follows frees these. Nothing of this takes from the standing reserve, so
//! whatever comes of it, deletes and checkpoints go on.

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::engine::clean::{COMMIT, Pace, Worth};
use crate::engine::lock::WriterGuard;
use crate::error::{Error, Result};
use crate::format::extent::Kind;
use crate::space::Claim;

/// Rounds for one commit, at most, beside those for each extent that it needs. A round fills the cleaning reserve, and
/// gains a tenth of that at least, or what few copies of index pages allow.
const ROUNDS: u64 = 128;
/// Bytes of a victim that one step walks.
const STEP: u64 = 256 << 10;
/// Pages for copies that puts should find: so much of the index.
const COPIES_SHARE: u64 = 4;

impl Engine {
    /// After `Full`: makes room, and takes the writer lock again for the same batch. None if others have committed
    /// meanwhile, since it may rest on what they have changed. Nothing moves out of segments that were begun with the
    /// seq `since` or later: those of earlier tries.
    pub fn room_for<'a>(&'a self, mut writer: WriterGuard<'a>, since: u64) -> Result<Option<WriterGuard<'a>>> {
        let mut batch = std::mem::take(writer.batch_mut());
        batch.reopen();
        let seq = self.core.ends().0;
        drop(writer);
        let moves = self.make_room(1 + batch.bytes() / self.core.geometry.extent, since);
        let mut writer = self.lock_writer()?;
        let is_alone = self.core.ends().0 == seq + moves;
        *writer.batch_mut() = batch;
        Ok(is_alone.then_some(writer))
    }

    /// After a commit that opened a segment: brings the reserve back that deletes may have taken it from.
    pub fn restore_reserve(&self) {
        let core = &self.core;
        if core.get(Word::Free) < core.put_reserve() && !matches!(self.has_room(0), Ok(true)) {
            self.make_room(0, core.ends().0 + 1);
        }
    }

    /// Frees what can be freed for a batch that needs so many extents: what only waits for a checkpoint, and dead log.
    /// How many commits that took. Bounded, and nothing is moved that a reader would keep all the same; nor what was
    /// moved since then, which lies as densely as it can: large values could go to and fro for ever.
    fn make_room(&self, need: u64, since: u64) -> u64 {
        let mut commits = 0;
        let mut round = || -> Result<bool> {
            self.checkpoint()?;
            Ok(!self.has_room(need)?
                && (self.move_records(need, since, &mut commits)? || self.leave_index_pages(&mut commits)?))
        };
        for _ in 0..ROUNDS + need {
            match round() {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    log::warn!("{}: no room could be made: {e}", self.core.path.display());
                    break;
                }
            }
        }
        commits
    }

    /// Whether the file has, or gets, room for that many extents and some page copies beside the reserves.
    fn has_room(&self, need: u64) -> Result<bool> {
        let core = &self.core;
        let _writer = self.lock_writer()?;
        let room = core
            .ensure_pages(core.copies_for_puts(), Claim::Put)
            .and_then(|()| core.ensure_free(Kind::Log, need, Claim::Put));
        match room {
            Ok(()) => Ok(true),
            Err(Error::Full { .. } | Error::MaxSize { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Moves live records out of the segments with the least of them, until the cleaning reserve is used up or enough
    /// will be free after the next checkpoint; whether any step was made.
    fn move_records(&self, need: u64, since: u64, commits: &mut u64) -> Result<bool> {
        let core = &self.core;
        let worth = Worth { live: core.full(COMMIT.live), before: since, ..COMMIT };
        let before = *commits;
        let enough = need + core.cleaning_reserve();
        // What a step takes may raise what it has to leave: then fewer records do.
        let mut most = u64::MAX;
        loop {
            let mut writer = self.lock_writer()?;
            let copies = core.copies_for_moves();
            if core.is_held()? || copies == 0 || core.get(Word::Retired) >= enough {
                break;
            }
            let (_, ends) = core.ends();
            let batch = writer.batch_mut();
            let records = most.min(if copies < core.pages_in_use() { copies } else { u64::MAX });
            let Some(cleaning) = self.clean_step(batch, ends, worth, Pace { bytes: STEP, records })? else { break };
            if batch.is_empty() {
                batch.push_nothing();
            }
            match self.commit_moved(batch, Some(cleaning), Claim::Move) {
                Ok(_) => *commits += 1,
                Err(Error::Full { .. } | Error::MaxSize { .. }) if batch.len() > 1 => most = batch.len() as u64 / 2,
                Err(Error::Full { .. } | Error::MaxSize { .. }) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(*commits > before)
    }

    /// Moves index pages out of extents that are spare, as copies leave them behind; whether there were any.
    fn leave_index_pages(&self, commits: &mut u64) -> Result<bool> {
        let core = &self.core;
        let copies = {
            let _writer = self.lock_writer()?;
            if core.is_held()? {
                return Ok(false);
            }
            core.copies_for_puts()
        };
        if !self.leave_spare_index_extents(copies)? {
            return Ok(false);
        }
        *commits += u64::from(self.commit_nothing(None)?);
        Ok(true)
    }
}

impl Core {
    /// What it depends on whether a batch finds room: where none of this has changed, a further try is in vain.
    pub fn prospects(&self) -> [u64; 5] {
        let words = [Word::Checkpoint, Word::Extents, Word::Free, Word::FreePages].map(|word| self.get(word));
        [self.ends().0, words[0], words[1], words[2], words[3]]
    }

    /// Pages for copies that puts should find.
    fn copies_for_puts(&self) -> u64 {
        self.pages_in_use() / COPIES_SHARE + 1
    }

    /// What an old snapshot reads stays, so nothing would be gained by a copy of it.
    fn is_held(&self) -> Result<bool> {
        Ok(self.horizon()? < self.get(Word::Checkpoint))
    }
}
