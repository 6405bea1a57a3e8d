//! Index pages: the page maps of index extents, pages handed out, retired and reused. Under the writer lock, or alone.

use crate::control::{Core, Word, load, store};
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::extent::{ExtentState, Kind, PageState};
use crate::space::{Claim, reusable};
use crate::sys::atomic::AtomicU64;

impl Core {
    /// The state word of the page at `position`, whose extent must be one of index pages.
    fn page_word(&self, position: u64) -> &AtomicU64 {
        let extent = self.position_of(self.extent_of(position));
        let word = extent + (position - extent) / PAGE * 8;
        &self.words::<1>(word).unwrap_or_else(|| self.nowhere())[0]
    }

    /// What a page of an index extent holds.
    pub fn page_state(&self, position: u64) -> PageState {
        PageState::from_raw(load(self.page_word(position)))
    }

    /// What tells the life of a page that was born in that epoch from earlier ones at its place.
    pub fn stamp(&self, born: u64) -> u32 {
        self.get(Word::Lifetime).wrapping_add(born) as u32
    }

    /// A frozen page of that birth that is being synced is what its checkpointer noted. If that one has died its sync
    /// may have failed, and what has left memory since has come back as the disk has it.
    pub fn check_noted(&self, position: u64, born: u64) -> Result<()> {
        let in_sync = self.get(Word::DurableEpoch) + 1..=self.get(Word::PagesActive);
        if !in_sync.contains(&born) || self.page(position)?.is_as_noted(self.stamp(born)) {
            return Ok(());
        }
        Err(self.poison(self.corrupt(position, "an index page that a process could not sync before it died is lost")))
    }

    /// The same of the page that a hash leads to. Under the writer lock.
    pub fn check_page_of(&self, hash: u64) -> Result<()> {
        if self.get(Word::PagesActive) == 0 {
            return Ok(());
        }
        let position = self.entry(hash)?.page();
        match self.page_state(position) {
            PageState::Used(born) => self.check_noted(position, born),
            _ => Ok(()),
        }
    }

    /// Changes what a page holds; counts are the caller's.
    pub fn set_page_state(&self, position: u64, state: PageState) {
        store(self.page_word(position), state.raw());
    }

    /// Makes an extent one of index pages, all of them free.
    pub fn format_index_extent(&self, number: u64) {
        let first = self.position_of(number);
        for n in 0..self.geometry.pages() {
            let state = if n < self.geometry.map_pages() { PageState::Map } else { PageState::Free };
            self.set_page_state(first + n * PAGE, state);
        }
        self.extent(number).set_live(self.geometry.map_pages());
        self.add(Word::FreePages, self.geometry.slot_pages() as i64);
    }

    /// Makes sure that `count` pages can be handed out without asking for space.
    pub fn ensure_pages(&self, count: u64, claim: Claim) -> Result<()> {
        if self.get(Word::FreePages) >= count {
            return Ok(());
        }
        if self.get(Word::RetiredPages) >= self.get(Word::SweepPagesAt).max(self.geometry.pages() / 8) {
            self.sweep_pages(self.spare_pages())?;
        }
        while self.get(Word::FreePages) < count {
            // Not an index extent before its page map is right: a death in between leaves it out of use.
            let number = match self.take_run(Kind::Fixed, 1, claim) {
                Err(Error::Full { .. } | Error::MaxSize { .. }) if self.find_pages()? => continue,
                taken => taken?,
            };
            if let Err(e) = self.disk.scatter(self.position_of(number), self.geometry.extent) {
                log::warn!("{}: index pages may be written more often than need be: {e}", self.path.display());
            }
            self.format_index_extent(number);
            self.extent(number).set_state(ExtentState::new(Kind::Index));
            log::debug!("{}: extent {number} is for index pages", self.path.display());
        }
        Ok(())
    }

    /// Whether there are pages after all where the file cannot grow.
    fn find_pages(&self) -> Result<bool> {
        let before = self.get(Word::FreePages);
        self.sweep_pages(self.spare_pages())?;
        Ok(self.get(Word::FreePages) > before || self.stay_in_index_extents())
    }

    /// Hands out a page.
    pub fn take_page(&self, claim: Claim) -> Result<u64> {
        self.ensure_pages(1, claim)?;
        let hint = self.get(Word::PageHint) * PAGE;
        let found = self.free_page_in(self.extent_of(hint), hint).or_else(|| {
            let with_room = |&n: &u64| self.extent(n).live() < self.geometry.pages();
            let start = self.extent_of(hint);
            let mut numbers = (start..self.extents()).chain(0..start).filter(with_room);
            numbers.find_map(|n| self.free_page_in(n, self.position_of(n)))
        });
        let Some(position) = found else {
            // The count was too high: a writer died between a page and its count.
            self.set(Word::FreePages, 0);
            return self.take_page(claim);
        };
        // A lost page map reads as free.
        self.check_map()?;
        self.set_page_state(position, PageState::Used(self.get(Word::Epoch)));
        self.add_live(self.extent_of(position), 1);
        self.add(Word::FreePages, -1);
        self.set(Word::PageHint, position / PAGE + 1);
        Ok(position)
    }

    fn free_page_in(&self, number: u64, from: u64) -> Option<u64> {
        if number >= self.extents() || self.extent(number).state() != ExtentState::new(Kind::Index) {
            return None;
        }
        let from = from.max(self.position_of(number) + self.geometry.map_pages() * PAGE);
        self.pages_of(number).skip_while(|&p| p < from).find(|&p| self.page_state(p) == PageState::Free)
    }

