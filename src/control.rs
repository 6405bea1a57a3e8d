//! The shared words: extent 1, which all processes map, and the `Core` that every protocol works on.
//!
//! Nothing here is durable. The first opener sets it up, and recovery never reads it. Each word names who may change
//! it.
//!
//! | word | changed by | under |
//! |---|---|---|
//! | applied, ends, writer_active, root, intent, extent table, page maps | the writer | the writer lock |
//! | visible, durable, last_immediate, checkpoint | anyone, upwards only (`lift`) | nothing |
//! | sync_active, cursor | the flush leader | the sync lock |
//! | pages_active, generation, epochs | the checkpointer | the checkpoint lock |
//! | process and reader entries | their process, or a sweeper that holds its byte | the process byte |

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::fault;
use crate::format::slot::Root;
use crate::geometry::Geometry;
use crate::readers::Lanes;
use crate::sys::atomic::{AtomicU64, fence};
use crate::sys::disk::Disk;
use crate::sys::lock::LockFile;
use crate::sys::map::Map;
use crate::sys::pane::Pane;

/// First word of the volatile extent once it is set up. Changes with every change of this layout.
pub const LAYOUT: u64 = u64::from_le_bytes(*b"slotvol7");

/// Shared control words, as indexes of 64-bit words; words that different parties write have lines of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// `LAYOUT`, stored last.
    Layout = 0,
    /// Random number of this lifetime.
    Lifetime = 1,
    /// A sync failed. Beside what never changes, since every read looks at it.
    Poisoned = 2,
    /// Seq of the last batch that is in the index.
    Applied = 8,
    /// Seq that new snapshots read.
    Visible = 16,
    /// Seq up to which the log is durable.
    Durable = 24,
    /// Futex: counts flushes, failed ones too.
    DurableWake = 25,
    /// Highest seq of an Immediate commit.
    LastImmediate = 32,
    /// Applied when this lifetime began: the next batch starts with a session record.
    First = 33,
    /// Seq of the last durable checkpoint.
    Checkpoint = 40,
    /// Epoch whose pages the last durable checkpoint synced.
    DurableEpoch = 41,
    /// Generation of the last header begun.
    Generation = 42,
    /// Epoch of pages born now; a freeze begins the next.
    Epoch = 43,
    /// `log_total` as of the last durable checkpoint.
    CheckpointLog = 44,
    /// Bytes of the blob of the last freeze, for the standing reserve.
    BlobLen = 45,
    /// Extents that each of two runs for blobs has at least; 0: there are not two. Changed under the writer lock.
    BlobRoom = 46,
    /// Number of the folio of the log that was last seen to have all its space; 0: none. Under the writer lock.
    BackedFolio = 47,
    /// A batch is being written: process number + 1.
    WriterActive = 48,
    /// Who holds the writer lock: process number + 1.
    Holder = 49,
    /// Since when, nanoseconds since the epoch.
    HolderSince = 50,
    /// Futex: counts releases that somebody may wait for.
    WriterWake = 51,
    /// Somebody waits for the writer lock.
    WriterWaiting = 52,
    /// Futex: a waiter asks whoever keeps the lock while idle to let go of it.
    WriterWanted = 53,
    /// Futex: counts waiters that got the lock.
    WriterTaken = 54,
    /// A flush is under way: process number + 1 of its leader.
    SyncActive = 56,
    /// The log is durable up to this position.
    Cursor = 57,
    /// A sync of index pages is under way: the epoch that its freeze has ended.
    PagesActive = 64,
    /// Ends of even seqs: tail, chain, live keys, live bytes, bytes of log so far.
    EndsEven = 72,
    /// Ends of odd seqs.
    EndsOdd = 80,
    /// `Root` of the working directory.
    Root = 88,
    /// Entries the directory's run has room for.
    DirectoryRoom = 89,
    /// An announced change of several directory entries: 1, suffix, depth, page a, page b (0: none).
    Intent = 96,
    /// Retired pages at which looking for reusable ones among all pages pays again.
    SweepPagesAt = 101,
    /// Extents of the file.
    Extents = 104,
    /// Where the search for free extents begins.
    FreeHint = 105,
    /// Free extents.
    Free = 106,
    /// Retired extents.
    Retired = 107,
    /// The cleaner has begun and goes on until the checkpoint of this generation.
    CleaningUntil = 108,
    /// Page number where the search for free pages begins.
    PageHint = 109,
    /// Free pages of index extents.
    FreePages = 110,
    /// Retired pages.
    RetiredPages = 111,
    /// Steps in which the index shrank: these change slots without a commit.
    IndexSteps = 112,
    /// Hard bound of the file in bytes; 0: none.
    MaxSize = 113,
    /// The bound that the durable header has.
    MaxSizeStored = 114,
    /// Extents of log segments in use.
    LogExtents = 115,
    /// The segment that the cleaner has in hand; 0: none.
    CleanSegment = 116,
    /// Where the cleaner goes on in it.
    CleanAt = 117,
    /// Extents retired so far, in this lifetime.
    RetiredTotal = 118,
    /// `RetiredTotal` as of the last durable checkpoint.
    CheckpointRetired = 119,
    /// Reader cells in use lie below this.
    CellsUsed = 120,
    /// Positions of the extent table's chunks; the first one is not named here, since it does not move.
    Chunks = 128,
}

