//! What the standard library does not say about files.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::libc;
use rustix::fs::{Advice, FallocateFlags, IFlags};
use rustix::io::Errno;

/// Bytes that are asked for ahead at a time: systems do not take more than this in one call for granted.
const AHEAD: u64 = 128 << 10;

/// Writes all of `bytes` at `pos`, or fails.
pub fn write_all_at(file: &File, pos: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, pos)
}

/// Fills `bytes` from `pos` on; a file that ends before is an error.
pub fn read_exact_at(file: &File, pos: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(bytes, pos)
}

/// Makes the file at least `pos + len` bytes long and reserves space for the range.
///
/// An error leaves the length as it was. The caller is the only one that changes it.
pub fn allocate(file: &File, pos: u64, len: u64) -> io::Result<()> {
    let end = pos.checked_add(len).ok_or(Errno::FBIG)?;
    or_as_long_as_before(file, end, |before| reserve(file, pos, len, before))
}

/// Makes the file longer, to `end` at most; a failure that has got half-way is undone.
fn or_as_long_as_before(file: &File, end: u64, work: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
    let before = file.metadata()?.len();
    work(before).inspect_err(|_| {
        if end > before {
            // The error that is passed on says why; space that cannot be given back is only wasted.
            let _ = file.set_len(before);
        }
    })
}

fn reserve(file: &File, pos: u64, len: u64, before: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), pos, len)) {
        // What is not reserved must not be part of the file, so the space comes before the length.
        Err(Errno::OPNOTSUPP) => fill(file, before.max(pos), pos + len),
        done => Ok(done?),
    }
}

/// Blocks that the file system has free: all, and those for users without privileges.
pub fn free_blocks(file: &File) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok((stat.f_bfree, stat.f_bavail))
}

/// A piece of a file that has space, as the kernel describes it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more_reserved: [u32; 3],
}

const PIECES: usize = 16;

/// `struct fiemap` of the kernel, with room for some pieces.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; PIECES],
}

/// `_IOWR('f', 11, struct fiemap)`, of which the pieces are no part.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;

const _: () = assert!(size_of::<FiemapExtent>() == 56 && size_of::<Fiemap>() == 32 + PIECES * 56);

/// Whether the file system says that a part of a range has no space.
pub fn lacks_space(file: &File, pos: u64, len: u64) -> bool {
    let (mut at, end) = (pos, pos.saturating_add(len));
    while at < end {
        let mut map = Fiemap { start: at, length: end - at, count: PIECES as u32, ..Fiemap::default() };
        // SAFETY: the kernel writes the head and at most `count` pieces, and there is room for so many.
        let code = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        if code != 0 {
            return false;
        }
        let from = at;
        for piece in &map.extents[..PIECES.min(map.mapped as usize)] {
            if piece.logical > at {
                break;
            }
            at = at.max(piece.logical.saturating_add(piece.length));
        }
        if at == from {
            return true;
        }
    }
    false
}

/// Writes zeros, where the file system knows no other way to reserve space.
fn fill(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    for at in (start..end).step_by(zeros.len()) {
        let len = (end - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
    }
    Ok(())
}

/// Gives the space of a range back; the length stays, and the range reads as zeros. Does nothing where the file
/// system cannot.
pub fn punch(file: &File, pos: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, pos, len)) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

/// Makes the page cache hold a range of allocated space in pages of its least size, where the file system can. What
/// stood there is gone then.
///
/// A store through a map makes the whole folio dirty that holds its page, which may have 2 MiB. Faults in a row make
/// large folios; what is read ahead on demand comes in the least size.
pub fn scatter(file: &File, pos: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, pos, len)) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        done => done?,
    }
    for at in (pos..pos + len).step_by(AHEAD as usize) {
        rustix::fs::fadvise(file, at, NonZeroU64::new(AHEAD.min(pos + len - at)), Advice::WillNeed)?;
    }
    Ok(())
}

