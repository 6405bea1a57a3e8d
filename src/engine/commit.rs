//! Commit: reserve, append, apply, publish. A commit is whole once its batch stands in the log; from then on any
//! writer can finish it.

use crate::control::{Core, Ends, Word, load};
use crate::engine::Engine;
use crate::engine::clean::Cleaning;
use crate::error::{Error, Result};
use crate::format::record::{Kind, MOVED};
use crate::format::{hash_key, round_up};
use crate::index::{Change, GROUP};
use crate::log::Record;
use crate::log::append::Batch;
use crate::options::Durability;
use crate::space::Claim;

/// Eventual commits in a row, after an Immediate one, before appends go through the map again.
const CALM: u64 = 64;

/// A batch that is in the index.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Its seq.
    pub seq: u64,
    /// It is not visible before it is durable.
    pub wait: bool,
}

impl Engine {
    /// Commits a batch under the writer lock; the caller waits for durability after letting go of it.
    ///
    /// # Errors
    /// Before the first byte is written nothing has changed. After it: `InDoubt`; the next writer finishes or drops
    /// the batch.
    pub fn commit_batch(&self, batch: &mut Batch, durability: Durability, claim: Claim) -> Result<Committed> {
        let core = &self.core;
        core.check_poison()?;
        let (applied, mut ends) = core.ends();
        let mut cleaning = self.clean_into(batch, ends).map_err(|e| core.cause(e))?;
        if cleaning.is_none() {
            core.prefetch_group(batch, 0);
        }
        core.look_up(batch).map_err(|e| core.cause(e))?;
        self.reserve(batch, applied + 1, &mut ends, &mut cleaning, claim).map_err(|e| core.cause(e))?;
        self.commit_reserved(batch, applied + 1, ends, cleaning, durability)
    }

    /// Commits a batch that has nothing but what the cleaner moves; Eventual. As `commit_batch`.
    pub fn commit_moved(&self, batch: &mut Batch, cleaning: Option<Cleaning>, claim: Claim) -> Result<Committed> {
        self.core.check_poison()?;
        let (applied, mut ends) = self.core.ends();
        self.reserve_as_is(batch, applied + 1, &mut ends, claim).map_err(|e| self.core.cause(e))?;
        self.commit_reserved(batch, applied + 1, ends, cleaning, Durability::Eventual)
    }

    fn commit_reserved(
        &self,
        batch: &mut Batch,
        seq: u64,
        after: Ends,
        cleaning: Option<Cleaning>,
        durability: Durability,
    ) -> Result<Committed> {
        let core = &self.core;
        core.check_map().inspect_err(|_| core.drop_layout(batch))?;
        core.set(Word::WriterActive, core.me().max(1));
        if durability == Durability::Immediate {
            core.lift(Word::LastImmediate, seq);
        }
        let mapped = durability == Durability::Eventual && seq - core.get(Word::LastImmediate).min(seq) > CALM;
        let done = core.append(batch, mapped).and_then(|()| self.apply_own(batch, seq, after, cleaning));
        core.proven(done).map_err(|e| self.in_doubt(seq, e))?;
        let wait = self.must_wait(durability);
        if !wait {
            core.lift(Word::Visible, seq);
        }
        core.set(Word::WriterActive, 0);
        if !batch.segments().is_empty() {
            self.look_ahead();
        }
        Ok(Committed { seq, wait })
    }

    /// Whether a transaction that ends now, under the writer lock, must wait for a flush: its own, or that of an
    /// Immediate commit that it stands on and that nobody sees yet.
    pub fn must_wait(&self, durability: Durability) -> bool {
        let core = &self.core;
        durability == Durability::Immediate || core.get(Word::Durable) < core.get(Word::LastImmediate)
    }

    /// The error of a commit whose first byte was written.
    pub fn in_doubt(&self, seq: u64, source: Error) -> Error {
        Error::InDoubt { path: self.core.path.clone(), seq, source: Box::new(source) }
    }

    /// Reserves and lays out a batch; without the records that the cleaner moves if there is no room for them too, and
    /// what these take never comes out of what only deletes may take.
    fn reserve(
        &self,
        batch: &mut Batch,
        seq: u64,
        ends: &mut Ends,
        cleaning: &mut Option<Cleaning>,
        claim: Claim,
    ) -> Result<()> {
        if cleaning.is_some() {
            let modest = if claim == Claim::Put { Claim::Put } else { Claim::Move };
            match self.reserve_as_is(batch, seq, ends, modest) {
                Err(Error::Full { .. } | Error::MaxSize { .. }) => batch.drop_moved(),
                done => return done,
            }
            *cleaning = None;
        }
        self.reserve_as_is(batch, seq, ends, claim)
    }

    /// After an error the ends are what they were.
    fn reserve_as_is(&self, batch: &mut Batch, seq: u64, ends: &mut Ends, claim: Claim) -> Result<()> {
        let before = *ends;
        self.core.lay_out(batch, seq, ends, claim)?;
        self.reserve_index(batch, claim).inspect_err(|_| {
            self.core.drop_layout(batch);
            *ends = before;
        })
    }

