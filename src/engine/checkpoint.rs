//! Checkpoint: an image of the index as of one seq, made durable beside the commits that go on.
//!
//! Freeze (under the writer lock), log, pages, blob, header slot A, header slot B, and only then is anything reused.
//! One that fails or dies midway has changed nothing durable; the next one covers its pages too.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::control::{Core, Ends, Word};
use crate::engine::Engine;
use crate::engine::lock::{Deadline, wait_for_byte};
use crate::error::Result;
use crate::format::PAGE;
use crate::format::blob::{BLOB_BLOB, BLOB_INDEX, BLOB_LOG, Blob, BlobExtent, BlobPage, blob_len};
use crate::format::extent::{Kind, PageState};
use crate::format::header::{HEADER_LEN, Header, MAGIC, VERSION};
use crate::format::slot::DirEntry;
use crate::readers::bytes;
use crate::sys::lock::Mode;

/// Least log since the last checkpoint that begins one.
const LEAST_LOG: u64 = 64 << 20;
/// Extents retired since the last checkpoint that begin one: so much of the log, ...
const RETIRED_SHARE: u64 = 4;
/// ... but not less than this share of the slack.
const SLACK_SHARE: u64 = 4;
/// The last handle to close checkpoints when there is more log than this: about 10 ms of replay.
pub const CLOSE_LOG: u64 = 1 << 20;

/// Pages that changed since the last durable checkpoint: position, epoch of their birth.
type Changed = Vec<(u64, u64)>;

/// What a freeze has fixed.
struct Image {
    blob: Blob,
    /// First extent of the blob's run.
    first: u64,
    ends: Ends,
    /// Extents retired until then.
    retired: u64,
    epoch: u64,
    file_len: u64,
    max_size: u64,
    changed: Changed,
}

impl Engine {
    /// Makes a checkpoint, unless nothing has changed since the last one. Waits for one that is under way.
    pub fn checkpoint(&self) -> Result<()> {
        self.as_checkpointer(|| self.checkpoint_locked(false)).map(|_| ())
    }

    /// Makes a checkpoint even if only the length of the file has changed.
    pub fn checkpoint_anyway(&self) -> Result<bool> {
        self.as_checkpointer(|| self.checkpoint_locked(true))
    }

    /// Gives all free space but the standing reserve back to the file system.
    pub fn give_back_all(&self) -> Result<()> {
        self.as_checkpointer(|| {
            self.give_back(self.core.standing_reserve(), 0, true);
            Ok(())
        })
    }

