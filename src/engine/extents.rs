//! How much of the file is in use, and how short it could be.

use crate::control::Core;
use crate::format::extent::Kind;

impl Core {
    /// Extents in use, retired ones included.
    pub fn used(&self) -> u64 {
        let is_used = |n: &u64| !matches!(self.kind_at(*n), Kind::Free | Kind::Hole | Kind::Punching);
        (0..self.extents()).filter(is_used).count() as u64
    }

    /// Runs of these kinds that begin behind the goal.
    pub fn in_use_behind(&self, goal: u64, kinds: &[Kind]) -> u64 {
        (goal..self.extents()).filter(|&n| kinds.contains(&self.kind_at(n))).count() as u64
    }

    /// Index extents that so many pages fill.
    pub fn index_extents_for(&self, pages: u64) -> u64 {
        pages.div_ceil(self.geometry.slot_pages())
    }

    /// All index extents but the fullest `but`, with their pages in use.
    pub fn emptiest_index_extents(&self, but: u64) -> Vec<(u64, u64)> {
        let mut extents = self.index_extents();
        extents.sort_by_key(|&(_, used)| std::cmp::Reverse(used));
        extents.split_off(extents.len().min(but as usize))
    }

    /// Index extents from that one on, with their pages in use.
    pub fn index_extents_behind(&self, goal: u64) -> Vec<(u64, u64)> {
        self.index_extents().into_iter().filter(|&(n, _)| n >= goal).collect()
    }

    /// Index extents behind the goal, and those that are spare, with their pages in use.
    pub fn index_to_leave(&self, goal: u64) -> Vec<(u64, u64)> {
        let mut leave = self.index_extents_behind(goal);
        let spare = self.emptiest_index_extents(self.index_extents_for(self.pages_in_use()));
        leave.extend(spare.into_iter().filter(|&(n, _)| n < goal));
        leave
    }

    /// Extents of a file that is as short as it can be: of the log and the index the last one may be nearly empty, of
    /// blobs there are two for a moment.
    pub fn goal(&self) -> u64 {
        let log = ((self.live_log() / self.density()) << 16) / self.geometry.extent + 2;
        let index = self.index_extents_for(self.pages_in_use() + 1) + self.directory_run(self.root().depth() + 1);
        self.geometry.fixed_extents() + log + log / 64 + index + 2 * self.next_blob()
    }

    /// Whether the checkpoint's blob lies behind all other extents that a closed store needs.
    pub fn is_blob_last(&self) -> bool {
        let is_needed = |kind: &Kind| matches!(kind, Kind::Log | Kind::Index | Kind::Blob);
        (0..self.extents()).rev().map(|n| self.kind_at(n)).find(is_needed) == Some(Kind::Blob)
    }

    /// The first extent behind those that a closed store needs, and room for the standing reserve.
    pub fn end_in_use(&self) -> u64 {
        let (mut end, mut free, mut n) = (self.geometry.fixed_extents(), 0, 0);
        let mut free_below = 0;
        while n < self.extents() {
            let extent = self.extent(n);
            let run = if extent.state().kind() == Kind::Inner { 1 } else { extent.run() };
            match extent.state().kind() {
                // One without pages in use is spare.
                Kind::Index if extent.live() <= self.geometry.map_pages() => {}
                Kind::Log | Kind::Index | Kind::Blob => (end, free_below) = (n + run, free),
                Kind::Free => free += run,
                _ => {}
            }
            n += run;
        }
        (end + self.standing_reserve().saturating_sub(free_below)).min(self.extents())
    }

    /// The first extent behind those that are in use, those that a reader or a checkpoint keeps, the parts of the table
    /// for all these, and the standing reserve.
    pub fn end_of_use(&self) -> u64 {
        let (reserve, mut end, mut free, mut n) = (self.standing_reserve(), 0, 0, 0);
        while n < self.extents() {
            let extent = self.extent(n);
            let run = extent.run();
            match extent.state().kind() {
                Kind::Hole | Kind::Table => {}
                Kind::Free if free >= reserve => {}
                Kind::Free => (end, free) = (n + 1, free + 1),
                _ => end = n + run,
            }
            n += run;
        }
        self.end_of_table(end)
    }
}
