//! How the index grows with a batch. It is asked before the first byte of the batch is written, so that a batch that
//! stands in the log can be applied.

use crate::control::Core;
use crate::error::Result;
use crate::format::slot::{LINES, MAX_DEPTH, SLOTS, split_at, suffix, tag};
use crate::log::append::Batch;

/// Batches up to this many records mostly fit the pages that are there.
const FEW: usize = 32;

/// What a batch does to the index at most.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Pages that are frozen and have to be copied.
    copies: u64,
    /// Pages that give way to two.
    splits: u64,
    /// Hash bits that index the directory afterwards. More than `MAX_DEPTH`: the batch cannot be applied.
    pub depth: u32,
}

impl Growth {
    /// Pages that are handed out.
    pub fn pages(&self) -> u64 {
        self.copies + 2 * self.splits
    }

    /// Splits a page with these tags as `Core::set_slot` will. Halves that get no new key stay as they are.
    fn add(&mut self, old: Vec<u32>, new: Vec<u32>, depth: u32) {
        let Some(&one) = new.first() else { return };
        let slots = old.len() + new.len();
        let limit = if depth < MAX_DEPTH { split_at(suffix(u64::from(one), depth), depth) } else { LINES * SLOTS };
        if slots <= limit {
            return;
        }
        self.splits += 1;
        self.depth = self.depth.max(depth + 1);
        if depth < MAX_DEPTH {
            let halves = |tags: Vec<u32>| tags.into_iter().partition::<Vec<u32>, _>(|tag| tag >> depth & 1 == 0);
            let ((old_a, old_b), (new_a, new_b)) = (halves(old), halves(new));
            self.add(old_a, new_a, depth + 1);
            self.add(old_b, new_b, depth + 1);
        }
    }
}

impl Core {
    /// What applying the batch takes. Cost: a line of a page for each record of a small batch that splits nothing; else
    /// the pages that split.
    pub fn growth(&self, batch: &Batch) -> Result<Growth> {
        let mut growth = Growth { copies: 0, splits: 0, depth: self.root().depth() };
        if batch.len() <= FEW && self.has_room(batch)? {
            growth.copies = batch.len() as u64;
            return Ok(growth);
        }
        let (mut frozen, mut new) = (Vec::new(), Vec::new());
        for record in batch.entries() {
            let entry = self.entry(record.hash)?;
            if !entry.is_mutable() {
                frozen.push(entry.page());
            }
            if record.prev == 0 {
                new.push((entry.page(), entry.depth(), tag(record.hash)));
            }
        }
        frozen.sort_unstable();
        frozen.dedup();
        growth.copies = frozen.len() as u64;
        new.sort_unstable();
        for group in new.chunk_by(|a, b| a.0 == b.0) {
            let (position, depth, one) = group[0];
            let page = self.page(position)?;
            if page.count() + group.len() > split_at(suffix(u64::from(one), depth), depth) {
                growth.add(
                    page.slots().map(|s| s.tag).collect(),
                    group.iter().map(|&(_, _, tag)| tag).collect(),
                    depth,
                );
            }
        }
        Ok(growth)
    }

    /// Whether the pages have room for all new keys, even if all of them went to one page.
    fn has_room(&self, batch: &Batch) -> Result<bool> {
        for record in batch.entries().filter(|record| record.prev == 0) {
            let entry = self.entry(record.hash)?;
            let limit = split_at(suffix(record.hash, entry.depth()), entry.depth());
            if self.page(entry.page())?.count() + batch.len() > limit {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(old: Vec<u32>, new: Vec<u32>) -> Growth {
        let mut growth = Growth { copies: 0, splits: 0, depth: 0 };
        growth.add(old, new, 0);
        growth
    }

    #[test]
    fn a_page_splits_until_all_fit() {
        let limit = split_at(0, 0) as u32;
        assert_eq!(growth((1..limit).collect(), vec![0]).splits, 0);
        let one = growth((0..limit).collect(), vec![limit]);
        assert_eq!((one.splits, one.depth, one.pages()), (1, 1, 2));
        let many = growth(vec![], (0..100_000).collect());
        assert!(many.splits >= 100_000 / 305 && many.splits <= 100_000 / 126, "{many:?}");
        // Nothing goes to the half that would have to split once more.
        assert_eq!(growth((0..300).map(|n| 2 * n).collect(), vec![1]).splits, 1);
    }

    #[test]
    fn tags_that_do_not_differ_are_too_deep() {
        assert_eq!(growth(vec![5; 300], vec![5; 15]).depth, MAX_DEPTH);
        assert_eq!(growth(vec![5; 300], vec![5; 16]).depth, MAX_DEPTH + 1);
    }
}
