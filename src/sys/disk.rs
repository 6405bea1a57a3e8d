//! The one trait between the engine and the disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::file;
use super::map::Map;
use super::sigbus::Guard;

/// A store's file. Positions and lengths are bytes in it.
pub trait Disk: Send + Sync {
    /// The file in memory; sees every `write` at once.
    fn map(&self) -> &Arc<Map>;

    /// Writes all of `bytes` to space that was allocated before, or fails; a failed write may leave any
    /// part of them.
    fn write(&self, pos: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a range durable, whoever wrote it, together with the file's length.
    ///
    /// After an error nobody knows what is on the disk, and a second call would not tell.
    fn sync(&self, pos: u64, len: u64) -> io::Result<()>;

    /// Makes ranges durable, each a position and a length, as `sync` of each would.
    fn sync_all(&self, ranges: &[(u64, u64)]) -> io::Result<()> {
        ranges.iter().try_for_each(|&(pos, len)| self.sync(pos, len))
    }

    /// Makes the file at least `pos + len` bytes long and reserves space for the range.
    ///
    /// An error leaves the length as it was. The caller is the only one that changes it.
    fn allocate(&self, pos: u64, len: u64) -> io::Result<()>;

    /// Those of some ranges of one length that there may be space for: not those that were refused, and have none, as
    /// long as nothing tells that there is more space now. One question for all of them, once they are known.
    fn worth_asking(&self, ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        ranges
    }

    /// Gives the space of a range back to the file system: nobody reads it before it is allocated again. Until the
    /// next sync of the range a power cut may leave what stood there.
    fn punch(&self, pos: u64, len: u64) -> io::Result<()>;

    /// Prepares a range of allocated space that nobody reads for scattered stores through the map: each then makes one
    /// page of memory dirty, and not the many that the system may hold as one. What stood there may be gone or not.
    fn scatter(&self, pos: u64, len: u64) -> io::Result<()>;

    /// Makes the file shorter. Nobody else has it open, and the map is not used beyond `len` any more.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// The length of the file, changes by other processes included.
    fn len(&self) -> io::Result<u64>;
}

/// How long a refusal of space is believed in: nothing tells of space that a quota gives back.
const BELIEVED: Duration = Duration::from_secs(1);

/// A request for space that a full file system has refused. Some flush their journal before they refuse, so it is not
/// asked again before it has more free space than it had then.
#[derive(Debug)]
struct Refusal {
    len: u64,
    free: (u64, u64),
    at: Instant,
    /// Ranges that were seen to have no space.
    bare: HashSet<(u64, u64)>,
}

impl Refusal {
    fn new(len: u64, free: (u64, u64)) -> Refusal {
        Refusal { len, free, at: Instant::now(), bare: HashSet::new() }
    }

    /// Whether a range has no space. Nobody gives it some while it is refused.
    fn is_bare(&mut self, file: &File, range: (u64, u64)) -> bool {
        self.bare.contains(&range) || file::lacks_space(file, range.0, range.1) && self.bare.insert(range)
    }

    /// Whether a request would be refused as well.
    fn covers(&self, len: u64, free: (u64, u64), now: Instant) -> bool {
        let has_more = free.0 > self.free.0 || free.1 > self.free.1;
        len >= self.len && !has_more && now.duration_since(self.at) < BELIEVED
    }
}

/// A file that is shared with other processes.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    map: Arc<Map>,
    refusal: Mutex<Option<Refusal>>,
}

impl FileDisk {
    /// Maps `file`; the arguments are those of [`Map::shared`].
    pub fn new(
        file: File,
        writable: bool,
        writable_from: u64,
        reserve: u64,
        guard: Option<Guard>,
    ) -> io::Result<FileDisk> {
        let map = Arc::new(Map::shared(&file, writable, writable_from, reserve, guard)?);
        Ok(FileDisk { file, map, refusal: Mutex::default() })
    }

    /// Whether the file system is known to have no space for a range.
    fn is_refused(&self, pos: u64, len: u64) -> bool {
        let mut refusal = self.refusal.lock();
        refusal.as_mut().is_some_and(|refusal| self.stands(refusal, len) && refusal.is_bare(&self.file, (pos, len)))
    }

    /// Whether a refusal tells of a request for so many bytes now.
    fn stands(&self, refusal: &Refusal, len: u64) -> bool {
        file::free_blocks(&self.file).is_ok_and(|free| refusal.covers(len, free, Instant::now()))
    }

    /// Asks the file system for space, unless it is known to have none.
    fn reserve(&self, pos: u64, len: u64) -> io::Result<()> {
        if self.is_refused(pos, len) {
            return Err(Errno::NOSPC.into());
        }
        file::allocate(&self.file, pos, len).inspect_err(|e| {
            if e.kind() == ErrorKind::StorageFull {
                *self.refusal.lock() = file::free_blocks(&self.file).ok().map(|free| Refusal::new(len, free));
            }
        })
    }
}

impl Disk for FileDisk {
    fn map(&self) -> &Arc<Map> {
        &self.map
    }

