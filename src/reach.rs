//! How far this process sees: any process may grow the file, and the others extend their maps when they come to it.

use rustix::io::Errno;

use crate::control::{Core, Word};
use crate::error::{Error, Result};
use crate::sys::atomic::AtomicU64;

impl Core {
    /// Bytes of the log, wherever any process has grown the file to.
    #[inline]
    pub fn bytes(&self, position: u64, len: u64) -> Option<&[u8]> {
        match self.map.bytes(position, len) {
            None => self.bytes_of_growth(position, len),
            found => found,
        }
    }

    /// Shared words, wherever any process has grown the file to.
    #[inline]
    pub fn words<const N: usize>(&self, position: u64) -> Option<&[AtomicU64; N]> {
        match self.map.words(position) {
            None => self.words_of_growth(position),
            found => found,
        }
    }

    #[cold]
    #[inline(never)]
    fn bytes_of_growth(&self, position: u64, len: u64) -> Option<&[u8]> {
        self.follow_growth(position, len)?;
        self.map.bytes(position, len)
    }

    #[cold]
    #[inline(never)]
    fn words_of_growth<const N: usize>(&self, position: u64) -> Option<&[AtomicU64; N]> {
        self.follow_growth(position, N as u64 * 8)?;
        self.map.words(position)
    }

    /// Extends the map if another process has grown the file over this range.
    fn follow_growth(&self, position: u64, len: u64) -> Option<()> {
        let grown = position.checked_add(len)? > self.map.len() && self.map.len() < self.shared_len()?;
        if !grown {
            return None;
        }
        self.cover().inspect_err(|e| log::error!("{e}")).ok()
    }

    /// Extends the map to what any process has grown the file to. Whoever goes on under a lock does this first:
    /// afterwards "beyond the map" means "beyond the file".
    #[inline]
    pub fn cover(&self) -> Result<()> {
        let len = self.shared_len().ok_or_else(|| self.corrupt(self.geometry.extent, "count of extents"))?;
        if self.map.len() >= len {
            return Ok(());
        }
        self.map.set_len(len).map_err(|e| self.io("map", len, e))
    }

    /// Why the map shows nothing at a place that may hold records or pages: the file has it and the map could not be
    /// extended; or else what leads there is damaged.
    #[cold]
    pub fn out_of_reach(&self, position: u64, len: u64, what: &str) -> Error {
        let is_place = position.is_multiple_of(8) && position >= self.geometry.records_from;
        let is_in_file = position.checked_add(len).is_some_and(|end| Some(end) <= self.shared_len());
        if !is_place || !is_in_file {
            return self.corrupt(position, what);
        }
        // Another thread may have had better luck by now.
        self.cover().err().unwrap_or_else(|| self.io("map", position, Errno::NOMEM.into()))
    }

    /// Extents of the file that lie in the map. Who looks on without the writer lock does not rely on more: others may
    /// add some at any moment, and then the map may not follow.
    pub fn extents_in_reach(&self) -> u64 {
        self.extents().min(self.extent_of(self.map.len()))
    }

    fn shared_len(&self) -> Option<u64> {
        self.get(Word::Extents).checked_mul(self.geometry.extent)
    }
}
