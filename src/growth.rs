//! The length and the space of the file: growth, holes that get space again, free extents whose space goes back.
//!
//! The extent table lies in chunks, each as large as all before it, so that it grows without moving. Everything here
//! runs under the writer lock, or alone, but for `punch`.

use std::ops::Range;

use crate::control::{CHUNKS, Core, EXTENT_WORDS, FIRST_CHUNK, Word, load, store};
use crate::error::{Error, Result};
use crate::format::extent::{ExtentState, Kind};
use crate::format::{MAX_POSITION, round_up};
use crate::space::FRONT;
use crate::sys::map::HUGE_FROM;

/// Growth is so much of the file, ...
const GROWTH_SHARE: u64 = 64;
/// ... but at most this many bytes.
const MOST_GROWTH: u64 = 256 << 20;

/// The chunk that holds entry `number`, and the entry's place in it.
pub fn chunk_of(number: u64) -> (usize, u64) {
    if number < FIRST_CHUNK {
        return (0, number);
    }
    let chunk = (number / FIRST_CHUNK).ilog2() as usize + 1;
    (chunk, number - (FIRST_CHUNK << (chunk - 1)))
}

/// Entries that the chunks up to and including `chunk` hold.
fn capacity(chunk: usize) -> u64 {
    FIRST_CHUNK << chunk
}

impl Core {
    /// Adds at least `need` extents in a row to the file: more while there is room, so that growth is rare.
    pub fn grow(&self, need: u64) -> Result<()> {
        let extent = self.geometry.extent;
        let count = self.extents();
        let mut generous = need.max((count / GROWTH_SHARE).min(MOST_GROWTH / extent));
        if self.position_of(count + generous) > HUGE_FROM {
            // Whole blocks.
            generous = (count + generous).next_multiple_of(self.geometry.block()) - count;
        }
        match self.grow_by(count, generous) {
            Err(Error::Full { .. } | Error::MaxSize { .. }) if generous > need => self.grow_by(count, need),
            other => other,
        }
    }

    fn grow_by(&self, count: u64, by: u64) -> Result<()> {
        let extent = self.geometry.extent;
        self.forget_lost_chunks(count);
        let tables = self.missing_chunks(count + by);
        let table: u64 = tables.iter().map(|&(_, extents)| extents).sum();
        let (position, end) = (self.position_of(count), self.position_of(count + by + table));
        let max = self.get(Word::MaxSize);
        let max = if max == 0 { MAX_POSITION } else { max.min(MAX_POSITION) };
        if end > max {
            return Err(Error::MaxSize { path: self.path.clone(), needed: end - position, max, held: None });
        }
        crate::fault::point();
        let refused = |source| Error::no_space(&self.path, position, end - position, source);
        self.disk.allocate(position, end - position).map_err(refused)?;
        self.map.set_len(end).map_err(|e| self.io("map", position, e))?;
        self.check_end(count)?;
        // What lies before it in its folio may be holes.
        let before = self.folio_of(count).start;
        if !tables.is_empty() && before < count {
            self.disk.allocate(self.position_of(before), self.position_of(count - before)).map_err(refused)?;
        }
        let mut first = count;
        for &(chunk, extents) in &tables {
            store(self.chunk(chunk), self.position_of(first));
            first += extents;
        }
        first = count;
        for &(_, extents) in &tables {
            self.mark_run(first, extents, Kind::Table);
            first += extents;
        }
        for n in count + table..count + table + by {
            self.extent(n).set_state(ExtentState::new(Kind::Free));
        }
        self.set(Word::Extents, self.extent_of(end));
        self.add(Word::Free, by as i64);
        log::debug!("{}: grown to {} extents of {extent} bytes", self.path.display(), self.extent_of(end));
        Ok(())
    }

    /// A cut between the look at the length and the growth is hidden by it. What the last extents hold is gone then.
    fn check_end(&self, count: u64) -> Result<()> {
        let holds_words = |&n: &u64| match self.extent(n).state().kind() {
            Kind::Index | Kind::Directory => true,
            // The segments of a batch that is laid out have nothing alive yet.
            Kind::Log => self.extent(n).live() > 0,
            _ => false,
        };
        let Some(last) = (0..count).rev().find(holds_words) else { return Ok(()) };
        let position = self.position_of(last);
        if self.words::<1>(position).is_some_and(|word| load(&word[0]) != 0) {
            return Ok(());
        }
        self.map.give_up();
        Err(self.cause(self.corrupt(position, "the end of the file was lost while it grew")))
    }

