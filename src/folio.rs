//! Folios: pages that are in memory as one, and what that asks of the space beside them.
//!
//! A store through the map to a clean folio asks the file system for the space of all of it. If a part is a hole and
//! the disk is full, that is SIGBUS, although the page that is stored to has its space; `pwrite` asks only for what it
//! writes. So holes share no folio with what is stored to through the map, but for a while after a
//! compaction. Folios have a huge page at most, and are
//! that large behind `HUGE_FROM`, where the read-only view asks for huge pages. In front of it they are taken for no
//! longer than an extent.

use std::ops::Range;

use crate::control::{Core, Word};
use crate::format::extent::Kind;
use crate::sys::map::{HUGE_FROM, HUGE_PAGE};

impl Core {
    /// What an extent holds.
    pub fn kind_at(&self, n: u64) -> Kind {
        self.extent(n).state().kind()
    }

    /// Extents that may share a folio with this one: those of its block. Some may lie behind the last one.
    pub fn folio_of(&self, n: u64) -> Range<u64> {
        if self.position_of(n) < HUGE_FROM {
            return n..n + 1;
        }
        let block = self.geometry.block();
        n / block * block..(n / block + 1) * block
    }

    /// All extents of the file, by the folios that they may share.
    pub fn folios(&self) -> impl Iterator<Item = Range<u64>> {
        let (mut next, count) = (0, self.extents());
        std::iter::from_fn(move || {
            let folio = next..self.folio_of(next).end.min(count);
            next = folio.end;
            (!folio.is_empty()).then_some(folio)
        })
    }

    /// Whether any of these extents is stored to through the map.
    pub fn is_stored_to(&self, mut extents: Range<u64>) -> bool {
        extents.any(|n| self.kind_at(n).is_stored_to())
    }

    fn folios_of(&self, first: u64, run: u64) -> Range<u64> {
        self.folio_of(first).start..self.folio_of(first + run - 1).end
    }

    /// Whether all that may share a folio with a run has its space. What lies behind the end of the file does no harm.
    pub fn is_backed(&self, first: u64, run: u64) -> bool {
        let (folios, count) = (self.folios_of(first, run), self.extents());
        let has_space = |n| {
            let state = self.extent(n).state();
            !matches!(state.kind(), Kind::Hole | Kind::Punching) && !state.is_hollow()
        };
        // The file may be longer than what is counted, without space there.
        (folios.start..folios.end.min(count)).all(has_space)
            && (folios.end <= count || self.map.len() <= self.position_of(count))
    }

    /// As `is_backed`, of bytes of the log that are about to be stored. Most lie in the same folio as those before.
    #[inline]
    pub fn is_backed_at(&self, position: u64, len: u64) -> bool {
        let (folio, end) = (position / HUGE_PAGE, position + len);
        end <= HUGE_FROM
            || self.get(Word::BackedFolio) == folio && end <= (folio + 1) * HUGE_PAGE
            || self.look_around(position, end)
    }

    #[inline(never)]
    fn look_around(&self, position: u64, end: u64) -> bool {
        let (first, last) = (self.extent_of(position), self.extent_of(end - 1));
        let is_backed = self.is_backed(first, last + 1 - first);
        if is_backed {
            self.set(Word::BackedFolio, position / HUGE_PAGE);
        }
        is_backed
    }

    /// Whether something may lie there as it is.
    pub fn may_lie(&self, kind: Kind, first: u64, run: u64) -> bool {
        !kind.is_stored_to() || self.is_backed(first, run)
    }

    /// Whether a run that is about to be handed out will do: what is stored to through the map needs space around it,
    /// which is asked for here.
    pub fn suits(&self, kind: Kind, first: u64, run: u64) -> bool {
        if self.may_lie(kind, first, run) {
            return true;
        }
        let folios = self.folios_of(first, run);
        let count = self.extents();
        if folios.end > count && self.map.len() > self.position_of(count) && self.grow(folios.end - count).is_err() {
            return false;
        }
        let folios = folios.start..folios.end.min(self.extents());
        // Whoever is about to punch does not look again.
        !folios.clone().any(|n| self.kind_at(n) == Kind::Punching)
            && self.fill_run(folios.start, folios.end - folios.start)
    }
}
