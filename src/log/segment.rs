//! Segments: runs of extents that hold log.

use zerocopy::little_endian::{U32, U64};

use crate::control::{Core, Word};
use crate::error::{Error, Result};
use crate::format::extent::Kind;
use crate::format::record::{SEGMENT_HEADER, SEGMENT_MAGIC, SegmentHeader, TAIL_ROOM};
use crate::space::{Claim, Extent};

/// A segment is so long that records like its first one leave this share of it over, or as little as may be, ...
const LEFT_OVER: u64 = 16;
/// ... but no longer than a block, or this share of the file: where that cannot grow, all that lives in a segment has
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
        let extent = self.geometry.extent;
        let least = (SEGMENT_HEADER + len + TAIL_ROOM).div_ceil(extent);
        // In 65,536ths of the segment.
        let left_over = |&run: &u64| {
            let room = run * extent - SEGMENT_HEADER - TAIL_ROOM;
            ((room % len) * (1 << 16) / room).max((1 << 16) / LEFT_OVER)
        };
        let run = match front {
            None => (least..=self.longest_run()).min_by_key(left_over).unwrap_or(least).max(self.usual_run()),
            // What fills up at once is as long as may be.
            Some((front, rest)) => {
                let most = self.longest_in_front(front, rest);
                (least..=most).rev().min_by_key(left_over).unwrap_or(least)
            }
        };
        match self.take_run(Kind::Log, run, claim) {
            Err(Error::Full { .. } | Error::MaxSize { .. }) if run > least => {
                Ok((self.take_run(Kind::Log, least, claim)?, least))
            }
            taken => Ok((taken?, run)),
        }
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

    /// Extents of a segment for `rest` bytes where compaction wants it, at most: what lies there unused, up to the end
    /// of a block. The next segment is taken from there.
    fn longest_in_front(&self, front: Front, rest: u64) -> u64 {
        let block = self.geometry.block();
        let Some(first) = self.prefer_front(front.goal) else { return 1 };
        let end = self.extents().min((first / block + 1) * block);
        let is_unused = |&n: &u64| matches!(self.kind_at(n), Kind::Free | Kind::Hole);
        let unused = (first..end).take_while(is_unused).count() as u64;
        let usual = self.run_in(self.extent_of(self.live_log()));
        let most = (front.goal.min(self.extents()) / SHARE).clamp(1, block).max(usual);
        unused.min(most).min((rest + front.behind).div_ceil(self.geometry.extent))
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