    /// Whatever can say "full" says it now: pages for copies and splits, room in the directory, its depth.
    fn reserve_index(&self, batch: &Batch, claim: Claim) -> Result<()> {
        let core = &self.core;
        let growth = core.growth(batch)?;
        core.check_depth(growth.depth)?;
        core.ensure_pages(growth.pages(), claim)?;
        // Only new keys make it deeper.
        let ahead = if claim == Claim::Put { core.root().depth() + 1 } else { 0 };
        core.ensure_directory_room(growth.depth.max(ahead), claim)
    }

    fn apply_own(&self, batch: &Batch, seq: u64, mut ends: Ends, cleaning: Option<Cleaning>) -> Result<()> {
        let core = &self.core;
        let records = batch.entries().map(|e| (e.hash, e.position));
        core.apply(seq, records, batch.segments(), &mut ends)?;
        if let Some(cleaning) = cleaning {
            self.cleaned(cleaning, seq);
        }
        Ok(())
    }
}

impl Core {
    /// Asks for what the search for a group of the batch's writes is going to read.
    pub fn prefetch_group(&self, batch: &Batch, first: usize) {
        if batch.places() == 1 {
            return batch.open_at(0).map_or((), |entry| self.prefetch_first(entry.hash));
        }
        let places = first..batch.places().min(first + GROUP);
        self.prefetch_many(places.filter_map(|place| Some(batch.open_at(place)?.hash)));
    }

    /// Finds what the puts of a batch replace, so many at a time that their misses overlap; the first group was asked
    /// for before.
    fn look_up(&self, batch: &mut Batch) -> Result<()> {
        for first in (0..batch.places()).step_by(GROUP) {
            if first > 0 {
                self.prefetch_group(batch, first);
            }
            for place in first..batch.places().min(first + GROUP) {
                let Some(entry) = batch.open_at(place) else { continue };
                let prev = self.find(entry.hash, batch.key(entry))?.map_or(0, |record| record.position);
                self.check_page_of(entry.hash)?;
                batch.set_prev(place, prev);
            }
        }
        self.check_map()
    }

    /// Applies a batch that stands at the tail, and publishes it. Commit, takeover and replay run this; run twice it
    /// changes nothing more, but for live bytes that count too high.
    pub fn apply(
        &self,
        seq: u64,
        records: impl Iterator<Item = (u64, u64)>,
        segments: &[(u64, u64)],
        ends: &mut Ends,
    ) -> Result<()> {
        let tail = self.head_of(self.ends().1.tail)?;
        // Most batches open no segment or one, and need no memory here.
        let (few, many): ([u64; 2], Vec<u64>);
        let busy = match *segments {
            [] => &[tail][..],
            [(one, _)] => {
                few = [tail, self.extent_of(one)];
                &few
            }
            _ => {
                many = [tail].into_iter().chain(segments.iter().map(|&(one, _)| self.extent_of(one))).collect();
                &many
            }
        };
        let change = Change { seq, busy };
        for (hash, position) in records {
            let record = self.record(position)?;
            self.count(ends, record)?;
            self.set_slot(hash, record, change)?;
        }
        for pair in busy.windows(2) {
            self.extent(pair[0]).set_next(self.position_of(pair[1]));
            if self.extent(pair[0]).live() == 0 {
                self.retire_segment(pair[0], seq);
            }
        }
        self.check_map()?;
        self.publish(seq, *ends);
        Ok(())
    }

    /// Live keys and bytes after a record. They follow from the record and the one before it alone, so that whoever
    /// finishes a batch comes to the same numbers.
    fn count(&self, ends: &mut Ends, record: Record<'_>) -> Result<()> {
        let header = record.header;
        if header.flags() & MOVED != 0 {
            return Ok(());
        }
        if header.prev() != 0 {
            let old = self.header(header.prev())?;
            if old.kind() == Some(Kind::Put) {
                ends.live_keys = ends.live_keys.saturating_sub(1);
                ends.live_bytes = ends.live_bytes.saturating_sub(old.key_len() + old.value_len());
            }
        }
        if header.kind() == Some(Kind::Put) {
            ends.live_keys = ends.live_keys.saturating_add(1);
            ends.live_bytes = ends.live_bytes.saturating_add(header.key_len() + header.value_len());
        }
        Ok(())
    }

    /// Hash and position of the records at these positions.
    pub fn hashed<'a>(&'a self, positions: &'a [u64]) -> impl Iterator<Item = (u64, u64)> + 'a {
        // A position that cannot be read is met again, and reported, when it is applied.
        positions.iter().map(|&p| (self.try_record(p).map_or(0, |r| hash_key(r.key(), self.geometry.seed)), p))
    }

    /// Bytes of index pages, directory and page maps.
    pub fn index_bytes(&self) -> u64 {
        let kinds = (0..self.extents_in_reach()).map(|n| self.extent(n));
        let bytes = kinds.map(|extent| match extent.state().kind() {
            crate::format::extent::Kind::Index => extent.live() * crate::format::PAGE,
            crate::format::extent::Kind::Directory => {
                round_up(8 << self.root().depth(), crate::format::PAGE).min(extent.run() * self.geometry.extent)
            }
            _ => 0,
        });
        bytes.sum::<u64>().saturating_sub(load(self.word(Word::RetiredPages)) * crate::format::PAGE)
    }
}
