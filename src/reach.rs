//! How far this process sees: any process may grow the file, and the others extend their maps when they come to it.

use crate::control::{Core, Word};
use crate::error::Result;
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

    fn shared_len(&self) -> Option<u64> {
        self.get(Word::Extents).checked_mul(self.geometry.extent)
    }
}