/// Chunks of the extent table: the last one ends beyond the largest position.
pub const CHUNKS: usize = 24;
const CONTROL_WORDS: u64 = 512;
/// Processes that may have the store open.
pub const PROCESSES: u64 = 1024;
/// Words of a process entry.
pub const PROCESS_WORDS: usize = 16;
/// Snapshots that may be open.
pub const CELLS: u64 = 4096;
/// Words of a reader cell: one cache line.
pub const CELL_WORDS: usize = 8;
/// Entries of the extent table's first chunk, which is part of the volatile extent.
pub const FIRST_CHUNK: u64 = 4096;
/// Words of an extent table entry.
pub const EXTENT_WORDS: usize = 4;

const PROCESS_AT: u64 = CONTROL_WORDS * 8;
const CELLS_AT: u64 = PROCESS_AT + PROCESSES * PROCESS_WORDS as u64 * 8;
const TABLE_AT: u64 = CELLS_AT + CELLS * CELL_WORDS as u64 * 8;
/// Bytes of the volatile extent (or extents, if they are small) that are used.
pub const VOLATILE_LEN: u64 = TABLE_AT + FIRST_CHUNK * EXTENT_WORDS as u64 * 8;

const _: () = {
    assert!(Word::Chunks as usize + CHUNKS <= CONTROL_WORDS as usize);
    assert!(PROCESS_AT.is_multiple_of(64) && CELLS_AT.is_multiple_of(64) && TABLE_AT.is_multiple_of(64));
};

/// The words of the volatile extent.
pub type VolatilePane = Pane<{ (VOLATILE_LEN / 8) as usize }>;

/// The state of the log after one seq: published as a whole by storing `applied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ends {
    /// Where the next batch goes.
    pub tail: u64,
    /// Chain before it.
    pub chain: u32,
    /// Live keys.
    pub live_keys: u64,
    /// Bytes of live keys and values.
    pub live_bytes: u64,
    /// Bytes of log written since the store was recovered.
    pub log_total: u64,
}

/// One open store in one process: disk, map, locks, and the words all processes share.
pub struct Core {
    /// As given to `open`.
    pub path: PathBuf,
    /// Writes, syncs, lengths.
    pub disk: Box<dyn Disk>,
    /// The disk's map.
    pub map: Arc<Map>,
    /// The part of it that holds control words, process table, reader table and the first chunk of the extent table.
    pub pane: VolatilePane,
    /// Locks of this handle.
    pub locks: LockFile,
    /// What the store is.
    pub geometry: Geometry,
    /// This process's number in the process table, and its reader cells.
    pub lanes: Lanes,
    /// Whether other processes share the words (not so for a read-only opener that is alone).
    pub shared: bool,
    /// Whether this handle may write.
    pub writable: bool,
    /// Whether the file system is one that loses all with the power.
    pub volatile_fs: bool,
    /// Whether reads verify checksums.
    pub verify: bool,
}

