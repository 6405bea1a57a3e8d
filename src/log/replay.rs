//! Reading the log back: the one test of whether a batch is whole.

use zerocopy::FromBytes;

use crate::control::Core;
use crate::format::record::{Chain, KNOWN_FLAGS, Kind, Link, SEGMENT_HEADER};

/// A whole batch found in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBatch {
    /// Positions of its puts and deletes, in order.
    pub records: Vec<u64>,
    /// Segments it goes on in: position, bytes.
    pub segments: Vec<(u64, u64)>,
    /// Pieces of the log it takes: position, bytes.
    pub pieces: Vec<(u64, u64)>,
    /// Where the next batch begins.
    pub tail: u64,
    /// Chain after it.
    pub chain: u32,
}

impl FoundBatch {
    /// Bytes of log.
    pub fn log_len(&self) -> u64 {
        self.pieces.iter().map(|&(_, len)| len).sum()
    }
}

impl Core {
    /// The batch of `seq` at `position`, if a whole one with the right chain stands there. The records' checksums, seqs
    /// and the chain decide; links count only together with the batch. Who does not know the chain before it takes the
    /// batch's word for the chain after it.
    pub fn read_batch(&self, position: u64, seq: u64, chain: impl Into<Option<u32>>) -> Option<FoundBatch> {
        let chain = chain.into();
        let mut found = FoundBatch { records: vec![], segments: vec![], pieces: vec![], tail: 0, chain: 0 };
        let mut sum = Chain::after(chain.unwrap_or_default());
        let mut at = position;
        let mut piece = position;
        loop {
            let record = self.try_record(at)?;
            let header = record.header;
            let kind = header.kind()?;
            if header.seq() != seq || header.flags() & !KNOWN_FLAGS != 0 || !record.is_whole() {
                return None;
            }
            sum.add(header.crc());
            let next = at + header.len();
            match kind {
                Kind::Put | Kind::Delete => found.records.push(at),
                Kind::Session | Kind::Commit => {}
                Kind::Link => {
                    let (segment, len) = self.link(record.value())?;
                    if found.segments.contains(&(segment, len)) {
                        // Damaged links do not go round for ever.
                        return None;
                    }
                    found.pieces.push((piece, next - piece));
                    found.segments.push((segment, len));
                    piece = segment;
                    at = segment + SEGMENT_HEADER;
                    continue;
                }
            }
            at = next;
            if header.is_last() {
                found.pieces.push((piece, at - piece));
                (found.tail, found.chain) = (at, header.chain());
                return chain.is_none_or(|_| found.chain == sum.finish()).then_some(found);
            }
        }
    }

    /// The segment a link names, if it can be one of this file.
    fn link(&self, value: &[u8]) -> Option<(u64, u64)> {
        let link = Link::read_from_bytes(value).ok()?;
        let (position, len) = (link.position.get(), link.len.get());
        let extent = self.geometry.extent;
        let file = self.map.len();
        let fits = position.is_multiple_of(extent)
            && len.is_multiple_of(extent)
            && len > 0
            && position >= self.geometry.fixed_extents() * extent
            && position.checked_add(len)? <= file;
        fits.then_some((position, len))
    }
}