    fn write(&self, pos: u64, bytes: &[u8]) -> io::Result<()> {
        file::write_all_at(&self.file, pos, bytes)
    }

    fn sync(&self, pos: u64, len: u64) -> io::Result<()> {
        let end = end(pos, len)?;
        if end > self.map.len() {
            // Another process made the file longer.
            self.map.set_len(self.len()?)?;
        }
        self.map.sync(pos, len)
    }

    fn sync_all(&self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let Some((&(pos, len), others)) = ranges.split_last() else { return Ok(()) };
        // All are begun before the first is waited for. What the file system has to note, and the cache of the disk,
        // are left to the sync of the last range, which covers all writes to the file that have come to an end.
        for &(pos, len) in others {
            self.map.forget(pos, end(pos, len)?);
            file::write_back(&self.file, pos, len, false)?;
        }
        others.iter().try_for_each(|&(pos, len)| file::write_back(&self.file, pos, len, true))?;
        self.sync(pos, len)
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        let before = self.len()?;
        let end = end(pos, len)?;
        if self.map.measure().is_some() {
            // Growth would hide that the file was cut.
            return Err(Errno::IO.into());
        }
        self.reserve(pos, len)?;
        self.map.set_len(end.max(before)).inspect_err(|_| {
            // The error that is passed on says why; space that cannot be given back is only wasted.
            let _ = self.file.set_len(before);
        })
    }

    fn worth_asking(&self, mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        let mut refusal = self.refusal.lock();
        if let (Some(refusal), Some(&(_, len))) = (refusal.as_mut(), ranges.first())
            && self.stands(refusal, len)
        {
            ranges.retain(|&range| !refusal.is_bare(&self.file, range));
        }
        ranges
    }

    fn punch(&self, pos: u64, len: u64) -> io::Result<()> {
        file::punch(&self.file, pos, len)
    }

    fn scatter(&self, pos: u64, len: u64) -> io::Result<()> {
        file::scatter(&self.file, pos, len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.file, len))?;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// A copy of a file in memory, for a read-only opener that is alone: nothing reaches the file.
#[derive(Debug)]
pub struct PrivateDisk {
    map: Arc<Map>,
}

impl PrivateDisk {
    /// Maps `file` with room to grow by `slack` bytes. It must not change while the disk is in use.
    pub fn new(file: File, slack: u64, guard: Option<Guard>) -> io::Result<PrivateDisk> {
        Ok(PrivateDisk { map: Arc::new(Map::private(&file, slack, guard)?) })
    }
}

impl Disk for PrivateDisk {
    fn map(&self) -> &Arc<Map> {
        &self.map
    }

    fn write(&self, pos: u64, bytes: &[u8]) -> io::Result<()> {
        if self.map.store(pos, bytes) { Ok(()) } else { Err(Errno::NOSPC.into()) }
    }

    fn sync(&self, _pos: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        self.map.set_len(end(pos, len)?)
    }

    fn punch(&self, _pos: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn scatter(&self, _pos: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.map.len())
    }
}

fn end(pos: u64, len: u64) -> io::Result<u64> {
    pos.checked_add(len).ok_or_else(|| Errno::FBIG.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: u64 = 65_536;

    #[test]
    fn a_refusal_is_believed_in_until_there_is_more_space() {
        let at = Instant::now();
        let refusal = Refusal { len: 8, free: (20, 10), at, bare: HashSet::new() };
        assert!(refusal.covers(8, (20, 10), at) && refusal.covers(9, (19, 9), at));
        assert!(!refusal.covers(7, (20, 10), at), "it may have room for less");
        assert!(!refusal.covers(8, (21, 10), at) && !refusal.covers(8, (20, 11), at));
        assert!(!refusal.covers(8, (20, 10), at + BELIEVED));
    }

    fn shared(path: &std::path::Path) -> io::Result<FileDisk> {
        let file = File::options().read(true).write(true).open(path)?;
        FileDisk::new(file, true, EXTENT, 0, None)
    }

    #[test]
    fn what_has_its_space_is_not_refused() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(4 * EXTENT)?;
        file::allocate(file.as_file(), EXTENT, EXTENT)?;
        let disk = shared(file.path())?;
        // A file system in memory does not say what has space, and is asked again.
        let says = file::file_system(file.as_file())? != file::FileSystem::Volatile;
        for (extent, refused) in [(1, false), (2, says), (4, says)] {
            *disk.refusal.lock() = Some(Refusal::new(1, (u64::MAX, u64::MAX)));
            assert_eq!(disk.allocate(extent * EXTENT, EXTENT).is_err(), refused, "extent {extent}");
        }
        Ok(())
    }

    #[test]
    fn what_has_no_space_is_remembered_as_long_as_it_is_refused() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(4 * EXTENT)?;
        let disk = shared(file.path())?;
        let ranges = || vec![(EXTENT, EXTENT), (2 * EXTENT, EXTENT)];
        let refuse = || *disk.refusal.lock() = Some(Refusal::new(1, (u64::MAX, u64::MAX)));
        assert_eq!(disk.worth_asking(ranges()), ranges(), "nothing was refused yet");
        refuse();
        if file::file_system(file.as_file())? == file::FileSystem::Volatile {
            return Ok(());
        }
        assert_eq!(disk.worth_asking(ranges()), []);
        // Nobody does this while the file system refuses; so it shows who is asked.
        file::allocate(file.as_file(), EXTENT, EXTENT)?;
        assert_eq!(disk.worth_asking(ranges()), [], "the file is not asked again");
        refuse();
        assert_eq!(disk.worth_asking(ranges()), ranges()[..1]);
        Ok(())
    }