impl Core {
    /// A control word.
    #[inline]
    pub fn word(&self, word: Word) -> &AtomicU64 {
        self.word_at(word as usize)
    }

    #[inline]
    fn word_at(&self, index: usize) -> &AtomicU64 {
        &self.shared_cells::<1>(index)[0]
    }

    /// Cells of the volatile extent, counted from its start.
    #[inline]
    fn shared_cells<const N: usize>(&self, n: usize) -> &[AtomicU64; N] {
        self.pane.cells(n).expect("all places of the volatile extent are constants below its length")
    }

    /// Loads a control word.
    #[inline]
    pub fn get(&self, word: Word) -> u64 {
        // Acquire: pairs with the Release of `set` and `lift`; what was stored before the word is seen after it.
        self.word(word).load(Ordering::Acquire)
    }

    /// Stores a control word.
    #[inline]
    pub fn set(&self, word: Word, value: u64) {
        store(self.word(word), value);
    }

    /// Raises a control word to at least `value`.
    #[inline]
    pub fn lift(&self, word: Word, value: u64) {
        fault::point();
        // AcqRel: as `get` and `set`.
        self.word(word).fetch_max(value, Ordering::AcqRel);
    }

    /// Adds to a count that only the holder of the writer lock changes. A death beside it leaves the count a little
    /// off: whoever finds that it cannot be right counts anew.
    #[inline]
    pub fn add(&self, word: Word, difference: i64) {
        let cell = self.word(word);
        cell.store(cell.load(Ordering::Relaxed).saturating_add_signed(difference), Ordering::Relaxed);
    }

    #[inline]
    fn ends_cells(&self, seq: u64) -> &[AtomicU64; 5] {
        self.shared_cells(ends_word(seq))
    }

    /// The ends of `seq`; right only if `applied` is `seq` before and after.
    #[inline]
    fn ends_of(&self, seq: u64) -> Ends {
        let [tail, chain, live_keys, live_bytes, log_total] = self.ends_cells(seq);
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Ends {
            tail: load(tail),
            chain: load(chain) as u32,
            live_keys: load(live_keys),
            live_bytes: load(live_bytes),
            log_total: load(log_total),
        }
    }

    /// Applied seq and its ends, consistent without the writer lock.
    #[inline]
    pub fn ends(&self) -> (u64, Ends) {
        loop {
            let seq = self.get(Word::Applied);
            let ends = self.ends_of(seq);
            // Acquire fence: the loads of the ends come before the second look at `applied` (a seqlock's reader, after
            // Boehm, "Can seqlocks get along with programming language memory models?").
            fence(Ordering::Acquire);
            if self.word(Word::Applied).load(Ordering::Relaxed) == seq {
                return (seq, ends);
            }
        }
    }

    /// Publishes `seq`: its ends into the words of its parity, then `applied`. Under the writer lock.
    pub fn publish(&self, seq: u64, ends: Ends) {
        let values = [ends.tail, u64::from(ends.chain), ends.live_keys, ends.live_bytes, ends.log_total];
        for (cell, value) in self.ends_cells(seq).iter().zip(values) {
            store(cell, value);
        }
        self.set(Word::Applied, seq);
    }

    /// The working directory.
    #[inline]
    pub fn root(&self) -> Root {
        Root::from_raw(self.get(Word::Root))
    }

    /// A word of the announced directory change.
    pub fn intent(&self, n: usize) -> &AtomicU64 {
        self.word_at(Word::Intent as usize + n)
    }

