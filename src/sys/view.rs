//! The mappings behind a [`super::map::Map`]: how much is reserved, and how they grow.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw, RemapOptions};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::sigbus::{Guard, Watch};

/// Mappings end at multiples of this: the size of a huge page.
pub const HUGE_PAGE: u64 = 2 << 20;

/// What lies below this comes into memory in small pages: a processor remembers the places of so many of them, and a
/// small store need not keep what it holds apart.
pub const HUGE_FROM: u64 = 8 << 20;

/// More than any process can have; keeps sums of sizes from overflowing.
const MOST: u64 = 1 << 47;

/// What a map keeps alive: a view of the whole file for reading, and one that cells are taken from.
#[derive(Debug)]
pub(super) struct Views {
    read: View,
    /// None if the cells are taken from `read`.
    cells: Option<View>,
}

impl Views {
    /// Views of `reserve` bytes of `file`, or of what the system grants, but not fewer than `least`.
    /// The second one begins at `cells_from` and is writable. In the first one, what is not in memory yet comes there
    /// in huge pages up to position `huge`.
    pub(super) fn shared(
        file: &File,
        cells_from: Option<u64>,
        huge: u64,
        least: u64,
        reserve: u64,
        guard: Option<&Guard>,
    ) -> io::Result<Views> {
        let least = round_up(least)?;
        let want = round_up(reserve.min(MOST))?.max(least);
        let views = |size| {
            let read = View { huge, ..View::new(0, false) };
            let mut views = Views { read, cells: cells_from.map(|from| View::new(from, true)) };
            views.cover(file, size, guard).map(|()| views)
        };
        granted(want, least, views)
    }

    /// One view of private memory that begins with the `len` bytes of `file` and has `slack` more, or as many as the
    /// system grants.
    pub(super) fn private(file: &File, len: u64, slack: u64, guard: Option<&Guard>) -> io::Result<Views> {
        let least = round_up(len.max(1))?;
        let want = round_up(least.saturating_add(slack))?;
        let memory = granted(want, least, |size| MmapOptions::new().len(size as usize).no_reserve_swap().map_anon())?;
        let memory = MmapRaw::from(memory);
        if len > 0 {
            // SAFETY: this replaces the first part of `memory`, which nobody has seen yet.
            unsafe {
                rustix::mm::mmap(
                    memory.as_mut_ptr().cast(),
                    len as usize,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                    file,
                    0,
                )
            }?;
        }
        let memory = Mapping::new(memory, 0, true, guard)?;
        Ok(Views { read: View { maps: vec![memory], ..View::new(0, true) }, cells: None })
    }

    /// Extends both views to `len` bytes at least; what they covered before stays where it is.
    pub(super) fn grow(&mut self, file: &File, len: u64, guard: Option<&Guard>) -> io::Result<()> {
        if len <= self.end() {
            return Ok(());
        }
        let least = round_up(len)?;
        let mut size = least.max(self.end().saturating_mul(2).min(MOST));
        while let Err(error) = self.cover(file, size, guard) {
            if !refused(&error) || size <= least {
                return Err(error);
            }
            size = (size / 2).max(least);
        }
        Ok(())
    }

    /// Both views reach this far.
    pub(super) fn end(&self) -> u64 {
        self.read.end().min(self.cells().end())
    }

    /// Where position 0 is in the view for reading.
    pub(super) fn read_base(&self) -> *mut u8 {
        self.read.base()
    }

    /// Where position 0 is, or would be, in the view that cells are taken from.
    pub(super) fn cells_base(&self) -> *mut u8 {
        self.cells().base()
    }

    fn cells(&self) -> &View {
        self.cells.as_ref().unwrap_or(&self.read)
    }

    fn cover(&mut self, file: &File, end: u64, guard: Option<&Guard>) -> io::Result<()> {
        self.read.cover(file, end, guard)?;
        match &mut self.cells {
            Some(cells) => cells.cover(file, end, guard),
            None => Ok(()),
        }
    }
}

/// Memory, and the watch over it, which ends first.
#[derive(Debug)]
struct Mapping {
    watch: Option<Watch>,
    memory: MmapRaw,
}

impl Mapping {
    fn new(memory: MmapRaw, from: u64, writable: bool, guard: Option<&Guard>) -> io::Result<Mapping> {
        let watch = guard.map(|guard| guard.watch(memory.as_mut_ptr(), memory.len(), from, writable)).transpose()?;
        Ok(Mapping { watch, memory })
    }

    /// Whether it could be made longer where it is.
    fn grow(&mut self, len: usize) -> bool {
        // SAFETY: without `may_move` the mapping stays where it is and only becomes longer; what is beyond the end of
        // the file is not touched before `set_len` says that it is there.
        let done = unsafe { self.memory.remap(len, RemapOptions::new()) }.is_ok();
        if let Some(watch) = self.watch.as_ref().filter(|_| done) {
            watch.grow(len);
        }
        done
    }
}

