//! Log records and segment headers.
//!
//! A record is a 28-byte header, the key, the value, and zeros up to the next multiple of 8. Its `crc` covers its own
//! position, the header but `crc` and `chain`, key and value. The records of one commit form a batch: the last one has
//! `LAST`, and its `chain` continues the chain of the batch before it, so that a batch is whole or not a batch at all
//! (compare SQLite's WAL: salts and cumulative checksums tell stale frames from torn ones).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::MAX_POSITION;

/// Bytes of a record's header.
pub const RECORD_HEADER: u64 = 28;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER: u64 = 64;
/// Bytes of a link record, and of a session record: header and 16 bytes.
pub const SMALL_RECORD: u64 = 48;
/// Room that is always kept at the tail: one session record and one link.
pub const TAIL_ROOM: u64 = 2 * SMALL_RECORD;
/// Seqs are stored in 52 bits.
pub const MAX_SEQ: u64 = (1 << 52) - 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key has a value.
    Put,
    /// A key is gone: a tombstone.
    Delete,
    /// The log goes on in another segment: position and length are the value.
    Link,
    /// A lifetime of the store begins: 16 random bytes.
    Session,
    /// Nothing but the end of a batch.
    Commit,
}

/// The last record of its batch; `chain` is valid.
pub const LAST: u8 = 1;
/// A live record that the cleaner put again.
pub const MOVED: u8 = 2;
/// Flags this code reads. The expiry (4) and timestamp (8) flags are reserved.
pub const KNOWN_FLAGS: u8 = LAST | MOVED;

/// A record's first 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    crc: U32,
    value_len: U32,
    key_len: U16,
    kind: u8,
    flags: u8,
    chain: U32,
    seq_prev: U64,
    prev_high: U32,
}

const _: () = {
    assert!(size_of::<RecordHeader>() as u64 == RECORD_HEADER);
    assert!(offset_of!(RecordHeader, value_len) == 4);
    assert!(offset_of!(RecordHeader, key_len) == 8);
    assert!(offset_of!(RecordHeader, kind) == 10);
    assert!(offset_of!(RecordHeader, flags) == 11);
    assert!(offset_of!(RecordHeader, chain) == 12);
    assert!(offset_of!(RecordHeader, seq_prev) == 16);
    assert!(offset_of!(RecordHeader, prev_high) == 24);
};

impl RecordHeader {
    /// A header for `kind`; `seal` completes it once position, seq and prev are known.
    pub fn new(kind: Kind, key_len: u16, value_len: u32) -> RecordHeader {
        let mut header = RecordHeader::new_zeroed();
        header.kind = match kind {
            Kind::Put => 1,
            Kind::Delete => 2,
            Kind::Link => 3,
            Kind::Session => 4,
            Kind::Commit => 5,
        };
        header.key_len = U16::new(key_len);
        header.value_len = U32::new(value_len);
        header
    }

    /// The record's kind, unless the byte is none that this version knows.
    #[inline]
    pub fn kind(&self) -> Option<Kind> {
        Some(match self.kind {
            1 => Kind::Put,
            2 => Kind::Delete,
            3 => Kind::Link,
            4 => Kind::Session,
            5 => Kind::Commit,
            _ => return None,
        })
    }

    /// Bytes of the key.
    #[inline]
    pub fn key_len(&self) -> u64 {
        u64::from(self.key_len.get())
    }

    /// Bytes of the value.
    #[inline]
    pub fn value_len(&self) -> u64 {
        u64::from(self.value_len.get())
    }

    /// The commit this record belongs to.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.seq_prev.get() & MAX_SEQ
    }

    /// Position of the key's record before this one; 0: none.
    #[inline]
    pub fn prev(&self) -> u64 {
        (self.seq_prev.get() >> 52 | u64::from(self.prev_high.get()) << 12) << 3
    }

    /// Whether the batch ends here.
    pub fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }

    /// Flags as stored.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// The record's checksum as stored.
    pub fn crc(&self) -> u32 {
        self.crc.get()
    }

    /// The batch's chain, as its last record stores it.
    pub fn chain(&self) -> u32 {
        self.chain.get()
    }

    /// Bytes of header, key and value, rounded up to 8.
    #[inline]
    pub fn len(&self) -> u64 {
        record_len(self.key_len(), self.value_len())
    }

    /// The header that a record begins with.
    pub fn mut_in(record: &mut [u8]) -> &mut RecordHeader {
        RecordHeader::mut_from_prefix(record).expect("a record is longer than its header").0
    }

    /// Stores the chain in the last record of a batch.
    pub fn set_chain(&mut self, chain: u32) {
        self.chain = U32::new(chain);
    }
}

/// Completes a record that is header, key and value: sets seq, prev and flags, and its checksum, which it returns.
#[inline]
pub fn seal(record: &mut [u8], position: u64, seq: u64, prev: u64, flags: u8) -> u32 {
    assert!(seq <= MAX_SEQ && prev < MAX_POSITION && prev.is_multiple_of(8));
    let header = RecordHeader::mut_in(record);
    header.seq_prev = U64::new(seq | (prev >> 3) << 52);
    header.prev_high = U32::new((prev >> 15) as u32);
    header.flags = flags;
    header.chain = U32::ZERO;
    let crc = checksum_in_place(position, record);
    RecordHeader::mut_in(record).crc = U32::new(crc);
    crc
}