    /// Position word of a chunk of the extent table.
    pub fn chunk(&self, n: usize) -> &AtomicU64 {
        self.word_at(Word::Chunks as usize + n)
    }

    /// Words of a process entry.
    pub fn process(&self, number: u64) -> &[AtomicU64; PROCESS_WORDS] {
        assert!(number < PROCESSES);
        self.shared_cells(PROCESS_AT as usize / 8 + number as usize * PROCESS_WORDS)
    }

    /// Words of a reader cell.
    #[inline]
    pub fn cell(&self, number: u64) -> &[AtomicU64; CELL_WORDS] {
        self.shared_cells(CELLS_AT as usize / 8 + (number % CELLS) as usize * CELL_WORDS)
    }

    /// Words of an entry of the extent table's first chunk.
    #[inline]
    pub fn first_chunk(&self, number: u64) -> &[AtomicU64; EXTENT_WORDS] {
        self.shared_cells(TABLE_AT as usize / 8 + (number % FIRST_CHUNK) as usize * EXTENT_WORDS)
    }

    /// Zeroes the volatile extent. Alone on the store. What is zero stays untouched, so that an opening makes only the
    /// pages dirty that were in use.
    pub fn clear_volatile(&self) -> Result<()> {
        let mut position = self.geometry.extent;
        while position < self.geometry.extent + VOLATILE_LEN {
            let line = self.map.words::<8>(position).ok_or_else(|| self.corrupt(position, "file too short"))?;
            for word in line.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
                word.store(0, Ordering::Relaxed);
            }
            position += 64;
        }
        Ok(())
    }

    /// An error that names a damaged place.
    #[cold]
    #[inline(never)]
    pub fn corrupt(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), offset, what: what.into() }
    }

    /// An error that names a failed call.
    pub fn io(&self, op: &'static str, offset: impl Into<Option<u64>>, source: std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), op, offset: offset.into(), source }
    }

    /// Writes `bytes` at `position`, whole; not if they may follow from a lost page.
    pub fn write(&self, position: u64, bytes: &[u8]) -> Result<()> {
        fault::point();
        self.check_map()?;
        self.disk.write(position, bytes).map_err(|e| self.io("write", position, e))
    }

    /// Makes a range durable.
    pub fn sync_range(&self, position: u64, len: u64) -> Result<()> {
        self.sync_ranges(&[(position, len)])
    }

    /// Makes ranges durable together.
    pub fn sync_ranges(&self, ranges: &[(u64, u64)]) -> Result<()> {
        fault::point();
        self.disk.sync_all(ranges).map_err(|e| self.io("sync", ranges.first().map_or(0, |range| range.0), e))
    }

    /// An error once a sync has failed anywhere, or this process has lost a page.
    #[inline]
    pub fn check_poison(&self) -> Result<()> {
        if self.is_poisoned() {
            return Err(Error::Poisoned { path: self.path.clone() });
        }
        self.check_map()
    }

    /// Whether a sync has failed anywhere.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.word(Word::Poisoned).load(Ordering::Relaxed) != 0
    }

    /// Marks the store poisoned for all processes.
    pub fn poison(&self, failed: Error) -> Error {
        self.set(Word::Poisoned, 1);
        log::error!("{failed}");
        failed
    }
}

/// The ends have two homes, by parity, so that those of the published seq are never written.
#[inline]
fn ends_word(seq: u64) -> usize {
    if seq.is_multiple_of(2) { Word::EndsEven as usize } else { Word::EndsOdd as usize }
}

/// Stores a shared word that others may read at once. A process may die before each such store.
#[inline]
pub fn store(cell: &AtomicU64, value: u64) {
    fault::point();
    // Release: pairs with the Acquire of whoever finds the value; what it points to is complete.
    cell.store(value, Ordering::Release);
}

/// Loads a shared word together with what it points to.
#[inline]
pub fn load(cell: &AtomicU64) -> u64 {
    // Acquire: pairs with the Release of `store`.
    cell.load(Ordering::Acquire)
}
