//! The working directory: low hash bits -> page (extendible hashing: Fagin and others, ACM TODS 4(3), 1979).
//!
//! It is volatile. Readers load root, entry, page without a lock; the writer changes one entry by one store, and
//! announces changes of several entries in the intent words first, so that a takeover can finish them.

use std::sync::atomic::Ordering;

use crate::control::{Core, Word, load, store};
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::extent::Kind;
use crate::format::slot::{DirEntry, PAGE_WORDS, Root, depth_limit, suffix};
use crate::index::page::Page;
use crate::space::Claim;
use crate::sys::atomic::AtomicU64;

/// An announced change: all entries of one suffix go to page `a`, or after a split to `a` and `b`.
#[derive(Clone, Copy, Debug)]
pub struct Intent {
    /// The suffix.
    pub suffix: u64,
    /// Its length before the change.
    pub depth: u32,
    /// The page, or the lower half.
    pub a: u64,
    /// The upper half after a split.
    pub b: Option<u64>,
}

impl Core {
    /// The entry cell of a directory index.
    #[inline]
    pub fn entry_cell(&self, root: Root, index: u64) -> Result<&AtomicU64> {
        let position = root.position() + index * 8;
        match self.words::<1>(position) {
            Some(cell) => Ok(&cell[0]),
            None => Err(self.out_of_reach(position, 8, "the directory lies beyond the end of the file")),
        }
    }

    /// The entry that a hash leads to.
    #[inline]
    pub fn entry(&self, hash: u64) -> Result<DirEntry> {
        loop {
            let root = self.root();
            let entry = DirEntry::from_raw(load(self.entry_cell(root, suffix(hash, root.depth()))?));
            // Deeper than the root that was loaded: it doubled meanwhile, and this entry is of the lower half.
            if entry.depth() <= root.depth() {
                return Ok(entry);
            }
            self.check_map()?;
        }
    }

    /// The page at a position.
    #[inline]
    pub fn page(&self, position: u64) -> Result<Page<'_>> {
        match self.words::<PAGE_WORDS>(position) {
            Some(words) => Ok(Page::new(words)),
            None => Err(self.out_of_reach(position, PAGE, "an index page lies beyond the end of the file")),
        }
    }

    /// Points all entries of a suffix to new pages.
    pub fn point(&self, intent: Intent) -> Result<()> {
        // The new pages were filled from old ones, which must have been there.
        self.check_map()?;
        let one_store = intent.b.is_none() && self.root().depth() == intent.depth;
        if one_store {
            return self.finish(intent);
        }
        let values = [intent.suffix, u64::from(intent.depth), intent.a, intent.b.unwrap_or(0)];
        for (n, value) in values.into_iter().enumerate() {
            store(self.intent(n + 1), value);
        }
        self.set(Word::Intent, 1);
        self.finish(intent)?;
        self.set(Word::Intent, 0);
        Ok(())
    }

    /// Finishes what a dead writer announced.
    pub fn finish_announced(&self) -> Result<()> {
        if self.get(Word::Intent) == 0 {
            return Ok(());
        }
        let word = |n| load(self.intent(n));
        let b = word(4);
        self.finish(Intent { suffix: word(1), depth: word(2) as u32, a: word(3), b: (b != 0).then_some(b) })?;
        self.set(Word::Intent, 0);
        Ok(())
    }

    fn finish(&self, intent: Intent) -> Result<()> {
        let root = self.root();
        let Intent { suffix, depth, a, b } = intent;
        for n in 0..1u64 << (root.depth() - depth) {
            let entry = match b {
                Some(b) => DirEntry::new(if n & 1 == 1 { b } else { a }, depth + 1, true),
                None => DirEntry::new(a, depth, true),
            };
            store(self.entry_cell(root, suffix | n << depth)?, entry.raw());
        }
        Ok(())
    }

    /// Doubles the directory: the lower half is copied behind itself, then one store publishes it.
    pub fn double_directory(&self) -> Result<()> {
        let root = self.root();
        // A batch that stands in the log has passed this before; a forged page has not.
        self.check_depth(root.depth() + 1)?;
        self.ensure_directory_room(root.depth() + 1, Claim::Reserve)?;
        let root = self.root();
        let entries = 1u64 << root.depth();
        for n in 0..entries {
            let entry = self.entry_cell(root, n)?.load(Ordering::Relaxed);
            self.entry_cell(root, entries + n)?.store(entry, Ordering::Relaxed);
        }
        self.check_map()?;
        self.set(Word::Root, Root::new(root.position(), root.depth() + 1).raw());
        log::debug!("{}: directory doubled to {} entries", self.path.display(), 2 * entries);
        Ok(())
    }

    /// Whether the directory may become so deep: a deeper one would not be read back.
    pub fn check_depth(&self, depth: u32) -> Result<()> {
        if depth <= self.root().depth() || depth <= depth_limit(1) || depth <= depth_limit(self.count_pages()?) {
            return Ok(());
        }
        let what = "the index is at its greatest depth: keys chosen to collide, or too many".to_string();
        Err(Error::Unsupported { path: self.path.clone(), what })
    }

    fn count_pages(&self) -> Result<u64> {
        let root = self.root();
        let mut pages = 0;
        for index in 0..1u64 << root.depth() {
            let entry = DirEntry::from_raw(load(self.entry_cell(root, index)?));
            pages += u64::from(index >> entry.depth() == 0);
        }
        Ok(pages)
    }

    /// Makes sure that a directory of that depth fits its run, moving it to a larger one if need be.
    pub fn ensure_directory_room(&self, depth: u32, claim: Claim) -> Result<()> {
        if 1 << depth <= self.get(Word::DirectoryRoom) { Ok(()) } else { self.move_directory(depth + 1, claim) }
    }

    /// Moves the directory to a smaller run if it became so small.
    pub fn fit_directory(&self, claim: Claim) -> Result<()> {
        let depth = self.root().depth() + 1;
        let fits = self.position_of(self.directory_run(depth)) / 8 < self.get(Word::DirectoryRoom);
        if fits { self.move_directory(depth, claim) } else { Ok(()) }
    }

    /// Moves the directory to a run with room for one of that depth.
    pub fn move_directory(&self, depth: u32, claim: Claim) -> Result<()> {
        let old = self.root();
        let (first, room) = self.take_directory(depth, claim)?;
        let new = Root::new(self.position_of(first), old.depth());
        for n in 0..1u64 << old.depth() {
            let entry = self.entry_cell(old, n)?.load(Ordering::Relaxed);
            self.entry_cell(new, n)?.store(entry, Ordering::Relaxed);
        }
        self.check_map()?;
        // Never more than the run has that a death leaves in use.
        self.set(Word::DirectoryRoom, room.min(self.get(Word::DirectoryRoom)));
        self.set(Word::Root, new.raw());
        self.set(Word::DirectoryRoom, room);
        // Readers may walk the old one; no checkpoint names it.
        self.retire_run(self.extent_of(old.position()), self.get(Word::Applied) + 1, false);
        log::debug!("{}: directory moved to where {room} entries have room", self.path.display());
        Ok(())
    }

    /// A run of extents for a directory of at least that depth: first extent, entries it has room for.
    pub fn take_directory(&self, depth: u32, claim: Claim) -> Result<(u64, u64)> {
        let run = self.directory_run(depth);
        let first = self.take_run(Kind::Directory, run, claim)?;
        Ok((first, self.position_of(run) / 8))
    }

    /// Extents of a directory of that depth.
    pub fn directory_run(&self, depth: u32) -> u64 {
        (8u64 << depth).div_ceil(self.geometry.extent)
    }
}
