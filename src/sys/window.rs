//! A view of the file at one moment: where it is and how far it reaches, loaded once for reads of several places.

use std::marker::PhantomData;

use super::atomic;
use super::map::Map;

/// One of the two views of a [`Map`], as far as the file was known to reach when this was made.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Where position 0 is, or would be.
    pub(super) base: *const u8,
    /// The first position in the view.
    pub(super) from: u64,
    /// Bytes that are backed by the file; the view covers them.
    pub(super) len: u64,
    /// No mapping goes away before its map.
    pub(super) map: PhantomData<&'a Map>,
}

impl<'a> Window<'a> {
    /// As [`Map::bytes`].
    #[inline]
    pub fn bytes(&self, pos: u64, len: u64) -> Option<&'a [u8]> {
        if !self.has(pos, len) {
            return None;
        }
        #[cfg(loom)]
        atomic::model::touch(pos, len, false);
        let at = self.base.wrapping_add(pos as usize);
        // SAFETY: in bounds of the view, and no mapping goes away before the map. That nobody changes the bytes is the
        // caller's contract.
        Some(unsafe { std::slice::from_raw_parts(at, len as usize) })
    }

    /// As [`Map::words`].
    #[inline]
    pub fn words<const N: usize>(&self, pos: u64) -> Option<&'a [atomic::AtomicU64; N]> {
        if !pos.is_multiple_of(8) || !self.has(pos, 8 * N as u64) {
            return None;
        }
        #[allow(clippy::cast_ptr_alignment, reason = "views start at a page, and pos is a multiple of 8")]
        let cells = self.base.wrapping_add(pos as usize).cast::<[atomic::AtomicU64; N]>();
        // SAFETY: in bounds of the view, aligned, and no mapping goes away before the map; anybody may change atomics
        // at any time. On these machines loads of 8 bytes work in read-only memory too.
        Some(unsafe { &*cells })
    }

    /// Asks the processor to load the cache line at `pos`, wherever that is.
    #[inline]
    pub fn prefetch(&self, pos: u64) {
        super::map::prefetch(self.base.wrapping_add(pos as usize));
    }

    #[inline]
    fn has(&self, pos: u64, len: u64) -> bool {
        pos >= self.from && len <= self.len && pos <= self.len - len
    }
}
