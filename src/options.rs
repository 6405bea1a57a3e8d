//! How a store is opened.

use std::path::Path;
use std::time::Duration;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::format::{MAX_EXTENT, MIN_EXTENT};

/// When `commit` returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After the data is on stable storage; no reader sees it earlier.
    #[default]
    Immediate,
    /// At once. A power cut may lose a suffix of such commits; the death of processes loses nothing.
    Eventual,
}

/// How long a process keeps the writer lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriterLock {
    /// After an Eventual commit with nobody waiting it is kept for up to about 2 ms of idleness, which saves two system
    /// calls a commit. A process that is stopped in that time keeps other writers waiting.
    #[default]
    Adaptive,
    /// It is given back with each commit.
    EachCommit,
}

/// Options for opening a store.
///
/// Handles of one file in one process share an engine: `reserve`, `checkpoint_bytes`, `lock_timeout`, `writer_lock`,
/// `max_dead_ratio`, `slack`, `guard_sigbus` and `verify_checksums` are those of the first one; `durability` is each
/// handle's own.
///
/// ```
/// # fn main() -> slotdb::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("sessions.slotdb");
/// let db = slotdb::Options::new().create(true).durability(slotdb::Durability::Eventual).open(&path)?;
/// db.put(b"user:1", b"Ada")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) read_only: bool,
    pub(crate) durability: Durability,
    pub(crate) extent_size: u64,
    pub(crate) max_size: Option<u64>,
    pub(crate) reserve: u64,
    pub(crate) checkpoint_bytes: Option<u64>,
    pub(crate) lock_timeout: Duration,
    pub(crate) writer_lock: WriterLock,
    pub(crate) max_dead_ratio: f64,
    pub(crate) slack: u64,
    pub(crate) guard_sigbus: bool,
    pub(crate) verify_checksums: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            create: false,
            create_new: false,
            read_only: false,
            durability: Durability::Immediate,
            extent_size: 128 << 10,
            max_size: None,
            reserve: 256 << 30,
            checkpoint_bytes: None,
            lock_timeout: Duration::from_secs(60),
            writer_lock: WriterLock::Adaptive,
            max_dead_ratio: 0.35,
            slack: 32 << 20,
            guard_sigbus: false,
            verify_checksums: false,
        }
    }
}

impl Options {
    /// Opens an existing store for reading and writing, Immediate.
    pub fn new() -> Options {
        Options::default()
    }

    /// Creates the store if there is none; at the end of a symbolic link that leads to nothing, where it leads.
    /// Default: no.
    pub fn create(&mut self, create: bool) -> &mut Self {
        self.create = create;
        self
    }

