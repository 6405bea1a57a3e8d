//! The log: positions <-> records. What is written once below the tail never changes while somebody can reach it.

pub mod append;
pub mod replay;
pub mod segment;

use zerocopy::FromBytes;

use crate::control::Core;
use crate::error::{Error, Result};
use crate::format::record::{Kind, RECORD_HEADER, RecordHeader, checksum};
use crate::sys::window::Window;

/// A record in the map.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where its header begins.
    pub position: u64,
    /// The header.
    pub header: &'a RecordHeader,
    /// Header, key and value.
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at a position where records may lie, if that is in sight. Its checksum is not looked at.
    #[inline]
    pub fn at(window: &Window<'a>, position: u64) -> Option<Record<'a>> {
        let header = RecordHeader::ref_from_bytes(window.bytes(position, RECORD_HEADER)?).ok()?;
        let bytes = window.bytes(position, RECORD_HEADER + header.key_len() + header.value_len())?;
        Some(Record { position, header, bytes })
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER as usize..(RECORD_HEADER + self.header.key_len()) as usize]
    }

    /// The value.
    #[inline]
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[(RECORD_HEADER + self.header.key_len()) as usize..]
    }

    /// Whether it is a record of this key.
    #[inline(always)]
    pub fn has_key(&self, key: &[u8]) -> bool {
        is_same(self.key(), key)
    }

    /// Whether it says that its key is gone.
    pub fn is_tombstone(&self) -> bool {
        self.header.kind() == Some(Kind::Delete)
    }

    /// Whether the stored checksum is right.
    pub fn is_whole(&self) -> bool {
        checksum(self.position, self.bytes) == self.header.crc()
    }
}

/// Whether two keys are equal; short ones without a call.
#[inline(always)]
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ends = |key: &[u8]| Some((u64::from_le_bytes(*key.first_chunk()?), u64::from_le_bytes(*key.last_chunk()?)));
    if a.len() != b.len() {
        return false;
    }
    if (8..=16).contains(&a.len()) { ends(a) == ends(b) } else { a == b }
}

impl Core {
    /// The header at a position, if the file reaches that far and records may lie there: what is in front of the first
    /// extent of the log changes while it is read.
    #[inline]
    pub fn header_at(&self, position: u64) -> Option<&RecordHeader> {
        if position < self.geometry.records_from {
            return None;
        }
        let bytes = self.bytes(position, RECORD_HEADER)?;
        RecordHeader::ref_from_bytes(bytes).ok()
    }

    /// The record at a position, if the file holds all of it. Its checksum is not looked at.
    #[inline]
    pub fn try_record(&self, position: u64) -> Option<Record<'_>> {
        let header = self.header_at(position)?;
        let bytes = self.bytes(position, RECORD_HEADER + header.key_len() + header.value_len())?;
        Some(Record { position, header, bytes })
    }

    /// The record that the index or another record points to.
    #[inline(always)]
    pub fn record(&self, position: u64) -> Result<Record<'_>> {
        self.try_record(position).ok_or_else(|| self.bad_pointer(position))
    }

    /// The header of such a record, for who needs no more of it.
    #[inline]
    pub fn header(&self, position: u64) -> Result<&RecordHeader> {
        self.header_at(position).ok_or_else(|| self.bad_pointer(position))
    }

    #[cold]
    fn bad_pointer(&self, position: u64) -> Error {
        let len = self.header_at(position).map_or(0, |header| header.key_len() + header.value_len());
        self.out_of_reach(position, RECORD_HEADER + len, "a pointer leads where no record is")
    }

    /// A record that is about to be returned, with its checksum looked at if that was asked for.
    #[inline]
    pub fn verified<'a>(&self, record: Record<'a>) -> Result<Record<'a>> {
        if self.verify && !record.is_whole() {
            return Err(self.corrupt(record.position, "checksum of a record"));
        }
        Ok(record)
    }

    /// The version of a record's key that a snapshot of `seq` sees; none: the key did not exist.
    #[inline]
    pub fn version_at<'a>(&'a self, newest: Record<'a>, seq: u64) -> Result<Option<Record<'a>>> {
        // Each step goes to an older record, so a chain that rises is damaged; that also ends any loop.
        let mut record = newest;
        while record.header.seq() > seq {
            let (prev, newer) = (record.header.prev(), record.header.seq());
            if prev == 0 {
                return Ok(None);
            }
            record = self.record(prev)?;
            if record.header.seq() >= newer {
                return Err(self.corrupt(prev, "a version chain does not fall"));
            }
        }
        match record.header.kind() {
            Some(Kind::Put) => self.verified(record).map(Some),
            Some(Kind::Delete) => Ok(None),
            _ => Err(self.corrupt(record.position, "a version chain leads to a record that is neither put nor delete")),
        }
    }
}
