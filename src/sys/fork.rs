//! What a fork does to locks: a child closes the lock descriptors that it inherited.
//!
//! A lock belongs to the open file description, so a child that kept a descriptor would keep the lock
//! after its owner died. Children made by a bare `clone` or `_Fork` run no handlers and are not covered.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

const FREE: RawFd = -1;
const SLOTS: usize = 1024;

/// How many forks lie between this process and the first one that took a lock.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// Open lock descriptors. A fixed array: the child's handler may neither allocate nor wait.
static DESCRIPTORS: [AtomicI32; SLOTS] = [const { AtomicI32::new(FREE) }; SLOTS];
/// Held while descriptors are opened or closed, and during a fork.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Changes in a forked child. A handle that was made in another generation must not be used, not even to
/// be closed. Counts from the first [`super::lock::LockFile`] on.
#[inline]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// While it lives no fork happens, so what is opened and registered meanwhile is never inherited half-way.
#[derive(Debug)]
pub(super) struct Quiet(());

/// Waits for a fork that is under way, and keeps others away.
pub(super) fn quiet() -> io::Result<Quiet> {
    install()?;
    enter();
    Ok(Quiet(()))
}

impl Drop for Quiet {
    fn drop(&mut self) {
        leave();
    }
}

/// Notes an open descriptor; returns its slot. Called while it is [`quiet`].
pub(super) fn register(fd: RawFd) -> io::Result<usize> {
    DESCRIPTORS
        .iter()
        .position(|slot| slot.compare_exchange(FREE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok())
        .ok_or_else(|| io::Error::other("this process has 1024 lock files open"))
}

/// Forgets a descriptor that is about to be closed. Called while it is [`quiet`].
pub(super) fn unregister(slot: usize) {
    DESCRIPTORS[slot].store(FREE, Ordering::Relaxed);
}

fn install() -> io::Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handlers are functions that live as long as the program.
    let install = || unsafe { nix::libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    match *RESULT.get_or_init(install) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn enter() {
    // Acquire: pairs with the Release in `leave`.
    while BUSY.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        std::thread::yield_now();
    }
}

fn leave() {
    // Release: pairs with the Acquire in `enter`; the table is complete for who comes next.
    BUSY.store(false, Ordering::Release);
}

extern "C" fn before() {
    enter();
}

extern "C" fn after_in_parent() {
    leave();
}

/// Runs while the child has one thread, so nobody sees the steps.
extern "C" fn after_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    for slot in &DESCRIPTORS {
        let fd = slot.swap(FREE, Ordering::Relaxed);
        if fd != FREE {
            // SAFETY: a LockFile owned this descriptor, and seeing the generation it will not use it again.
            unsafe { rustix::io::close(fd) };
        }
    }
    leave();
}

/// Runs `f` in a forked child, which has one thread and must not panic; returns its exit code, or minus
/// the signal that ended it.
#[cfg(test)]
pub(super) fn in_child(f: impl FnOnce() -> i32) -> i32 {
    use nix::libc;
    // SAFETY: the child runs `f` and leaves without unwinding into the test harness.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let code = f();
        // SAFETY: ends this process and nothing else.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {}
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

#[cfg(test)]
mod tests {
    use super::super::lock::{LockFile, Mode};
    use super::*;
    use nix::libc;
    use std::os::fd::AsRawFd;

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: looks at the number only.
        unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
    }

    #[test]
    fn a_child_has_no_lock_descriptors() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let lock = LockFile::open(file.path(), true)?;
        let before = generation();
        let fd = lock.raw();
        assert!(is_open(fd));
        let code = in_child(|| {
            let closed = !is_open(fd) && generation() == before + 1;
            let refused = |done: io::Result<bool>| done.is_err_and(|e| e.raw_os_error() == Some(libc::EBADF));
            let useless = refused(lock.try_byte(0, Mode::Shared)) && refused(lock.try_flock());
            i32::from(!(closed && useless && lock.unlock_flock().is_err() && lock.identity().is_err()))
        });
        assert_eq!((code, generation(), is_open(fd)), (0, before, true));
        Ok(())
    }

    #[test]
    fn a_living_child_keeps_no_lock() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let (ours, theirs) = (LockFile::open(file.path(), true)?, LockFile::open(file.path(), true)?);
        assert!(ours.try_byte(5, Mode::Exclusive)? && ours.try_flock()?);
        let (mut child_says, child) = std::io::pipe()?;
        let (until_closed, keep) = std::io::pipe()?;
        // SAFETY: the child reads and writes pipes and leaves without unwinding into the test harness.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut byte = 0_u8;
            // SAFETY: the descriptors are open, and `byte` is one byte.
            unsafe {
                libc::close(keep.as_raw_fd());
                libc::write(child.as_raw_fd(), (&raw const byte).cast(), 1);
                libc::read(until_closed.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        std::io::Read::read_exact(&mut child_says, &mut [0])?;
        assert!(!theirs.try_byte(5, Mode::Exclusive)? && !theirs.try_flock()?);
        ours.abandon();
        // Children of other tests may have copies for a moment, until their handlers run.
        let start = std::time::Instant::now();
        let mut free = false;
        while !free && start.elapsed().as_secs() < 5 {
            free = theirs.try_byte(5, Mode::Exclusive)? && theirs.try_flock()?;
        }
        drop(keep);
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        assert!(free, "the child kept the locks of a description that its parent closed");
        Ok(())
    }

    #[test]
    fn a_drop_in_the_child_closes_nobodys_descriptor() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let lock = LockFile::open(file.path(), true)?;
        let fd = lock.raw();
        let code = in_child(move || {
            // SAFETY: takes the number that the handler has freed, for something else.
            let taken = unsafe { libc::dup2(libc::STDERR_FILENO, fd) };
            let untouched = lock.identity().is_err();
            drop(lock);
            i32::from(!(taken == fd && untouched && is_open(fd)))
        });
        assert_eq!(code, 0);
        Ok(())
    }

    #[test]
    fn a_child_can_lock_for_itself_and_the_table_is_bounded() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let ours = LockFile::open(file.path(), true)?;
        assert!(ours.try_byte(1, Mode::Exclusive)?);
        let code = in_child(|| {
            let Ok(own) = LockFile::open(file.path(), true) else {
                return 1;
            };
            let blocked = own.try_byte(1, Mode::Shared).is_ok_and(|got| !got);
            let works = own.try_byte(2, Mode::Exclusive).is_ok_and(|got| got);
            drop(own);
            let filled = (0..SLOTS).all(|_| register(1 << 20).is_ok());
            let full = register(1 << 20).is_err() && LockFile::open(file.path(), true).is_err();
            unregister(77);
            i32::from(!(blocked && works && filled && full && register(1 << 20).is_ok_and(|slot| slot == 77)))
        });
        assert_eq!(code, 0);
        Ok(())
    }
}