/// As `checksum`, of a record whose `crc` and `chain` do not count yet. Without them the bytes that it covers stand in
/// one piece for as long as it takes.
fn checksum_in_place(position: u64, record: &mut [u8]) -> u32 {
    let mut fields = [0; 8];
    fields.copy_from_slice(&record[4..12]);
    record[..8].copy_from_slice(&position.to_le_bytes());
    record[8..16].copy_from_slice(&fields);
    let mut hasher = super::crc();
    hasher.update(record);
    record[4..12].copy_from_slice(&fields);
    record[12..16].fill(0);
    hasher.finalize()
}

/// CRC-32 of a record's position, header but `crc` and `chain`, key and value.
pub fn checksum(position: u64, record: &[u8]) -> u32 {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&position.to_le_bytes());
    head[8..].copy_from_slice(&record[4..12]);
    let mut hasher = super::crc();
    hasher.update(&head);
    // All the rest at once: from 128 bytes on that is several times as fast.
    hasher.update(&record[16..]);
    hasher.finalize()
}

/// Bytes of a record with such a key and value, rounded up to 8.
#[inline]
pub const fn record_len(key_len: u64, value_len: u64) -> u64 {
    super::round_up(RECORD_HEADER + key_len + value_len, 8)
}

/// The running checksum over a batch that becomes its chain.
pub struct Chain {
    hasher: crc32fast::Hasher,
    /// What the hasher has not seen yet; it needs as long for 4 bytes as for 64.
    waiting: [u8; 64],
    len: usize,
    count: u32,
}

impl Chain {
    /// Continues the chain of the batch before.
    pub fn after(before: u32) -> Chain {
        let mut chain = Chain { hasher: super::crc(), waiting: [0; 64], len: 0, count: 0 };
        chain.append(before);
        chain
    }

    /// Adds the next record's checksum.
    pub fn add(&mut self, crc: u32) {
        self.append(crc);
        self.count = self.count.wrapping_add(1);
    }

    /// The chain of a batch that ends here.
    pub fn finish(mut self) -> u32 {
        self.append(self.count);
        self.hasher.update(&self.waiting[..self.len]);
        self.hasher.finalize()
    }

    fn append(&mut self, word: u32) {
        if self.len == self.waiting.len() {
            self.hasher.update(&self.waiting);
            self.len = 0;
        }
        self.waiting[self.len..][..4].copy_from_slice(&word.to_le_bytes());
        self.len += 4;
    }
}

/// The value of a link record: where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Link {
    /// Position of the next segment.
    pub position: U64,
    /// Bytes of the next segment.
    pub len: U64,
}

/// First bytes of a segment, for `check` and `salvage`; recovery does not need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// `SEGMENT_MAGIC`.
    pub magic: U32,
    /// CRC-32 of the 64 bytes with this field zero.
    pub crc: U32,
    /// The segment's own position.
    pub position: U64,
    /// Bytes of the segment.
    pub len: U64,
    /// The store it belongs to.
    pub uuid: [u8; 16],
    /// Position of the segment before it in the log; 0: none.
    pub previous: U64,
    /// Seq of its first record.
    pub seq: U64,
    /// Chain before that seq.
    pub chain: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<SegmentHeader>() as u64 == SEGMENT_HEADER);

/// First bytes of a segment.
pub const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"sSEG");

impl SegmentHeader {
    /// The header with its checksum set.
    pub fn sealed(mut self) -> SegmentHeader {
        self.crc = U32::ZERO;
        self.crc = U32::new(crc32fast::hash(self.as_bytes()));
        self
    }

    /// Whether magic and checksum are right.
    pub fn is_valid(&self) -> bool {
        self.magic.get() == SEGMENT_MAGIC && self.sealed().crc == self.crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seq_and_prev_share_their_words_without_overlap() {
        for (seq, prev) in [(0, 0), (MAX_SEQ, 0), (0, MAX_POSITION - 8), (MAX_SEQ, MAX_POSITION - 8), (77, 1 << 20)] {
            let mut record = [RecordHeader::new(Kind::Put, 3, 5).as_bytes(), b"keyvalue"].concat();
            seal(&mut record, 64, seq, prev, LAST);
            let h = RecordHeader::mut_in(&mut record);
            assert_eq!((h.seq(), h.prev(), h.is_last(), h.kind()), (seq, prev, true, Some(Kind::Put)));
            assert_eq!(h.len(), 40);
        }
    }

    #[test]
    fn the_checksum_knows_its_position_but_not_its_chain() {
        let mut record = [RecordHeader::new(Kind::Put, 1, 1).as_bytes(), b"ab"].concat();
        let crc = seal(&mut record, 64, 9, 0, LAST);
        assert_ne!(checksum(72, &record), crc);
        RecordHeader::mut_in(&mut record).set_chain(99);
        assert_eq!((checksum(64, &record), RecordHeader::mut_in(&mut record).crc()), (crc, crc));
        record[29] ^= 1;
        assert_ne!(checksum(64, &record), crc);
    }

    #[test]
    fn a_chain_depends_on_count_order_and_past() {
        let chain = |before, crcs: &[u32]| {
            let mut c = Chain::after(before);
            crcs.iter().for_each(|&crc| c.add(crc));
            c.finish()
        };
        assert_ne!(chain(0, &[1, 2]), chain(0, &[2, 1]));
        assert_ne!(chain(0, &[1, 2]), chain(1, &[1, 2]));
        assert_ne!(chain(0, &[1, 2]), chain(0, &[1]));
    }
}
