//! The index shrinks: two sibling pages that fit in one become one, pages leave extents that are to be free, and a
//! directory without deep pages is halved (the reverse of a split: Fagin and others, ACM TODS 4(3), 1979).
//!
//! Pages that give way keep their slots until they are reused, as after a split, so readers never notice. Whoever
//! still has the longer directory in hand finds in its upper half what was right when it was halved.

use crate::control::{Core, Word};
use crate::error::Result;
use crate::format::slot::{DirEntry, Root, split_at, suffix};
use crate::index::Change;
use crate::index::directory::Intent;
use crate::index::page::Slot;
use crate::space::Claim;

/// Which pages give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thrift {
    /// Two siblings become one page that is at most so full, in percent of where it would split.
    pub fill: usize,
    /// Pages with tombstones that nobody needs are written anew.
    pub tombstones: bool,
}

/// Pages that a step may take.
pub const STEP: u64 = 16;

impl Core {
    /// Looks at the page at `cursor`, a suffix read backwards as in a scan: it may become one with its sibling, and
    /// moves if its extent is being left. Returns where to go on, if not at the end.
    /// The caller has `STEP` free pages and has announced that it is writing.
    pub fn shrink_at(&self, cursor: u64, thrift: Thrift, change: Change<'_>) -> Result<Option<u64>> {
        let entry = self.entry(cursor.reverse_bits())?;
        let (depth, bits) = (entry.depth(), suffix(cursor.reverse_bits(), entry.depth()));
        let width = 1u64.checked_shl(64 - depth).unwrap_or(0);
        let next = if width == 0 { None } else { (cursor & !(width - 1)).checked_add(width) };
        if let Some(parent) = self.merge(entry, bits, thrift, change)? {
            // The page may fit in one with its own sibling now, which was passed if it is the lower one.
            let depth = depth - 1;
            let lower = if depth > 0 { parent & !(1 << (depth - 1)) } else { 0 };
            return Ok(Some(lower.reverse_bits()));
        }
        let (slots, dropped) = self.needed_slots(&[entry])?;
        if self.is_leaving(entry.page()) || thrift.tombstones && !dropped.is_empty() {
            self.replace(&[entry], bits, depth, (&slots, &dropped), change)?;
        }
        Ok(next)
    }

    /// Makes one page of a lower sibling and its upper one, if that is not too full. Returns its suffix.
    fn merge(&self, lower: DirEntry, bits: u64, thrift: Thrift, change: Change<'_>) -> Result<Option<u64>> {
        let Some(depth) = lower.depth().checked_sub(1) else { return Ok(None) };
        if bits >> depth & 1 == 1 {
            return Ok(None);
        }
        let upper = self.entry(bits | 1 << depth)?;
        let limit = split_at(bits, depth) * thrift.fill / 100;
        let cannot = |page: DirEntry| -> Result<bool> {
            Ok(page.depth() != lower.depth() || !thrift.tombstones && self.page(page.page())?.count() > limit)
        };
        if cannot(lower)? || cannot(upper)? {
            return Ok(None);
        }
        let (slots, dropped) = self.needed_slots(&[lower, upper])?;
        if slots.len() > limit {
            return Ok(None);
        }
        self.replace(&[lower, upper], bits, depth, (&slots, &dropped), change)?;
        Ok(Some(bits))
    }

    /// The slots of pages: those that somebody needs, and tombstones that nobody does.
    fn needed_slots(&self, pages: &[DirEntry]) -> Result<(Vec<Slot>, Vec<Slot>)> {
        let bound = self.horizon()?.min(self.get(Word::Checkpoint));
        let (mut needed, mut dropped) = (Vec::new(), Vec::new());
        for page in pages {
            for slot in self.page(page.page())?.slots() {
                let past = slot.pointer.is_tombstone() && self.is_past(slot.pointer, bound)?;
                if past { dropped.push(slot) } else { needed.push(slot) }
            }
        }
        Ok((needed, dropped))
    }

    /// Puts one new page in the place of these.
    fn replace(
        &self,
        old: &[DirEntry],
        bits: u64,
        depth: u32,
        (needed, dropped): (&[Slot], &[Slot]),
        change: Change<'_>,
    ) -> Result<()> {
        let position = self.take_page(Claim::Reserve)?;
        let new = self.page(position)?;
        new.clear(bits, depth);
        for slot in needed {
            new.insert(slot.tag, slot.pointer);
        }
        self.point(Intent { suffix: bits, depth, a: position, b: None })?;
        for entry in old {
            self.retire_page(entry.page(), change.seq, !entry.is_mutable());
        }
        for tombstone in dropped {
            self.subtract(tombstone.pointer.position(), change)?;
        }
        Ok(())
    }

    /// Halves the directory as long as no page needs its upper half.
    pub fn halve_directory(&self) -> Result<()> {
        let root = self.root();
        let mut deepest = 0;
        for index in 0..1u64 << root.depth() {
            let entry = DirEntry::from_raw(crate::control::load(self.entry_cell(root, index)?));
            deepest = deepest.max(entry.depth());
            if deepest == root.depth() {
                return Ok(());
            }
        }
        self.set(Word::Root, Root::new(root.position(), deepest).raw());
        Ok(())
    }
}
