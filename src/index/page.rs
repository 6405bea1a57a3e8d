//! One index page: a header line and 63 lines of 5 slots.
//!
//! ```text
//! header  magic | count, depth | suffix | crc | 0 ...
//! line    tag 0, 1 | tag 2, 3 | tag 4, overflow | pointer 0 | ... | pointer 4      (64-bit words)
//! ```
//! A search begins in the home line and goes on to the next line only where `overflow` says that a full line was
//! passed. A slot is filled once, tag first, pointer last; after that only its pointer changes. So readers need no
//! lock.

use std::sync::atomic::Ordering;

use crate::control::{load, store};
use crate::format::slot::{LINE_WORDS, LINES, PAGE_MAGIC, PAGE_WORDS, SLOTS, SlotWord, home_line, tag};
use crate::sys::atomic::AtomicU64;
use crate::sys::simd;

const COUNT: usize = 1;
const SUFFIX: usize = 2;
const CRC: usize = 3;
const POINTERS: usize = 3;

/// A line: 5 slots in one cache line.
#[derive(Clone, Copy)]
pub struct Line<'a>(&'a [AtomicU64; LINE_WORDS]);

impl<'a> Line<'a> {
    /// Bit n: slot n has this tag.
    #[inline]
    pub fn matches(&self, tag: u32) -> u32 {
        let word = |n: usize| self.0[n].load(Ordering::Relaxed);
        simd::equal_halves(word(0), word(1), tag) | u32::from(word(2) as u32 == tag) << 4
    }

    /// Whether a search must go on to the next line.
    #[inline]
    pub fn overflowed(&self) -> bool {
        self.0[2].load(Ordering::Relaxed) >> 32 != 0
    }

    /// The pointer of a slot, with what it points to.
    #[inline]
    pub fn pointer(&self, slot: usize) -> SlotWord {
        SlotWord::from_raw(load(&self.0[POINTERS + slot]))
    }

    fn tag(&self, slot: usize) -> u32 {
        (self.0[slot / 2].load(Ordering::Relaxed) >> (slot % 2 * 32)) as u32
    }

    fn set_half(&self, half: usize, value: u32) {
        let cell = &self.0[half / 2];
        let shift = half % 2 * 32;
        let kept = cell.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
        cell.store(kept | u64::from(value) << shift, Ordering::Relaxed);
    }

    fn set_tag(&self, slot: usize, tag: u32) {
        self.set_half(slot, tag);
    }

    fn set_overflowed(&self) {
        self.set_half(SLOTS, 1);
    }

    /// First empty slot.
    fn vacancy(&self) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.pointer(slot).is_empty())
    }
}

/// What a search for a key in a page found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The key's slot, and what it points to.
    Found(SlotPlace, SlotWord),
    /// The key is not there.
    Absent,
}

/// A slot of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    line: usize,
    slot: usize,
}

/// One slot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Hash bits 0-31.
    pub tag: u32,
    /// Pointer word.
    pub pointer: SlotWord,
}

/// A page of the index.
#[derive(Clone, Copy)]
pub struct Page<'a>(&'a [AtomicU64; PAGE_WORDS]);

