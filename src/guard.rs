//! Pages that could not be read, with `Options::guard_sigbus`: zeros stand in their place, and an operation that may
//! have read or written such a page ends with an error.
//!
//! Reads are checked after the data was used. What one process took from zeros must not reach the others either, so
//! whoever publishes something that follows from what it read (a directory entry, a slot, the ends of a batch, space
//! that is handed out, bytes of the file) checks before that.

use crate::sys::atomic::AtomicU64;

use rustix::io::Errno;

use crate::control::Core;
use crate::error::{Error, Result};

/// Stands for table entries that were lost with their table.
static NOWHERE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// An entry of a table beyond the end of the file.
pub fn no_entry<const N: usize>() -> &'static [AtomicU64; N] {
    NOWHERE.first_chunk().expect("no entry has more words")
}

impl Core {
    /// An error once a page of the map was lost. Cost: two loads with the guard, none without.
    #[inline]
    pub fn check_map(&self) -> Result<()> {
        if self.map.is_guarded() { self.ask_guard() } else { Ok(()) }
    }

    #[inline(never)]
    fn ask_guard(&self) -> Result<()> {
        match self.map.lost() {
            None => Ok(()),
            Some(position) => Err(self.unreadable(position)),
        }
    }

    /// The error of a read: the loss of a page, if that is what made it.
    #[cold]
    pub fn cause(&self, error: Error) -> Error {
        self.check_map().err().unwrap_or(error)
    }

    /// What an operation came to, unless what it has read may be zeros.
    #[inline]
    pub fn settled<T>(&self, done: Result<T>) -> Result<T> {
        self.check_map()?;
        done
    }

    /// As `settled`, and looks at the length of the file: bytes that were stored behind a cut, in the page that is cut,
    /// are lost without a signal.
    #[inline]
    pub fn proven<T>(&self, done: Result<T>) -> Result<T> {
        match self.map.measure() {
            None => done,
            Some(position) => Err(self.unreadable(position)),
        }
    }

    #[cold]
    fn unreadable(&self, position: u64) -> Error {
        let expected = self.map.expected_len();
        match self.map.found_len() {
            Some(found) if found < expected => Error::Truncated { path: self.path.clone(), expected, found },
            _ => self.io("read through the map", position, Errno::IO.into()),
        }
    }

    /// An entry of a table that has lost its place. The error follows when the operation is settled. If no page was
    /// seen to be lost, the file was cut and made longer again in between.
    #[cold]
    pub fn nowhere<const N: usize>(&self) -> &[AtomicU64; N] {
        self.map.give_up();
        assert!(self.check_map().is_err(), "the tables are as long as the file");
        no_entry()
    }
}