    /// Runs what only one at a time may do, in all processes.
    pub fn as_checkpointer<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let core = &self.core;
        if !core.writable {
            return Err(crate::Error::ReadOnly { path: core.path.clone() });
        }
        let deadline = Deadline::new(self.settings.lock_timeout);
        let Some(_mine) = self.checkpoint.try_lock_until(deadline.end()) else {
            return Err(deadline.error(core, "checkpoint lock"));
        };
        if !wait_for_byte(core, bytes::CHECKPOINT, Mode::Exclusive, &deadline)? {
            return Err(deadline.error(core, "checkpoint lock"));
        }
        let done = work();
        core.locks.unlock_byte(bytes::CHECKPOINT).map_err(|e| core.io("unlock", None, e))?;
        done
    }

    /// Whether there was anything to do.
    fn checkpoint_locked(&self, anyway: bool) -> Result<bool> {
        let core = &self.core;
        // Most of the log goes to the disk before the freeze: what is copied between it and the header takes space.
        self.wait_durable(core.ends().0)?;
        if !anyway
            && core.ends().0 != core.get(Word::Checkpoint)
            && let Err(e) = self.shrink_index_if_sparse()
        {
            log::warn!("{}: the index stays as large as it is: {e}", core.path.display());
        }
        let Some(mut image) = self.freeze(anyway)? else { return Ok(false) };
        match self.write_image(&mut image) {
            Ok(header) => core.proven(Ok(())).and_then(|()| core.write_headers(header))?,
            Err(e) => {
                // No header names the blob, so its run is spare or free again; failing that, the next one is for it.
                if self.lock_writer().and_then(|_writer| core.keep_blobs()).is_err() {
                    log::warn!("{}: the blob of a failed checkpoint stays until the next one", core.path.display());
                }
                return Err(e);
            }
        }
        core.proven(Ok(()))?;
        core.lift(Word::DurableEpoch, image.epoch);
        core.set(Word::CheckpointLog, image.ends.log_total);
        core.set(Word::CheckpointRetired, image.retired);
        core.set(Word::MaxSizeStored, image.max_size);
        core.lift(Word::Checkpoint, image.blob.seq);
        log::debug!("{}: the checkpoint of seq {} stands", core.path.display(), image.blob.seq);
        // The checkpoint stands; if the lock is not to be had, the next one finds the old blob.
        if let Ok(_writer) = self.lock_writer()
            && core.keep_blobs().is_ok()
            && !anyway
        {
            core.try_blob_room();
        }
        if anyway {
            // The file is about to be cut: space around index pages would make it longer again.
            return Ok(true);
        }
        self.give_back(core.working_reserve(), core.spare_pages(), false);
        Ok(true)
    }

    /// Gives free space beyond `keep` extents and `spare` index pages back to the file system. Under the checkpoint
    /// lock.
    fn give_back(&self, keep: u64, spare: u64, anywhere: bool) {
        let core = &self.core;
        let aside = self.lock_writer().and_then(|_writer| {
            core.sweep_pages(spare)?;
            core.sweep_extents()?;
            // From here on space in front is taken first.
            core.set(Word::FreeHint, 0);
            let aside = core.set_aside(keep, anywhere);
            // A lost page of the extent table reads as free.
            core.check_map()?;
            Ok(aside)
        });
        match aside {
            Ok((aside, unbacked)) => {
                core.punch(&aside);
                if !anywhere {
                    self.tell_unbacked(unbacked);
                }
            }
            Err(e) => log::warn!("{}: no space goes back now: {e}", core.path.display()),
        }
    }

    /// Warns of holes that find no space where there were none before, and tells when they have it. Under the
    /// checkpoint lock.
    fn tell_unbacked(&self, folios: usize) {
        let path = self.core.path.display();
        match (self.unbacked.swap(folios > 0, Ordering::Relaxed), folios) {
            (false, 1..) => log::warn!("{path}: no space for holes beside index pages, in {folios} blocks"),
            (true, 0) => log::info!("{path}: the holes beside index pages have their space again"),
            _ => {}
        }
    }

    /// Log, pages and blob, durable; the header that may name them now.
    fn write_image(&self, image: &mut Image) -> Result<Header> {
        let core = &self.core;
        self.wait_durable(image.blob.seq)?;
        core.sync_pages(image)?;
        let blob = image.blob.encode();
        let position = core.position_of(image.first);
        core.write(position, &blob)?;
        core.sync_range(position, blob.len() as u64).map_err(|e| core.poison(e))?;
        Ok(core.header_of(image, &blob))
    }

    /// Fixes the image under the writer lock. None: the last checkpoint is of this very state.
    fn freeze(&self, anyway: bool) -> Result<Option<Image>> {
        let core = &self.core;
        let _writer = self.lock_writer()?;
        let (seq, ends) = core.ends();
        let same = seq == core.get(Word::Checkpoint) && core.get(Word::MaxSize) == core.get(Word::MaxSizeStored);
        if same && !anyway {
            return Ok(None);
        }
        let generation = core.get(Word::Generation) + 1;
        core.set(Word::Generation, generation);
        let (pages, changed) = core.freeze_pages()?;
        let mut extents = core.extents_in_use();
        let bytes = blob_len(pages.len() as u64, extents.len() as u64 + 1);
        let run = bytes.div_ceil(core.geometry.extent);
        let first = core.take_blob(run)?;
        core.set(Word::BlobLen, bytes);
        let own = blob_extent(first, core.extent(first).run(), BLOB_BLOB, 0);
        extents.insert(extents.partition_point(|e| e.first.get() < first), own);
        let epoch = core.get(Word::Epoch);
        core.set(Word::Epoch, epoch + 1);
        // The directory may be deeper than its pages, after a split that failed or siblings that became one.
        let depth = pages.iter().map(|page| page.depth.get()).fold(0, u32::max);
        let blob = Blob { generation, seq, depth, pages, extents };
        let file_len = core.position_of(core.extents());
        let retired = core.get(Word::RetiredTotal);
        log::debug!("{}: frozen at seq {seq}: {} pages have changed", core.path.display(), changed.len());
        Ok(Some(Image { blob, first, ends, retired, epoch, file_len, max_size: core.get(Word::MaxSize), changed }))
    }

    /// Begins a checkpoint beside the commits once there is enough log, or enough space that waits for one; at twice
    /// that the commit waits for it.
    pub fn checkpoint_if_due(&self) -> Result<()> {
        let due = self.limits_passed();
        if due == 0 {
            return Ok(());
        }
        if due >= 2 {
            log::debug!("{}: a commit waits for a checkpoint", self.core.path.display());
            // One that was under way may have done.
            let still_due = || if self.limits_passed() >= 2 { self.checkpoint_locked(false) } else { Ok(false) };
            return self.as_checkpointer(still_due).map(|_| ());
        }
        let mut background = self.background.lock();
        if background.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        let Some(engine) = self.this.upgrade() else { return Ok(()) };
        let work = move || {
            if let Err(e) = engine.checkpoint() {
                log::error!("checkpoint: {e}");
            }
        };
        let spawned = std::thread::Builder::new().name("slotdb-checkpoint".into()).spawn(work);
        match spawned {
            Ok(thread) => *background = Some(thread),
            // At twice the limit a commit does it itself.
            Err(e) => log::warn!("no thread for a checkpoint: {e}"),
        }
        Ok(())
    }

    /// How many times over a checkpoint is due: 0, 1, or 2 and more. Asked for on each commit, so it must cost no walk.
    fn limits_passed(&self) -> u64 {
        let core = &self.core;
        // The index as the last freeze saw it.
        let index = core.get(Word::BlobLen) / size_of::<BlobPage>() as u64 * PAGE;
        let asked = self.settings.checkpoint_bytes;
        let times = |amount: u64, limit: u64| u64::from(amount >= limit) + u64::from(amount / 2 >= limit);
        let log = times(self.log_since_checkpoint(), asked.unwrap_or(LEAST_LOG.max(index / 2)).max(1));
        let retired = core.get(Word::RetiredTotal).saturating_sub(core.get(Word::CheckpointRetired));
        let slack = self.settings.slack;
        let least = core.extent_of(asked.unwrap_or(0).max(slack / SLACK_SHARE));
        let due = log.max(times(retired, least.max(core.get(Word::LogExtents) / RETIRED_SHARE)));
        let is_tight = retired >= least && core.is_tight(core.most(index, slack));
        // On a full disk deletes and the cleaner use the reserve; what they have retired gives it back.
        let is_short = retired > 0 && core.get(Word::Free) < core.standing_reserve();
        if is_tight || is_short || due == 1 && core.is_narrow(index, core.most(index, slack)) { 2 } else { due }
    }

    /// Waits for a checkpoint that this process runs beside the commits.
    pub fn join_background(&self) {
        let thread = self.background.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("{}: the checkpoint thread panicked", self.core.path.display());
        }
    }
}

