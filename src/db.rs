//! The public handle.

use std::path::Path;
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::check::{Checking, Fault};
use crate::engine::compact::Compaction;
use crate::engine::open::{self, Handle};
use crate::error::{Error, Result};
use crate::format::hash_key;
use crate::options::{Durability, Options};
use crate::stats::{ProcessInfo, Stats};
use crate::txn::read::ReadTxn;
use crate::txn::write::WriteTxn;

/// An open store. Clones, and further opens of the same file in this process, share one engine.
///
/// Dropping the last handle closes the store; `close` does the same and tells of errors.
#[derive(Clone)]
pub struct Db {
    handle: Arc<Handle>,
    durability: Durability,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.engine().core.path).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens an existing store for reading and writing. See `Options::open`.
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Options::new().open(path)
    }

    /// Opens a store for reading and writing, and creates it if there is none. See `Options::open`.
    pub fn create(path: impl AsRef<Path>) -> Result<Db> {
        Options::new().create(true).open(path)
    }

    /// Opens an existing store for reading. See `Options::read_only`.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Db> {
        Options::new().read_only(true).open(path)
    }

    pub(crate) fn open_with(path: &Path, options: &Options) -> Result<Db> {
        Ok(Db { handle: open::open(path, options)?, durability: options.durability })
    }

    /// Opens the store at `path` on a disk of the caller's.
    #[cfg(feature = "faults")]
    pub(crate) fn open_on(path: &Path, options: &Options, disk: Box<dyn crate::sys::disk::Disk>) -> Result<Db> {
        Ok(Db { handle: open::open_on(path, options, disk)?, durability: options.durability })
    }

    /// Makes a page of the file one that this process cannot read.
    #[cfg(feature = "faults")]
    #[doc(hidden)]
    pub fn lose_page(&self, position: u64) -> std::io::Result<()> {
        self.engine().core.map.lose(position)
    }

    #[inline]
    fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// What an operation came to, unless a page that it may have read was lost.
    fn settled<T>(&self, done: Result<T>) -> Result<T> {
        self.engine().core.settled(done)
    }

    /// A copy of the value of a key, as of the newest visible commit.
    ///
    /// Cost: a pin, a hash, one line of the index, one record, the copy. No lock, no system call.
    ///
    /// # Errors
    /// `Corrupt` if the index or the record is damaged; `Poisoned`; `Forked`; `TooManyReaders`. With
    /// `Options::guard_sigbus`, `Truncated` or `Io` after a page was lost.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_with(key, <[u8]>::to_vec)
    }

    /// Calls `f` with the value of a key, without a copy. While `f` runs, what it reads keeps its space.
    ///
    /// # Errors
    /// As `get`; `f` may have been called by then, with a value that was lost under it.
    pub fn get_with<R>(&self, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let engine = self.engine();
        engine.check_fork()?;
        let core = &engine.core;
        let hash = hash_key(key, core.geometry.seed);
        // On its way while this pins, and early enough to overlap with the misses of a get right before.
        core.prefetch_line(hash);
        let pin = core.pin_for_one_get()?;
        let found = core.find_at(hash, key, pin.seq()).map_err(|e| core.cause(e))?;
        let done = found.map(|record| f(record.value()));
        core.check_map()?;
        Ok(done)
    }

    /// Copies of the values of many keys, in their order, all as of one commit; see `ReadTxn::get_many`.
    ///
    /// # Errors
    /// As `get`.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
        let engine = self.engine();
        engine.check_fork()?;
        let core = &engine.core;
        let pin = core.pin_for_one_get()?;
        let mut values = Vec::with_capacity(keys.len());
        let found = core.find_many_at(keys, pin.seq(), |record| values.push(record.map(|r| r.value().to_vec())));
        found.map_err(|e| core.cause(e))?;
        core.check_map()?;
        Ok(values)
    }

    /// Sets the value of a key, in a transaction of its own.
    ///
    /// # Errors
    /// As `begin_write`, `WriteTxn::put` and `WriteTxn::commit`.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let engine = self.engine();
        engine.check_fork()?;
        let hash = hash_key(key, engine.core.geometry.seed);
        // On its way while this waits for the lock.
        engine.core.prefetch_line(hash);
        self.write(|txn| txn.put_hashed(hash, key, value))
    }

    /// Removes a key, in a transaction of its own; whether it was there.
    ///
    /// # Errors
    /// As `begin_write`, `WriteTxn::delete` and `WriteTxn::commit`.
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.write(|txn| txn.delete(key))
    }

    /// One transaction; tried once more when the store was full and somebody has committed meanwhile.
    fn write<R>(&self, work: impl Fn(&mut WriteTxn<'_>) -> Result<R>) -> Result<R> {
        let once = || {
            let mut txn = self.begin_write()?;
            let done = work(&mut txn)?;
            txn.commit().map(|_| done)
        };
        let core = &self.engine().core;
        let seq = core.ends().0;
        match once() {
            Err(Error::Full { .. } | Error::MaxSize { .. }) if core.ends().0 != seq => once(),
            done => done,
        }
    }

    /// Begins a read transaction: a snapshot of the newest visible commit.
    ///
    /// Cost: a few atomic operations; on a read-only handle beside live writers two calls about locks.
    ///
    /// # Errors
    /// `TooManyReaders` beyond 4,096 snapshots, and single gets of other threads count too; `Poisoned`; `Forked`.
    pub fn begin_read(&self) -> Result<ReadTxn<'_>> {
        ReadTxn::begin(self.engine())
    }

    /// Begins a write transaction: waits for the writer lock of the store.
    ///
    /// A thread that already has a write transaction of this store would wait for itself until the lock times out.
    ///
    /// # Errors
    /// `Timeout`, which names the holder; `ReadOnly`; `Poisoned`; `Forked`.
    pub fn begin_write(&self) -> Result<WriteTxn<'_>> {
        WriteTxn::begin(self.engine(), self.durability)
    }

    /// How many keys have a value, as of the newest commit, which need not be durable or visible yet. Cost: a few
    /// loads.
    ///
    /// # Errors
    /// `Forked`. With `Options::guard_sigbus`, `Truncated` or `Io` after a page was lost.
    pub fn len(&self) -> Result<u64> {
        self.engine().check_fork()?;
        self.settled(Ok(self.engine().core.ends().1.live_keys))
    }

    /// Whether no key has a value; as `len`.
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|n| n == 0)
    }

    /// Makes a checkpoint: the index as of now becomes durable, and the log before it is not replayed any more.
    ///
    /// Commits go on beside it. Waits for a checkpoint that is under way.
    ///
    /// # Errors
    /// `Full`, `MaxSize` if there is no space for its image; `Timeout` if another one does not come to its end;
    /// `ReadOnly`; `Io` if a sync fails, and `Poisoned` from then on; `Forked`. An error changes nothing durable.
    pub fn checkpoint(&self) -> Result<()> {
        self.engine().check_fork()?;
        let core = &self.engine().core;
        self.settled(self.engine().checkpoint().map_err(|e| core.explained(e)))
    }

    /// Moves what lives to the front, and gives the space of what is dead back to the file system. Others stay attached
    /// and go on; commits wait for single steps of it, of a few hundred KiB each. The file becomes shorter when the
    /// last process closes it; until then its end has no space on the disk.
    ///
    /// `go_on` is told how far it is before each step, and may end it; so may a death, at any moment. Cost: reads the
    /// segments that have dead space and writes what lives in them, at most a few times over, and some checkpoints.
    /// Returns whether it came to the end. What open snapshots read stays.
    ///
    /// # Errors
    /// `Full`, `MaxSize` if there is no space even for a first step; those of `checkpoint` and `begin_write`. Whatever
    /// was done stands, and the store is whole.
    pub fn compact(&self, mut go_on: impl FnMut(Compaction) -> bool) -> Result<bool> {
        self.engine().check_fork()?;
        let core = &self.engine().core;
        self.settled(self.engine().compact(&mut go_on).map_err(|e| core.explained(e)))
    }

    /// Makes all commits so far durable, Eventual ones of all processes included. Cost: one flush, shared with others.
    ///
    /// # Errors
    /// `ReadOnly`; `Timeout` if the flush of another process does not come to its end; `Io` if the flush fails, and
    /// `Poisoned` from then on; `Forked`. After any of them it is unknown which of those commits are durable.
    pub fn sync(&self) -> Result<()> {
        let engine = self.engine();
        engine.check_fork()?;
        if !engine.core.writable {
            return Err(Error::ReadOnly { path: engine.core.path.clone() });
        }
        self.settled(engine.wait_durable(engine.core.ends().0))
    }

    /// Sizes and counts. Cost: a walk over the extent table, which has an entry for each extent, and over the page maps
    /// of index extents; a call about locks for each process that has the store open, and some for each commit that
    /// snapshots of read-only handles read.
    ///
    /// # Errors
    /// `Io` if that call fails; `Forked`. With `Options::guard_sigbus`, `Truncated` or `Io` after a page was lost.
    pub fn stats(&self) -> Result<Stats> {
        self.engine().check_fork()?;
        self.settled(self.engine().stats())
    }

    /// The processes that have the store open for writing, their snapshots, and who has the writer lock; then the
    /// snapshots of read-only handles, with their processes where the system tells. Cost and errors are those of
    /// `stats`; where there are such snapshots it also looks at each open file of each process, in /proc.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        self.engine().check_fork()?;
        self.settled(self.engine().processes())
    }

    /// Looks at every header, page, pointer and record that a snapshot reaches; `deep` verifies each checksum too.
    /// What it returns is what it found wrong. Others may go on beside it.
    ///
    /// Cost: reads the index and the header of each record, and with `deep` all of each; a snapshot meanwhile.
    ///
    /// # Errors
    /// `Corrupt` if the directory cannot be read; `TooManyReaders`; `Poisoned`; `Forked`. With `Options::guard_sigbus`,
    /// `Truncated` or `Io` after a page was lost.
    pub fn check(&self, deep: bool) -> Result<Vec<Fault>> {
        self.check_telling(deep, |_| {})
    }

    /// As `check`, and calls `tell` now and then with how far it is.
    ///
    /// # Errors
    /// As `check`.
    pub fn check_telling(&self, deep: bool, mut tell: impl FnMut(Checking)) -> Result<Vec<Fault>> {
        self.engine().check_fork()?;
        self.settled(self.engine().check(deep, &mut tell))
    }

    /// Closes this handle, and with the last one of this process the store. The last process to close makes a
    /// checkpoint if a replay would take long.
    ///
    /// # Errors
    /// Those of that checkpoint. The store is closed all the same, and nothing that was committed is lost.
    pub fn close(self) -> Result<()> {
        match Arc::into_inner(self.handle) {
            Some(handle) => handle.close(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::Db;
    use crate::control::Word;
    use crate::format::extent::Kind;
    use crate::options::{Durability, Options};
    use crate::sys::file::lacks_space;
    use crate::sys::map::HUGE_FROM;

    /// Blocks that may come into memory as one.
    fn blocks(db: &Db) -> Vec<Range<u64>> {
        let core = &db.engine().core;
        let (block, count) = (core.geometry.block(), core.extents());
        (core.extent_of(HUGE_FROM) / block..count.div_ceil(block)).map(|n| n * block..(n + 1) * block).collect()
    }

    /// Whether a block has a hole, or an end that was left.
    fn has_hole(db: &Db, block: &Range<u64>) -> bool {
        let core = &db.engine().core;
        let count = core.extents();
        let is_hole = |n| matches!(core.kind_at(n), Kind::Hole | Kind::Punching);
        (block.start..block.end.min(count)).any(is_hole)
            || block.end > count && core.map.len() > core.position_of(count)
    }

    /// Extents of index pages, the directory and the table.
    fn stored_to(db: &Db, block: &Range<u64>) -> Vec<u64> {
        let core = &db.engine().core;
        (block.start..block.end.min(core.extents())).filter(|&n| core.kind_at(n).is_stored_to()).collect()
    }

    /// Blocks that have both.
    fn mixed(db: &Db) -> Vec<Range<u64>> {
        let is_mixed = |block: &Range<u64>| has_hole(db, block) && !stored_to(db, block).is_empty();
        blocks(db).into_iter().filter(is_mixed).collect()
    }

    fn open(dir: &Path, checkpoint_bytes: u64) -> Db {
        let mut options = Options::new();
        options.create(true).extent_size(65_536).checkpoint_bytes(checkpoint_bytes).durability(Durability::Eventual);
        options.open(dir.join("store")).unwrap()
    }

    /// Puts keys with a value, or deletes seven of eight, and looks after each commit.
    fn change(db: &Db, keys: Range<u32>, value: Option<&[u8]>, look: impl Fn()) {
        for first in keys.step_by(500) {
            let mut txn = db.begin_write().unwrap();
            for n in first..first + 500 {
                let key = n.wrapping_mul(2_654_435_761).to_le_bytes();
                match value {
                    Some(value) => txn.put(&key, value).unwrap(),
                    None if n % 8 > 0 => drop(txn.delete(&key).unwrap()),
                    None => {}
                }
            }
            txn.commit().unwrap();
            look();
        }
    }

    #[test]
    fn holes_keep_away_from_what_is_stored_to() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path(), 1 << 20);
        let look = |when: &str| assert_eq!(mixed(&db), [], "after {when}");
        let mut holes = Vec::new();
        for round in 0..4 {
            change(&db, 0..150_000, Some(&[7; 100]), || look("puts"));
            change(&db, 0..150_000, None, || look("deletes"));
            for _ in 0..3 {
                db.put(b"a", b"b").unwrap();
                db.checkpoint().unwrap();
                look("a checkpoint");
            }
            if round % 2 == 1 {
                // The index pages that it reads stay where they are, and what is free beside them becomes holes.
                let _snapshot = db.begin_read().unwrap();
                assert!(db.compact(|_| true).unwrap());
                holes.extend(mixed(&db));
                db.put(b"a", b"c").unwrap();
                db.checkpoint().unwrap();
                look("a compaction and a checkpoint");
            }
        }
        assert_ne!(holes, [], "no compaction left holes beside what is stored to");
    }

    /// A store that has given back space as a compaction does, anywhere, and its blocks that have holes beside what is
    /// stored to.
    fn with_holes(dir: &Path) -> (Db, Vec<Range<u64>>) {
        let db = open(dir, 1 << 30);
        change(&db, 0..150_000, Some(&[7; 100]), || ());
        change(&db, 0..150_000, None, || ());
        db.checkpoint().unwrap();
        {
            let _writer = db.engine().lock_writer().unwrap();
            let core = &db.engine().core;
            core.punch(&core.set_aside(0, true).0);
        }
        let holes = mixed(&db);
        (db, holes)
    }

    /// A copy that has no space where there are zeros, as a copy of a store that nobody closed may be.
    fn sparse_copy(from: &Path, to: &Path) {
        let bytes = std::fs::read(from.join("store")).unwrap();
        let copy = File::create(to.join("store")).unwrap();
        copy.set_len(bytes.len() as u64).unwrap();
        for (piece, at) in bytes.chunks(4096).zip((0..).step_by(4096)).filter(|(piece, _)| piece.iter().any(|&b| b > 0))
        {
            copy.write_all_at(piece, at).unwrap();
        }
    }

    #[test]
    fn a_recovery_gives_holes_beside_index_pages_their_space() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Nobody closes it before the copy is made.
        let (_original, holes) = with_holes(dir.path());
        assert_ne!(holes, [], "no holes beside index pages");
        sparse_copy(dir.path(), copy.path());
        let db = open(copy.path(), 1 << 30);
        let core = &db.engine().core;
        let is_stored_to = |block: &&Range<u64>| !stored_to(&db, block).is_empty();
        assert!(holes.iter().any(|block| is_stored_to(&block)), "the index is elsewhere");
        let file = File::open(copy.path().join("store")).unwrap();
        for block in blocks(&db).iter().filter(is_stored_to) {
            let (position, end) = (core.position_of(block.start), core.position_of(block.end.min(core.extents())));
            assert!(!has_hole(&db, block) && !lacks_space(&file, position, end - position), "block {block:?}");
        }
    }

    /// Grows an index where holes are, and says whether new index pages came to lie in their blocks.
    fn grow_beside_holes() -> bool {
        let dir = tempfile::tempdir().unwrap();
        let (db, holes) = with_holes(dir.path());
        let checkpoint = db.engine().core.get(Word::Checkpoint);
        let before: BTreeSet<u64> = blocks(&db).iter().flat_map(|block| stored_to(&db, block)).collect();
        let is_new_in = |block: &Range<u64>| stored_to(&db, block).iter().any(|n| !before.contains(n));
        change(&db, 150_000..1_500_000, Some(&[]), || {
            let wrong: Vec<_> = mixed(&db).into_iter().filter(is_new_in).collect();
            assert_eq!(wrong, [], "index pages beside holes");
        });
        assert_eq!(db.engine().core.get(Word::Checkpoint), checkpoint, "a checkpoint brings space back");
        holes.iter().any(is_new_in)
    }

    #[test]
    fn holes_of_a_compaction_keep_away_from_new_index_pages() {
        // Where extents lie depends on the seed of the store.
        assert!((0..8).any(|_| grow_beside_holes()), "no index pages where holes were");
    }

    /// System calls that write, of this thread.
    fn writes() -> u64 {
        let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let count = counts.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap();
        count.parse().unwrap()
    }

    #[test]
    fn log_beside_holes_is_written_and_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path(), 1 << 30);
        let core = &db.engine().core;
        let folio = || core.folio_of(core.extent_of(core.ends().1.tail));
        let mut n = 0_u64;
        while core.ends().1.tail < HUGE_FROM || !folio().any(|n| core.kind_at(n) == Kind::Free) {
            db.put(&n.to_le_bytes(), &[7; 60_000]).unwrap();
            n += 1;
        }
        let (folio, lock) = (folio(), || db.engine().lock_writer().unwrap());
        let writes_of_a_put = || {
            let before = writes();
            db.put(b"a", b"b").unwrap();
            writes() - before
        };
        assert_eq!(writes_of_a_put(), 0, "all of the folio has its space");
        {
            let _writer = lock();
            core.punch(&core.set_aside(0, true).0);
        }
        assert!(writes_of_a_put() > 0, "there are holes");
        {
            let _writer = lock();
            assert!(core.fill_run(folio.start, folio.end - folio.start));
        }
        assert_eq!(writes_of_a_put(), 0, "the holes have their space again");
        {
            let _writer = lock();
            core.leave_extents(folio.end - 1).unwrap();
        }
        assert!(writes_of_a_put() > 0, "the end of the folio was left");
    }
}
