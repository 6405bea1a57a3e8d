//! Memory order: the shipped protocols on shared cells, under every order that the language's memory model allows
//! (loom).
//!
//! A store is made the ordinary way. Each run begins with the cells as they stand in it and leaves them so: what a run
//! stores goes to stand-ins (`sys::atomic::model`). Processes are cores of their own over one map, with lock files of
//! their own. See "Memory order" in docs/TESTING.md.

mod index;
mod pins;
mod publish;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Count, Ordering};
use std::time::Duration;

use loom::thread::JoinHandle;
use parking_lot::Mutex;

use crate::control::{Core, Word};
use crate::db::Db;
use crate::engine::{Engine, Settings};
use crate::format::hash_key;
use crate::format::slot::home_line;
use crate::geometry::Geometry;
use crate::options::{Durability, Options, WriterLock};
use crate::readers::{Lanes, Pin, bytes};
use crate::sys::atomic::model::{self, Place};
use crate::sys::disk::{Disk, FileDisk};
use crate::sys::lock::LockFile;
use crate::sys::map::Map;
use crate::txn::write::WriteTxn;

const EXTENT: u64 = 65_536;
/// Stack of a modelled thread, in words.
const STACK: usize = 1 << 16;

/// Runs `body` under every schedule with at most `bound` preemptions, and for each load every value that it may see.
/// `LOOM_MAX_PREEMPTIONS` raises the bound.
fn explore(bound: usize, body: impl Fn() + Send + Sync + 'static) {
    let (body, runs) = (Arc::new(body), Arc::new(Count::new(0)));
    let mut places = Vec::new();
    let report = |what, places: &[Place]| {
        let name = std::thread::current().name().unwrap_or_default().to_string();
        eprintln!("{name}: {what} {} runs, {} places", runs.load(Ordering::Relaxed), places.len());
    };
    loop {
        let learned = Arc::new(Mutex::new(Vec::new()));
        let run = Run { body: body.clone(), runs: runs.clone(), places: places.clone(), learned: learned.clone() };
        // A thread each time, since what a model leaves in its thread is of no use to the next one.
        let outcome = std::thread::spawn(move || run.explore(bound)).join();
        let learned = std::mem::take(&mut *learned.lock());
        match outcome {
            Ok(()) => return report("holds in", &places),
            Err(_) if !learned.is_empty() => places.extend(learned),
            Err(failure) => {
                report("fails after", &places);
                resume_unwind(failure);
            }
        }
    }
}

struct Run<F> {
    body: Arc<F>,
    runs: Arc<Count>,
    places: Vec<Place>,
    learned: Arc<Mutex<Vec<Place>>>,
}

impl<F: Fn() + Send + Sync + 'static> Run<F> {
    fn explore(self, bound: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(bound));
        builder.max_branches = 100_000;
        let learned = self.learned.clone();
        let explored = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                self.runs.fetch_add(1, Ordering::Relaxed);
                model::begin(&self.places);
                (self.body)();
                *self.learned.lock() = model::learned();
                if !self.learned.lock().is_empty() {
                    resume_unwind(Box::new("once more, with what was learned"));
                }
            })
        }));
        if let Err(failure) = explored {
            learned.lock().extend(model::learned());
            resume_unwind(failure);
        }
    }
}

/// A thread of a model.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    loom::thread::Builder::new().stack_size(STACK).spawn(work).expect("a modelled thread")
}

/// A store that runs begin with.
struct Store {
    path: PathBuf,
    disk: Arc<FileDisk>,
    geometry: Geometry,
    /// Keys in it, in the order in which they were put; each value is its key.
    keys: Vec<Vec<u8>>,
    _db: Db,
    _dir: tempfile::TempDir,
}