    fn exercise(disk: &dyn Disk) -> io::Result<()> {
        let before = disk.len()?;
        disk.allocate(before, 4 * EXTENT)?;
        assert_eq!(disk.len()?, before + 4 * EXTENT);
        assert_eq!(disk.map().len(), disk.len()?);
        disk.write(before + 10, b"record")?;
        assert_eq!(disk.map().bytes(before + 10, 6), Some(&b"record"[..]), "seen without a sync");
        disk.sync(before, 100)?;
        disk.sync(0, 0)?;
        disk.sync_all(&[(before, 3 * EXTENT), (10, 1), (before + EXTENT + 1, 7)])?;
        disk.sync_all(&[])?;
        assert!(disk.allocate(u64::MAX, 2).is_err());
        assert_eq!(disk.len()?, before + 4 * EXTENT);
        disk.punch(before, EXTENT)?;
        assert_eq!(disk.len()?, before + 4 * EXTENT);
        Ok(())
    }

    #[test]
    fn shared_and_private_behave_alike() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(2 * EXTENT)?;
        exercise(&PrivateDisk::new(file.reopen()?, 16 * EXTENT, None)?)?;
        assert_eq!(file.as_file().metadata()?.len(), 2 * EXTENT);
        exercise(&shared(file.path())?)
    }

    #[test]
    fn space_goes_back() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(2 * EXTENT)?;
        let disk = shared(file.path())?;
        disk.allocate(0, 8 * EXTENT)?;
        disk.write(6 * EXTENT, b"record")?;
        let blocks = || Ok::<_, io::Error>(std::os::unix::fs::MetadataExt::blocks(&file.as_file().metadata()?));
        let before = blocks()?;
        disk.punch(6 * EXTENT, EXTENT)?;
        assert!(blocks()? < before);
        assert_eq!(disk.map().bytes(6 * EXTENT, 6), Some(&[0; 6][..]));
        disk.allocate(6 * EXTENT, EXTENT)?;
        assert_eq!(blocks()?, before);
        disk.truncate(3 * EXTENT)?;
        assert_eq!(disk.len()?, 3 * EXTENT);
        Ok(())
    }

    #[test]
    fn private_writes_never_reach_the_file() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let content = vec![7; 3 * 4096 + 5];
        std::fs::write(file.path(), &content)?;
        let disk = PrivateDisk::new(File::open(file.path())?, EXTENT, None)?;
        disk.allocate(content.len() as u64, EXTENT)?;
        disk.write(0, &[9; 20_000])?;
        assert!(disk.map().store(0, b"abc"));
        let [cell] = disk.map().words(4096).expect("in the file");
        cell.store(1, std::sync::atomic::Ordering::Relaxed);
        disk.sync(0, 20_000)?;
        disk.map().sync(0, 20_000)?;
        assert_eq!(disk.map().bytes(0, 4), Some(&b"abc\t"[..]));
        assert!(disk.write(disk.len()?, b"beyond").is_err());
        assert!(disk.allocate(0, 1 << 40).is_err());
        assert_eq!(std::fs::read(file.path())?, content);
        drop(disk);
        assert_eq!(std::fs::read(file.path())?, content);
        Ok(())
    }

    #[test]
    fn syncs_what_another_handle_appended() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(2 * EXTENT)?;
        let (one, other) = (shared(file.path())?, shared(file.path())?);
        one.allocate(0, 100 * EXTENT)?;
        one.write(99 * EXTENT, b"far")?;
        assert!(other.map().reserved() < 99 * EXTENT);
        other.sync(99 * EXTENT, 3)?;
        assert_eq!(other.map().bytes(99 * EXTENT, 3), Some(&b"far"[..]));
        assert!(other.sync(200 * EXTENT, 3).is_err());
        other.sync_all(&[(98 * EXTENT, EXTENT), (0, 3), (99 * EXTENT, 3)])?;
        assert!(other.sync_all(&[(u64::MAX, 2), (0, 1)]).is_err());
        assert!(other.sync_all(&[(0, 1), (200 * EXTENT, 3)]).is_err());
        Ok(())
    }

    #[test]
    fn a_read_only_disk_errs_on_changes() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(EXTENT)?;
        let disk = FileDisk::new(File::open(file.path())?, false, EXTENT, 0, None)?;
        assert!(disk.write(0, b"abc").is_err());
        assert!(disk.allocate(EXTENT, EXTENT).is_err());
        assert_eq!((disk.len()?, disk.map().len()), (EXTENT, EXTENT));
        Ok(())
    }
}
