//! `check`: every header, page, record and pointer that a snapshot can reach.

use std::collections::HashMap;
use std::time::Duration;

use crate::control::{Core, Word};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::format::blob::Blob;
use crate::format::extent::{Kind, PageState};
use crate::format::hash_key;
use crate::format::header::{BadHeader, HEADER_LEN, Header};
use crate::format::record::{self, SEGMENT_HEADER, SegmentHeader};
use crate::format::slot::{DirEntry, suffix, tag};
use crate::index::page::Slot;
use zerocopy::FromBytes;

/// Looks at a header slot before it counts as bad.
const LOOKS: usize = 5;
/// Times its length that is read of a segment at most.
const SHOWN: u64 = 2;

/// Something wrong in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Where, in bytes from the start of the file.
    pub offset: u64,
    /// What.
    pub what: String,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checking {
    /// Keys looked at so far.
    pub keys: u64,
    /// Keys that have a value. Others may put and delete beside the check, so it is about this many.
    pub all_keys: u64,
}

/// Faults so far, and live bytes met in each segment.
struct Report {
    faults: Vec<Fault>,
    live: HashMap<u64, u64>,
    keys: u64,
    /// What is retired after this seq stays while the check runs.
    pinned: u64,
}

impl Report {
    fn add(&mut self, offset: u64, what: impl Into<String>) {
        self.faults.push(Fault { offset, what: what.into() });
    }

    /// Counts a record of `len` bytes in a segment of `room`, and tells whether to read it. Many slots may point to one
    /// long record, or to long ones that lie over each other, so what is read of a segment has a bound. In a sound
    /// store records lie apart, but a split beside the check shows some of them again.
    fn counts(&mut self, segment: u64, room: u64, len: u64) -> bool {
        let live = self.live.entry(segment).or_default();
        *live = live.saturating_add(len);
        *live <= SHOWN * room
    }
}