    /// Creates the store; `Error::Exists` if there is a file. Default: no.
    pub fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.create_new = create_new;
        self
    }

    /// Opens for reading only: the file is never written, and need not be writable. Default: no.
    ///
    /// Beside live writers such a handle sees their commits. Alone it reads the store as it is at this moment; a
    /// store that was not closed cleanly is replayed in memory, and what others commit later is not seen until it is
    /// opened again.
    pub fn read_only(&mut self, read_only: bool) -> &mut Self {
        self.read_only = read_only;
        self
    }

    /// Durability of this handle's commits. Default: Immediate.
    pub fn durability(&mut self, durability: Durability) -> &mut Self {
        self.durability = durability;
        self
    }

    /// Bytes of an extent, the unit of space: a power of two from 64 KiB to 64 MiB. Fixed at creation.
    /// Default: 128 KiB.
    pub fn extent_size(&mut self, bytes: u64) -> &mut Self {
        self.extent_size = bytes;
        self
    }

    /// Hard bound of the file in bytes, 0: none. It is of the store: all who have that open keep to the last one that
    /// was set, and it is remembered from the next checkpoint on. A file that is longer already stays as it is. A new
    /// store refuses one that is too small for it. Default: none at creation, else what the store has.
    ///
    /// In a store that has reached it (or on a full disk) what is dead makes room for what is put, so overwriting goes
    /// on as long as what lives, keys and values and 57 bytes a record, is at most three quarters of a bound of 128
    /// extents or more (two thirds, if values have but a few bytes), and no value is longer than half an extent.
    /// Beyond that, and where a snapshot keeps what is dead, puts are refused (`MaxSize`, `Full`; they name the
    /// snapshot). Cost of a put there: what it makes room for is copied and checkpointed before it, in steps that other
    /// commits get in between of; most puts pay nothing, and one of some hundreds all of it. Deletes always work; while
    /// a snapshot keeps what they replace, as long as the reserves last.
    pub fn max_size(&mut self, bytes: u64) -> &mut Self {
        self.max_size = Some(bytes);
        self
    }

    /// Address space to reserve, in bytes; a file that outgrows it is mapped anew. Default: 256 GiB.
    pub fn reserve(&mut self, bytes: u64) -> &mut Self {
        self.reserve = bytes;
        self
    }

    /// Bytes of log after which this handle's commits begin a checkpoint; it bounds the replay after a crash, and
    /// what is retired meanwhile waits for it. Default: 64 MiB, or half the index if that is more; earlier when a
    /// fourth of the log's space, at least 8 extents, waits to be used again.
    pub fn checkpoint_bytes(&mut self, bytes: u64) -> &mut Self {
        self.checkpoint_bytes = Some(bytes);
        self
    }

    /// How long to wait for a lock before `Error::Timeout`. Default: 60 s.
    pub fn lock_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long this process keeps the writer lock. Default: adaptive.
    pub fn writer_lock(&mut self, keep: WriterLock) -> &mut Self {
        self.writer_lock = keep;
        self
    }

    /// Share of the log (0.1 to 0.9) that may be dead before this handle's commits also copy live records out of
    /// mostly dead segments. Lower: a smaller file, more copying. Default: 0.35.
    pub fn max_dead_ratio(&mut self, ratio: f64) -> &mut Self {
        self.max_dead_ratio = ratio;
        self
    }

    /// How many bytes a small store may take beyond twice what lives in it. Up to an eighth of this may be dead before
    /// this handle's commits clean, and up to a fourth may wait for a checkpoint. Less: smaller files of small stores,
    /// more copying and checkpoints. Default: 32 MiB.
    pub fn slack(&mut self, bytes: u64) -> &mut Self {
        self.slack = bytes;
        self
    }

    /// Whether a page of the mapped file that cannot be read, because another program cut the file short or the disk
    /// fails, is an error value instead of the death of the process by SIGBUS. Default: no.
    ///
    /// From the loss on every call fails with `Truncated` (the file is shorter than it was) or `Io` (which names the
    /// offset), until all handles of the store in this process are closed; a commit that was under way ends as
    /// `InDoubt`. No commit is acknowledged that may have been lost with the page, and nothing that follows from the
    /// missing bytes is passed on to other processes. A value that is still borrowed may read as zeros; the next call
    /// on its snapshot tells. A cut inside the last page of the file is noticed by the next commit, flush or close,
    /// not by reads. A program that overwrites the file, rather than shorten it, is not noticed.
    ///
    /// The first such open installs a handler for SIGBUS, for the life of the process. Faults in memory of others, and
    /// signals that were sent, go to the handler that was there before. A handler that is installed later must pass on
    /// what it does not know. In a thread that blocks SIGBUS the process dies as before.
    ///
    /// Cost: a load or two for each read, an `fstat` for each commit and flush.
    pub fn guard_sigbus(&mut self, guard: bool) -> &mut Self {
        self.guard_sigbus = guard;
        self
    }

    /// Whether each read verifies the checksum of the record it returns; `Error::Corrupt` names one that is wrong.
    /// Default: no; `Db::check` verifies all on demand. Cost: a pass over key and value, about 20 ns and 0.1 ns a byte.
    pub fn verify_checksums(&mut self, verify: bool) -> &mut Self {
        self.verify_checksums = verify;
        self
    }

    /// Opens the store. Costs a replay of the log since the last checkpoint if nobody has it open and the last process
    /// did not close it.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Permission`; `NotAStore`, `Version`, `Features`, `Truncated`, `Corrupt` for a file that
    /// is no store, newer, or damaged; `Timeout` while another process recovers or closes it; `Unsupported` on network
    /// file systems, or beside processes of another version; `Invalid` for options that make no sense; `Replaced`,
    /// which is worth another try; `TooManyProcesses`; `Poisoned` until all others have closed it; `Full` if a copy
    /// without its blocks of zeros cannot get their space; `Io`. The file is as it was, unless a replay had begun.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Db> {
        self.check()?;
        Db::open_with(path.as_ref(), self)
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::Invalid { what: what.to_string() });
        if !self.extent_size.is_power_of_two() || !(MIN_EXTENT..=MAX_EXTENT).contains(&self.extent_size) {
            return invalid("extent_size must be a power of two from 64 KiB to 64 MiB");
        }
        if self.read_only && (self.create || self.create_new) {
            return invalid("a read-only handle cannot create a store");
        }
        if !(0.1..=0.9).contains(&self.max_dead_ratio) {
            return invalid("max_dead_ratio must be from 0.1 to 0.9");
        }
        if self.reserve == 0 || self.reserve > 1 << 46 {
            return invalid("reserve must be from 1 byte to 64 TiB");
        }
        Ok(())
    }
}
