//! The index: find, insert, split, copy-on-write. Pages are frozen by a checkpoint; the first change after that
//! copies them.
//!
//! Readers take no lock. Whatever the writer does to a page that somebody may be reading, its slots stay: pages that
//! give way keep theirs until they are reused.

pub mod directory;
mod fast;
pub mod growth;
pub mod page;
pub mod shrink;

use crate::control::{Core, Word};
use crate::error::Result;
use crate::format::hash_key;
use crate::format::record::Kind;
use crate::format::slot::{DirEntry, MAX_DEPTH, SlotWord, split_at, suffix, tag};
use crate::index::directory::Intent;
use crate::index::page::{Page, Search, Slot};
use crate::log::Record;
use crate::space::Claim;

/// Keys whose misses overlap: about as many as a core has under way.
pub const GROUP: usize = 16;
const CACHE_LINE: u64 = 64;

/// A change to the index by one batch.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Seq of the batch.
    pub seq: u64,
    /// Segments of the batch: not retired while it is being applied.
    pub busy: &'a [u64],
}

impl Core {
    /// The newest record of a key, tombstones included.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Record<'_>>> {
        let entry = self.entry(hash)?;
        for (_, pointer) in self.page(entry.page())?.candidates(hash) {
            let record = self.record(pointer.position())?;
            if record.has_key(key) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The records of many keys that a snapshot of `seq` sees, in order.
    pub fn find_many_at<'a, K: AsRef<[u8]>>(
        &'a self,
        keys: &[K],
        seq: u64,
        mut each: impl FnMut(Option<Record<'a>>),
    ) -> Result<()> {
        for group in keys.chunks(GROUP) {
            let mut hashes = [0; GROUP];
            for (hash, key) in hashes.iter_mut().zip(group) {
                *hash = hash_key(key.as_ref(), self.geometry.seed);
            }
            self.prefetch_many(hashes.iter().copied().take(group.len()));
            for (&hash, key) in hashes.iter().zip(group) {
                each(self.find_at(hash, key.as_ref(), seq)?);
            }
        }
        Ok(())
    }

    /// Lets the misses of a group of searches overlap: all their lines of the index are asked for before the first is
    /// read, and all their records before the first of those (group prefetching: Chen and others, "Improving hash join
    /// performance through prefetching", 2004).
    ///
    /// Hints: what is wrong shows when the search itself comes to it. Of more than `GROUP` hashes the rest is left out.
    pub fn prefetch_many(&self, hashes: impl Iterator<Item = u64>) {
        let mut searches = [(0, 0); GROUP];
        let mut count = 0;
        for hash in hashes.take(GROUP) {
            let Ok(entry) = self.entry(hash) else { continue };
            searches[count] = (hash, entry.page());
            count += 1;
        }
        for &(hash, page) in &searches[..count] {
            self.map.prefetch_words(Page::line_position(page, hash));
        }
        for &(hash, page) in &searches[..count] {
            self.prefetch_candidate(page, hash);
        }
    }

    /// Asks for the record that a search looks at first. Waits for the line of the index, which is best asked for well
    /// before.
    pub fn prefetch_first(&self, hash: u64) {
        if let Ok(entry) = self.entry(hash) {
            self.prefetch_candidate(entry.page(), hash);
        }
    }

    fn prefetch_candidate(&self, page: u64, hash: u64) {
        if let Some((_, pointer)) = self.page(page).ok().and_then(|page| page.candidates(hash).next()) {
            self.prefetch_record(pointer);
        }
    }

    /// Asks for the line of the index that a search begins with.
    #[inline]
    pub fn prefetch_line(&self, hash: u64) {
        if let Ok(entry) = self.entry(hash) {
            self.map.prefetch_words(Page::line_position(entry.page(), hash));
        }
    }

    /// Asks for the first two lines of a record: header, key, and where the value begins.
    #[inline]
    pub fn prefetch_record(&self, pointer: SlotWord) {
        self.map.prefetch(pointer.position());
        self.map.prefetch(pointer.position() + CACHE_LINE);
    }

    /// Whether the index points to the record at `position`, which has this hash. Reads no record.
    pub fn is_newest(&self, hash: u64, position: u64) -> Result<bool> {
        let entry = self.entry(hash)?;
        Ok(self.page(entry.page())?.candidates(hash).any(|(_, pointer)| pointer.position() == position))
    }

    /// The record of a key that a snapshot of `seq` sees.
    #[inline]
    pub fn find_at(&self, hash: u64, key: &[u8], seq: u64) -> Result<Option<Record<'_>>> {
        match self.find_fast(hash, key, seq) {
            Some(found) => Ok(found),
            None => self.search_at(hash, key, seq),
        }
    }