/// Hands the changed pages of a range to the disk, and waits until it has them if asked to. They are not durable before
/// a sync of some range of the same file.
pub fn write_back(file: &File, pos: u64, len: u64, wait: bool) -> io::Result<()> {
    let begin = libc::SYNC_FILE_RANGE_WRITE;
    // With all three the kernel leaves no page out.
    let whole = libc::SYNC_FILE_RANGE_WAIT_BEFORE | begin | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (start, len) = (i64::try_from(pos).map_err(|_| Errno::INVAL)?, i64::try_from(len).map_err(|_| Errno::INVAL)?);
    let flags = if wait { whole } else { begin };
    loop {
        // SAFETY: takes no memory of ours.
        let code = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) };
        let error = io::Error::last_os_error();
        if code == 0 || error.kind() != io::ErrorKind::Interrupted {
            return if code == 0 { Ok(()) } else { Err(error) };
        }
    }
}

/// What tells one file from another, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that holds the file.
    pub dev: u64,
    /// The number of the file on its device.
    pub ino: u64,
}

/// The identity of an open file.
pub fn identity(file: &File) -> io::Result<Identity> {
    let data = file.metadata()?;
    Ok(Identity { dev: data.dev(), ino: data.ino() })
}

/// The identity of the file that `path` names now.
pub fn identity_of_path(path: &Path) -> io::Result<Identity> {
    let data = std::fs::metadata(path)?;
    Ok(Identity { dev: data.dev(), ino: data.ino() })
}

/// What a file system means for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Nothing special.
    Normal,
    /// Gone with the power: tmpfs, ramfs.
    Volatile,
    /// Copies on write unless told otherwise.
    Btrfs,
    /// Mappings, locks or syncs do not hold there; its name.
    Refused(&'static str),
}

/// The kind of file system that holds `file`.
pub fn file_system(file: &File) -> io::Result<FileSystem> {
    // The width of the field differs between C libraries; magic numbers have 32 bits.
    Ok(classify(rustix::fs::fstatfs(file)?.f_type as u32))
}

/// Numbers from the kernel's magic.h and the file systems themselves.
fn classify(magic: u32) -> FileSystem {
    match magic {
        0x0102_1994 | 0x8584_58f6 => FileSystem::Volatile,
        0x9123_683e => FileSystem::Btrfs,
        0x0000_6969 => FileSystem::Refused("NFS"),
        0xff53_4d42 => FileSystem::Refused("CIFS"),
        0x0000_517b | 0xfe53_4d42 => FileSystem::Refused("SMB"),
        0x0102_1997 => FileSystem::Refused("9p"),
        0x6573_5546 => FileSystem::Refused("FUSE"),
        _ => FileSystem::Normal,
    }
}

/// Asks btrfs to overwrite this (empty) file in place. Best effort: where it fails the store is slower.
pub fn set_nocow(file: &File) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

