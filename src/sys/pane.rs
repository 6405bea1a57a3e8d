//! Shared words whose place never changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::atomic;
use super::map::Map;

/// `COUNT` cells at a place that does not change, found once: no bound for an access whose own place is a constant.
#[derive(Debug)]
pub struct Pane<const COUNT: usize> {
    at: AtomicPtr<atomic::AtomicU64>,
    /// No mapping goes away before its map.
    _map: Arc<Map>,
}

impl<const COUNT: usize> Pane<COUNT> {
    /// The cells at `at`, all of which must be in a mapping that `map` keeps.
    pub(super) fn new(at: *mut atomic::AtomicU64, map: Arc<Map>) -> Pane<COUNT> {
        Pane { at: AtomicPtr::new(at), _map: map }
    }

    /// The cells from `n` on; None beyond the range.
    #[inline]
    pub fn cells<const N: usize>(&self, n: usize) -> Option<&[atomic::AtomicU64; N]> {
        if N > COUNT || n > COUNT - N {
            return None;
        }
        let at = self.at.load(Ordering::Relaxed).wrapping_add(n);
        // SAFETY: `Map::pane` has checked the range, whose mapping is there as long as `_map`; anybody may change
        // atomics at any time.
        Some(unsafe { &*at.cast::<[atomic::AtomicU64; N]>() })
    }
}
