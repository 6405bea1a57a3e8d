//! Packed words of the index: slot pointers and tags, directory entries, the directory's root.

use super::{MAX_POSITION, PAGE};

/// Slots of a line.
pub const SLOTS: usize = 5;
/// Lines of a page; the header line comes before them. In a model of memory each word costs time.
pub const LINES: usize = if cfg!(loom) { 2 } else { 63 };
/// Words of a page that are in use: all of them.
pub const PAGE_WORDS: usize = (1 + LINES) * LINE_WORDS;
/// Words of a line: tags and overflow share the first three.
pub const LINE_WORDS: usize = 8;
/// Directories are not deeper than this: a tag holds 32 hash bits.
pub const MAX_DEPTH: u32 = 30;

/// How deep the directory of so many pages may be. Hashes are seeded, so no page of an honest store gets 16 bits
/// deeper than all pages together; a forged directory would fill the disk.
pub fn depth_limit(pages: u64) -> u32 {
    MAX_DEPTH.min(pages.max(1).ilog2() + 16)
}

/// First word of an index page.
pub const PAGE_MAGIC: u64 = u64::from_le_bytes(*b"slotpage");

/// The 64-bit half of a slot: hash bits 48-63, 4 flags, position/8 in 44 bits. Zero: empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWord(u64);

const TOMBSTONE: u64 = 1 << 44;
const POSITION: u64 = (1 << 44) - 1;

impl SlotWord {
    /// A slot that points to the record at `position`.
    pub fn new(hash: u64, position: u64, tombstone: bool) -> SlotWord {
        assert!(position < MAX_POSITION && position.is_multiple_of(8) && position != 0);
        SlotWord(hash >> 48 << 48 | if tombstone { TOMBSTONE } else { 0 } | position >> 3)
    }

    /// The word as loaded from a page.
    #[inline]
    pub fn from_raw(raw: u64) -> SlotWord {
        SlotWord(raw)
    }

    /// The word to store.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// No record.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Where the key's newest record is.
    #[inline]
    pub fn position(self) -> u64 {
        (self.0 & POSITION) << 3
    }

    /// Whether that record is a tombstone.
    pub fn is_tombstone(self) -> bool {
        self.0 & TOMBSTONE != 0
    }

    /// Whether the upper hash bits are those of `hash`.
    #[inline]
    pub fn matches(self, hash: u64) -> bool {
        (self.0 ^ hash) >> 48 == 0
    }

    /// The line where a search for this slot's key begins.
    pub fn home_line(self) -> usize {
        home_line(self.0)
    }
}

/// The 32-bit half of a slot: hash bits 0-31.
#[inline]
pub fn tag(hash: u64) -> u32 {
    hash as u32
}

/// The line (0 to 62) where a search begins: the top 6 bits of the hash, scaled to 63 lines.
#[inline]
pub fn home_line(hash: u64) -> usize {
    (((hash >> 58) * LINES as u64) >> 6) as usize
}

/// The low `depth` bits of a hash or tag.
#[inline]
pub fn suffix(bits: u64, depth: u32) -> u64 {
    bits & ((1 << depth) - 1)
}

/// Slots at which a page splits: 80 to 97 % of them, by its suffix, so that not all pages split at once.
pub fn split_at(suffix: u64, depth: u32) -> usize {
    // Fibonacci hashing (Knuth, TAOCP 6.4) of suffix and depth.
    let mixed = (suffix << 6 | u64::from(depth)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    LINES * SLOTS * (80 + (mixed % 18) as usize) / 100
}

/// A directory entry: page number in 36 bits, local depth, mutable bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry(u64);

const PAGE_BITS: u32 = 36;
const MUTABLE: u64 = 1 << 63;

impl DirEntry {
    /// An entry for the page at `position`.
    pub fn new(position: u64, depth: u32, mutable: bool) -> DirEntry {
        assert!(position.is_multiple_of(PAGE) && position < MAX_POSITION && depth <= MAX_DEPTH);
        let bit = if mutable { MUTABLE } else { 0 };
        DirEntry((position / PAGE) | (u64::from(depth) << PAGE_BITS) | bit)
    }

    /// The word as loaded.
    #[inline]
    pub fn from_raw(raw: u64) -> DirEntry {
        DirEntry(raw)
    }

    /// The word to store.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Position of the page.
    #[inline]
    pub fn page(self) -> u64 {
        (self.0 & ((1 << PAGE_BITS) - 1)) * PAGE
    }

    /// Local depth: how many hash bits all keys of the page share.
    #[inline]
    pub fn depth(self) -> u32 {
        (self.0 >> PAGE_BITS) as u32 & 63
    }

    /// Whether the page was born after the last freeze and may change in place.
    pub fn is_mutable(self) -> bool {
        self.0 & MUTABLE != 0
    }

    /// The same entry after a freeze.
    pub fn frozen(self) -> DirEntry {
        DirEntry(self.0 & !MUTABLE)
    }
}

/// The directory in one word: its position, and how many hash bits index it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root(u64);

impl Root {
    /// The directory at `position` with `1 << depth` entries.
    pub fn new(position: u64, depth: u32) -> Root {
        assert!(position.is_multiple_of(PAGE) && depth <= MAX_DEPTH);
        Root(position | u64::from(depth))
    }

    /// The word as loaded.
    #[inline]
    pub fn from_raw(raw: u64) -> Root {
        Root(raw)
    }

    /// The word to store.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Position of entry 0.
    #[inline]
    pub fn position(self) -> u64 {
        self.0 & !(PAGE - 1)
    }

    /// Hash bits that index the directory.
    #[inline]
    pub fn depth(self) -> u32 {
        (self.0 & (PAGE - 1)) as u32 & 63
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_fields_apart() {
        let hash = 0xabcd_1234_5678_9abc;
        let w = SlotWord::new(hash, MAX_POSITION - 8, true);
        assert_eq!((w.position(), w.is_tombstone(), w.matches(hash)), (MAX_POSITION - 8, true, true));
        assert!(!w.matches(hash ^ 1 << 48));
        assert_eq!(w.home_line(), home_line(hash));

        let e = DirEntry::new(MAX_POSITION - PAGE, MAX_DEPTH, true);
        assert_eq!((e.page(), e.depth(), e.is_mutable()), (MAX_POSITION - PAGE, MAX_DEPTH, true));
        assert!(!e.frozen().is_mutable());

        let r = Root::new(MAX_POSITION - PAGE, MAX_DEPTH);
        assert_eq!((r.position(), r.depth()), (MAX_POSITION - PAGE, MAX_DEPTH));
    }

    #[test]
    fn home_lines_cover_the_page_evenly() {
        let mut count = [0; LINES];
        (0..64).for_each(|top: u64| count[home_line(top << 58)] += 1);
        assert!(count.iter().all(|&n| n == 1 || n == 2));
        assert_eq!(count.iter().filter(|&&n| n == 2).count(), 1);
    }

    #[test]
    fn pages_split_between_80_and_97_percent() {
        let at: Vec<_> = (0..1000).map(|s| split_at(s, 12)).collect();
        assert!(at.iter().all(|&n| (252..=305).contains(&n)));
        assert!(at.iter().any(|&n| n < 258) && at.iter().any(|&n| n > 300));
    }
}
