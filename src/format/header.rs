//! The durable header: two equal slots, one at the start of extent 0 and one half an extent later.
//!
//! A slot is valid when its magic and its CRC-32 are right; the valid slot with the higher generation counts. A
//! checkpoint writes slot A, makes it durable, and only then writes slot B, so one of them is whole at any instant.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::record::RECORD_HEADER;
use super::{MAX_EXTENT, MAX_POSITION, MIN_EXTENT};

/// First bytes of every store. The line ends catch transfers that translate them.
pub const MAGIC: [u8; 8] = *b"slotdb\r\n";
/// The format this code writes.
pub const VERSION: u32 = 1;
/// Incompatible features this code knows: none yet.
pub const KNOWN_FEATURES: u32 = 0;
/// No count of a real store comes near this; seqs have four more bits.
const MOST: u64 = 1 << 48;
/// Bytes of a header slot.
pub const HEADER_LEN: usize = 512;

/// One header slot as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// `MAGIC`.
    pub magic: [u8; 8],
    /// Format version.
    pub version: U32,
    /// CRC-32 of all 512 bytes with this field zero.
    pub crc: U32,
    /// Features a reader must know to open the file at all.
    pub incompatible: U32,
    /// Features a reader may ignore.
    pub compatible: U32,
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Seed of the key hash.
    pub hash_seed: U64,
    /// Bytes of an extent.
    pub extent_size: U64,
    /// Counts checkpoints; the higher of two valid slots counts.
    pub generation: U64,
    /// Seq the checkpoint images.
    pub seq: U64,
    /// Where the log goes on after that seq.
    pub log_position: U64,
    /// Chain there.
    pub chain: U32,
    /// CRC-32 of the blob.
    pub blob_crc: U32,
    /// Position of the checkpoint blob.
    pub blob_position: U64,
    /// Bytes of the checkpoint blob.
    pub blob_len: U64,
    /// Live keys at that seq.
    pub live_keys: U64,
    /// Bytes of live keys and values at that seq.
    pub live_bytes: U64,
    /// Length of the file at the checkpoint; a shorter file was truncated.
    pub file_len: U64,
    /// Hard bound of the file in bytes; 0: none.
    pub max_size: U64,
    /// Creation time, nanoseconds since the epoch.
    pub created: U64,
    /// Zero.
    pub reserved: [u8; 368],
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_LEN);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, crc) == 12);
    assert!(offset_of!(Header, incompatible) == 16);
    assert!(offset_of!(Header, compatible) == 20);
    assert!(offset_of!(Header, uuid) == 24);
    assert!(offset_of!(Header, hash_seed) == 40);
    assert!(offset_of!(Header, extent_size) == 48);
    assert!(offset_of!(Header, generation) == 56);
    assert!(offset_of!(Header, seq) == 64);
    assert!(offset_of!(Header, log_position) == 72);
    assert!(offset_of!(Header, chain) == 80);
    assert!(offset_of!(Header, blob_crc) == 84);
    assert!(offset_of!(Header, blob_position) == 88);
    assert!(offset_of!(Header, blob_len) == 96);
    assert!(offset_of!(Header, live_keys) == 104);
    assert!(offset_of!(Header, live_bytes) == 112);
    assert!(offset_of!(Header, file_len) == 120);
    assert!(offset_of!(Header, max_size) == 128);
    assert!(offset_of!(Header, created) == 136);
};

/// Why a slot was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// The magic is not ours.
    Magic,
    /// The checksum is wrong.
    Checksum,
    /// Written by a later version.
    Version(u32),
    /// Needs features this code does not know.
    Features(u32),
    /// Whole, yet a field makes no sense.
    Field(&'static str),
}

impl Header {
    /// The slot with its checksum set.
    pub fn sealed(mut self) -> Header {
        self.crc = U32::new(self.checksum());
        self
    }

    /// A slot's bytes as a header, or why they are none. The same test runs before a header is written.
    pub fn parse(bytes: &[u8]) -> Result<Header, BadHeader> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| BadHeader::Magic)?;
        header.check().map(|()| header)
    }

    /// Magic, checksum, version, features, then the sense of each field.
    pub fn check(&self) -> Result<(), BadHeader> {
        if self.magic != MAGIC {
            return Err(BadHeader::Magic);
        }
        if self.crc.get() != self.checksum() {
            return Err(BadHeader::Checksum);
        }
        if self.version.get() != VERSION {
            return Err(BadHeader::Version(self.version.get()));
        }
        let unknown = self.incompatible.get() & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(BadHeader::Features(unknown));
        }
        let extent = self.extent_size.get();
        let field = if !extent.is_power_of_two() || !(MIN_EXTENT..=MAX_EXTENT).contains(&extent) {
            "extent size"
        } else if !self.file_len.get().is_multiple_of(extent)
            || !(4 * extent..=MAX_POSITION).contains(&self.file_len.get())
        {
            "file length"
        } else if !self.log_position.get().is_multiple_of(8) || self.log_position.get() >= self.file_len.get() {
            "log position"
        } else if !self.blob_position.get().is_multiple_of(extent)
            || self.blob_end().is_none_or(|end| end > self.file_len.get())
        {
            "blob position"
        } else if self.seq.get() > MOST || self.generation.get() > MOST {
            "seq"
        } else if self.live_keys.get() > self.file_len.get() / RECORD_HEADER
            || self.live_bytes.get() > self.file_len.get()
        {
            "live counts"
        } else {
            return Ok(());
        };
        Err(BadHeader::Field(field))
    }

    /// Where the blob ends, unless that overflows.
    fn blob_end(&self) -> Option<u64> {
        self.blob_position.get().checked_add(self.blob_len.get())
    }

    fn checksum(&self) -> u32 {
        let mut copy = *self;
        copy.crc = U32::ZERO;
        crc32fast::hash(copy.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn sample() -> Header {
        let mut h = Header::new_zeroed();
        h.magic = MAGIC;
        h.version = U32::new(VERSION);
        h.extent_size = U64::new(MIN_EXTENT);
        h.file_len = U64::new(20 * MIN_EXTENT);
        h.log_position = U64::new(10 * MIN_EXTENT + 64);
        h.blob_position = U64::new(12 * MIN_EXTENT);
        h.sealed()
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample();
        assert_eq!(Header::parse(good.as_bytes()), Ok(good));
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = [0; HEADER_LEN];
            bytes.copy_from_slice(good.as_bytes());
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn later_versions_and_unknown_features_are_named() {
        let mut h = sample();
        h.version = U32::new(7);
        assert_eq!(h.sealed().check(), Err(BadHeader::Version(7)));
        let mut h = sample();
        h.incompatible = U32::new(4);
        assert_eq!(h.sealed().check(), Err(BadHeader::Features(4)));
        let mut h = sample();
        h.compatible = U32::new(4);
        assert_eq!(h.sealed().check(), Ok(()));
    }
}
