//! A batch: collected in memory, laid out at the tail, written.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::control::{Core, Ends, Word};
use crate::error::{Error, Result};
use crate::fault;
use crate::format::record::{
    Chain, Kind, LAST, Link, MOVED, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SMALL_RECORD, TAIL_ROOM, record_len,
};
use crate::format::{MAX_POSITION, record};
use crate::log::segment::Front;
use crate::space::Claim;
use crate::sys::host;

/// Batches up to this many records are searched from end to end; larger ones have a table.
const FEW: usize = 8;
/// A batch keeps its memory for the next one up to this many bytes.
const KEPT: usize = 1 << 20;

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Hash of the key.
    pub hash: u64,
    /// Put or delete.
    pub kind: Kind,
    /// Position of the key's newest record before this batch; 0: none. Not known before `set_prev` if `is_open`.
    pub prev: u64,
    /// Nobody has looked yet for a record before this one.
    is_open: bool,
    /// Where the record goes; set by `lay_out`.
    pub position: u64,
    offset: usize,
    key_len: u16,
    value_len: u32,
    replaced: bool,
    /// Put again by the cleaner.
    moved: bool,
    /// The entry before it with the same hash, + 1; 0: none.
    same: u32,
}

impl Entry {
    fn len(&self) -> u64 {
        record_len(u64::from(self.key_len), u64::from(self.value_len))
    }
}

/// The writes of one transaction, the last one of each key. The records are built in one buffer, in the order in which
/// they go to the log, so that most batches are one write.
#[derive(Default)]
pub struct Batch {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// Entries that were not replaced.
    live: usize,
    /// Hash -> the last entry with it; empty while there are few.
    table: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    /// Session, links and segment headers of the layout.
    extra: Vec<u8>,
    writes: Vec<Write>,
    /// Segments that the layout opened: position, bytes.
    segments: Vec<(u64, u64)>,
    /// The layout begins with a segment of its own.
    fresh: bool,
    /// Where its segments go, of a compaction.
    front: Option<Front>,
}

/// The table's keys are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// One piece of the log to write.
#[derive(Clone, Copy, Debug)]
struct Write {
    position: u64,
    from_extra: bool,
    start: usize,
    end: usize,
}

impl Batch {
    /// Forgets all writes, and gives back memory beyond what most batches need.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.arena.shrink_to(KEPT);
        self.entries.clear();
        self.entries.shrink_to(KEPT / 64);
        self.live = 0;
        (self.fresh, self.front) = (false, None);
        if !self.table.is_empty() {
            self.table.clear();
            self.table.shrink_to(KEPT / 64);
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// How many records there are to write.
    pub fn len(&self) -> usize {
        self.live
    }

    /// The live writes.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| !e.replaced && e.kind != Kind::Commit)
    }

    /// Whether any of a transaction's writes is a put.
    pub fn has_puts(&self) -> bool {
        self.entries().any(|e| e.kind == Kind::Put && !e.moved)
    }

    /// Prepares the writes of a refused batch for another try: what they replace is to be looked for again, since it
    /// may have moved.
    pub fn reopen(&mut self) {
        self.drop_moved();
        self.entries.iter_mut().for_each(|entry| (entry.prev, entry.is_open) = (0, true));
    }

    /// How many places there are; some hold writes that gave way to later ones.
    pub fn places(&self) -> usize {
        self.entries.len()
    }

    /// The write at a place, if nobody has looked yet for what it replaces.
    pub fn open_at(&self, place: usize) -> Option<&Entry> {
        self.entries.get(place).filter(|entry| entry.is_open && !entry.replaced)
    }

    /// Notes what was found for the write at a place.
    pub fn set_prev(&mut self, place: usize, prev: u64) {
        let entry = &mut self.entries[place];
        (entry.prev, entry.is_open) = (prev, false);
    }