    /// Positions of the pages of an index extent, without those of its page map.
    fn pages_of(&self, number: u64) -> impl Iterator<Item = u64> + use<> {
        let first = self.position_of(number);
        (self.geometry.map_pages()..self.geometry.pages()).map(move |n| first + n * PAGE)
    }

    /// Index extents with their pages that are in use and not retired, in order of their positions.
    pub fn index_extents(&self) -> Vec<(u64, u64)> {
        let is_used = |&p: &u64| matches!(self.page_state(p), PageState::Used(_));
        let is_index = |&n: &u64| self.extent(n).state().kind() == Kind::Index;
        (0..self.extents()).filter(is_index).map(|n| (n, self.pages_of(n).filter(is_used).count() as u64)).collect()
    }

    /// Hands out no more pages of an index extent, so that it becomes free once those in use have moved: at once if
    /// there are none.
    pub fn leave_index_extent(&self, number: u64) -> Result<()> {
        if self.extent(number).state() == ExtentState::new(Kind::Index) {
            let free = self.free_pages_of(number);
            // A lost page map reads as free.
            self.check_map()?;
            self.add(Word::FreePages, -(free as i64));
            self.extent(number).set_state(ExtentState::new(Kind::Index).leaving());
            if free == self.geometry.slot_pages() {
                self.free_run(number);
            }
        }
        Ok(())
    }

    /// Hands out pages of those that were to be left after all; whether there were any. Where no page can be had, none
    /// can move either.
    fn stay_in_index_extents(&self) -> bool {
        let is_leaving = |state: ExtentState| state.kind() == Kind::Index && state.is_leaving();
        let leaving = (0..self.extents()).filter(|&n| is_leaving(self.extent(n).state()));
        let stays = leaving.map(|n| {
            self.extent(n).set_state(ExtentState::new(Kind::Index));
            let free = self.free_pages_of(n);
            self.add(Word::FreePages, free as i64);
            free
        });
        stays.sum::<u64>() > 0
    }

    fn free_pages_of(&self, number: u64) -> u64 {
        self.pages_of(number).filter(|&p| self.page_state(p) == PageState::Free).count() as u64
    }

    /// Whether a page is to move.
    pub fn is_leaving(&self, position: u64) -> bool {
        self.extent(self.extent_of(position)).state().is_leaving()
    }

    /// Puts a page out of use at `seq`.
    pub fn retire_page(&self, position: u64, seq: u64, seen: bool) {
        if matches!(self.page_state(position), PageState::Used(_)) {
            self.set_page_state(position, PageState::Retired { seq, seen });
            self.add(Word::RetiredPages, 1);
        }
    }

    /// Free pages that are kept for copies: as many as are in use when all of them are copied after a freeze, and an
    /// extent of them.
    pub fn spare_pages(&self) -> u64 {
        self.pages_in_use() + self.geometry.slot_pages()
    }

    /// Turns retired pages into free ones where the rule of reuse allows it; and index extents without pages in use, as
    /// long as `spare` free pages are left.
    pub fn sweep_pages(&self, spare: u64) -> Result<()> {
        if self.get(Word::RetiredPages) == 0 && self.get(Word::FreePages) < self.geometry.slot_pages() + spare {
            return Ok(());
        }
        let (horizon, checkpoint) = (self.horizon()?, self.get(Word::Checkpoint));
        let mut looked_at = 0;
        for number in 0..self.extents() {
            if self.extent(number).state().kind() == Kind::Index {
                self.sweep_index_extent(number, horizon, checkpoint, spare)?;
                looked_at += self.geometry.slot_pages();
            }
        }
        // Most of what is retired between two checkpoints waits for the second of them.
        self.set(Word::SweepPagesAt, self.get(Word::RetiredPages) + looked_at / 8);
        Ok(())
    }

    /// Index pages that hold slots of the newest state.
    pub fn pages_in_use(&self) -> u64 {
        let map_pages = self.geometry.map_pages();
        let extents = (0..self.extents_in_reach()).map(|n| self.extent(n));
        let extents = extents.filter(|extent| extent.state().kind() == Kind::Index);
        let busy = extents.map(|extent| extent.live().saturating_sub(map_pages)).sum::<u64>();
        busy.saturating_sub(self.get(Word::RetiredPages))
    }

    fn sweep_index_extent(&self, number: u64, horizon: u64, checkpoint: u64, spare: u64) -> Result<()> {
        let map_pages = self.geometry.map_pages();
        let (mut freed, mut busy) = (0, map_pages);
        for position in self.pages_of(number) {
            match self.page_state(position) {
                PageState::Retired { seq, seen } if reusable(seq, seen, horizon, checkpoint) => {
                    self.set_page_state(position, PageState::Free);
                    freed += 1;
                }
                PageState::Free => {}
                _ => busy += 1,
            }
        }
        // A lost page map reads as free.
        self.check_map()?;
        self.extent(number).set_live(busy);
        self.add(Word::RetiredPages, -freed);
        if self.extent(number).state().is_leaving() {
            if busy == map_pages {
                self.free_run(number);
            }
            return Ok(());
        }
        self.add(Word::FreePages, freed);
        let own = self.geometry.slot_pages();
        if busy == map_pages && self.get(Word::FreePages) >= own + spare {
            self.add(Word::FreePages, -(own as i64));
            self.free_run(number);
        }
        Ok(())
    }
}