/// Makes the names in a directory durable. The empty path is the working directory.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::fork::in_child;
    use super::*;

    #[test]
    fn allocate_extends_and_reserves() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        allocate(&file, 8192, 65_536)?;
        let data = file.metadata()?;
        assert_eq!(data.len(), 8192 + 65_536);
        assert!(data.blocks() * 512 >= 65_536);
        allocate(&file, 0, 10)?;
        allocate(&file, 0, 0)?;
        assert_eq!(file.metadata()?.len(), data.len(), "never shorter");
        assert!(allocate(&file, u64::MAX, 1).is_err() && allocate(&file, i64::MAX as u64, 1).is_err());
        assert_eq!(file.metadata()?.len(), data.len());
        Ok(())
    }

    #[test]
    fn what_has_space_is_told_from_what_has_not() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        for at in 0..40 {
            allocate(&file, at * 16_384, 8_192)?;
        }
        allocate(&file, 655_360, 1 << 20)?;
        assert!(!lacks_space(&file, 655_360, 1 << 20) && !lacks_space(&file, 16_384, 8_192));
        // A file system in memory does not say.
        let says = file_system(&file)? != FileSystem::Volatile;
        for (pos, len) in [(8_192, 8_192), (0, 16_384), (4_096, 8_192), (0, 655_360), (655_360, 2 << 20), (1 << 30, 1)]
        {
            assert_eq!(lacks_space(&file, pos, len), says, "{len} bytes at {pos}");
        }
        Ok(())
    }

    #[test]
    fn a_full_disk_leaves_the_length() -> io::Result<()> {
        // Only a bounded tmpfs refuses at once what is larger than itself; others would be filled first.
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else {
            return Ok(());
        };
        let system = rustix::fs::fstatfs(&file)?;
        if file_system(&file)? != FileSystem::Volatile || system.f_blocks == 0 {
            return Ok(());
        }
        allocate(&file, 0, 4096)?;
        let error = allocate(&file, 4096, 1 << 50).expect_err("larger than the disk");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.metadata()?.len(), 4096);
        Ok(())
    }

    #[test]
    fn a_file_size_limit_leaves_the_length() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        file.set_len(4096)?;
        let code = in_child(|| {
            let limit = libc::rlimit { rlim_cur: 65_536, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: both concern this child alone, and the limit is a whole structure.
            let ready = unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN) != libc::SIG_ERR
                    && libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0
            };
            let refused = allocate(&file, 4096, 1 << 20).map_err(|e| e.kind());
            i32::from(!(ready && refused == Err(io::ErrorKind::FileTooLarge)))
        });
        assert_eq!((code, file.metadata()?.len()), (0, 4096));
        Ok(())
    }

    #[test]
    fn what_fails_half_way_leaves_the_length() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        file.set_len(4096)?;
        let half = |_| file.set_len(8192).and(Err(Errno::NOSPC.into()));
        assert!(or_as_long_as_before(&file, 16_384, half).is_err());
        assert_eq!(file.metadata()?.len(), 4096);
        or_as_long_as_before(&file, 8192, |_| file.set_len(8192))?;
        assert_eq!(file.metadata()?.len(), 8192);
        Ok(())
    }

    #[test]
    fn fill_writes_zeros_up_to_the_end() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        write_all_at(&file, 0, b"abc")?;
        fill(&file, 3, (2 << 20) + 1)?;
        fill(&file, 9, 3)?;
        let mut all = vec![1; (2 << 20) + 1];
        read_exact_at(&file, 0, &mut all)?;
        assert_eq!((file.metadata()?.len(), &all[..3]), ((2 << 20) + 1, &b"abc"[..]));
        assert!(all[3..].iter().all(|&b| b == 0));
        assert!(read_exact_at(&file, 1, &mut all).is_err(), "beyond the end");
        Ok(())
    }

    #[test]
    fn identity_follows_the_file_not_the_name() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&path)?;
        assert_eq!(identity(&file)?, identity_of_path(&path)?);
        std::fs::rename(&path, &other)?;
        assert_eq!(identity(&file)?, identity_of_path(&other)?);
        assert!(identity_of_path(&path).is_err());
        File::create(&path)?;
        assert_ne!(identity(&file)?, identity_of_path(&path)?);
        sync_dir(dir.path())?;
        sync_dir(Path::new(""))?;
        set_nocow(&file);
        Ok(())
    }

    #[test]
    fn knows_file_systems_by_their_numbers() -> io::Result<()> {
        assert_eq!(classify(0xef53), FileSystem::Normal, "ext4");
        assert_eq!(classify(0x6969), FileSystem::Refused("NFS"));
        assert_eq!(classify(0x9123_683e), FileSystem::Btrfs);
        assert_eq!(file_system(&File::open("/proc/self/stat")?)?, FileSystem::Normal);
        Ok(())
    }
}
