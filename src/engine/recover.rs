//! Recovery: an opener that is alone builds the shared words from the newest header, its blob, and the log since.
//!
//! The order matters. Pass 1 finds the end of the log and looks at all that can be refused; it writes nothing. The
//! header that was taken is durable in both slots before anything else is written. The replayed log is durable before
//! anybody reads it. Pass 2 applies it.

use std::sync::atomic::Ordering;

use zerocopy::{FromZeros, IntoBytes};

use crate::control::{Core, EXTENT_WORDS, Ends, LAYOUT, Word, store};
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::blob::{BLOB_BLOB, BLOB_INDEX, BLOB_LOG, Blob};
use crate::format::extent::{ExtentState, Kind, PageState};
use crate::format::header::{HEADER_LEN, Header};
use crate::format::record::{RECORD_HEADER, RecordHeader, SEGMENT_HEADER, TAIL_ROOM};
use crate::format::slot::{DirEntry, Root};
use crate::index::GROUP;
use crate::log::replay::FoundBatch;
use crate::space::Claim;
use crate::sys::host;

/// What pass 1 found.
struct Found {
    blob: Blob,
    batches: Vec<FoundBatch>,
    /// Applied seq, end and chain of the log.
    seq: u64,
    ends: Ends,
}

/// Who holds what after recovery, before it is written to the extent table.
struct Plan {
    /// State, run, live bytes of each extent.
    extents: Vec<(ExtentState, u64, u64)>,
}

impl Plan {
    /// The run that an extent belongs to: its first extent, how many it has, what they hold.
    fn run_at(&self, number: u64) -> Option<(u64, u64, Kind)> {
        let state = self.extents.get(number as usize)?.0;
        let head = if state.kind() == Kind::Inner { number.checked_sub(state.number())? } else { number };
        let (state, run, _) = self.extents.get(head as usize)?;
        Some((head, *run, state.kind()))
    }
}

fn is_unused(state: ExtentState) -> bool {
    matches!(state.kind(), Kind::Hole | Kind::Free | Kind::Retired)
}

impl Core {
    /// Recovers the store from `header`, the newest valid one, and sets up the shared words. Alone on the store.
    ///
    /// `readers`: read-only openers have recovered from an older checkpoint and may still use what this one does not
    /// name, so nothing is free at once.
    pub fn recover(&self, header: &Header, readers: bool) -> Result<()> {
        let found = self.read_log(header)?;
        let mut plan = self.plan(header, &found, readers)?;
        if self.shared {
            self.hold_space(&mut plan)?;
            self.mend_headers(header)?;
            self.make_log_durable(&found)?;
        }
        self.clear_volatile()?;
        // Private memory has no bound but its own.
        self.set(Word::MaxSize, if self.shared { header.max_size.get() } else { 0 });
        self.set(Word::MaxSizeStored, header.max_size.get());
        self.set(Word::BlobLen, header.blob_len.get());
        self.write_tables(&mut plan)?;
        self.write_page_maps(&found, readers);
        self.write_directory_beside_blobs(&found.blob, readers)?;
        self.write_words(header)?;
        for (n, group) in found.batches.chunks(GROUP).enumerate() {
            self.prefetch_batches(group);
            for (batch, seq) in group.iter().zip(header.seq.get() + 1 + (n * GROUP) as u64..) {
                self.replay(seq, batch)?;
            }
        }
        for word in [Word::Durable, Word::LastImmediate, Word::First, Word::Visible] {
            self.set(word, found.seq);
        }
        self.set(Word::Cursor, found.ends.tail);
        self.set(Word::Layout, LAYOUT);
        Ok(())
    }

    /// Pass 1: the blob, and the whole batches since.
    fn read_log(&self, header: &Header) -> Result<Found> {
        let position = header.blob_position.get();
        let bytes = self.map.bytes(position, header.blob_len.get());
        let bytes =
            bytes.ok_or_else(|| self.corrupt(position, "the checkpoint blob lies beyond the end of the file"))?;
        if crc32fast::hash(bytes) != header.blob_crc.get() {
            return Err(self.corrupt(position, "checksum of the checkpoint blob"));
        }
        let extents = self.extent_of(self.map.len());
        let blob = Blob::decode(bytes, extents).map_err(|what| self.corrupt(position, what))?;
        if (blob.generation, blob.seq) != (header.generation.get(), header.seq.get()) {
            return Err(self.corrupt(position, "the checkpoint blob is of another checkpoint than its header"));
        }
        let mut ends = Ends {
            tail: header.log_position.get(),
            chain: header.chain.get(),
            live_keys: header.live_keys.get(),
            live_bytes: header.live_bytes.get(),
            log_total: 0,
        };
        let (mut seq, mut batches) = (header.seq.get(), Vec::new());
        while let Some(batch) = self.read_batch(ends.tail, seq + 1, ends.chain) {
            (ends.tail, ends.chain) = (batch.tail, batch.chain);
            seq += 1;
            batches.push(batch);
        }
        // A lost page would end the log too early.
        self.proven(Ok(Found { blob, batches, seq, ends }))
    }

