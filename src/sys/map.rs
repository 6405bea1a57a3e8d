//! The file in memory: a read-only view of all of it, and a writable view that leaves the header out.
//!
//! Address space beyond the end of the file is reserved, so growth by any process needs no new mapping.
//! When the file outgrows the reservation, the view grows in place, or a larger mapping of the same file
//! takes over. Mappings that were handed out stay where they are until the [`Map`] is dropped.

#[cfg(feature = "faults")]
mod faults;

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::MsyncFlags;

use super::atomic;
use super::host;
use super::pane::Pane;
use super::sigbus::Guard;
use super::view::Views;
pub use super::view::{HUGE_FROM, HUGE_PAGE};
use super::window::Window;

/// Ranges of so many bytes are likely to hold many pages that were stored to.
const MANY: u64 = 128 << 10;

/// The file in memory.
#[derive(Debug)]
pub struct Map {
    /// Bytes that are known to be backed by the file.
    len: AtomicU64,
    /// Where position 0 is (or would be) in the read-only view.
    read: AtomicPtr<u8>,
    /// Where position 0 is (or would be) in the view that cells are taken from.
    cells: AtomicPtr<u8>,
    /// Both views reach this far. Changed under the lock of `views`.
    reserved: AtomicU64,
    /// The first position that cells may be taken from.
    cells_from: u64,
    /// Whether `cells` may be stored to.
    writable: bool,
    /// What lies below this, and not below `HUGE_FROM`, comes into memory in huge pages where the kernel gives them.
    huge: u64,
    /// What is mapped; None if private, where length and file have nothing to do with each other.
    file: Option<File>,
    /// Who notes pages that could not be read.
    guard: Option<Guard>,
    /// Bytes that the file must have, for the guard; 0: nobody has said so yet.
    watched: AtomicU64,
    views: Mutex<Views>,
    /// Growths until one is refused; below 0: one was.
    #[cfg(feature = "faults")]
    refusal: Arc<std::sync::atomic::AtomicI64>,
}

impl Map {
    /// Maps `file`, shared with all other processes that do.
    ///
    /// Reserves `reserve` bytes of address space for each view, and less where the system refuses that.
    /// If `writable`, positions from `writable_from` on (page aligned) can be stored to, and `file` must
    /// be open for writing. `file` is duplicated, so it must be one that never carries locks.
    /// Of a file that is shared with writers the read-only view asks for huge pages, from `HUGE_FROM` up to half of the
    /// memory: beyond that a store cannot stay in memory, and reading 2 MiB for each record would cost more than it
    /// saves.
    /// With a guard, pages that cannot be read kill nobody: see [`Map::lost`]. It begins to look at the file's length
    /// with the first [`Map::set_len`].
    pub fn shared(
        file: &File,
        writable: bool,
        writable_from: u64,
        reserve: u64,
        guard: Option<Guard>,
    ) -> io::Result<Map> {
        let cells_from = if writable { writable_from } else { 0 };
        if !cells_from.is_multiple_of(rustix::param::page_size() as u64) {
            return Err(Errno::INVAL.into());
        }
        let len = file.metadata()?.len();
        let file = file.try_clone()?;
        let least = len.max(cells_from + 1);
        let huge = if writable_from > 0 { host::memory() / 2 } else { 0 };
        let views = Views::shared(&file, writable.then_some(cells_from), huge, least, reserve, guard.as_ref())?;
        Ok(Map { huge, ..Map::new(len, cells_from, writable, Some(file), guard, views) })
    }

    /// Maps a copy of `file` that is written to in memory only, with room for `slack` more bytes.
    ///
    /// The file must not change meanwhile: pages that were not written to here still show it.
    pub fn private(file: &File, slack: u64, guard: Option<Guard>) -> io::Result<Map> {
        let len = file.metadata()?.len();
        let views = Views::private(file, len, slack, guard.as_ref())?;
        let mut map = Map::new(len, 0, true, None, guard, views);
        *map.watched.get_mut() = len;
        Ok(map)
    }