impl Store {
    /// With so many keys, spread evenly over the halves of the hash and the lines of pages.
    fn new(keys: usize) -> Arc<Store> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store");
        let mut options = Options::new();
        options.create(true).extent_size(EXTENT).reserve(64 << 20);
        options.durability(Durability::Eventual).writer_lock(WriterLock::EachCommit);
        let db = options.open(&path).expect("a new store");
        let file = || std::fs::File::options().read(true).write(true).open(&path).expect("the store's file");
        let disk = Arc::new(FileDisk::new(file(), true, EXTENT, 64 << 20, None).expect("mapped"));
        let mut header = vec![0; size_of::<crate::format::header::Header>()];
        crate::sys::file::read_exact_at(&file(), 0, &mut header).expect("a header");
        let header: crate::format::header::Header = zerocopy::FromBytes::read_from_bytes(&header).expect("its length");
        let geometry = Geometry::of(&header);
        let mut store = Store { path, disk, geometry, keys: Vec::new(), _db: db, _dir: dir };
        for n in 0..keys {
            let key = store.key(n);
            store._db.put(&key, &key).expect("put");
            store.keys.push(key);
        }
        Arc::new(store)
    }

    /// The key that comes as the `n`-th.
    fn key(&self, n: usize) -> Vec<u8> {
        let fits = |key: &u64| {
            let hash = self.hash(&key.to_le_bytes());
            hash as usize & 1 == n & 1
                && home_line(hash) == n >> 1 & 1
                && !self.keys.contains(&key.to_le_bytes().to_vec())
        };
        (0..).find(fits).expect("hashes of all kinds").to_le_bytes().to_vec()
    }

    fn hash(&self, key: &[u8]) -> u64 {
        hash_key(key, self.geometry.seed)
    }

    /// Wipes what an earlier run has written to the log, from here on.
    fn wipe(&self, position: u64) {
        self.disk.write(position, &[0; 4096]).expect("space");
    }

    /// A process that joins the store.
    fn process(self: &Arc<Store>) -> Arc<Process> {
        let (map, path): (Arc<Map>, _) = (self.disk.map().clone(), self.path.clone());
        let locks = LockFile::open(&path, true).expect("a lock file");
        let synced = Arc::new(loom::sync::atomic::AtomicU64::new(0));
        let disk = Box::new(Watched { store: self.clone(), synced: synced.clone() });
        let (lanes, geometry) = (Lanes::default(), self.geometry);
        let (shared, writable, volatile_fs, verify) = (true, true, true, false);
        let pane = geometry.pane(&map).expect("mapped");
        let core = Core { path, disk, pane, map, locks, geometry, lanes, shared, writable, volatile_fs, verify };
        core.enter_process().expect("a process number");
        let settings = Settings {
            checkpoint_bytes: None,
            lock_timeout: Duration::from_secs(3600),
            writer_lock: WriterLock::EachCommit,
            max_dead_ratio: 1.0,
            slack: 32 * EXTENT,
        };
        Arc::new(Process { engine: Engine::new(core, settings), store: self.clone(), synced })
    }
}

/// A process that has the store open. Dropping it is its death.
struct Process {
    engine: Arc<Engine>,
    store: Arc<Store>,
    /// The log is on its disk up to this position.
    synced: Arc<loom::sync::atomic::AtomicU64>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // The kernel takes the locks of the dead away, and whoever gets them later comes after it.
            model::kernel_lock(bytes::PROCESS + self.me() - 1);
        }
    }
}

impl std::ops::Deref for Process {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.engine.core
    }
}

impl Process {
    /// Claims cells for so many pins at once, so that no later pin has to.
    fn warm(self: Arc<Self>, pins: usize) -> Arc<Self> {
        let pins: Vec<Pin> = (0..pins).map(|_| self.pin().expect("a pin")).collect();
        pins.into_iter().for_each(|pin| self.unpin(pin));
        self
    }

    /// What a snapshot sees.
    fn get(&self, key: &[u8], seq: u64) -> Option<Vec<u8>> {
        let record = self.find_at(self.store.hash(key), key, seq).expect("no damage");
        record.map(|record| record.value().to_vec())
    }

    /// The same, found the long way.
    fn search(&self, key: &[u8], seq: u64) -> Option<Vec<u8>> {
        let record = self.search_at(self.store.hash(key), key, seq).expect("no damage");
        record.map(|record| record.value().to_vec())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> u64 {
        self.put_as(key, value, Durability::Eventual)
    }

    fn put_as(&self, key: &[u8], value: &[u8], durability: Durability) -> u64 {
        let mut txn = WriteTxn::begin(&self.engine, durability).expect("begun");
        txn.put(key, value).expect("put");
        txn.commit().expect("committed")
    }

    /// A control word.
    fn load(&self, word: Word) -> u64 {
        Core::get(self, word)
    }
}

/// The store's disk: the model sees what is written to it, and tests see what is synced.
struct Watched {
    store: Arc<Store>,
    synced: Arc<loom::sync::atomic::AtomicU64>,
}

impl Disk for Watched {
    fn map(&self) -> &Arc<Map> {
        self.store.disk.map()
    }

    fn write(&self, pos: u64, bytes: &[u8]) -> std::io::Result<()> {
        model::touch(pos, bytes.len() as u64, true);
        self.store.disk.write(pos, bytes)
    }

    fn sync(&self, pos: u64, len: u64) -> std::io::Result<()> {
        self.synced.fetch_max(pos + len, Ordering::AcqRel);
        Ok(())
    }

    fn allocate(&self, pos: u64, len: u64) -> std::io::Result<()> {
        self.store.disk.allocate(pos, len)
    }

    fn punch(&self, pos: u64, len: u64) -> std::io::Result<()> {
        self.store.disk.punch(pos, len)
    }

    fn scatter(&self, pos: u64, len: u64) -> std::io::Result<()> {
        self.store.disk.scatter(pos, len)
    }

    fn truncate(&self, len: u64) -> std::io::Result<()> {
        self.store.disk.truncate(len)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.store.disk.len()
    }
}