    /// Nothing is written before the header that was taken is durable in both slots. Two equal slots are: B is
    /// written only after A has reached the disk.
    fn mend_headers(&self, header: &Header) -> Result<()> {
        let slots = [0, self.geometry.slot_b()];
        let is_taken = |&slot: &u64| self.map.bytes(slot, HEADER_LEN as u64) == Some(header.as_bytes());
        if slots.iter().all(is_taken) {
            return Ok(());
        }
        let (taken, others): (Vec<u64>, Vec<u64>) = slots.iter().partition(|slot| is_taken(slot));
        taken.into_iter().chain(others).try_for_each(|slot| self.write_slot(slot, header.as_bytes()))
    }

    /// Writes the replayed log again and syncs it, since a failed sync may have left it clean in the cache only; in
    /// the same sync wipes the record header at the tail, so that a batch that was lost never comes back.
    fn make_log_durable(&self, found: &Found) -> Result<()> {
        let mut pieces: Vec<(u64, u64)> = found.batches.iter().flat_map(|b| b.pieces.iter().copied()).collect();
        let tail = found.ends.tail;
        if self.header_at(tail).is_some_and(|header| header.seq() > found.seq) || !pieces.is_empty() {
            self.write(tail, RecordHeader::new_zeroed().as_bytes())?;
            pieces.push((tail, RECORD_HEADER));
        }
        // Batches stand one behind the other: one write and one sync for each segment.
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (position, len) in pieces {
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == position => last.1 += len,
                _ => runs.push((position, len)),
            }
        }
        self.rewrite(&runs)?;
        self.sync_ranges(&runs)
    }

    fn plan(&self, header: &Header, found: &Found, readers: bool) -> Result<Plan> {
        // Unused extents may have been punched, or a growth may have died before it had reserved their space.
        let held = ExtentState::retired(found.seq + 1, true).hollow();
        let unused = if readers { held } else { ExtentState::new(Kind::Hole) };
        let count = self.extent_of(self.map.len());
        let mut plan = Plan { extents: vec![(unused, 1, 0); count as usize] };
        for n in 0..self.geometry.fixed_extents() {
            plan.extents[n as usize].0 = ExtentState::new(Kind::Fixed);
        }
        let mut index: Vec<u64> = found.blob.pages.iter().map(|p| self.extent_of(p.position.get())).collect();
        index.sort_unstable();
        let tail = self.extent_of(header.log_position.get());
        for run in &found.blob.extents {
            let (first, len) = (run.first.get(), u64::from(run.run.get()));
            let kind = match run.kind.get() {
                BLOB_LOG if run.live.get() > 0 || (first..first + len).contains(&tail) => Kind::Log,
                BLOB_INDEX if index.binary_search(&first).is_ok() => Kind::Index,
                BLOB_BLOB => Kind::Blob,
                _ => continue,
            };
            self.plan_run(&mut plan, first, len, kind, run.live.get())?;
        }
        for &(position, len) in found.batches.iter().flat_map(|b| &b.segments) {
            let (first, run) = (self.extent_of(position), self.extent_of(len));
            if plan.extents[first as usize].0.kind() != Kind::Log {
                self.plan_run(&mut plan, first, run, Kind::Log, 0)?;
            }
        }
        self.check_plan(header, found, &plan)?;
        Ok(plan)
    }

    fn plan_run(&self, plan: &mut Plan, first: u64, run: u64, kind: Kind, live: u64) -> Result<()> {
        let extents = (first as usize)
            .checked_add(run as usize)
            .and_then(|end| plan.extents.get_mut(first as usize..end))
            .filter(|extents| extents.iter().all(|e| is_unused(e.0)));
        let Some(extents) = extents else {
            return Err(self.corrupt(self.position_of(first), "a run of extents lies over another"));
        };
        for (n, extent) in extents.iter_mut().enumerate() {
            *extent = (ExtentState::inner(n as u64), 1, 0);
        }
        extents[0] = (ExtentState::new(kind), run, live);
        Ok(())
    }

    /// Pages lie in index extents, the log in segments with room for what comes next, the blob in its own extents.
    fn check_plan(&self, header: &Header, found: &Found, plan: &Plan) -> Result<()> {
        let expect = |position: u64, kind, what: &str| match plan.run_at(self.extent_of(position)) {
            Some((head, run, found)) if found == kind => Ok(self.position_of(head)..self.position_of(head + run)),
            _ => Err(self.corrupt(position, what)),
        };
        expect(header.blob_position.get(), Kind::Blob, "the blob does not lie in its extents")?;
        let room = "the log leaves no room in its segment";
        for &(position, len) in found.batches.iter().flat_map(|batch| &batch.pieces) {
            if position + len > expect(position, Kind::Log, "the log does not lie in a segment")?.end {
                return Err(self.corrupt(position, room));
            }
        }
        for position in [header.log_position.get(), found.ends.tail] {
            let segment = expect(position, Kind::Log, "the log position does not lie in a segment")?;
            if position < segment.start + SEGMENT_HEADER || position + TAIL_ROOM > segment.end {
                return Err(self.corrupt(position, room));
            }
        }
        let map_end = self.geometry.map_pages() * PAGE;
        for page in &found.blob.pages {
            let position = page.position.get();
            expect(position, Kind::Index, "an index page does not lie in an index extent")?;
            if position % self.geometry.extent < map_end {
                return Err(self.corrupt(position, "an index page lies over its page map"));
            }
        }
        Ok(())
    }

    /// Makes sure that all extents in use have their space, before anything is written. Who copied the file may have
    /// left out blocks of zeros, and on a full disk a store to one that is missing kills the process.
    fn hold_space(&self, plan: &mut Plan) -> Result<()> {
        for (position, len) in self.geometry.fixed_ranges() {
            self.hold(position, len)?;
        }
        let mut first = self.geometry.fixed_extents();
        let (_, others) = plan.extents.split_at(first as usize);
        for extents in others.chunk_by(|a, b| is_unused(a.0) == is_unused(b.0)) {
            if !is_unused(extents[0].0) {
                self.hold_extents(first, extents.len() as u64)?;
            }
            first += extents.len() as u64;
        }
        self.hold_folios(plan)
    }

    /// What may share a folio with index pages is held too, and free from now on.
    fn hold_folios(&self, plan: &mut Plan) -> Result<()> {
        let (mut first, count) = (0, plan.extents.len() as u64);
        while first < count {
            let end = self.folio_of(first).end.min(count);
            let folio = &mut plan.extents[first as usize..end as usize];
            if folio.iter().any(|e| e.0.kind().is_stored_to()) && folio.iter().any(|e| is_unused(e.0)) {
                if let Err(e) = self.hold_extents(first, end - first) {
                    log::warn!("no space for the holes around extent {first}: {e}");
                    first = end;
                    continue;
                }
                let holes = folio.iter_mut().filter(|e| e.0.kind() == Kind::Hole);
                holes.for_each(|e| e.0 = ExtentState::new(Kind::Free));
            }
            first = end;
        }
        Ok(())
    }

    fn hold_extents(&self, first: u64, run: u64) -> Result<()> {
        self.hold(self.position_of(first), self.position_of(run))
    }

    fn hold(&self, position: u64, needed: u64) -> Result<()> {
        let refused = |source| Error::no_space(&self.path, position, needed, source);
        self.disk.allocate(position, needed).map_err(refused)
    }

    /// Finds room for the extent table, growing the file if need be, and writes it.
    fn write_tables(&self, plan: &mut Plan) -> Result<()> {
        let mut chunk = 1;
        while chunk <= self.chunks_for(plan.extents.len() as u64) {
            let first = self.plan_table(plan, self.chunk_extents(chunk))?;
            store(self.chunk(chunk), self.position_of(first));
            chunk += 1;
        }
        for (n, &(state, run, live)) in plan.extents.iter().enumerate() {
            let extent = self.extent(n as u64);
            extent.fill(state, run, live);
        }
        self.set(Word::Extents, plan.extents.len() as u64);
        self.recount();
        Ok(())
    }

    fn plan_table(&self, plan: &mut Plan, run: u64) -> Result<u64> {
        let mut found = 0;
        let end = plan.extents.iter().position(|e| {
            found = if matches!(e.0.kind(), Kind::Hole | Kind::Free) { found + 1 } else { 0 };
            found == run
        });
        let first = end.map_or(plan.extents.len() as u64, |end| end as u64 + 1 - run);
        let (position, len) = (self.position_of(first), self.position_of(run));
        let count = (plan.extents.len() as u64).max(first + run);
        let around = self.folio_of(first).start..self.folio_of(first + run - 1).end.min(count);
        self.hold_extents(around.start, around.end - around.start)?;
        self.map.set_len(position + len).map_err(|e| self.io("map", position, e))?;
        plan.extents.resize(count as usize, (ExtentState::new(Kind::Hole), 1, 0));
        // The table is written in whole: entries of a chunk that are not of the file read as free.
        let words = self.position_of(run) / 8 / EXTENT_WORDS as u64;
        for n in 0..words {
            let entry = self.words::<EXTENT_WORDS>(self.position_of(first) + n * EXTENT_WORDS as u64 * 8);
            entry.into_iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        self.plan_run(plan, first, run, Kind::Table, 0)?;
        Ok(first)
    }

    fn write_page_maps(&self, found: &Found, readers: bool) {
        for n in 0..self.extents() {
            if self.extent(n).state().kind() == Kind::Index {
                self.format_index_extent(n);
            }
        }
        for page in &found.blob.pages {
            let position = page.position.get();
            self.set_page_state(position, PageState::Used(0));
            self.add_live(self.extent_of(position), 1);
            self.add(Word::FreePages, -1);
        }
        if readers {
            self.hold_free_pages(found.seq + 1);
        }
    }

    /// Pages that nobody uses now may be those of an older checkpoint that a read-only opener still reads.
    fn hold_free_pages(&self, seq: u64) {
        for n in 0..self.extents() {
            if self.extent(n).state().kind() != Kind::Index {
                continue;
            }
            for page in 0..self.geometry.pages() {
                let position = self.position_of(n) + page * PAGE;
                if self.page_state(position) == PageState::Free {
                    self.set_page_state(position, PageState::Retired { seq, seen: true });
                    self.add_live(n, 1);
                    self.add(Word::FreePages, -1);
                    self.add(Word::RetiredPages, 1);
                }
            }
        }
    }

    /// What takes more extents in a row goes first, the directory or a spare run for blobs. Without the latter the
    /// store can be opened all the same.
    fn write_directory_beside_blobs(&self, blob: &Blob, readers: bool) -> Result<()> {
        if self.shared && !readers && self.next_blob() > self.directory_run(blob.depth + 1) {
            self.try_blob_room();
        }
        match self.write_directory(blob) {
            Err(Error::Full { .. } | Error::MaxSize { .. }) if self.shared => {
                self.free_spare_blobs()?;
                self.write_directory(blob)
            }
            done => done,
        }
    }

    fn write_directory(&self, blob: &Blob) -> Result<()> {
        let (first, room) = self.take_directory(blob.depth + 1, Claim::Reserve)?;
        let root = Root::new(self.position_of(first), blob.depth);
        for page in &blob.pages {
            let (bits, depth) = (u64::from(page.suffix.get()), page.depth.get());
            let entry = DirEntry::new(page.position.get(), depth, false);
            for n in 0..1u64 << (blob.depth - depth) {
                self.entry_cell(root, bits | n << depth)?.store(entry.raw(), Ordering::Relaxed);
            }
        }
        self.set(Word::Root, root.raw());
        self.set(Word::DirectoryRoom, room);
        Ok(())
    }

    fn write_words(&self, header: &Header) -> Result<()> {
        let lifetime = host::random::<8>().map_err(|e| self.io("random", None, e))?;
        self.set(Word::Lifetime, u64::from_le_bytes(lifetime));
        self.set(Word::Generation, header.generation.get());
        self.set(Word::Epoch, 1);
        self.set(Word::Checkpoint, header.seq.get());
        let ends = Ends {
            tail: header.log_position.get(),
            chain: header.chain.get(),
            live_keys: header.live_keys.get(),
            live_bytes: header.live_bytes.get(),
            log_total: 0,
        };
        self.publish(header.seq.get(), ends);
        self.set(Word::Visible, header.seq.get());
        Ok(())
    }

    /// Asks for what batches are going to change. Most are of one record, so a group of them has as many misses as can
    /// be under way.
    fn prefetch_batches(&self, batches: &[FoundBatch]) {
        let positions = batches.iter().flat_map(|batch| &batch.records).copied().take(GROUP);
        let positions: Vec<u64> = positions.collect();
        let hashes: Vec<u64> = self.hashed(&positions).map(|(hash, _)| hash).collect();
        self.prefetch_many(hashes.iter().copied());
    }

    /// Pass 2: one batch.
    fn replay(&self, seq: u64, batch: &FoundBatch) -> Result<()> {
        let (_, ends) = self.ends();
        let log_total = ends.log_total + batch.log_len();
        let mut after = Ends { tail: batch.tail, chain: batch.chain, log_total, ..ends };
        self.apply(seq, self.hashed(&batch.records), &batch.segments, &mut after)?;
        self.set(Word::Visible, seq);
        Ok(())
    }
}