/// One way to look at the file, from position `from` on.
#[derive(Debug)]
struct View {
    from: u64,
    writable: bool,
    /// What lies below this is wanted in huge pages, but for the start.
    huge: u64,
    /// The last one covers most and is used; earlier ones may still be borrowed from.
    maps: Vec<Mapping>,
}

impl View {
    fn new(from: u64, writable: bool) -> View {
        View { from, writable, huge: 0, maps: Vec::new() }
    }

    fn end(&self) -> u64 {
        self.maps.last().map_or(0, |map| self.from + map.memory.len() as u64)
    }

    fn base(&self) -> *mut u8 {
        let start = |map: &Mapping| map.memory.as_mut_ptr().wrapping_sub(self.from as usize);
        self.maps.last().map_or(std::ptr::null_mut(), start)
    }

    fn cover(&mut self, file: &File, end: u64, guard: Option<&Guard>) -> io::Result<()> {
        if end <= self.end() {
            return Ok(());
        }
        let len = (end - self.from) as usize;
        if self.maps.last_mut().is_some_and(|last| last.grow(len)) {
            return Ok(());
        }
        let mut options = MmapOptions::new();
        options.offset(self.from).len(len).no_reserve_swap();
        let map = if self.writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
        let map = map?;
        advise_huge(&map, self.huge);
        self.maps.push(Mapping::new(map, self.from, self.writable, guard)?);
        Ok(())
    }
}

/// Asks for huge pages up to position `end` of a map of the whole file. A kernel that has none for this file refuses,
/// and all goes on without.
fn advise_huge(map: &MmapRaw, end: u64) {
    let end = map.len().min(usize::try_from(end).unwrap_or(usize::MAX));
    let from = HUGE_FROM as usize;
    if from < end {
        let start = map.as_mut_ptr().wrapping_add(from);
        // SAFETY: inside the mapping, and the advice changes no memory.
        let _ = unsafe { rustix::mm::madvise(start.cast(), end - from, Advice::LinuxHugepage) };
    }
}

/// Makes what takes `want` bytes of address space; of less if the system refuses that, but not of less than `least`.
fn granted<T>(want: u64, least: u64, make: impl Fn(u64) -> io::Result<T>) -> io::Result<T> {
    let mut size = want;
    loop {
        match make(size) {
            Err(error) if refused(&error) && size > least => size = (size / 2).max(least),
            Ok(tight) if size < want => {
                // Address space is short, and the rest of the process needs some of it.
                drop(tight);
                return make((size / 4).max(least));
            }
            done => return done,
        }
    }
}

/// Less may be granted. An emulator of a smaller machine, such as valgrind, calls a large size invalid.
fn refused(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOMEM | Errno::INVAL))
}

fn round_up(len: u64) -> io::Result<u64> {
    len.checked_next_multiple_of(HUGE_PAGE)
        .filter(|&size| i64::try_from(size).is_ok())
        .ok_or_else(|| Errno::NOMEM.into())
}

#[cfg(test)]
mod tests {
    use super::super::map::Map;
    use super::*;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> io::Result<File> {
        let file = tempfile::tempfile()?;
        file.set_len(len)?;
        Ok(file)
    }

    #[test]
    fn settles_for_less_address_space() -> io::Result<()> {
        let file = file(MIB)?;
        let map = Map::shared(&file, true, 65_536, u64::MAX, None)?;
        assert!(map.reserved() < 1 << 46, "{}", map.reserved());
        assert!(map.reserved() > 1 << 34, "{}", map.reserved());
        Ok(())
    }

    #[test]
    fn private_has_a_fixed_room() -> io::Result<()> {
        let file = file(4097)?;
        file.write_all_at(b"x", 4096)?;
        let map = Map::private(&file, MIB, None)?;
        assert_eq!((map.len(), map.bytes(4096, 1)), (4097, Some(&b"x"[..])));
        assert!(map.store(0, b"header") && map.reserved() >= 3 * MIB);
        map.set_len(map.reserved())?;
        assert!(map.bytes(4097, map.reserved() - 4097).is_some_and(|rest| rest.iter().all(|&b| b == 0)));
        let error = map.set_len(map.reserved() + 1).expect_err("no more room");
        assert!(error.kind() == io::ErrorKind::OutOfMemory);
        assert!(Map::private(&file, u64::MAX, None).is_err());
        assert!(Map::private(&file, 1 << 60, None)?.reserved() > 1 << 30, "it settles for less");
        assert_eq!(Map::private(&tempfile::tempfile()?, 0, None)?.bytes(0, 1), None);
        Ok(())
    }
}