/// What a look came to; none if it met damage, which is what a check reports.
fn sound<T>(look: Result<T>) -> Result<Option<T>> {
    match look {
        Ok(found) => Ok(Some(found)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Engine {
    /// Lists what is wrong. Runs beside writers: a pin keeps what it looks at. Says after each page how far it is.
    pub fn check(&self, deep: bool, tell: &mut dyn FnMut(Checking)) -> Result<Vec<Fault>> {
        let core = &self.core;
        core.cover()?;
        let pin = core.pin_for_one_get()?;
        let steps = core.get(Word::IndexSteps);
        let (applied, ends) = core.ends();
        let mut report = Report { faults: Vec::new(), live: HashMap::new(), keys: 0, pinned: pin.seq() };
        core.check_headers(deep, &mut report)?;
        core.check_index(deep, &mut report, &mut |keys| tell(Checking { keys, all_keys: ends.live_keys }))?;
        // Beside writers the counts move; when nothing has, they must agree.
        let changes = || (core.get(Word::Applied), core.get(Word::IndexSteps));
        let quiet = || changes() == (applied, steps) && core.get(Word::WriterActive) == 0;
        core.check_segments(&quiet, &mut report);
        if report.keys != ends.live_keys && quiet() {
            report.add(0, format!("{} live keys, the count says {}", report.keys, ends.live_keys));
        }
        Ok(report.faults)
    }
}

impl Core {
    fn check_headers(&self, deep: bool, report: &mut Report) -> Result<()> {
        for slot in [0, self.geometry.slot_b()] {
            match self.header_slot(slot) {
                Ok(header) if deep => self.check_blob(slot, &header, report)?,
                Ok(_) => {}
                Err(bad) => report.add(slot, format!("header slot: {bad:?}")),
            }
        }
        Ok(())
    }

    /// A header slot. A checkpointer may be writing it just now, so a bad one is looked at again.
    fn header_slot(&self, slot: u64) -> std::result::Result<Header, BadHeader> {
        let look = || self.map.bytes(slot, HEADER_LEN as u64).map_or(Err(BadHeader::Magic), Header::parse);
        for _ in 0..LOOKS {
            if let Ok(header) = look() {
                return Ok(header);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        look()
    }

    /// The image that a header names, unless a later checkpoint has begun to replace it.
    fn check_blob(&self, slot: u64, header: &Header, report: &mut Report) -> Result<()> {
        // Private memory still shows the headers of the file, where a later writer may have made a checkpoint of its
        // own.
        let still = || {
            let own = self.shared || header.generation.get() == self.get(Word::Generation);
            own && header.seq.get() == self.get(Word::Checkpoint)
        };
        let (position, len) = (header.blob_position.get(), header.blob_len.get());
        let beyond = "the checkpoint blob lies beyond the end of the file";
        let bytes = self.bytes(position, len).ok_or_else(|| self.out_of_reach(position, len, beyond));
        let blob = match sound(bytes)? {
            None => Err(beyond),
            Some(bytes) if crc32fast::hash(bytes) != header.blob_crc.get() => Err("checksum of the checkpoint blob"),
            // Since then the file may have been made to do without its end, where index extents without pages lay.
            Some(bytes) => Blob::decode(bytes, self.extent_of(header.file_len.get())),
        };
        match blob {
            Ok(blob) => self.check_frozen_pages(&blob, &still, report)?,
            Err(what) if still() => report.add(position, format!("{what}, named by the header slot at {slot}")),
            Err(_) => {}
        }
        Ok(())
    }

    fn check_frozen_pages(&self, blob: &Blob, still: &dyn Fn() -> bool, report: &mut Report) -> Result<()> {
        if !self.shared {
            // Replayed in private memory, where pages change in place of the file's.
            return Ok(());
        }
        for page in &blob.pages {
            let position = page.position.get();
            let right = sound(self.page(position))?.is_some_and(|p| p.crc() == page.crc.get());
            if !right && still() {
                report.add(position, "checksum of an index page");
            }
        }
        Ok(())
    }

    fn check_index(&self, deep: bool, report: &mut Report, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let root = self.root();
        for index in 0..1u64 << root.depth() {
            let entry = DirEntry::from_raw(crate::control::load(self.entry_cell(root, index)?));
            if entry.depth() > root.depth() || index >> entry.depth() != 0 {
                continue;
            }
            let position = entry.page();
            let Some(page) = sound(self.page(position))? else {
                report.add(position, "an index page lies beyond the end of the file");
                continue;
            };
            if !page.is(index, entry.depth()) {
                report.add(position, "not the index page that the directory names");
                continue;
            }
            let used = self.extent_of(position) < self.extents()
                && self.extent(self.extent_of(position)).state().kind() == Kind::Index
                && !matches!(self.page_state(position), PageState::Free | PageState::Map);
            if !used {
                report.add(position, "an index page in use is marked free");
            }
            for slot in page.slots() {
                self.check_slot(position, slot, (index, entry.depth()), deep, report)?;
            }
            tell(report.keys);
        }
        Ok(())
    }

    fn check_slot(&self, page: u64, slot: Slot, bits: (u64, u32), deep: bool, report: &mut Report) -> Result<()> {
        let position = slot.pointer.position();
        let Some(found) = sound(self.record(position))? else {
            report.add(page, format!("a slot points beyond the end of the file, to {position}"));
            return Ok(());
        };
        let Ok((segment, end)) = self.segment_at(position) else {
            report.add(position, "a live record lies outside the segments in use");
            return Ok(());
        };
        if position + found.header.len() > end {
            report.add(position, "a record runs over the end of its segment");
            return Ok(());
        }
        if !report.counts(segment, end - segment, found.header.len()) {
            return Ok(());
        }
        let hash = hash_key(found.key(), self.geometry.seed);
        if tag(hash) != slot.tag || !slot.pointer.matches(hash) || suffix(hash, bits.1) != bits.0 {
            report.add(position, "a slot points to a record of another key");
            return Ok(());
        }
        if !matches!(found.header.kind(), Some(record::Kind::Put | record::Kind::Delete)) {
            report.add(position, "a slot points to a record that is neither put nor delete");
            return Ok(());
        }
        if found.is_tombstone() != slot.pointer.is_tombstone() {
            report.add(position, "a slot and its record differ on whether the key is gone");
        }
        if deep && !found.is_whole() {
            report.add(position, "checksum of a record");
        }
        // The page may be an old copy by now, with its records moved.
        let state = self.extent(self.extent_of(segment)).state();
        let was_moved = state.kind() == Kind::Retired && state.number() > report.pinned;
        if state.kind() != Kind::Log && !was_moved {
            report.add(position, "a live record lies outside the segments in use");
        }
        report.keys += u64::from(!found.is_tombstone());
        Ok(())
    }

    fn check_segments(&self, quiet: &dyn Fn() -> bool, report: &mut Report) {
        for n in 0..self.extents_in_reach() {
            let extent = self.extent(n);
            if extent.state().kind() != Kind::Log {
                continue;
            }
            let position = self.position_of(n);
            let header = self.bytes(position, SEGMENT_HEADER).and_then(|b| SegmentHeader::read_from_bytes(b).ok());
            let right = header.is_some_and(|h| {
                h.is_valid()
                    && h.position.get() == position
                    && h.uuid == self.geometry.uuid
                    && h.len.get() == extent.run() * self.geometry.extent
            });
            if !right && extent.live() > 0 {
                report.add(position, "segment header");
            }
            let live = report.live.get(&position).copied().unwrap_or(0);
            let most = extent.live().min(extent.run() * self.geometry.extent);
            if most < live && quiet() {
                report.add(position, format!("{live} live bytes in a segment that has no more than {most}"));
            }
        }
    }
}