fn blob_extent(first: u64, run: u64, kind: u32, live: u64) -> BlobExtent {
    BlobExtent { first: U64::new(first), run: U32::new(run as u32), kind: U32::new(kind), live: U64::new(live) }
}

impl Core {
    /// Bytes that the file may have before commits wait for checkpoints: about twice the size of what lives in it, or
    /// the slack more.
    fn most(&self, index: u64, slack: u64) -> u64 {
        let (_, ends) = self.ends();
        let live = ends.live_bytes.saturating_add(ends.live_keys.saturating_mul(32)).saturating_add(index);
        (live.saturating_mul(2) - live / 10).max(live.saturating_add(slack))
    }

    /// The next segment would make a file longer that is long enough, for want of a checkpoint.
    fn is_tight(&self, most: u64) -> bool {
        let spare = self.get(Word::Free).saturating_sub(self.put_reserve());
        spare <= 1 && self.position_of(self.extents()) > most
    }

    /// Copies of all index pages, which commits beside a checkpoint may make, would make the file longer than it should
    /// be.
    fn is_narrow(&self, index: u64, most: u64) -> bool {
        let spare = self.get(Word::Free).saturating_sub(self.put_reserve());
        let room = self.position_of(spare) + self.get(Word::FreePages) * PAGE;
        let more = index.saturating_sub(room);
        more > 0 && self.position_of(self.extents()).saturating_add(more) > most
    }

    /// Clears all mutable bits; lists the pages, and which of them changed since the last durable checkpoint.
    fn freeze_pages(&self) -> Result<(Vec<BlobPage>, Changed)> {
        let root = self.root();
        let durable = self.get(Word::DurableEpoch);
        let (mut pages, mut changed) = (Vec::new(), Vec::new());
        for index in 0..1u64 << root.depth() {
            let cell = self.entry_cell(root, index)?;
            let entry = DirEntry::from_raw(crate::control::load(cell));
            if entry.is_mutable() {
                crate::control::store(cell, entry.frozen().raw());
            }
            if index >> entry.depth() != 0 {
                continue;
            }
            // An entry may be the zeros of a file that somebody cut.
            self.page(entry.page())?;
            if let PageState::Used(born) = self.page_state(entry.page())
                && born > durable
            {
                changed.push((entry.page(), born));
            }
            pages.push(BlobPage {
                position: U64::new(entry.page()),
                suffix: U32::new(index as u32),
                crc: U32::ZERO,
                depth: U32::new(entry.depth()),
                reserved: U32::ZERO,
            });
        }
        Ok((pages, changed))
    }