    fn new(len: u64, cells_from: u64, writable: bool, file: Option<File>, guard: Option<Guard>, views: Views) -> Map {
        Map {
            file,
            guard,
            watched: AtomicU64::new(0),
            len: AtomicU64::new(len),
            read: AtomicPtr::new(views.read_base()),
            cells: AtomicPtr::new(views.cells_base()),
            reserved: AtomicU64::new(views.end()),
            cells_from,
            writable,
            huge: 0,
            views: Mutex::new(views),
            #[cfg(feature = "faults")]
            refusal: Arc::new(i64::MAX.into()),
        }
    }

    /// Bytes that are known to be backed by the file; of a private map, its virtual length.
    #[inline]
    pub fn len(&self) -> u64 {
        // Acquire: pairs with the Release in `set_len`; the views that cover this length are seen too.
        self.len.load(Ordering::Acquire)
    }

    /// Notes that the file has grown to `len` bytes, after making sure that it has them and that the views
    /// cover them.
    ///
    /// Never lowers the length, so threads that learn of growth in different order do no harm.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        if len <= self.len() {
            self.watch(len);
            return Ok(());
        }
        if self.file_len()?.is_some_and(|found| found < len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
        #[cfg(feature = "faults")]
        self.perhaps_refuse()?;
        // Acquire: pairs with the Release in `cover`; what is published below includes its views.
        if len > self.reserved.load(Ordering::Acquire) {
            self.cover(len)?;
        }
        // Release: pairs with the Acquire in `len`; who sees the length sees views that cover it.
        self.len.fetch_max(len, Ordering::Release);
        self.watch(len);
        Ok(())
    }

    /// Bytes that the file has, those included that nobody uses; none if private.
    pub fn file_len(&self) -> io::Result<Option<u64>> {
        self.file.as_ref().map(|file| Ok(file.metadata()?.len())).transpose()
    }

    fn watch(&self, len: u64) {
        if self.file.is_some() {
            // Release: pairs with the Acquire in `lost`; who sees the length sees views that cover it.
            self.watched.fetch_max(len, Ordering::Release);
        }
    }

    /// Position of the first page that could not be read since the file was mapped: what was read may be zeros, and
    /// what was stored may be gone. Always none without a guard.
    ///
    /// A file that became shorter is noticed too if its last page is gone, whatever was read: nobody else tells of the
    /// zeros between the cut and the end of its page.
    pub fn lost(&self) -> Option<u64> {
        let guard = self.guard.as_ref()?;
        // Acquire: pairs with the Release in `watch`.
        let end = self.watched.load(Ordering::Acquire);
        if end > 0 {
            // Acquire: pairs with the Release in `cover`.
            let last = self.read.load(Ordering::Acquire).wrapping_add(end as usize - 1);
            // SAFETY: below the length, so in bounds of the view, as in `bytes`. Nothing is done with the value, which
            // others may change; if there is none, the guard notes it.
            unsafe { last.read_volatile() };
        }
        guard.lost()
    }

    /// Counts the first page as lost, if there is a guard: what stands in the file cannot be right.
    pub fn give_up(&self) {
        if let Some(guard) = &self.guard {
            guard.note(0);
        }
    }

    /// Whether there is a guard.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// As [`Map::lost`], and looks at the length of the file. Costs a system call, with a guard.
    #[inline]
    pub fn measure(&self) -> Option<u64> {
        let guard = self.guard.as_ref()?;
        // Before the look: another thread may make the file longer behind it, and expect more then.
        let expected = self.expected_len();
        match guard.file_len() {
            Ok(len) if len >= expected => {}
            Ok(len) => guard.note(len),
            Err(_) => guard.note(0),
        }
        self.lost()
    }

    /// Bytes that the guard knows the file must have.
    pub fn expected_len(&self) -> u64 {
        // Acquire: as in `lost`.
        self.watched.load(Ordering::Acquire)
    }

    /// Bytes that the guarded file has now.
    pub fn found_len(&self) -> Option<u64> {
        self.guard.as_ref()?.file_len().ok()
    }

    #[cold]
    fn cover(&self, len: u64) -> io::Result<()> {
        let mut views = self.views.lock();
        views.grow(self.file.as_ref().ok_or(Errno::NOMEM)?, len, self.guard.as_ref())?;
        // Release, all three: pair with the Acquire loads in `set_len`, `sync` and the windows.
        self.read.store(views.read_base(), Ordering::Release);
        self.cells.store(views.cells_base(), Ordering::Release);
        self.reserved.store(views.end(), Ordering::Release);
        Ok(())
    }

    /// The bytes at `pos`; None beyond the length.
    ///
    /// Contract: bytes that nobody changes while they are borrowed, such as log below the tail that is
    /// pinned. Cells are read with [`Map::words`].
    #[inline]
    pub fn bytes(&self, pos: u64, len: u64) -> Option<&[u8]> {
        self.bytes_window().bytes(pos, len)
    }

    /// `N` cells at `pos`, shared with all processes; None beyond the length, in front of the writable
    /// part, or if `pos` is not a multiple of 8.
    ///
    /// Of a map that is not writable the cells are in read-only memory: a store would kill the process.
    #[inline]
    pub fn words<const N: usize>(&self, pos: u64) -> Option<&[atomic::AtomicU64; N]> {
        self.words_window().words(pos)
    }

    /// The view that bytes are taken from, for who reads several places.
    #[inline]
    pub fn bytes_window(&self) -> Window<'_> {
        // Acquire: pairs with the Release in `cover`. After the length, so that the view covers that.
        let (len, base) = (self.len(), self.read.load(Ordering::Acquire));
        Window { base, from: 0, len, map: PhantomData }
    }

    /// The view that cells are taken from.
    #[inline]
    pub fn words_window(&self) -> Window<'_> {
        // Acquire: as in `bytes_window`.
        let (len, base) = (self.len(), self.cells.load(Ordering::Acquire));
        Window { base, from: self.cells_from, len, map: PhantomData }
    }

    /// The cells of a range, for as long as they are needed; as [`Map::words`].
    pub fn pane<const COUNT: usize>(self: &Arc<Map>, pos: u64) -> Option<Pane<COUNT>> {
        let cells = self.words::<COUNT>(pos)?;
        Some(Pane::new(cells.as_ptr().cast_mut(), self.clone()))
    }

    /// Copies `bytes` to `pos`, where nobody reads yet. False if the range cannot be written.
    pub fn store(&self, pos: u64, bytes: &[u8]) -> bool {
        if !self.writable || pos < self.cells_from || !self.has(pos, bytes.len() as u64) {
            return false;
        }
        #[cfg(loom)]
        atomic::model::touch(pos, bytes.len() as u64, true);
        // Acquire: pairs with the Release in `cover`.
        let at = self.cells.load(Ordering::Acquire).wrapping_add(pos as usize);
        // SAFETY: in bounds of the writable view, as in `words`. Nobody reads these bytes yet, so `bytes`
        // is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        true
    }

    /// Asks the processor to load the cache line at `pos`. Positions beyond the length are ignored.
    #[inline]
    pub fn prefetch(&self, pos: u64) {
        if self.has(pos, 1) {
            // Acquire: pairs with the Release in `cover`.
            prefetch(self.read.load(Ordering::Acquire).wrapping_add(pos as usize));
        }
    }

    /// As [`Map::prefetch`], of the view that cells are taken from.
    #[inline]
    pub fn prefetch_words(&self, pos: u64) {
        if pos >= self.cells_from && self.has(pos, 1) {
            // Acquire: pairs with the Release in `cover`.
            prefetch(self.cells.load(Ordering::Acquire).wrapping_add(pos as usize));
        }
    }

    /// Brings a range that was not touched yet into memory, where that comes in huge pages; does nothing elsewhere. The
    /// first access decides how large pages are, also for stores.
    pub fn populate(&self, pos: u64, len: u64) {
        for at in (pos.max(HUGE_FROM)..pos.saturating_add(len).min(self.huge)).step_by(HUGE_PAGE as usize) {
            if self.has(at, 1) {
                // Acquire: pairs with the Release in `cover`.
                let byte = self.read.load(Ordering::Acquire).wrapping_add(at as usize);
                // SAFETY: in bounds as in `bytes`; a volatile read of a byte that nobody looks at.
                unsafe { byte.read_volatile() };
            }
        }
    }

    /// Makes the pages of a range durable. Needs a file that is open for writing: of another one the
    /// kernel syncs nothing.
    ///
    /// A range beyond the reservation is an error, for a sync that is skipped must not look like one.
    pub fn sync(&self, pos: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        // Acquire: pairs with the Release in `cover`; the view loaded next reaches this far.
        let reserved = self.reserved.load(Ordering::Acquire);
        let end = pos.checked_add(len).filter(|&end| end <= reserved).ok_or(Errno::INVAL)?;
        let start = pos - pos % rustix::param::page_size() as u64;
        self.forget(start, end);
        // Acquire: pairs with the Release in `cover`.
        let at = self.read.load(Ordering::Acquire).wrapping_add(start as usize);
        // Not MmapRaw::flush_range: it would need the lock, and growth would wait for the disk.
        // SAFETY: the range is inside a live mapping, and MS_SYNC changes no memory.
        unsafe { rustix::mm::msync(at.cast(), (end - start) as usize, MsyncFlags::SYNC) }?;
        Ok(())
    }

    /// Takes pages out of the writable view, if they are many; the next access brings each back as it stands in the
    /// file. To write a page that was stored to, the kernel takes the right to store from it and interrupts all
    /// processors that may know it still, page by page; this does so once for all.
    pub fn forget(&self, start: u64, end: u64) {
        let start = start - start % rustix::param::page_size() as u64;
        let are_many = end - start >= MANY && start >= self.cells_from && self.has(start, end - start);
        if self.file.is_none() || !self.writable || !are_many {
            return;
        }
        // Acquire: pairs with the Release in `cover`.
        let at = self.cells.load(Ordering::Acquire).wrapping_add(start as usize);
        // SAFETY: inside a live mapping of a shared file, of which this forgets only where its pages are. A refusal
        // only makes the sync slower.
        let _ = unsafe { rustix::mm::madvise(at.cast(), (end - start) as usize, rustix::mm::Advice::LinuxDontNeed) };
    }

    /// Bytes of address space that each view covers.
    pub fn reserved(&self) -> u64 {
        // Acquire: pairs with the Release in `cover`.
        self.reserved.load(Ordering::Acquire)
    }

    #[inline]
    fn has(&self, pos: u64, len: u64) -> bool {
        let all = self.len();
        len <= all && pos <= all - len
    }
}

