//! Shared words whose place never changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::atomic;
use super::map::Map;

/// Cells at a place that does not change, found once: each access costs a bound and no more.
#[derive(Debug)]
pub struct Pane {
    at: AtomicPtr<atomic::AtomicU64>,
    count: usize,
    /// No mapping goes away before its map.
    _map: Arc<Map>,
}

impl Pane {
    /// `count` cells at `at`, which must be in a mapping that `map` keeps.
    pub(super) fn new(at: *mut atomic::AtomicU64, count: usize, map: Arc<Map>) -> Pane {
        Pane { at: AtomicPtr::new(at), count, _map: map }
    }

    /// The cells from `n` on; None beyond the range.
    #[inline]
    pub fn cells<const N: usize>(&self, n: usize) -> Option<&[atomic::AtomicU64; N]> {
        if N > self.count || n > self.count - N {
            return None;
        }
        let at = self.at.load(Ordering::Relaxed).wrapping_add(n);
        // SAFETY: `Map::pane` has checked the range, whose mapping is there as long as `_map`; anybody may change
        // atomics at any time.
        Some(unsafe { &*at.cast::<[atomic::AtomicU64; N]>() })
    }
}