    /// Runs of extents that recovery must know, but for the new blob.
    fn extents_in_use(&self) -> Vec<BlobExtent> {
        let run = |n| {
            let extent = self.extent(n);
            match extent.state().kind() {
                Kind::Log => Some(blob_extent(n, extent.run(), BLOB_LOG, extent.live())),
                Kind::Index => Some(blob_extent(n, 1, BLOB_INDEX, 0)),
                _ => None,
            }
        };
        (0..self.extents()).filter_map(run).collect()
    }

    /// Notes the checksums of the frozen pages and makes those durable that changed.
    fn sync_pages(&self, image: &mut Image) -> Result<()> {
        image.changed.sort_unstable();
        // What lies between them belongs to the next checkpoint, which would write it again.
        let runs = image.changed.chunk_by(|a, b| a.0 + PAGE == b.0).map(|run| (run[0].0, run.len() as u64 * PAGE));
        let runs: Vec<(u64, u64)> = runs.collect();
        // Found set: the last checkpointer died in here and may have met an error that it could not tell.
        if self.get(Word::PagesActive) != 0 {
            self.rewrite(&runs)?;
            image.changed.iter().try_for_each(|&(position, born)| self.check_noted(position, born))?;
        }
        for &(position, born) in &image.changed {
            self.page(position)?.note(self.stamp(born));
        }
        for page in &mut image.blob.pages {
            page.crc = U32::new(self.page(page.position.get())?.noted_crc());
        }
        self.set(Word::PagesActive, image.epoch);
        self.sync_ranges(&runs).map_err(|e| self.poison(e))?;
        self.set(Word::PagesActive, 0);
        Ok(())
    }

    fn header_of(&self, image: &Image, blob: &[u8]) -> Header {
        let mut header: Header = zerocopy::FromZeros::new_zeroed();
        header.magic = MAGIC;
        header.version = U32::new(VERSION);
        header.uuid = self.geometry.uuid;
        header.hash_seed = U64::new(self.geometry.seed);
        header.extent_size = U64::new(self.geometry.extent);
        header.created = U64::new(self.geometry.created);
        header.generation = U64::new(image.blob.generation);
        header.seq = U64::new(image.blob.seq);
        header.log_position = U64::new(image.ends.tail);
        header.chain = U32::new(image.ends.chain);
        header.blob_position = U64::new(self.position_of(image.first));
        header.blob_len = U64::new(blob.len() as u64);
        header.blob_crc = U32::new(crc32fast::hash(blob));
        header.live_keys = U64::new(image.ends.live_keys);
        header.live_bytes = U64::new(image.ends.live_bytes);
        header.file_len = U64::new(image.file_len);
        header.max_size = U64::new(image.max_size);
        header.sealed()
    }

    /// Makes the header durable in both slots. B first as it is: an earlier checkpoint may have died with it in flight,
    /// and A must not be touched before a whole slot is on the disk.
    fn write_headers(&self, header: Header) -> Result<()> {
        // The same test as on reading: a store whose counts are not to be believed is not written on.
        header.check().map_err(|bad| self.corrupt(0, format!("the header of a checkpoint would be wrong: {bad:?}")))?;
        let b = self.geometry.slot_b();
        // If a write of B has failed half-way it holds no header, and takes what A has.
        let is_whole = |slot: &u64| self.map.bytes(*slot, HEADER_LEN as u64).is_some_and(|s| Header::parse(s).is_ok());
        let whole = [b, 0].into_iter().find(is_whole).ok_or_else(|| self.corrupt(0, "both header slots"))?;
        let again = self.map.bytes(whole, HEADER_LEN as u64).unwrap_or_default().to_vec();
        self.write_slot(b, &again)?;
        for slot in [0, b] {
            self.write_slot(slot, header.as_bytes())?;
        }
        Ok(())
    }

    /// Writes a header slot and makes it durable.
    pub fn write_slot(&self, slot: u64, header: &[u8]) -> Result<()> {
        self.write(slot, header)?;
        self.sync_range(slot, HEADER_LEN as u64).map_err(|e| self.poison(e))
    }
}