#[inline]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint and never faults; SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch is a hint, never faults and changes no register.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MprotectFlags, mprotect};
    use std::os::unix::fs::FileExt;

    const PAGE: u64 = 65_536;
    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> io::Result<File> {
        let file = tempfile::tempfile()?;
        file.set_len(len)?;
        Ok(file)
    }

    /// Makes growth in place impossible: the kernel extends no mapping whose parts differ.
    fn block(map: &Map) {
        let last = map.read.load(Ordering::Relaxed).wrapping_add((map.reserved() - PAGE) as usize);
        // SAFETY: the end of the view, which nobody looks at before a larger view has taken over.
        unsafe { mprotect(last.cast(), PAGE as usize, MprotectFlags::empty()) }.expect("mapped");
    }

    #[test]
    fn outgrows_its_reservation_under_borrows() -> io::Result<()> {
        let file = file(MIB)?;
        let map = Map::shared(&file, true, PAGE, 0, None)?;
        assert_eq!(map.reserved(), 2 * MIB);
        file.write_all_at(b"log", PAGE + 100)?;
        let log = map.bytes(PAGE + 100, 3).expect("in the file");
        let [cell] = map.words(PAGE).expect("in the file");
        for len in [3, 5, 64, 100].map(|n| n * MIB) {
            block(&map);
            let address = map.read.load(Ordering::Relaxed);
            file.set_len(len)?;
            assert_eq!(map.bytes(len - 8, 8), None, "not announced yet");
            map.set_len(len)?;
            assert_ne!(address, map.read.load(Ordering::Relaxed), "a larger view took over");
            assert_eq!((map.len(), map.bytes(len - 8, 8)), (len, Some(&[0; 8][..])));
            cell.store(len, Ordering::Relaxed);
            assert_eq!(map.words::<1>(PAGE).expect("in the file")[0].load(Ordering::Relaxed), len);
            assert_eq!(log, b"log");
        }
        assert!(map.store(100 * MIB - 3, b"end"));
        map.sync(0, 100 * MIB)?;
        assert_eq!(log, b"log");
        Ok(())
    }

    #[test]
    fn grows_far_without_moving_while_reserved() -> io::Result<()> {
        let file = file(MIB)?;
        let map = Map::shared(&file, true, PAGE, 1 << 30, None)?;
        let address = map.read.load(Ordering::Relaxed);
        file.set_len(1 << 30)?;
        map.set_len(1 << 30)?;
        assert_eq!((map.reserved(), address), (1 << 30, map.read.load(Ordering::Relaxed)));
        Ok(())
    }

    #[test]
    fn refuses_what_is_out_of_range() -> io::Result<()> {
        let map = Map::shared(&file(2 * PAGE)?, true, PAGE, 0, None)?;
        let len = 2 * PAGE;
        assert!(map.bytes(0, len).is_some() && map.bytes(len, 0).is_some());
        assert!(map.words::<8>(PAGE).is_some() && map.words::<1>(len - 8).is_some());
        for (pos, count) in [(0, len + 1), (len, 1), (len + 1, 0), (1, u64::MAX), (u64::MAX, 1), (1 << 40, 1)] {
            assert_eq!(map.bytes(pos, count), None, "{pos} {count}");
        }
        for pos in [0, PAGE - 8, PAGE + 1, PAGE + 4, len - 56, len, u64::MAX - 7, u64::MAX] {
            assert!(map.words::<8>(pos).is_none(), "{pos}");
        }
        for pos in [0, PAGE - 1, len - 2, len, u64::MAX] {
            assert!(!map.store(pos, b"abc"), "{pos}");
            map.prefetch(pos);
        }
        assert!(map.sync(map.reserved(), 1).is_err() && map.sync(1, u64::MAX).is_err());
        assert!(map.sync(u64::MAX, 0).is_ok() && map.sync(len - 1, 1).is_ok());
        assert!(Map::shared(&file(PAGE)?, true, 512, 0, None).is_err(), "the header would be writable");
        assert!(Map::shared(&file(PAGE)?, false, 512, 0, None).is_ok());
        Ok(())
    }

    #[test]
    fn refuses_a_length_that_the_file_has_not() -> io::Result<()> {
        let map = Map::shared(&file(PAGE)?, true, 0, 0, None)?;
        let error = map.set_len(2 * PAGE).expect_err("file too short");
        assert_eq!((error.kind(), map.len()), (io::ErrorKind::UnexpectedEof, PAGE));
        map.set_len(1)?;
        assert_eq!(map.len(), PAGE, "set_len never lowers");
        Ok(())
    }

    #[test]
    fn maps_share_cells_and_readers_cannot_store() -> io::Result<()> {
        let path = tempfile::NamedTempFile::new()?;
        path.as_file().set_len(2 * PAGE)?;
        let writer = Map::shared(path.as_file(), true, PAGE, 0, None)?;
        let reader = Map::shared(&File::open(path.path())?, false, PAGE, 0, None)?;
        let [cell] = writer.words(PAGE + 8).expect("in the file");
        cell.store(7, Ordering::Release);
        let [seen] = reader.words(PAGE + 8).expect("in the file");
        assert_eq!(seen.load(Ordering::Acquire), 7);
        assert!(reader.words::<1>(0).is_some() && !reader.store(PAGE, b"abc"));
        assert!(writer.store(PAGE, b"abc"));
        assert_eq!(reader.bytes(PAGE, 3), Some(&b"abc"[..]));
        Ok(())
    }
}
