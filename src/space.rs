//! Extents: handed out, retired, reused; the standing reserve.
//!
//! The extent table has one entry an extent: state, length of the run, bytes of live records, position of the next
//! segment. Everything here runs under the writer lock, or alone.
//!
//! The one rule of reuse, for extents and pages: what was retired at F may be handed out when no reader is older than F
//! and, if a checkpoint may name it, the durable checkpoint is F or later.

use std::ops::Range;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::control::{CHUNKS, Core, EXTENT_WORDS, FIRST_CHUNK, Word, load, store};
use crate::error::{Error, Result};
use crate::format::blob::BlobPage;
use crate::format::extent::{ExtentState, Kind};
use crate::growth::chunk_of;
use crate::guard::no_entry;
use crate::sys::atomic::AtomicU64;
use crate::sys::map::HUGE_FROM;

/// Value of the hint for the next extent: the first one that is free, whatever lies beside it.
pub const FRONT: u64 = u64::MAX;

/// Who asks for space, and what is left for others. Where the file cannot grow, each lives on what those before it
/// have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A batch with puts leaves the cleaning reserve and the standing one.
    Put,
    /// What moves live records, or index pages, to make room: it leaves the standing reserve.
    Move,
    /// A batch of deletes: its records leave what the next checkpoint needs, without which nothing is ever freed, and
    /// an extent for page copies where there are none. Its page copies leave what puts do: mostly a checkpoint gives
    /// back those before them.
    Delete,
    /// A batch of deletes that a checkpoint did not help leaves what the next one needs.
    LastDelete,
    /// Checkpoints, recovery.
    Reserve,
}

/// Share of the file that is the cleaning reserve, ...
const CLEANING_SHARE: u64 = 64;
/// ... and the least bytes of it, ...
const LEAST_CLEANING: u64 = 256 << 10;
/// ... and extents of copies of the index pages that a move touches, beside the longest segment: a victim gives nothing
/// back before all that lives in it has moved.
const LEAST_CLEANING_COPIES: u64 = 1;

/// One entry of the extent table.
#[derive(Clone, Copy)]
pub struct Extent<'a>(&'a [AtomicU64; EXTENT_WORDS]);