    /// Forgets chunks of a growth whose writer died before it was published, so their extents are not in the file yet;
    /// and those of extents that the file was made to do without.
    fn forget_lost_chunks(&self, count: u64) {
        for chunk in 1..CHUNKS {
            if load(self.chunk(chunk)) >= self.position_of(count) {
                store(self.chunk(chunk), 0);
            }
        }
    }

    /// The end of the chunks that the table needs for so many extents, or that number if it lies behind them.
    pub fn end_of_table(&self, count: u64) -> u64 {
        let (mut end, mut chunk) = (count, 1);
        while chunk <= self.chunks_for(end) {
            end = end.max(self.extent_of(load(self.chunk(chunk))) + self.chunk_extents(chunk));
            chunk += 1;
        }
        end
    }

    /// From now on the file has these extents and no more. What lies behind them, which nobody uses but the table for
    /// it, goes back to the file system; the next growth forgets such parts of the table.
    pub fn leave_extents(&self, count: u64) -> Result<()> {
        let before = self.extents();
        if count >= before {
            return Ok(());
        }
        // What lies in a lost page of the table looks free.
        self.check_map()?;
        crate::fault::point();
        self.set(Word::Extents, count);
        self.set(Word::BackedFolio, 0);
        self.set(Word::FreeHint, FRONT);
        self.recount();
        self.punch_range(self.position_of(count), self.position_of(before - count));
        Ok(())
    }

    /// Bytes of the file. Its end may be what a compaction does without, until the last process closes it.
    pub fn file_len(&self) -> Result<u64> {
        let found = self.map.file_len().map_err(|e| self.io("stat", None, e))?;
        Ok(found.unwrap_or(0).max(self.position_of(self.extents())))
    }

    /// Chunks that the table still needs for `count` extents and for the chunks themselves, with their extents.
    fn missing_chunks(&self, mut count: u64) -> Vec<(usize, u64)> {
        let mut missing = Vec::new();
        for chunk in 1..CHUNKS {
            if chunk_of(count - 1).0 < chunk {
                break;
            }
            if load(self.chunk(chunk)) == 0 {
                missing.push((chunk, self.chunk_extents(chunk)));
                count += self.chunk_extents(chunk);
            }
        }
        missing
    }

    /// Extents that a chunk after the first one takes.
    pub fn chunk_extents(&self, chunk: usize) -> u64 {
        let entries = capacity(chunk) / 2;
        round_up(entries * EXTENT_WORDS as u64 * 8, self.geometry.extent) / self.geometry.extent
    }

    /// Chunks after the first one that a file of `count` extents needs.
    pub fn chunks_for(&self, count: u64) -> usize {
        chunk_of(count.max(1) - 1).0
    }

    /// Gives holes space again, those in front first, until `need` extents are free. Stops short of it when the disk is
    /// full; what looks like a hole may have its space, so each is asked for.
    pub fn fill_holes(&self, need: u64) {
        let mut holes = (0..self.extents()).filter(|&n| self.kind_at(n) == Kind::Hole);
        while self.get(Word::Free) < need {
            let Some(n) = holes.next() else { return };
            if !self.fill_run(n, 1) {
                return self.fill_others(holes, need);
            }
        }
    }

    /// As `fill_holes`, of the holes behind one that was refused.
    fn fill_others(&self, holes: impl Iterator<Item = u64>, need: u64) {
        let ranges = holes.map(|n| (self.position_of(n), self.geometry.extent)).collect();
        for (position, _) in self.disk.worth_asking(ranges) {
            if self.get(Word::Free) >= need {
                return;
            }
            self.fill_run(self.extent_of(position), 1);
        }
    }

    /// Gives the holes of a run that is not in use space again, if there is some.
    pub fn fill_run(&self, first: u64, run: u64) -> bool {
        let filled = self.disk.allocate(self.position_of(first), self.position_of(run)).is_ok();
        if filled {
            let holes = (first..first + run).filter(|&n| self.extent(n).state().kind() == Kind::Hole);
            for hole in holes {
                self.extent(hole).set_state(ExtentState::new(Kind::Free));
                self.add(Word::Free, 1);
            }
        }
        filled
    }

    /// The first extent that is not in use, if that lies before `end`.
    pub fn room_before(&self, end: u64) -> Option<u64> {
        (0..end.min(self.extents())).find(|&n| self.kind_at(n).is_vacant())
    }

