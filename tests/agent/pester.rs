//! The order `pester`: signals without end.

#![allow(unsafe_code)]

use nix::libc;

extern "C" fn ignore(_: libc::c_int) {}

/// From now on a signal comes every so many microseconds; a system call that it comes in ends with EINTR.
pub fn pester(microseconds: u64) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: microseconds as libc::suseconds_t };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: zero is a whole structure, without flags; the handler does nothing.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut())
            + libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut())
    };
    assert_eq!(set, 0, "a handler and a timer");
}
