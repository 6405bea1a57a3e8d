//! Fault points: with the feature `faults`, a process kills itself before the n-th step that others can see.
//!
//! Every store to a shared word, write and sync passes `point`. Without the feature it is nothing.

#[cfg(feature = "faults")]
mod armed {
    use std::sync::atomic::{AtomicI64, Ordering};

    use parking_lot::Mutex;

    type Event = Box<dyn FnOnce() + Send>;

    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);
    /// What happens in the place of death.
    static EVENT: Mutex<Option<Event>> = Mutex::new(None);

    /// The process kills itself with SIGKILL before step `steps` from now, counted from 0.
    pub fn arm(steps: u64) {
        LEFT.store(steps as i64, Ordering::Relaxed);
    }

    /// As `arm`, but something else happens before that step.
    pub fn arm_with(steps: u64, event: Event) {
        *EVENT.lock() = Some(event);
        arm(steps);
    }

    /// Steps taken since `arm(steps)`; disarms.
    pub fn disarm(steps: u64) -> u64 {
        (steps as i64 - LEFT.swap(i64::MAX, Ordering::Relaxed)) as u64
    }

    pub(crate) fn point() {
        if LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
            let event = EVENT.lock().take();
            event.map_or_else(|| crate::sys::host::kill_self(), |event| event());
        }
        super::mortal::point();
    }
}

/// Processes that are a part of this one, for those who share a simulated disk: their death is to unwind out of what
/// they do, and to do nothing more on the way.
#[cfg(feature = "faults")]
mod mortal {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    #[derive(Clone, Copy, PartialEq)]
    enum Life {
        /// This thread is nobody else.
        Own,
        /// So many steps are left.
        Left(u64),
        Over,
    }

    thread_local! {
        static LIFE: Cell<Life> = const { Cell::new(Life::Own) };
    }

    struct Death;

    /// Runs `work`, to which all handles it uses belong, as a process that dies before step `steps`, counted from 0.
    /// None: it has. Threads of the handle live on, so it must have none.
    pub fn mortal<R>(steps: u64, work: impl FnOnce() -> R) -> Option<R> {
        LIFE.set(Life::Left(steps));
        let done = catch_unwind(AssertUnwindSafe(work));
        LIFE.set(Life::Own);
        match done {
            Ok(done) => Some(done),
            Err(end) if end.is::<Death>() => None,
            Err(failure) => resume_unwind(failure),
        }
    }

    /// The process dies before its next step, if it is a mortal one.
    pub(crate) fn doom() {
        if let Life::Left(_) = LIFE.get() {
            LIFE.set(Life::Left(0));
        }
    }

    /// Whether what happens in this thread is the unwinding of a process that is dead.
    #[inline]
    pub(crate) fn is_over() -> bool {
        LIFE.get() == Life::Over
    }

    pub(super) fn point() {
        match LIFE.get() {
            Life::Left(0) => {
                LIFE.set(Life::Over);
                resume_unwind(Box::new(Death));
            }
            Life::Left(steps) => LIFE.set(Life::Left(steps - 1)),
            Life::Own | Life::Over => {}
        }
    }
}

#[cfg(feature = "faults")]
pub use armed::{arm, arm_with, disarm};
#[cfg(feature = "faults")]
pub use mortal::mortal;

#[cfg(feature = "faults")]
pub(crate) use armed::point;
#[cfg(feature = "faults")]
pub(crate) use mortal::{doom, is_over};

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn is_over() -> bool {
    false
}