    /// As `find_at`, for what is not plain.
    #[inline(never)]
    pub fn search_at(&self, hash: u64, key: &[u8], seq: u64) -> Result<Option<Record<'_>>> {
        match self.find(hash, key)? {
            Some(newest) => self.version_at(newest, seq),
            None => Ok(None),
        }
    }

    /// Points a key's slot to its record at `position`. Done twice it changes nothing more.
    pub fn set_slot(&self, hash: u64, record: Record<'_>, change: Change<'_>) -> Result<()> {
        let pointer = SlotWord::new(hash, record.position, record.is_tombstone());
        let key = record.key();
        loop {
            let entry = self.make_mutable(hash, change)?;
            let page = self.page(entry.page())?;
            // What the record replaces, it names; that has its key.
            let is_it = |p: SlotWord| -> Result<bool> {
                Ok(p.position() == record.header.prev() || self.record(p.position())?.has_key(key))
            };
            match page.search(hash, is_it)? {
                Search::Found(_, old) if old.position() == record.position => return Ok(()),
                Search::Found(place, old) => {
                    self.add_live_at(record.position, record.header.len())?;
                    page.set_pointer(place, pointer);
                    return self.subtract(old.position(), change);
                }
                Search::Absent => {
                    let limit = split_at(suffix(hash, entry.depth()), entry.depth());
                    if page.count() < limit || entry.depth() >= MAX_DEPTH && !page.is_full() {
                        // Counted before it can be found: a death in between counts too much, never too little.
                        self.add_live_at(record.position, record.header.len())?;
                        if page.insert(tag(hash), pointer) {
                            return Ok(());
                        }
                    }
                    self.split(hash, entry, change)?;
                }
            }
        }
    }

    /// Counts a record that a slot is about to point to.
    fn add_live_at(&self, position: u64, len: u64) -> Result<()> {
        let (_, extent) = self.run_of(position)?;
        extent.set_live(extent.live().saturating_add(len));
        // Nobody else sees a count that went to a lost page. And a lost record has no key, so that a key that is there
        // seems absent.
        self.check_map()
    }

    /// Takes a record that was replaced off its segment's live bytes, and retires the segment when nothing is left.
    fn subtract(&self, position: u64, change: Change<'_>) -> Result<()> {
        let (head, extent) = self.run_of(position)?;
        let len = self.header(position)?.len();
        let Some(live) = extent.live().checked_sub(len) else {
            // Counts are never too low: of the length and the count one is wrong.
            self.keep_segment(head, position);
            return Ok(());
        };
        extent.set_live(live);
        if live == 0 && !change.busy.contains(&head) {
            self.retire_segment(head, change.seq);
        }
        Ok(())
    }

    /// Retires a segment, if that extent is one.
    pub fn retire_segment(&self, head: u64, seq: u64) {
        if self.extent(head).state().kind() == crate::format::extent::Kind::Log {
            self.retire_run(head, seq, true);
        }
    }

    /// The entry of a page that may change in place: a frozen one is copied first, without tombstones that nobody
    /// needs.
    fn make_mutable(&self, hash: u64, change: Change<'_>) -> Result<DirEntry> {
        let entry = self.entry(hash)?;
        if entry.is_mutable() {
            return Ok(entry);
        }
        let (depth, bits) = (entry.depth(), suffix(hash, entry.depth()));
        let old = self.page(entry.page())?;
        let position = self.take_page(Claim::Reserve)?;
        let new = self.page(position)?;
        let dropped = self.copy_page(old, new, bits, depth)?;
        self.point(Intent { suffix: bits, depth, a: position, b: None })?;
        self.retire_page(entry.page(), change.seq, true);
        for tombstone in dropped {
            self.subtract(tombstone.pointer.position(), change)?;
        }
        Ok(DirEntry::new(position, depth, true))
    }

    /// Copies a page, and returns the tombstones that were left out.
    fn copy_page(&self, old: Page<'_>, new: Page<'_>, bits: u64, depth: u32) -> Result<Vec<Slot>> {
        if !old.slots().any(|slot| slot.pointer.is_tombstone()) {
            new.copy_from(old);
            return Ok(Vec::new());
        }
        let bound = self.horizon()?.min(self.get(Word::Checkpoint));
        let mut dropped = Vec::new();
        new.clear(bits, depth);
        for slot in old.slots() {
            if slot.pointer.is_tombstone() && self.is_past(slot.pointer, bound)? {
                dropped.push(slot);
            } else {
                new.insert(slot.tag, slot.pointer);
            }
        }
        Ok(dropped)
    }

    /// Whether a tombstone is so old that all snapshots agree that its key is gone, and the checkpoint has it.
    fn is_past(&self, pointer: SlotWord, bound: u64) -> Result<bool> {
        let header = self.header(pointer.position())?;
        Ok(header.kind() == Some(Kind::Delete) && header.seq() <= bound)
    }

    /// Replaces a page by two, each with the keys of one value of the next hash bit.
    fn split(&self, hash: u64, entry: DirEntry, change: Change<'_>) -> Result<()> {
        let (depth, bits) = (entry.depth(), suffix(hash, entry.depth()));
        if depth == self.root().depth() {
            self.double_directory()?;
        }
        let (a, b) = (self.take_page(Claim::Reserve)?, self.take_page(Claim::Reserve)?);
        let halves = [self.page(a)?, self.page(b)?];
        halves[0].clear(bits, depth + 1);
        halves[1].clear(bits | 1 << depth, depth + 1);
        for slot in self.page(entry.page())?.slots() {
            halves[(slot.tag >> depth & 1) as usize].insert(slot.tag, slot.pointer);
        }
        self.point(Intent { suffix: bits, depth, a, b: Some(b) })?;
        // It was mutable, so no checkpoint names it.
        self.retire_page(entry.page(), change.seq, false);
        Ok(())
    }
}
