//! Segments: runs of extents that hold log.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use crate::control::{Core, Word};
use crate::error::{Error, Result};
use crate::format::extent::Kind;
use crate::format::record::{RECORD_HEADER, SEGMENT_HEADER, SEGMENT_MAGIC, SegmentHeader, TAIL_ROOM};
use crate::space::{Claim, Extent};

/// A segment is so long that records like its first one leave at most this share of it over, or as little as may be; of
/// those that do, it is the usual one; in 65,536ths.
const LEFT_OVER: u64 = (1 << 16) / 16;
/// It is no longer than a block, or this share of the file: where that cannot grow, all that lives in a segment has
/// to find room in the cleaning reserve before its space comes back.
const SHARE: u64 = 32;
/// A log of so many blocks goes on in whole ones, unless the file is bound to stay short: a store to a huge page makes
/// all of it dirty, so what is written together should lie in it.
const MANY_BLOCKS: u64 = 8;

/// Where compaction wants the next segments.
#[derive(Clone, Copy, Debug)]
pub struct Front {
    /// Before this extent, if there is room.
    pub goal: u64,
    /// Bytes that are going to follow those of the batch.
    pub behind: u64,
}

impl Core {
    /// Extents for a segment that begins with a record of `len` bytes, and for more like it if there is room: the first
    /// one, and how many. With `front`, for `rest` bytes.
    pub fn take_segment(&self, len: u64, claim: Claim, front: Option<(Front, u64)>) -> Result<(u64, u64)> {
        let least = self.shortest_run(len);
        let run = match front {
            None => self.fitting_run(len),
            Some((front, rest)) => self.run_in_front(len, front, rest).unwrap_or(least),
        };
        match self.take_run(Kind::Log, run, claim) {
            Err(Error::Full { .. } | Error::MaxSize { .. }) if run > least => {
                Ok((self.take_run(Kind::Log, least, claim)?, least))
            }
            taken => Ok((taken?, run)),
        }
    }

    /// Extents of a segment for one record of `len` bytes.
    fn shortest_run(&self, len: u64) -> u64 {
        (SEGMENT_HEADER + len + TAIL_ROOM).div_ceil(self.geometry.extent)
    }

    /// What records of one length leave over of a segment, in 65,536ths.
    fn left_over(&self, run: u64, len: u64) -> u64 {
        let room = run * self.geometry.extent - SEGMENT_HEADER - TAIL_ROOM;
        (room % len) * (1 << 16) / room
    }

    /// Extents of a segment for records of one length.
    fn fitting_run(&self, len: u64) -> u64 {
        let (least, usual) = (self.shortest_run(len), self.usual_run());
        let runs = least..=self.longest_run();
        runs.min_by_key(|&run| (self.left_over(run, len).max(LEFT_OVER), run != usual)).unwrap_or(least)
    }

    /// That share of what records as long as those of the store on average fill of a segment; all in 65,536ths.
    pub fn full(&self, share: u64) -> u64 {
        (share * self.density()) >> 16
    }

    /// How much of a segment is filled by records as long as those of the store are on average, in 65,536ths.
    pub fn density(&self) -> u64 {
        let (_, ends) = self.ends();
        let Some(average) = ends.live_bytes.checked_div(ends.live_keys) else { return 1 << 16 };
        let len = RECORD_HEADER + average.min(crate::MAX_VALUE);
        (1 << 16) - self.left_over(self.fitting_run(len), len)
    }

    /// Extents of a segment of short records: a block, in a long log that may become so long that a block is a small
    /// part of it.
    pub fn usual_run(&self) -> u64 {
        self.run_in(self.get(Word::LogExtents))
    }

    /// As `usual_run`, in a log of so many extents.
    fn run_in(&self, log: u64) -> u64 {
        let block = self.geometry.block();
        let bound = match self.get(Word::MaxSize) {
            0 => u64::MAX,
            max => self.extent_of(max),
        };
        if bound / SHARE >= block && log >= MANY_BLOCKS * block { block } else { 1 }
    }

    /// Extents of a segment at most, but of those that begin with a longer record.
    pub fn longest_run(&self) -> u64 {
        (self.extents() / SHARE).clamp(1, self.geometry.block()).max(self.usual_run())
    }

    /// Bytes of live records.
    pub fn live_log(&self) -> u64 {
        let extents = (0..self.extents()).map(|n| self.extent(n)).filter(|e| e.state().kind() == Kind::Log);
        extents.map(|extent| extent.live()).fold(0, u64::saturating_add)
    }

    /// Extents of a segment for `rest` bytes, which begin with a record of `len`, in the first place where compaction
    /// wants it and the record fits: as many as may be, since it fills up at once. None if there is no such place.
    fn run_in_front(&self, len: u64, front: Front, rest: u64) -> Option<u64> {
        let block = self.geometry.block();
        self.prefer_front(front.goal)?;
        let (least, usual) = (self.shortest_run(len), self.run_in(self.extent_of(self.live_log())));
        let share = (front.goal.min(self.extents()) / SHARE).clamp(1, block).max(usual);
        let most = share.min((rest + front.behind).div_ceil(self.geometry.extent)).max(least);
        // Short records fill blocks.
        let piece = if least <= usual && self.left_over(usual, len) <= LEFT_OVER { block } else { u64::MAX };
        let unused = self.unused_before(front.goal, piece).find(|&unused| unused >= least)?;
        (least..=most.min(unused)).rev().min_by_key(|&run| self.left_over(run, len).max(LEFT_OVER))
    }

    /// A segment's first bytes.
    pub fn segment_header(&self, position: u64, len: u64, previous: u64, seq: u64, chain: u32) -> SegmentHeader {
        SegmentHeader {
            magic: U32::new(SEGMENT_MAGIC),
            crc: U32::ZERO,
            position: U64::new(position),
            len: U64::new(len),
            uuid: self.geometry.uuid,
            previous: U64::new(previous),
            seq: U64::new(seq),
            chain: U32::new(chain),
            reserved: U32::ZERO,
        }
        .sealed()
    }

    /// Whether the first record of a segment has an earlier seq.
    pub fn is_begun_before(&self, head: u64, seq: u64) -> bool {
        let header = || SegmentHeader::read_from_bytes(self.bytes(self.position_of(head), SEGMENT_HEADER)?).ok();
        seq == u64::MAX || header().is_some_and(|header| header.seq.get() < seq)
    }

    /// Position and end of the segment that holds a position of the log.
    pub fn segment_of(&self, position: u64) -> Result<(u64, u64)> {
        let (head, extent) = self.run_of(position)?;
        if extent.state().kind() != Kind::Log {
            return Err(self.corrupt(position, "the log does not lie in a segment"));
        }
        Ok(self.bounds((head, extent)))
    }

    /// The same of a segment that may be out of use by now.
    pub fn segment_at(&self, position: u64) -> Result<(u64, u64)> {
        self.run_of(position).map(|run| self.bounds(run))
    }

    fn bounds(&self, (head, extent): (u64, Extent<'_>)) -> (u64, u64) {
        (self.position_of(head), self.position_of(head + extent.run()))
    }
}
