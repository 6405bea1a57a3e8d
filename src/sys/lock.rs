//! Locks on the store's file: one `flock`, and byte locks far beyond its end.
//!
//! Both belong to the open file description and end with it, however the process ends. The kernel keeps
//! the two kinds apart.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::{self, Identity};
use super::fork;
use super::holders::{Holder, holders};

/// How a byte is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By any number of descriptors that are open for reading.
    Shared,
    /// By one descriptor alone, open for writing.
    Exclusive,
}

/// A descriptor that carries locks: opened for that alone, never mapped, duplicated or inherited.
///
/// In a forked child every method fails with `EBADF`, for the descriptor is closed there.
#[derive(Debug)]
pub struct LockFile {
    file: ManuallyDrop<File>,
    slot: usize,
    generation: u64,
}

impl LockFile {
    /// Opens the file at `path` once more; `write` is needed for exclusive byte locks.
    pub fn open(path: &Path, write: bool) -> io::Result<LockFile> {
        let _quiet = fork::quiet()?;
        // A fifo in the place of a store must not block: the caller finds out what it is.
        let file = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path)?;
        let slot = fork::register(file.as_raw_fd())?;
        Ok(LockFile { file: ManuallyDrop::new(file), slot, generation: fork::generation() })
    }

    /// Which file this is.
    pub fn identity(&self) -> io::Result<Identity> {
        file::identity(self.file()?)
    }

    /// Locks one byte, or changes the mode of a lock that is held already; false if others are in the way.
    pub fn try_byte(&self, pos: u64, mode: Mode) -> io::Result<bool> {
        let kind = match mode {
            Mode::Shared => libc::F_RDLCK,
            Mode::Exclusive => libc::F_WRLCK,
        };
        match self.set(kind, pos, 1) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Unlocks one byte; a byte that is not locked stays so.
    pub fn unlock_byte(&self, pos: u64) -> io::Result<()> {
        Ok(self.set(libc::F_UNLCK, pos, 1)?)
    }

    /// Where in the range another descriptor holds a lock of any mode; None if nowhere.
    pub fn conflict(&self, start: u64, len: u64) -> io::Result<Option<u64>> {
        Ok(self.conflicting(start, len)?.map(|lock| lock.start))
    }

    /// As `conflict`: what one such lock has of the range.
    fn conflicting(&self, start: u64, len: u64) -> io::Result<Option<Range<u64>>> {
        #[cfg(loom)]
        super::atomic::model::kernel_lock(start);
        if len == 0 {
            return Ok(None);
        }
        let mut probe = range(libc::F_WRLCK, start, len)?;
        fcntl(self.file()?, FcntlArg::F_OFD_GETLK(&mut probe))?;
        if i32::from(probe.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        let (from, end) = (probe.l_start.cast_unsigned(), start + len);
        let to = if probe.l_len == 0 { end } else { from.saturating_add(probe.l_len.cast_unsigned()) };
        Ok(Some(start.max(from)..end.min(to)))
    }

    /// What other descriptors lock of the range, `most` pieces at most. What several lock is told once.
    pub fn locked(&self, range: &Range<u64>, most: usize) -> io::Result<Vec<Range<u64>>> {
        let mut todo = vec![range.clone()];
        let mut found = Vec::new();
        while let Some(part) = todo.pop().filter(|_| found.len() < most) {
            if let Some(lock) = self.conflicting(part.start, part.end.saturating_sub(part.start))? {
                todo.extend([lock.end..part.end, part.start..lock.start]);
                found.push(lock);
            }
        }
        Ok(found)
    }

    /// The processes whose descriptors, other than this one, lock bytes of the range, as far as the system tells.
    pub fn holders(&self, range: &Range<u64>) -> io::Result<Vec<Holder>> {
        let file = self.file()?;
        Ok(holders(file::identity(file)?, file.as_raw_fd(), range))
    }

    /// Locks the whole file against other `try_flock`s; false if another descriptor holds it.
    pub fn try_flock(&self) -> io::Result<bool> {
        #[cfg(loom)]
        super::atomic::model::kernel_lock(0);
        match fs2::FileExt::try_lock_exclusive(self.file()?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Undoes `try_flock`.
    pub fn unlock_flock(&self) -> io::Result<()> {
        #[cfg(loom)]
        super::atomic::model::kernel_lock(0);
        fs2::FileExt::unlock(self.file()?)
    }

    /// A `len` of 0 means all that follows.
    fn set(&self, kind: i32, pos: u64, len: u64) -> Result<(), Errno> {
        #[cfg(loom)]
        super::atomic::model::kernel_lock(pos);
        fcntl(self.file()?, FcntlArg::F_OFD_SETLK(&range(kind, pos, len)?)).map(drop)
    }

    /// Called once, last of all.
    fn close(&mut self) {
        let _quiet = fork::quiet();
        fork::unregister(self.slot);
        // SAFETY: not used and not dropped again afterwards.
        unsafe { ManuallyDrop::drop(&mut self.file) };
    }

    /// Closes the descriptor without unlocking anything, as the death of a process does.
    #[cfg(test)]
    pub(super) fn abandon(self) {
        ManuallyDrop::new(self).close();
    }

    #[cfg(test)]
    pub(super) fn raw(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    fn file(&self) -> Result<&File, Errno> {
        if self.generation == fork::generation() { Ok(&self.file) } else { Err(Errno::EBADF) }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // The fork handler closed the descriptor; its number may be someone else's by now.
            return;
        }
        // Closing is not enough: a child that was just forked has a copy until its handler runs. Errors
        // leave it at that.
        let _ = self.unlock_flock();
        let _ = self.set(libc::F_UNLCK, 0, 0);
        self.close();
    }
}

fn range(kind: i32, start: u64, len: u64) -> Result<libc::flock, Errno> {
    Ok(libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: i64::try_from(start).map_err(|_| Errno::EINVAL)?,
        l_len: i64::try_from(len).map_err(|_| Errno::EINVAL)?,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 1 << 62;

    fn pair() -> io::Result<(LockFile, LockFile)> {
        let file = tempfile::NamedTempFile::new()?;
        Ok((LockFile::open(file.path(), true)?, LockFile::open(file.path(), true)?))
    }

    #[test]
    fn exclusive_bytes_conflict() -> io::Result<()> {
        let (one, other) = pair()?;
        assert!(one.try_byte(FAR, Mode::Exclusive)?);
        assert!(one.try_byte(FAR, Mode::Exclusive)?, "held already");
        assert!(!other.try_byte(FAR, Mode::Exclusive)? && !other.try_byte(FAR, Mode::Shared)?);
        assert!(other.try_byte(FAR + 1, Mode::Exclusive)?, "the next byte is free");
        one.unlock_byte(FAR)?;
        one.unlock_byte(FAR)?;
        assert!(other.try_byte(FAR, Mode::Exclusive)?);
        drop(other);
        assert!(one.try_byte(FAR, Mode::Exclusive)?, "a drop unlocks");
        Ok(())
    }

    #[test]
    fn modes_convert() -> io::Result<()> {
        let (one, other) = pair()?;
        assert!(one.try_byte(FAR, Mode::Shared)? && other.try_byte(FAR, Mode::Shared)?);
        assert!(!one.try_byte(FAR, Mode::Exclusive)?, "the other shares it");
        assert_eq!(other.conflict(FAR, 1)?, Some(FAR), "the failed upgrade kept the lock");
        other.unlock_byte(FAR)?;
        assert!(one.try_byte(FAR, Mode::Exclusive)? && !other.try_byte(FAR, Mode::Shared)?);
        assert!(one.try_byte(FAR, Mode::Shared)? && other.try_byte(FAR, Mode::Shared)?, "downgraded");
        Ok(())
    }

    #[test]
    fn conflict_finds_locks_of_others() -> io::Result<()> {
        let (one, other) = pair()?;
        assert!(one.try_byte(FAR + 7, Mode::Shared)? && one.try_byte(FAR + 8, Mode::Exclusive)?);
        assert_eq!(one.conflict(FAR, 100)?, None, "own locks do not count");
        assert_eq!(other.conflict(FAR, 7)?, None);
        assert_eq!(other.conflict(FAR, 100)?, Some(FAR + 7));
        assert_eq!(other.conflict(FAR + 8, 1)?, Some(FAR + 8));
        assert_eq!(other.conflict(FAR + 8, 0)?, None);
        assert!(other.conflict(u64::MAX, 1).is_err() && other.try_byte(1 << 63, Mode::Shared).is_err());
        Ok(())
    }

    #[test]
    fn locks_of_others_are_listed() -> io::Result<()> {
        let (one, other) = pair()?;
        for at in [3, 4, 5, 9] {
            assert!(one.try_byte(FAR + at, Mode::Shared)?);
        }
        let (stranger, _) = pair()?;
        assert!(stranger.try_byte(FAR + 6, Mode::Shared)?, "of another file");
        assert!(other.try_byte(FAR + 5, Mode::Shared)? && other.try_byte(FAR + 2, Mode::Exclusive)?);
        let third = LockFile::open(Path::new(&format!("/proc/self/fd/{}", one.raw())), false)?;
        let far = |range: Range<u64>| FAR + range.start..FAR + range.end;
        let listed = |range, most| -> io::Result<Vec<u64>> {
            let mut places: Vec<u64> =
                third.locked(&far(range), most)?.into_iter().flatten().map(|at| at - FAR).collect();
            places.sort_unstable();
            Ok(places)
        };
        assert_eq!(listed(0..100, 100)?, [2, 3, 4, 5, 9]);
        assert_eq!((listed(4..9, 100)?, listed(0..2, 100)?), (vec![4, 5], vec![]));
        assert_eq!((listed(0..100, 0)?, listed(5..5, 100)?), (vec![], vec![]));
        assert_eq!(third.locked(&far(0..100), 2)?.len(), 2);
        // The child of another test may have all of them, for the moment until its handler has run.
        let mut held = one.holders(&far(0..100))?;
        held.retain(|holder| holder.pid == std::process::id());
        let mut locks = held.remove(0).locks;
        locks.sort_unstable_by_key(|lock| lock.start);
        assert_eq!(locks, [far(2..3), far(5..6)], "its own do not count");
        assert_eq!(third.holders(&far(10..20))?, []);
        Ok(())
    }

    #[test]
    fn flock_and_bytes_are_independent() -> io::Result<()> {
        let (one, other) = pair()?;
        assert!(one.try_flock()? && one.try_flock()?);
        assert!(!other.try_flock()?);
        assert!(other.try_byte(0, Mode::Exclusive)? && other.conflict(0, FAR)?.is_none());
        one.unlock_flock()?;
        assert!(other.try_flock()? && !one.try_byte(0, Mode::Shared)?);
        Ok(())
    }

    #[test]
    fn a_drop_unlocks_though_a_copy_lives_on() -> io::Result<()> {
        let (one, other) = pair()?;
        assert!(one.try_byte(FAR, Mode::Exclusive)? && one.try_flock()?);
        let _copy = one.file.try_clone()?;
        drop(one);
        assert!(other.try_byte(FAR, Mode::Exclusive)? && other.try_flock()?);
        Ok(())
    }

    #[test]
    fn a_reader_shares_only() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let reader = LockFile::open(file.path(), false)?;
        assert!(reader.try_byte(FAR, Mode::Shared)? && reader.try_byte(FAR, Mode::Exclusive).is_err());
        assert_eq!(reader.conflict(0, FAR)?, None);
        assert_eq!(reader.identity()?, file::identity(file.as_file())?);
        assert!(LockFile::open(Path::new("/nonexistent/store"), false).is_err());
        Ok(())
    }
}
