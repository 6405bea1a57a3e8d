//! What fails in a map, for tests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::Map;

impl Map {
    /// Makes the page at `pos` one that cannot be read, in this map only: for tests, as a disk does that fails.
    pub fn lose(&self, pos: u64) -> io::Result<()> {
        let nothing = tempfile::tempfile()?;
        let page = rustix::param::page_size();
        let views = [(&self.read, ProtFlags::READ), (&self.cells, ProtFlags::READ | ProtFlags::WRITE)];
        for (view, access) in views {
            if !self.has(pos, page as u64) || std::ptr::eq(view, &raw const self.cells) && pos < self.cells_from {
                continue;
            }
            // Acquire: pairs with the Release in `cover`.
            let at = view.load(Ordering::Acquire).wrapping_add((pos - pos % page as u64) as usize);
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: a page of the view, as in `bytes`. Behind the end of an empty file there is nothing to read.
            unsafe { rustix::mm::mmap(at.cast(), page, access, flags, &nothing, 0) }?;
        }
        Ok(())
    }

    /// Counts growths down in this cell; the one that finds it at 0 is refused.
    pub fn refuse_by(&mut self, refusal: Arc<AtomicI64>) {
        self.refusal = refusal;
    }

    /// The error of a growth that is to be refused, as where no address space is left.
    pub(super) fn perhaps_refuse(&self) -> io::Result<()> {
        match self.refusal.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(Errno::NOMEM.into()),
            _ => Ok(()),
        }
    }
}