impl Extent<'_> {
    /// What it holds.
    pub fn state(&self) -> ExtentState {
        ExtentState::from_raw(load(&self.0[0]))
    }

    /// Changes what it holds.
    pub fn set_state(&self, state: ExtentState) {
        store(&self.0[0], state.raw());
    }

    /// Extents of the run that begins here.
    pub fn run(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed).max(1)
    }

    /// Bytes of live records, of a segment; pages that are not free, of an index extent.
    pub fn live(&self) -> u64 {
        self.0[2].load(Ordering::Relaxed)
    }

    /// Sets all words of an entry that nobody reads yet.
    pub fn fill(&self, state: ExtentState, run: u64, live: u64) {
        for (word, value) in self.0.iter().zip([state.raw(), run, live, 0]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Changes the live count.
    #[inline]
    pub fn set_live(&self, live: u64) {
        store(&self.0[2], live);
    }

    /// Position of the segment that follows in the log; 0: none yet.
    pub fn next(&self) -> u64 {
        load(&self.0[3])
    }

    /// Sets the segment that follows.
    pub fn set_next(&self, position: u64) {
        store(&self.0[3], position);
    }
}

impl Core {
    /// The extent that holds a position.
    #[inline]
    pub fn extent_of(&self, position: u64) -> u64 {
        position >> self.geometry.extent.trailing_zeros()
    }

    /// Position of an extent.
    #[inline]
    pub fn position_of(&self, extent: u64) -> u64 {
        extent << self.geometry.extent.trailing_zeros()
    }

    /// Extents of the file.
    pub fn extents(&self) -> u64 {
        self.get(Word::Extents)
    }

    /// An entry of the extent table, if the table is that long.
    #[inline]
    pub fn try_extent(&self, number: u64) -> Option<Extent<'_>> {
        if number < FIRST_CHUNK {
            return Some(Extent(self.first_chunk(number)));
        }
        self.far_extent(number)
    }

    /// As `try_extent`, in the chunks after the first.
    #[inline(never)]
    fn far_extent(&self, number: u64) -> Option<Extent<'_>> {
        let (chunk, place) = chunk_of(number);
        if chunk >= CHUNKS {
            return None;
        }
        let position = load(self.chunk(chunk));
        if position == 0 {
            return None;
        }
        self.words(position + place * EXTENT_WORDS as u64 * 8).map(Extent)
    }

    /// An entry of the extent table, for an extent of the file.
    #[inline]
    pub fn extent(&self, number: u64) -> Extent<'_> {
        self.try_extent(number).unwrap_or_else(|| self.missing_extent(number))
    }

    /// As `extent`, without its part of the table: the file may have been made to do without, and grown again.
    #[cold]
    #[inline(never)]
    fn missing_extent(&self, number: u64) -> Extent<'_> {
        if number >= self.extents() {
            return Extent(no_entry());
        }
        self.try_extent(number).unwrap_or_else(|| Extent(self.nowhere()))
    }

    /// First extent of the run that holds a position below the file's end.
    #[inline]
    pub fn head_of(&self, position: u64) -> Result<u64> {
        self.run_of(position).map(|(head, _)| head)
    }

    /// As `head_of`, with the entry of that extent.
    #[inline]
    pub fn run_of(&self, position: u64) -> Result<(u64, Extent<'_>)> {
        let number = self.extent_of(position);
        if number >= self.extents() {
            return Err(self.corrupt(position, "position beyond the end of the store"));
        }
        let extent = self.extent(number);
        if extent.state().kind() == Kind::Inner { self.run_around(number) } else { Ok((number, extent)) }
    }

    /// The run that an extent belongs to which is not its first.
    #[inline(never)]
    fn run_around(&self, number: u64) -> Result<(u64, Extent<'_>)> {
        let distance = self.extent(number).state().number();
        let head = number.checked_sub(distance);
        let head = head.ok_or_else(|| self.corrupt(self.position_of(number), "extent run"))?;
        Ok((head, self.extent(head)))
    }

    /// Hands out `run` extents in a row.
    pub fn take_run(&self, kind: Kind, run: u64, claim: Claim) -> Result<u64> {
        self.ensure_free(kind, run, claim)?;
        let mut found = match run {
            1 => self.find_place(kind),
            _ if run == self.geometry.block() && kind == Kind::Log => self.find_block(),
            _ if self.get(Word::FreeHint) == FRONT => self.find_with_holes(run),
            _ => self.find_free(kind, run),
        };
        found = found.filter(|&first| self.suits(kind, first, run));
        if found.is_none() {
            self.recount();
            self.ensure_free(kind, run, claim)?;
            let holes = || self.find_with_holes(run).filter(|&first| self.suits(kind, first, run));
            found = self.find_free(kind, run).or_else(holes);
        }
        if found.is_none() {
            self.grow(run)?;
            found = self.find_free(kind, run);
        }
        // A lost page of the table reads as free.
        self.check_map()?;
        let first = found.ok_or_else(|| self.no_place(kind, run))?;
        self.mark_run(first, run, kind);
        self.add(Word::Free, -(run as i64));
        if kind == Kind::Log {
            self.add(Word::LogExtents, run as i64);
        }
        self.set(Word::FreeHint, first + run);
        Ok(first)
    }

    /// Why there is no place for a run although the file has just grown.
    #[cold]
    fn no_place(&self, kind: Kind, run: u64) -> Error {
        if kind.is_stored_to() {
            // Holes around it found no space.
            return Error::no_space(&self.path, 0, self.position_of(run), Errno::NOSPC.into());
        }
        self.corrupt(0, "the extent table lost extents that were just added")
    }

    /// Marks a run as in use, its head last.
    pub fn mark_run(&self, first: u64, run: u64, kind: Kind) {
        for n in (1..run).rev() {
            self.extent(first + n).set_state(ExtentState::inner(n));
        }
        let head = self.extent(first);
        head.0[1].store(run, Ordering::Relaxed);
        head.0[3].store(0, Ordering::Relaxed);
        head.set_live(0);
        head.set_state(ExtentState::new(kind));
    }

    /// Gives a run back at once: nobody can have seen it, or nobody can see it any more.
    pub fn free_run(&self, first: u64) {
        let (run, state) = (self.extent(first).run(), self.extent(first).state());
        if state.kind() == Kind::Log {
            self.add(Word::LogExtents, -(run as i64));
        }
        let kind = if state.is_hollow() { Kind::Hole } else { Kind::Free };
        for n in 0..run {
            let extent = self.extent(first + n);
            extent.0[1].store(1, Ordering::Relaxed);
            extent.set_state(ExtentState::new(kind));
        }
        if kind == Kind::Free {
            self.add(Word::Free, run as i64);
        }
    }

    /// Puts a run out of use at `seq`.
    pub fn retire_run(&self, first: u64, seq: u64, seen: bool) {
        let head = self.extent(first);
        if head.state().kind() == Kind::Log {
            self.add(Word::LogExtents, -(head.run() as i64));
            if self.get(Word::CleanSegment) == self.position_of(first) {
                self.set(Word::CleanSegment, 0);
            }
        }
        if head.state().kind() != Kind::Retired {
            head.set_state(ExtentState::retired(seq, seen));
            self.add(Word::Retired, head.run() as i64);
            self.add(Word::RetiredTotal, head.run() as i64);
        }
    }

    /// Makes sure that `run` extents can be handed out, and that what the claim leaves to others is left after it.
    pub fn ensure_free(&self, kind: Kind, run: u64, claim: Claim) -> Result<()> {
        if claim == Claim::Put {
            self.ensure_blob_room(claim)?;
        }
        let need = run
            + match claim {
                Claim::Put => self.put_reserve(),
                Claim::Move => self.standing_reserve(),
                Claim::Delete if kind != Kind::Log => self.put_reserve(),
                Claim::Delete => self.blob_reserve() + u64::from(self.copies() == 0),
                Claim::LastDelete => self.blob_reserve(),
                Claim::Reserve => 0,
            };
        if self.get(Word::Free) >= need {
            return Ok(());
        }
        self.recount();
        self.sweep_extents()?;
        self.fill_holes(need);
        let free = self.get(Word::Free);
        if free >= need { Ok(()) } else { self.grow(need - free) }
    }

    /// Counts free, retired and log extents and the runs for blobs anew: writers may have died beside the counts.
    pub fn recount(&self) {
        let (mut free, mut retired, mut log) = (0, 0, 0);
        // The two longest.
        let mut blobs = [0, 0];
        for n in 0..self.extents() {
            let extent = self.extent(n);
            match extent.state().kind() {
                Kind::Free => free += 1,
                Kind::Retired => retired += extent.run(),
                Kind::Log => log += extent.run(),
                Kind::Blob if extent.run() > blobs[0] => blobs = [extent.run(), blobs[0]],
                Kind::Blob => blobs[1] = blobs[1].max(extent.run()),
                _ => {}
            }
        }
        self.set(Word::BlobRoom, blobs[1]);
        self.set(Word::LogExtents, log);
        self.set(Word::Free, free);
        self.set(Word::Retired, retired);
    }

    /// Free extents that are kept when space goes back: what the next commits are going to ask for.
    pub fn working_reserve(&self) -> u64 {
        self.put_reserve() + (self.get(Word::LogExtents) / 4).max(4)
    }

    /// Extents that puts leave.
    pub fn put_reserve(&self) -> u64 {
        self.cleaning_reserve() + self.standing_reserve()
    }

    /// Extents kept for making room where the file cannot grow: live records move into them out of segments that are
    /// partly dead, and a checkpoint then frees these. Deletes may use it too.
    pub fn cleaning_reserve(&self) -> u64 {
        let least = (LEAST_CLEANING / self.geometry.extent).max(self.longest_run() + LEAST_CLEANING_COPIES);
        (self.extents() / CLEANING_SHARE).max(least) + self.missing_copies().div_ceil(self.geometry.slot_pages())
    }

    /// Index pages that are missing to copies of a fourth of them, without which a move gets nowhere.
    fn missing_copies(&self) -> u64 {
        let pages = self.named_pages() / size_of::<BlobPage>() as u64;
        (pages / 4).saturating_sub(self.copies())
    }

    /// Index pages for copies, now or after a checkpoint.
    fn copies(&self) -> u64 {
        self.get(Word::FreePages) + self.get(Word::RetiredPages)
    }

    /// Index pages that can be had for copies by what moves records, beside a segment for these.
    pub fn copies_for_moves(&self) -> u64 {
        let extents = self.get(Word::Free).saturating_sub(self.standing_reserve() + 1);
        self.get(Word::FreePages) + extents * self.geometry.slot_pages()
    }

    /// Extents kept for deletes, checkpoints and recovery: the next blob, log and page copies of deletes. The working
    /// directory and table that a recovery needs are in use already.
    pub fn standing_reserve(&self) -> u64 {
        2 * self.delete_reserve() + self.blob_reserve()
    }

    /// Extents for the log of deletes, and as many for their page copies: a 64th of the log, at most a block.
    fn delete_reserve(&self) -> u64 {
        (self.get(Word::LogExtents) / 64).clamp(1, self.geometry.block())
    }

    /// Turns retired extents into free ones where the rule of reuse allows it.
    pub fn sweep_extents(&self) -> Result<()> {
        if self.get(Word::Retired) == 0 {
            return Ok(());
        }
        let (horizon, checkpoint) = (self.horizon()?, self.get(Word::Checkpoint));
        let mut first = 0;
        while first < self.extents() {
            let extent = self.extent(first);
            let (state, run) = (extent.state(), extent.run());
            if state.kind() == Kind::Retired && reusable(state.number(), state.is_seen(), horizon, checkpoint) {
                self.free_run(first);
                self.add(Word::Retired, -(run as i64));
            }
            first += if matches!(state.kind(), Kind::Free | Kind::Fixed | Kind::Inner) { 1 } else { run };
        }
        Ok(())
    }

    /// First of `run` free extents in a row, where what they are for may lie.
    fn find_free(&self, kind: Kind, run: u64) -> Option<u64> {
        let mut found = 0;
        (0..self.extents()).find_map(|n| {
            found = if self.kind_at(n) == Kind::Free { found + 1 } else { 0 };
            let first = (n + 1).checked_sub(run)?;
            (found >= run && self.may_lie(kind, first, run)).then_some(first)
        })
    }

    /// A block of free extents: holes get their space again for it, in front at once, or the file grows.
    fn find_block(&self) -> Option<u64> {
        let block = self.geometry.block();
        let first = |unused: &[Kind]| {
            let is_unused = |n: u64| unused.contains(&self.extent(n).state().kind());
            let (hint, blocks) = (self.hinted_block(), self.extents() / block);
            let mut order = (hint..blocks).chain(0..hint.min(blocks));
            order.find(|n| (n * block..(n + 1) * block).all(is_unused)).map(|n| n * block)
        };
        first(&[Kind::Free])
            .filter(|_| self.get(Word::FreeHint) != FRONT)
            .or_else(|| first(&[Kind::Free, Kind::Hole]).filter(|&at| self.fill_run(at, block)))
            .or_else(|| self.grow(block).is_ok().then(|| first(&[Kind::Free]))?)
    }

    /// A free extent for that use: in a block of its sort if there is one, or if a hole or growth can make one. But
    /// where much is unused already, anywhere.
    fn find_place(&self, kind: Kind) -> Option<u64> {
        if self.get(Word::FreeHint) == FRONT || self.position_of(self.extents()) <= HUGE_FROM {
            return self.find_free(kind, 1);
        }
        let own = || self.find_in_block(kind, Kind::Free);
        own()
            .or_else(|| self.filled_hole(kind))
            .or_else(|| self.grow_for_block().then(own)?)
            .or_else(|| self.find_free(kind, 1))
    }

    /// A hole in a block of that sort, with space again.
    fn filled_hole(&self, kind: Kind) -> Option<u64> {
        let hole = self.find_in_block(kind, Kind::Hole)?;
        self.fill_run(hole, 1).then_some(hole)
    }

    /// Whether the file grew, since little of it is unused.
    fn grow_for_block(&self) -> bool {
        let few = self.put_reserve() + (self.extents() / 32).max(2 * self.geometry.block());
        self.get(Word::Free) <= few && self.grow(1).is_ok()
    }

    /// An unused extent of a block that holds nothing of another sort: log, which comes into memory in huge pages,
    /// shares none of them with what is stored to here and there.
    fn find_in_block(&self, sort: Kind, unused: Kind) -> Option<u64> {
        self.find_from_block(self.hinted_block(), sort, unused)
    }

    /// The block where the search begins.
    fn hinted_block(&self) -> u64 {
        self.get(Word::FreeHint).min(self.extents()) / self.geometry.block()
    }

    fn find_from_block(&self, first: u64, sort: Kind, unused: Kind) -> Option<u64> {
        let (end, block) = (self.extents(), self.geometry.block());
        let blocks = end.div_ceil(block);
        (first..blocks).chain(0..first).find_map(|n| self.find_in(n * block..end.min((n + 1) * block), sort, unused))
    }

    /// An unused extent of a block, if what it holds is of that sort.
    fn find_in(&self, block: Range<u64>, sort: Kind, unused: Kind) -> Option<u64> {
        let mut found = None;
        for n in block {
            match self.extent(n).state().kind() {
                kind if kind == unused => found = found.or(Some(n)),
                Kind::Free | Kind::Hole | Kind::Punching | Kind::Inner => {}
                other if (other == Kind::Log || other == Kind::Retired) == (sort == Kind::Log) => {}
                _ => return None,
            }
        }
        found
    }

    /// Brings the block where the log is going to go on into memory. A guess on which nobody relies: no lock.
    pub fn populate_next(&self) {
        if let Some(next) = self.find_from_block(self.hinted_block() + 1, Kind::Log, Kind::Free) {
            self.map.populate(self.position_of(next), self.geometry.extent);
        }
    }

    /// Adds to a segment's live bytes, or the pages of an index extent; never below zero.
    pub fn add_live(&self, head: u64, difference: i64) {
        let extent = self.extent(head);
        extent.set_live(extent.live().saturating_add_signed(difference));
    }

    /// Keeps a segment in which something is damaged. Counted as full of live records it is neither a victim of the
    /// cleaner nor ever empty.
    pub fn keep_segment(&self, head: u64, damage: u64) {
        log::error!("{}: record at {damage} is damaged; its segment is kept as it is", self.path.display());
        let extent = self.extent(head);
        extent.set_live(extent.run() * self.geometry.extent);
    }
}

/// The rule of reuse.
pub fn reusable(retired: u64, seen: bool, horizon: u64, checkpoint: u64) -> bool {
    horizon >= retired && (checkpoint >= retired || !seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_waits_for_readers_and_for_the_checkpoint() {
        assert!(reusable(5, true, 5, 5));
        assert!(!reusable(5, true, 4, 5));
        assert!(!reusable(5, true, 5, 4));
        assert!(reusable(5, false, 5, 0));
    }
}