impl<'a> Page<'a> {
    /// A page's words.
    #[inline]
    pub fn new(words: &'a [AtomicU64; PAGE_WORDS]) -> Page<'a> {
        Page(words)
    }

    /// Whether this is a page of that suffix.
    pub fn is(&self, suffix: u64, depth: u32) -> bool {
        self.0[0].load(Ordering::Relaxed) == PAGE_MAGIC && self.suffix() == suffix && self.depth() == depth
    }

    /// Slots in use.
    pub fn count(&self) -> usize {
        self.0[COUNT].load(Ordering::Relaxed) as u32 as usize
    }

    /// Whether all slots are in use.
    pub fn is_full(&self) -> bool {
        self.count() >= LINES * SLOTS
    }

    /// The hash bits its keys share.
    pub fn suffix(&self) -> u64 {
        self.0[SUFFIX].load(Ordering::Relaxed)
    }

    /// How many bits they are.
    pub fn depth(&self) -> u32 {
        (self.0[COUNT].load(Ordering::Relaxed) >> 32) as u32
    }

    /// The checksum noted at the last freeze.
    pub fn noted_crc(&self) -> u32 {
        self.0[CRC].load(Ordering::Relaxed) as u32
    }

    /// Notes the checksum of a frozen page, and a stamp of its birth.
    pub fn note(&self, stamp: u32) {
        self.0[CRC].store(u64::from(self.crc()) | u64::from(stamp) << 32, Ordering::Relaxed);
    }

    /// Whether the page is what it was when that was noted, at this place in this life of it.
    pub fn is_as_noted(&self, stamp: u32) -> bool {
        self.0[CRC].load(Ordering::Relaxed) == u64::from(self.crc()) | u64::from(stamp) << 32
    }

    /// CRC-32 of the page with the noted checksum zero.
    pub fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut bytes = [0; 512];
        for (n, line) in self.0.chunks(64).enumerate() {
            for (m, word) in line.iter().enumerate() {
                let value = if n == 0 && m == CRC { 0 } else { word.load(Ordering::Relaxed) };
                bytes[m * 8..][..8].copy_from_slice(&value.to_le_bytes());
            }
            hasher.update(&bytes);
        }
        hasher.finalize()
    }

    /// A line.
    #[inline]
    pub fn line(&self, n: usize) -> Line<'a> {
        let start = (n + 1) * LINE_WORDS;
        let words = self.0[start..start + LINE_WORDS].as_array();
        Line(words.expect("a slice of a line's length"))
    }

    /// Position of the home line of a hash in the page at `page`.
    #[inline]
    pub fn line_position(page: u64, hash: u64) -> u64 {
        page + ((home_line(hash) + 1) * LINE_WORDS * 8) as u64
    }

    /// Makes it an empty page. Nobody can reach it yet.
    pub fn clear(&self, suffix: u64, depth: u32) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.0[0].store(PAGE_MAGIC, Ordering::Relaxed);
        self.0[COUNT].store(u64::from(depth) << 32, Ordering::Relaxed);
        self.0[SUFFIX].store(suffix, Ordering::Relaxed);
    }

    /// Makes it equal to another page. Nobody can reach it yet.
    pub fn copy_from(&self, other: Page<'_>) {
        for (to, from) in self.0.iter().zip(other.0) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// All slots in use.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<'a> {
        let page = *self;
        (0..LINES).flat_map(move |n| {
            let line = page.line(n);
            (0..SLOTS)
                .map(move |slot| Slot { pointer: line.pointer(slot), tag: line.tag(slot) })
                .take_while(|slot| !slot.pointer.is_empty())
        })
    }

    /// The slots that may hold a key, by tag and hash bits.
    #[inline]
    pub fn candidates(&self, hash: u64) -> Candidates<'a> {
        let n = home_line(hash);
        let line = self.line(n);
        Candidates { page: *self, hash, n, line, matches: line.matches(tag(hash)), passed: 0 }
    }

    /// Looks for a key: `is_it` compares the record at a pointer whose hash bits fit.
    #[inline]
    pub fn search<E>(&self, hash: u64, mut is_it: impl FnMut(SlotWord) -> Result<bool, E>) -> Result<Search, E> {
        for (place, pointer) in self.candidates(hash) {
            if is_it(pointer)? {
                return Ok(Search::Found(place, pointer));
            }
        }
        Ok(Search::Absent)
    }

    /// Changes the pointer of a slot in use.
    pub fn set_pointer(&self, place: SlotPlace, pointer: SlotWord) {
        store(&self.line(place.line).0[POINTERS + place.slot], pointer.raw());
    }

    /// Adds a slot; false if the page is full. Readers see it whole: tag first, pointer last.
    pub fn insert(&self, tag: u32, pointer: SlotWord) -> bool {
        let mut n = pointer.home_line();
        for _ in 0..LINES {
            let line = self.line(n);
            if let Some(slot) = line.vacancy() {
                line.set_tag(slot, tag);
                let count = self.0[COUNT].load(Ordering::Relaxed) + 1;
                self.0[COUNT].store(count, Ordering::Relaxed);
                store(&line.0[POINTERS + slot], pointer.raw());
                return true;
            }
            line.set_overflowed();
            n = (n + 1) % LINES;
        }
        false
    }
}