    /// How many extents lie in each row of them before `end` that is not in use, where a row ends with each `piece`.
    pub fn unused_before(&self, end: u64, piece: u64) -> impl Iterator<Item = u64> {
        let end = end.min(self.extents());
        let is_vacant = |&n: &u64| self.kind_at(n).is_vacant();
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = (at..end).find(is_vacant)?;
            at = end.min((first / piece + 1).saturating_mul(piece));
            let unused = (first..at).take_while(is_vacant).count() as u64;
            at = first + unused;
            Some(unused)
        })
    }

    /// Lets the next extent that is handed out be the first one that is not in use, if that lies before `end`: a hole
    /// there gets its space again. Which one that is.
    pub fn prefer_front(&self, end: u64) -> Option<u64> {
        let first = self.room_before(end)?;
        if self.kind_at(first) == Kind::Hole {
            self.fill_run(first, 1);
        }
        self.set(Word::FreeHint, FRONT);
        Some(first)
    }

    /// First of `run` extents in a row that are free or holes; the holes among them have space now.
    pub fn find_with_holes(&self, run: u64) -> Option<u64> {
        let mut found = 0;
        (0..self.extents()).find_map(|n| {
            found = if self.kind_at(n).is_vacant() { found + 1 } else { 0 };
            if found < run {
                return None;
            }
            let first = n + 1 - run;
            self.fill_run(first, run).then_some(first)
        })
    }

    /// Takes free extents beyond `keep` out of use, those in front last, so that their space can go back; together with
    /// those of somebody who died between this and `punched`. Under the checkpoint lock too. Beside what is stored to
    /// only if `anywhere`; else folios that are stored to get the space again that a compaction took from them, as far
    /// as there is some. Also returns for how many there is none.
    pub fn set_aside(&self, keep: u64, anywhere: bool) -> (Vec<u64>, usize) {
        let free_in = |folio: &Range<u64>| folio.clone().filter(|&n| self.kind_at(n) == Kind::Free).count() as u64;
        let stays = |folio: &Range<u64>| !anywhere && self.is_stored_to(folio.clone());
        let (whole, others): (Vec<_>, Vec<_>) = self.folios().partition(stays);
        let is_punching = |n: &u64| self.kind_at(*n) == Kind::Punching;
        // Who died may have punched them.
        let lost = whole.iter().cloned().flatten().filter(is_punching);
        lost.for_each(|n| self.extent(n).set_state(ExtentState::new(Kind::Hole)));
        let unbacked = whole.iter().filter(|folio| !self.suits(Kind::Index, folio.start, 1)).count();
        let mut wanted = keep.saturating_sub(whole.iter().map(free_in).sum());
        let mut aside = Vec::new();
        for n in others.into_iter().flatten() {
            match self.kind_at(n) {
                Kind::Free if wanted > 0 => wanted -= 1,
                Kind::Free => {
                    self.extent(n).set_state(ExtentState::new(Kind::Punching));
                    self.add(Word::Free, -1);
                    aside.push(n);
                }
                Kind::Punching => aside.push(n),
                _ => {}
            }
        }
        self.set(Word::BackedFolio, 0);
        log::debug!("{}: {} extents become holes", self.path.display(), aside.len());
        (aside, unbacked)
    }

    /// Gives the space of extents that were set aside back to the file system. Under the checkpoint lock, beside the
    /// commits: nobody else touches an extent in this state.
    pub fn punch(&self, aside: &[u64]) {
        for run in aside.chunk_by(|&a, &b| a + 1 == b) {
            let (position, len) = (self.position_of(run[0]), self.position_of(run.len() as u64));
            self.punch_range(position, len);
            run.iter().for_each(|&n| self.extent(n).set_state(ExtentState::new(Kind::Hole)));
        }
    }

    fn punch_range(&self, position: u64, len: u64) {
        crate::fault::point();
        if let Err(e) = self.disk.punch(position, len) {
            log::warn!("{}: space at {position} could not be given back: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_tile_the_table() {
        assert_eq!(chunk_of(0), (0, 0));
        assert_eq!(chunk_of(FIRST_CHUNK - 1), (0, FIRST_CHUNK - 1));
        assert_eq!(chunk_of(FIRST_CHUNK), (1, 0));
        assert_eq!(chunk_of(2 * FIRST_CHUNK - 1), (1, FIRST_CHUNK - 1));
        assert_eq!(chunk_of(2 * FIRST_CHUNK), (2, 0));
        assert_eq!(chunk_of(4 * FIRST_CHUNK), (3, 0));
        for chunk in 0..10 {
            assert_eq!(chunk_of(capacity(chunk)).0, chunk + 1);
            assert_eq!(chunk_of(capacity(chunk) - 1).0, chunk);
        }
    }
}
