//! Room for blobs: where the next checkpoint's goes, so that the reserves need not hold it.
//!
//! A blob needs its extents in a row. Where it takes more than one, and the file cannot grow, free ones that lie apart
//! are of no use to it, and without a checkpoint nothing is ever freed. So such a store has two runs for blobs at
//! least, which take turns: the durable blob is in one of them, and the next goes to a spare one. A spare run is in use
//! as one of a blob, and no header names it; neither is the one that a checkpointer had in hand when it died.
//!
//! Who changes what spare runs there are holds the writer lock, and to give one back the checkpoint lock too; or is
//! alone.

use std::cmp::Reverse;

use crate::control::{Core, Word};
use crate::error::{Error, Result};
use crate::format::blob::BlobExtent;
use crate::format::extent::Kind;
use crate::format::header::{HEADER_LEN, Header};
use crate::space::Claim;

/// A blob becomes longer by this share of it at most without puts: segments and index extents are named there too.
const DELETES_SHARE: u64 = 64;
/// Puts make it this much longer before there must be longer runs.
const PUTS_SHARE: u64 = 8;
/// A new run is for one that is so much longer.
const NEW_SHARE: u64 = 4;

impl Core {
    /// Extents of the next blob, at most.
    pub fn next_blob(&self) -> u64 {
        let log = self.get(Word::LogExtents) * size_of::<BlobExtent>() as u64;
        self.run_for(self.named_pages() + log, NEW_SHARE)
    }

    /// Bytes of a blob that name the index pages, at most.
    pub fn named_pages(&self) -> u64 {
        // A page has 126 keys and more when it splits.
        self.get(Word::BlobLen).max(self.ends().1.live_keys / 8)
    }

    /// Free extents that are kept for the next blob: none if a spare run will do.
    pub fn blob_reserve(&self) -> u64 {
        let is_spare = self.has_long_blobs() && self.get(Word::BlobRoom) >= self.least_run(Claim::Reserve);
        if is_spare { 0 } else { self.next_blob() }
    }

    fn run_for(&self, bytes: u64, share: u64) -> u64 {
        (bytes + bytes / share).div_ceil(self.geometry.extent)
    }

    /// Extents that two runs must have: for puts, or for all that makes the blob hardly longer.
    fn least_run(&self, claim: Claim) -> u64 {
        self.run_for(self.named_pages(), if claim == Claim::Put { PUTS_SHARE } else { DELETES_SHARE })
    }

    /// Whether the next blobs are of several extents. Free ones serve for others, wherever they lie.
    fn has_long_blobs(&self) -> bool {
        self.least_run(Claim::Put) > 1
    }

    /// Makes sure that there are two runs for the blobs that this makes possible.
    pub fn ensure_blob_room(&self, claim: Claim) -> Result<()> {
        let least = self.least_run(claim);
        if !self.has_long_blobs() || self.get(Word::BlobRoom) >= least {
            return Ok(());
        }
        self.recount();
        // What puts take must leave what deletes need beside it.
        let claim = if claim == Claim::Put { Claim::Move } else { claim };
        while self.get(Word::BlobRoom) < least {
            let first = match self.take_run(Kind::Blob, self.next_blob(), claim) {
                Err(Error::Full { .. } | Error::MaxSize { .. }) => self.take_run(Kind::Blob, least, claim)?,
                taken => taken?,
            };
            log::debug!("{}: {} extents from {first} on are for blobs", self.path.display(), self.extent(first).run());
            self.recount();
        }
        Ok(())
    }

    /// As `ensure_blob_room`, if that is possible now.
    pub fn try_blob_room(&self) {
        if let Err(e) = self.ensure_blob_room(Claim::Reserve) {
            log::debug!("{}: no spare run for a blob: {e}", self.path.display());
        }
    }

    /// Takes a run for a blob of so many extents. Under the checkpoint lock too.
    pub fn take_blob(&self, run: u64) -> Result<u64> {
        let spare = self.spare_blobs(&self.named_blobs()?);
        if let Some(&found) = spare.iter().find(|&&n| self.extent(n).run() >= run) {
            return Ok(found);
        }
        spare.into_iter().for_each(|n| self.free_run(n));
        let taken = self.take_run(Kind::Blob, run, Claim::Reserve);
        self.recount();
        taken
    }

    /// After a checkpoint: spare runs are kept as far as the next ones need them. Under the checkpoint lock too.
    pub fn keep_blobs(&self) -> Result<()> {
        let named = self.named_blobs()?;
        let mut spare = self.spare_blobs(&named);
        spare.sort_by_key(|&n| Reverse(self.extent(n).run()));
        let is_durable_long = named.iter().all(|&n| self.extent(n).run() >= self.least_run(Claim::Put));
        let most = if is_durable_long { 1 } else { 2 };
        let least = self.least_run(Claim::Reserve);
        for (n, first) in spare.into_iter().enumerate() {
            if n >= most || !self.has_long_blobs() || self.extent(first).run() < least {
                self.free_run(first);
            }
        }
        self.recount();
        Ok(())
    }

    /// Gives all spare runs back. Under the checkpoint lock too, or alone.
    pub fn free_spare_blobs(&self) -> Result<()> {
        self.spare_blobs(&self.named_blobs()?).into_iter().for_each(|n| self.free_run(n));
        self.recount();
        Ok(())
    }

    /// Moves spare runs to the front, where there is room for them. Under the checkpoint lock too.
    pub fn bring_blobs(&self) -> Result<()> {
        for old in self.spare_blobs(&self.named_blobs()?) {
            let run = self.extent(old).run().min(self.next_blob());
            if let Some(new) = self.find_with_holes(run).filter(|&new| new < old) {
                self.check_map()?;
                self.mark_run(new, run, Kind::Blob);
                self.free_run(old);
            }
        }
        self.recount();
        Ok(())
    }

    /// Runs of blobs but for these, in order of their positions.
    fn spare_blobs(&self, named: &[u64]) -> Vec<u64> {
        let is_spare = |&n: &u64| self.extent(n).state().kind() == Kind::Blob && !named.contains(&n);
        (0..self.extents()).filter(is_spare).collect()
    }

    /// First extents of the blobs that the headers name.
    fn named_blobs(&self) -> Result<Vec<u64>> {
        let slots = [0, self.geometry.slot_b()].map(|slot| self.map.bytes(slot, HEADER_LEN as u64));
        let headers = slots.into_iter().flatten().filter_map(|bytes| Header::parse(bytes).ok());
        let named: Vec<u64> = headers.map(|header| self.extent_of(header.blob_position.get())).collect();
        // Lost pages read as zeros.
        self.check_map()?;
        if named.is_empty() { Err(self.corrupt(0, "both header slots")) } else { Ok(named) }
    }
}