    /// The key of a write.
    pub fn key(&self, entry: &Entry) -> &[u8] {
        let start = entry.offset + RECORD_HEADER as usize;
        &self.arena[start..start + usize::from(entry.key_len)]
    }

    /// The value of a write.
    pub fn value(&self, entry: &Entry) -> &[u8] {
        let start = entry.offset + RECORD_HEADER as usize + usize::from(entry.key_len);
        &self.arena[start..start + entry.value_len as usize]
    }

    /// The last write of a key, if there is one.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.index_of(hash, key).map(|n| &self.entries[n])
    }

    fn index_of(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let is_it = |e: &Entry| e.hash == hash && !e.replaced && self.key(e) == key;
        if self.entries.len() <= FEW {
            return self.entries.iter().position(is_it);
        }
        let mut next = self.table.get(&hash).map_or(0, |&n| n + 1);
        while let Some(n) = next.checked_sub(1).map(|n| n as usize) {
            if is_it(&self.entries[n]) {
                return Some(n);
            }
            next = self.entries[n].same;
        }
        None
    }

    /// Adds a write; `prev` is the key's newest record in the store, none if it is still to be looked for. An earlier
    /// write of the key gives way.
    pub fn push(&mut self, kind: Kind, hash: u64, key: &[u8], value: &[u8], prev: Option<u64>) {
        let before = self.index_of(hash, key);
        let entry = Entry {
            hash,
            kind,
            prev: prev.unwrap_or(0),
            is_open: prev.is_none(),
            position: 0,
            offset: self.arena.len(),
            key_len: key.len() as u16,
            value_len: value.len() as u32,
            replaced: false,
            moved: false,
            same: 0,
        };
        let header = RecordHeader::new(kind, entry.key_len, entry.value_len);
        self.arena.resize(entry.offset + entry.len() as usize, 0);
        let (head, rest) = self.arena[entry.offset..].split_at_mut(RECORD_HEADER as usize);
        head.copy_from_slice(header.as_bytes());
        rest[..key.len()].copy_from_slice(key);
        rest[key.len()..][..value.len()].copy_from_slice(value);
        let index = self.entries.len();
        self.entries.push(entry);
        self.index(index, before);
    }

    /// Adds a live record that the cleaner puts again, under a key that the batch does not write.
    pub fn push_moved(&mut self, kind: Kind, hash: u64, key: &[u8], value: &[u8], prev: u64) {
        self.push(kind, hash, key, value, Some(prev));
        if let Some(last) = self.entries.last_mut() {
            last.moved = true;
        }
    }

    /// Adds a record that says nothing, so that there is a commit.
    pub fn push_nothing(&mut self) {
        self.push(Kind::Commit, 0, &[], &[], Some(0));
    }

    /// The batch leaves the segment at the tail, whatever room that has.
    pub fn leave_segment(&mut self) {
        self.fresh = true;
    }

    /// Segments that the batch opens lie in front, and are as long as what comes.
    pub fn go_to_front(&mut self, front: Front) {
        self.front = Some(front);
    }

    /// Bytes of the records from a place on.
    fn rest(&self, place: usize) -> u64 {
        self.entries[place..].iter().filter(|entry| !entry.replaced).map(Entry::len).sum()
    }

    /// Takes the cleaner's records out again.
    pub fn drop_moved(&mut self) {
        for entry in self.entries.iter_mut().filter(|e| e.moved && !e.replaced) {
            entry.replaced = true;
            self.live -= 1;
        }
    }

    /// Takes back the write of a key that the store does not have either.
    pub fn withdraw(&mut self, hash: u64, key: &[u8]) {
        if let Some(n) = self.index_of(hash, key) {
            self.entries[n].replaced = true;
            self.live -= 1;
        }
    }

    fn index(&mut self, index: usize, before: Option<usize>) {
        if let Some(n) = before {
            self.entries[n].replaced = true;
            self.live -= 1;
        }
        self.live += 1;
        let len = self.entries.len();
        if len > FEW {
            for n in if len == FEW + 1 { 0..len } else { index..len } {
                let earlier = self.table.insert(self.entries[n].hash, n as u32);
                self.entries[n].same = earlier.map_or(0, |n| n + 1);
            }
        }
    }

    /// Bytes of the records as they stand in memory, replaced ones included.
    pub fn bytes(&self) -> u64 {
        self.arena.len() as u64
    }

    /// Bytes that the batch's records take in the log.
    pub fn log_len(&self) -> u64 {
        self.writes.iter().map(|w| (w.end - w.start) as u64).sum()
    }

    /// Segments the layout opened, in order.
    pub fn segments(&self) -> &[(u64, u64)] {
        &self.segments
    }

    /// Header, key and value of a record that begins at `start`.
    fn record_mut(&mut self, from_extra: bool, start: usize) -> &mut [u8] {
        let rest = &mut if from_extra { &mut self.extra } else { &mut self.arena }[start..];
        let header = RecordHeader::mut_in(rest);
        let len = RECORD_HEADER + header.key_len() + header.value_len();
        &mut rest[..len as usize]
    }

    fn piece(&mut self, position: u64, from_extra: bool, start: usize, len: usize) {
        if let Some(last) = self.writes.last_mut() {
            let follows = last.position + (last.end - last.start) as u64 == position;
            if follows && last.from_extra == from_extra && last.end == start {
                last.end += len;
                return;
            }
        }
        self.writes.push(Write { position, from_extra, start, end: start + len });
    }

    fn small_record(&mut self, kind: Kind, value: &[u8; 16]) -> usize {
        let start = self.extra.len();
        self.extra.extend_from_slice(RecordHeader::new(kind, 0, 16).as_bytes());
        self.extra.extend_from_slice(value);
        self.extra.resize(start + SMALL_RECORD as usize, 0);
        start
    }
}

