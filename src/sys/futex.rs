//! Sleeping on a shared cell, across processes.
//!
//! A futex is 32 bits wide, so the kernel looks at the low half of a cell. A change of the high half
//! alone is noticed only when the wait times out: count in the low half.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::Timespec;
use rustix::thread::futex::{self, Flags};

use super::atomic::AtomicU64;

const _: () = assert!(cfg!(target_endian = "little"), "the low half of a cell comes first");

/// Sleeps while `cell` is `expected`: until woken, changed, interrupted or timed out. The caller looks again.
pub fn wait(cell: &AtomicU64, expected: u64, timeout: Duration) {
    // Acquire: pairs with the Release of whoever changed the cell; the caller goes on with what it says.
    if cell.load(Ordering::Acquire) != expected {
        return;
    }
    #[cfg(loom)]
    if super::atomic::model::sleep() {
        return;
    }
    let timeout = Timespec::try_from(timeout).ok();
    // Every error means that the caller has to look again.
    let _ = futex::wait(low_half(cell), Flags::empty(), expected as u32, timeout.as_ref());
}

/// Wakes everyone who waits on `cell`, in any process.
pub fn wake_all(cell: &AtomicU64) {
    wake(cell, i32::MAX as u32);
}

/// Wakes one of those who wait on `cell`.
pub fn wake_one(cell: &AtomicU64) {
    wake(cell, 1);
}

fn wake(cell: &AtomicU64, count: u32) {
    // Fails only on memory that cannot hold a futex, and there nobody waits.
    let _ = futex::wake(low_half(cell), Flags::empty(), count);
}

fn low_half(cell: &AtomicU64) -> &AtomicU32 {
    // SAFETY: inside `cell` and aligned. Only the kernel looks at it, and it does so atomically.
    unsafe { AtomicU32::from_ptr(cell.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::super::map::Map;
    use super::*;
    use std::fs::File;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn returns_when_the_value_differs() {
        let start = Instant::now();
        wait(&AtomicU64::new(1), 2, LONG);
        wait(&AtomicU64::new(1 << 32), 0, LONG);
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn times_out() {
        let start = Instant::now();
        wait(&AtomicU64::new(u64::MAX), u64::MAX, Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(15) && start.elapsed() < LONG / 2);
    }

    /// Through two mappings of one file, as two processes have them; the sleeper's is read-only.
    #[test]
    fn a_change_wakes_across_mappings() -> std::io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(4096)?;
        let ours = Map::shared(file.as_file(), true, 0, 0, None)?;
        let theirs = Map::shared(&File::open(file.path())?, false, 0, 0, None)?;
        for wake in [wake_one, wake_all] {
            let [cell] = ours.words(8).expect("in the file");
            let [seen] = theirs.words(8).expect("in the file");
            cell.store(5, Ordering::Release);
            let start = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while seen.load(Ordering::Acquire) == 5 {
                        wait(seen, 5, LONG);
                    }
                });
                std::thread::sleep(Duration::from_millis(20));
                cell.store(6, Ordering::Release);
                wake(cell);
            });
            assert!(start.elapsed() < LONG / 2);
        }
        Ok(())
    }
}
