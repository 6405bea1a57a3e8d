//! Iteration over a snapshot: pages in bit-reversed order of their suffixes.
//!
//! A page of suffix s and depth d holds the keys whose hash ends in those d bits. Read backwards, suffixes are an
//! interval each, so a cursor that only rises meets every key once, whatever splits or doubles meanwhile (the cursor
//! of Redis' SCAN).

use crate::engine::Engine;
use crate::error::Result;
use crate::index::page::Slot;

/// Records that are asked for ahead of their turn: about as many misses as a core has under way.
const AHEAD: usize = 12;

/// All pairs of a snapshot. Made by `ReadTxn::iter`. An error is the last thing it returns.
pub struct Iter<'t> {
    engine: &'t Engine,
    seq: u64,
    /// The suffix to go on with, read backwards; none after the last page.
    cursor: Option<u64>,
    /// What is left of the page in hand.
    slots: std::vec::IntoIter<Slot>,
}

impl<'t> Iter<'t> {
    pub(crate) fn new(engine: &'t Engine, seq: u64) -> Iter<'t> {
        Iter { engine, seq, cursor: Some(0), slots: Vec::new().into_iter() }
    }

    /// Takes the page at the cursor in hand; false after the last one.
    fn next_page(&mut self) -> Result<bool> {
        let Some(cursor) = self.cursor.take() else { return Ok(false) };
        let core = &self.engine.core;
        let entry = core.entry(cursor.reverse_bits())?;
        let width = 1u64.checked_shl(64 - entry.depth()).unwrap_or(0);
        // While a split is being published, the first half may lead to its new page and the rest still to the old
        // one. So a page ends where its own suffix ends, and what lies before the cursor has been passed.
        self.cursor = if width == 0 { None } else { (cursor & !(width - 1)).checked_add(width) };
        let passed = |slot: &Slot| u64::from(slot.tag.reverse_bits()) << 32 < cursor;
        let slots: Vec<Slot> = core.page(entry.page())?.slots().filter(|slot| !passed(slot)).collect();
        slots.iter().take(AHEAD).for_each(|slot| core.prefetch_record(slot.pointer));
        self.slots = slots.into_iter();
        Ok(true)
    }

    fn step(&mut self) -> Result<Option<(&'t [u8], &'t [u8])>> {
        let core = &self.engine.core;
        loop {
            while let Some(slot) = self.slots.next() {
                if let Some(ahead) = self.slots.as_slice().get(AHEAD - 1) {
                    core.prefetch_record(ahead.pointer);
                }
                let newest = core.record(slot.pointer.position())?;
                if let Some(record) = core.version_at(newest, self.seq)? {
                    return Ok(Some((record.key(), record.value())));
                }
            }
            if !self.next_page()? {
                return Ok(None);
            }
        }
    }
}

impl std::fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iter").field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl<'t> Iterator for Iter<'t> {
    type Item = Result<(&'t [u8], &'t [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.engine.check_fork().and_then(|()| self.step());
        let item = self.engine.core.check_poison().and(step).transpose();
        if let Some(Err(_)) = item {
            // Nothing after an error: the rest of the page may be as damaged.
            (self.cursor, self.slots) = (None, Vec::new().into_iter());
        }
        item
    }
}