/// Where a layout stands.
struct Layout<'a> {
    core: &'a Core,
    batch: &'a mut Batch,
    seq: u64,
    chain: Chain,
    chain_before: u32,
    /// Where the next record goes.
    position: u64,
    /// Segment of that position, and its end.
    segment: u64,
    end: u64,
    last: (bool, usize),
}

impl Layout<'_> {
    fn seal(&mut self, from_extra: bool, start: usize, len: u64, prev: u64, flags: u8) {
        let record = self.batch.record_mut(from_extra, start);
        self.chain.add(record::seal(record, self.position, self.seq, prev, flags));
        self.batch.piece(self.position, from_extra, start, len as usize);
        self.last = (from_extra, start);
        self.position += len;
    }

    /// The first batch of a lifetime begins with a session record.
    fn session(&mut self) -> Result<()> {
        if self.seq - 1 != self.core.get(Word::First) {
            return Ok(());
        }
        let salt = host::random().map_err(|e| self.core.io("random", None, e))?;
        let start = self.batch.small_record(Kind::Session, &salt);
        self.seal(true, start, SMALL_RECORD, 0, 0);
        Ok(())
    }

    /// Goes on in a new segment with room for the record at a place.
    fn open_segment(&mut self, place: usize, claim: Claim) -> Result<()> {
        let core = self.core;
        let front = self.batch.front.map(|front| (front, self.batch.rest(place)));
        let (first, run) = core.take_segment(self.batch.entries[place].len(), claim, front)?;
        let (position, bytes) = (core.position_of(first), run * core.geometry.extent);
        if run <= core.geometry.block() {
            // It fills bit by bit; what is written at once fills its pages anyway.
            core.map.populate(position, bytes);
        }
        self.batch.segments.push((position, bytes));
        let link = Link { position: U64::new(position), len: U64::new(bytes) };
        let mut value = [0; 16];
        value.copy_from_slice(link.as_bytes());
        let start = self.batch.small_record(Kind::Link, &value);
        self.seal(true, start, SMALL_RECORD, 0, 0);
        let start = self.batch.extra.len();
        let header = core.segment_header(position, bytes, self.segment, self.seq, self.chain_before);
        self.batch.extra.extend_from_slice(header.as_bytes());
        self.batch.piece(position, true, start, SEGMENT_HEADER as usize);
        (self.position, self.segment, self.end) = (position + SEGMENT_HEADER, position, position + bytes);
        log::debug!("{}: the log goes on in a segment at {position}", core.path.display());
        Ok(())
    }

    fn records(&mut self, claim: Claim) -> Result<()> {
        let last = self.batch.entries.iter().rposition(|e| !e.replaced);
        for n in 0..self.batch.entries.len() {
            let entry = self.batch.entries[n];
            if entry.replaced {
                continue;
            }
            if self.position + entry.len() + TAIL_ROOM > self.end || std::mem::take(&mut self.batch.fresh) {
                self.open_segment(n, claim)?;
            }
            self.batch.entries[n].position = self.position;
            let flags = if Some(n) == last { LAST } else { 0 } | if entry.moved { MOVED } else { 0 };
            self.seal(false, entry.offset, entry.len(), entry.prev, flags);
        }
        Ok(())
    }
}