/// Slots that may hold a key: from the home line on, as far as full lines were passed.
pub struct Candidates<'a> {
    page: Page<'a>,
    hash: u64,
    /// The line in hand, and which of its slots are left.
    n: usize,
    line: Line<'a>,
    matches: u32,
    passed: usize,
}

impl Iterator for Candidates<'_> {
    type Item = (SlotPlace, SlotWord);

    #[inline]
    fn next(&mut self) -> Option<(SlotPlace, SlotWord)> {
        loop {
            while self.matches != 0 {
                let slot = self.matches.trailing_zeros() as usize;
                self.matches &= self.matches - 1;
                let pointer = self.line.pointer(slot);
                if !pointer.is_empty() && pointer.matches(self.hash) {
                    return Some((SlotPlace { line: self.n, slot }, pointer));
                }
            }
            self.passed += 1;
            if !self.line.overflowed() || self.passed == LINES {
                return None;
            }
            self.n = (self.n + 1) % LINES;
            self.line = self.page.line(self.n);
            self.matches = self.line.matches(tag(self.hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Box<[AtomicU64; PAGE_WORDS]> {
        Box::new([const { AtomicU64::new(0) }; PAGE_WORDS])
    }

    fn hash(n: u64) -> u64 {
        crate::format::hash_key(&n.to_le_bytes(), 7)
    }

    #[test]
    fn every_slot_can_be_used_and_found() {
        let words = page();
        let page = Page::new(&words);
        page.clear(0, 0);
        let all = (LINES * SLOTS) as u64;
        for n in 0..all {
            assert!(page.insert(tag(hash(n)), SlotWord::new(hash(n), (n + 1) * 8, n % 2 == 0)));
        }
        assert!(!page.insert(tag(hash(all)), SlotWord::new(hash(all), 8, false)));
        assert_eq!((page.count(), page.slots().count()), (all as usize, all as usize));
        for n in 0..all {
            let found = page.search(hash(n), |p| Ok::<_, ()>(p.position() == (n + 1) * 8)).unwrap();
            assert!(matches!(found, Search::Found(_, p) if p.is_tombstone() == (n % 2 == 0)));
        }
    }

    #[test]
    fn a_miss_ends_in_the_home_line_unless_it_was_passed() {
        let words = page();
        let page = Page::new(&words);
        page.clear(3, 2);
        assert!(page.is(3, 2) && !page.is(3, 1) && !page.is(2, 2));
        for n in 1..=SLOTS as u64 + 1 {
            assert!(page.insert(1, SlotWord::new(0, n * 8, false)));
            assert_eq!(page.line(0).overflowed(), n > SLOTS as u64);
            assert!(!page.line(1).overflowed());
        }
    }

    #[test]
    fn the_checksum_covers_all_but_itself() {
        let (words, other) = (page(), page());
        let (page, copy) = (Page::new(&words), Page::new(&other));
        page.clear(1, 1);
        let crc = page.crc();
        page.note(7);
        copy.copy_from(page);
        assert_eq!((page.crc(), copy.crc(), copy.noted_crc()), (crc, crc, crc));
        assert!(copy.is_as_noted(7) && !copy.is_as_noted(8));
        page.insert(9, SlotWord::new(9, 8, false));
        assert_ne!(page.crc(), crc);
        assert!(!page.is_as_noted(7));
    }
}
