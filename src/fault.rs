//! Fault points: with the feature `faults`, a process kills itself before the n-th step that others can see.
//!
//! Every store to a shared word, write and sync passes `point`. Without the feature it is nothing.

#[cfg(feature = "faults")]
mod armed {
    use std::sync::atomic::{AtomicI64, Ordering};

    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

    /// The process kills itself with SIGKILL before step `steps` from now, counted from 0.
    pub fn arm(steps: u64) {
        LEFT.store(steps as i64, Ordering::Relaxed);
    }

    /// Steps taken since `arm(steps)`; disarms.
    pub fn disarm(steps: u64) -> u64 {
        (steps as i64 - LEFT.swap(i64::MAX, Ordering::Relaxed)) as u64
    }

    pub(crate) fn point() {
        if LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
            crate::sys::host::kill_self();
        }
    }
}

#[cfg(feature = "faults")]
pub use armed::{arm, disarm};

#[cfg(feature = "faults")]
pub(crate) use armed::point;

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point() {}