impl Core {
    /// Lays the batch out at the tail as `seq`: positions, links, checksums, chain. Takes the segments it needs; when
    /// there is no space it gives them back, and nothing has changed. The ends become those after it, but for counts.
    pub fn lay_out(&self, batch: &mut Batch, seq: u64, ends: &mut Ends, claim: Claim) -> Result<()> {
        batch.extra.clear();
        batch.writes.clear();
        batch.segments.clear();
        let (segment, end) = self.segment_of(ends.tail)?;
        let mut layout = Layout {
            core: self,
            batch,
            seq,
            chain: Chain::after(ends.chain),
            chain_before: ends.chain,
            position: ends.tail,
            segment,
            end,
            last: (false, 0),
        };
        let laid = layout.session().and_then(|()| layout.records(claim));
        let (last, chain, tail) = (layout.last, layout.chain.finish(), layout.position);
        if let Err(full) = laid {
            self.drop_layout(batch);
            return Err(full);
        }
        RecordHeader::mut_in(batch.record_mut(last.0, last.1)).set_chain(chain);
        ends.log_total += batch.log_len();
        (ends.tail, ends.chain) = (tail, chain);
        Ok(())
    }

    /// Gives back the segments of a layout that is not going to be written.
    pub fn drop_layout(&self, batch: &mut Batch) {
        for (position, _) in batch.segments.drain(..) {
            self.free_run(self.extent_of(position));
        }
    }

    /// Writes a batch that is laid out: through the map when nothing durable is going on, else with `pwrite`, since one
    /// mapped store makes the next flush write the whole folio. And beside holes, since a store to a folio asks for the
    /// space of all of it, which is SIGBUS on a full disk. The first byte written is the point of no return.
    pub fn append(&self, batch: &Batch, mapped: bool) -> Result<()> {
        for w in &batch.writes {
            let buffer = if w.from_extra { &batch.extra } else { &batch.arena };
            let bytes = &buffer[w.start..w.end];
            if mapped && self.is_backed_at(w.position, bytes.len() as u64) {
                fault::point();
                if !self.map.store(w.position, bytes) {
                    return Err(self.corrupt(w.position, "a segment lies beyond the end of the file"));
                }
            } else {
                self.write(w.position, bytes)?;
            }
        }
        Ok(())
    }

    /// Keys and values have bounded lengths.
    pub fn check_lengths(&self, key: &[u8], value: &[u8]) -> Result<()> {
        if key.len() > crate::MAX_KEY {
            return Err(Error::KeyTooLong { len: key.len() });
        }
        if value.len() as u64 > crate::MAX_VALUE {
            return Err(Error::ValueTooLong { len: value.len() as u64 });
        }
        Ok(())
    }
}

const _: () = assert!(crate::MAX_VALUE < MAX_POSITION);
