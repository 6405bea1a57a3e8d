//! Random operations on a store and on a `BTreeMap`: the two never differ.
//!
//! A case is a few lifetimes of one store: it is opened, worked on through several handles, and closed, dropped, or
//! left behind as a killed process would leave it. `SLOTDB_CASES` says how many cases each test runs, `SLOTDB_SEED`
//! which comes first. A failure prints the seed and the last steps. With a small `checkpoint_bytes` checkpoints run
//! beside the commits, so such a case does not always take the same course.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;

use common::{Rng, fast_dir, number};
use slotdb::{Db, Durability, Error, MAX_KEY, Options, ReadTxn, WriteTxn};
use tempfile::TempDir;

type Bytes = Rc<[u8]>;
type Model = BTreeMap<Bytes, Bytes>;
type Pair<'a> = (&'a [u8], &'a [u8]);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the cases of one test draw from.
struct Profile {
    extents: &'static [u64],
    checkpoint_bytes: &'static [Option<u64>],
    /// How many different keys there are.
    keys: &'static [u64],
    longest_value: &'static [u64],
    /// Most steps of a lifetime.
    steps: u64,
    /// Share of the default number of cases, in percent.
    share: u64,
}

#[test]
fn few_keys_with_many_versions() {
    run(Profile {
        extents: &[64 * KIB],
        checkpoint_bytes: &[None, Some(1), Some(4 * KIB), Some(64 * KIB)],
        keys: &[1, 3, 12],
        longest_value: &[16, 300, 4 * KIB],
        steps: 120,
        share: 100,
    });
}

#[test]
fn many_keys_split_pages_and_double_the_directory() {
    run(Profile {
        extents: &[64 * KIB, 128 * KIB],
        checkpoint_bytes: &[None, Some(4 * KIB), Some(64 * KIB)],
        keys: &[400, 2_000, 8_000],
        longest_value: &[0, 16, 100],
        steps: 60,
        share: 12,
    });
}

#[test]
fn values_longer_than_extents() {
    run(Profile {
        extents: &[64 * KIB],
        checkpoint_bytes: &[None, Some(1), Some(64 * KIB)],
        keys: &[2, 8],
        longest_value: &[64 * KIB, 300 * KIB],
        steps: 40,
        share: 25,
    });
}

#[test]
fn everything_at_its_default() {
    run(Profile {
        extents: &[2 * MIB],
        checkpoint_bytes: &[None],
        keys: &[5, 100, 3_000],
        longest_value: &[30, 2 * KIB, 100 * KIB],
        steps: 60,
        share: 12,
    });
}

fn run(profile: Profile) {
    let cases = number("SLOTDB_CASES", 1_000 * profile.share / 100);
    let first = number("SLOTDB_SEED", 0);
    for seed in first..first + cases {
        Case::new(seed, &profile).run();
    }
}

/// One store and what it should hold.
struct Case {
    seed: u64,
    rng: Rng,
    dir: TempDir,
    path: PathBuf,
    options: Options,
    keys: Vec<Bytes>,
    longest_value: u64,
    steps: u64,
    model: Model,
    /// A read-only handle that was opened when no writer was there, and what it has to show for ever.
    alone: Option<(Db, Model)>,
    /// The last steps, for who reads about a failure.
    trace: VecDeque<String>,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = thread::current().name().unwrap_or("?").to_string();
            eprintln!("{:?}, last steps: {:#?}", self.options, self.trace);
            eprintln!("again: SLOTDB_SEED={} SLOTDB_CASES=1 cargo test --test model {name}", self.seed);
        }
    }
}

impl Case {
    fn new(seed: u64, profile: &Profile) -> Case {
        let mut rng = Rng::new(seed);
        // A real disk now and then: the flushes of all cases would take minutes.
        let dir = if rng.one_in(32) { tempfile::tempdir().unwrap() } else { fast_dir() };
        let (mut options, extent) = (Options::new(), *rng.pick(profile.extents));
        options.create(true).extent_size(extent).slack(32 * extent);
        if let Some(bytes) = *rng.pick(profile.checkpoint_bytes) {
            options.checkpoint_bytes(bytes);
        }
        // A mapping that has to grow with the file; a busy cleaner.
        options.reserve(*rng.pick(&[1, MIB, 1 << 38])).max_dead_ratio(*rng.pick(&[0.1, 0.4]));
        let count = *rng.pick(profile.keys);
        let keys = (0..count).map(|n| key(n, count, &mut rng)).collect();
        let longest_value = *rng.pick(profile.longest_value);
        Case {
            seed,
            path: dir.path().join("store"),
            dir,
            options,
            keys,
            longest_value,
            steps: profile.steps,
            rng,
            model: Model::new(),
            alone: None,
            trace: VecDeque::new(),
        }
    }

    fn note(&mut self, step: impl Into<String>) {
        self.trace.push_back(step.into());
        if self.trace.len() > 40 {
            self.trace.pop_front();
        }
    }

    fn key(&mut self) -> Bytes {
        self.rng.pick(&self.keys).clone()
    }

    /// Short values are as common as long ones; some are empty.
    fn value(&mut self) -> Bytes {
        let most = if self.rng.one_in(2) { self.longest_value } else { self.longest_value.min(32) };
        let len = self.rng.below(most + 1);
        self.rng.bytes(len as usize).into()
    }

    fn run(&mut self) {
        for _ in 0..1 + self.rng.below(4) {
            self.lifetime();
            self.read_alone();
        }
    }

    /// From one opening of the store to the next.
    fn lifetime(&mut self) {
        let durability = if self.rng.one_in(2) { Durability::Immediate } else { Durability::Eventual };
        self.note(format!("open for {durability:?} commits"));
        let db = self.options.durability(durability).open(&self.path).unwrap();
        self.whole(&db);
        if self.model.is_empty() && self.keys.len() > 100 {
            self.load(&db);
        }
        let mut held = Vec::new();
        for _ in 0..self.rng.below(self.steps) {
            self.step(&db, &mut held);
        }
        self.whole(&db);
        for (snapshot, model) in &held {
            same(snapshot, model);
        }
        let copy = self.rng.one_in(3).then(|| self.copy());
        drop(held);
        if self.rng.one_in(2) {
            self.note("close");
            db.close().unwrap();
        } else {
            self.note("drop");
            drop(db);
        }
        if let Some(copy) = copy {
            self.note("go on with the copy");
            self.check_alone();
            self.alone = None;
            std::fs::remove_file(&self.path).unwrap();
            self.path = copy;
        }
    }

    /// The store as a killed process would leave it.
    fn copy(&mut self) -> PathBuf {
        let copy = self.dir.path().join(format!("copy {}", self.rng.next()));
        self.note("copy as it is");
        // As of one moment: a checkpoint may be running beside it.
        let same = || std::fs::read(&self.path).unwrap() == std::fs::read(&copy).unwrap();
        while std::fs::copy(&self.path, &copy).unwrap() == 0 || !same() {}
        copy
    }

    /// Half of the keys, in transactions of all sizes.
    fn load(&mut self, db: &Db) {
        let mut left = self.keys.len() as u64 / 2;
        while left > 0 {
            let count = 1 + self.rng.below(left);
            self.note(format!("load {count}"));
            let mut txn = db.begin_write().unwrap();
            for _ in 0..count {
                let (key, value) = (self.key(), self.value());
                txn.put(&key, &value).unwrap();
                self.model.insert(key, value);
            }
            txn.commit().unwrap();
            left -= count;
        }
    }

    fn step<'db>(&mut self, db: &'db Db, held: &mut Vec<(ReadTxn<'db>, Model)>) {
        match self.rng.below(40) {
            0..4 => self.look(db),
            4..24 => self.write(db),
            24..27 => self.walk(db),
            27..30 => {
                self.note(format!("hold a snapshot beside {}", held.len()));
                held.push((db.begin_read().unwrap(), self.model.clone()));
            }
            30..33 if !held.is_empty() => {
                let n = self.rng.below(held.len() as u64) as usize;
                self.note(format!("let snapshot {n} go"));
                let (snapshot, model) = held.swap_remove(n);
                same(&snapshot, &model);
            }
            33 => self.second_handle(db),
            34 => self.read_beside(db),
            35 => self.whole(db),
            37 => self.compact(db),
            36 => {
                self.note("sync");
                db.sync().unwrap();
            }
            _ => self.checkpoint(db),
        }
    }

    fn checkpoint(&mut self, db: &Db) {
        self.note("checkpoint");
        db.checkpoint().unwrap();
        let seq = db.stats().unwrap().seq;
        assert_eq!(seq.checkpoint, seq.applied);
    }

    /// Ended early now and then.
    fn compact(&mut self, db: &Db) {
        let mut left = if self.rng.one_in(2) { u64::MAX } else { self.rng.below(4) };
        self.note(format!("compact, {left} steps at most"));
        let ended = db.compact(|_| {
            left = left.saturating_sub(1);
            left > 0
        });
        assert!(ended.unwrap() || left == 0);
    }

    /// One commit or abort, alone or of many operations.
    fn write(&mut self, db: &Db) {
        match self.rng.below(6) {
            0 | 1 => {
                let (key, value) = (self.key(), self.value());
                self.note(format!("put {} = {} bytes", name(&key), value.len()));
                db.put(&key, &value).unwrap();
                self.model.insert(key, value);
            }
            2 => {
                let key = self.key();
                self.note(format!("delete {}", name(&key)));
                assert_eq!(db.delete(&key).unwrap(), self.model.remove(&key).is_some());
            }
            _ => self.transaction(db),
        }
    }

    fn transaction(&mut self, db: &Db) {
        let before = self.model.clone();
        let seq = db.stats().unwrap().seq.applied;
        let mut txn = db.begin_write().unwrap();
        let most = *self.rng.pick(&[3, 3, 12, 100]);
        let count = self.rng.below(most.min(self.budget()));
        self.note(format!("transaction of {count}"));
        for _ in 0..count {
            self.operate(&mut txn);
        }
        let key = self.key();
        assert!(db.get(&key).unwrap().as_deref() == before.get(&key).map(|v| &**v), "others see what is committed");
        if self.rng.one_in(4) {
            self.note("abort");
            drop(txn);
            self.model = before;
            assert_eq!(db.stats().unwrap().seq.applied, seq);
            return;
        }
        if self.rng.one_in(2) {
            txn.set_durability(*self.rng.pick(&[Durability::Immediate, Durability::Eventual]));
        }
        let committed = txn.commit().unwrap();
        self.note(format!("is commit {committed}"));
        assert!(committed == seq || committed == seq + 1);
        assert!(committed > seq || before == self.model, "a commit that wrote has a seq of its own");
        assert_eq!(db.begin_read().unwrap().seq(), committed);
    }

    /// Operations of one transaction: long values are not to fill the disk.
    fn budget(&self) -> u64 {
        1 + 4 * MIB / (self.longest_value + 1)
    }

    fn operate(&mut self, txn: &mut WriteTxn) {
        let key = self.key();
        match self.rng.below(8) {
            0 | 1 => {
                self.note(format!("  delete {}", name(&key)));
                assert_eq!(txn.delete(&key).unwrap(), self.model.remove(&key).is_some());
            }
            2 => {}
            _ => {
                let value = self.value();
                self.note(format!("  put {} = {} bytes", name(&key), value.len()));
                txn.put(&key, &value).unwrap();
                self.model.insert(key.clone(), value);
            }
        }
        assert!(txn.get(&key).unwrap() == self.model.get(&key).map(|v| &**v), "a transaction reads its own writes");
    }

    /// A few reads in each way there is.
    fn look(&mut self, db: &Db) {
        let key = self.key();
        self.note(format!("get {}", name(&key)));
        let expected = self.model.get(&key).map(|v| &**v);
        assert!(db.get(&key).unwrap().as_deref() == expected, "value of {}", name(&key));
        assert_eq!(db.get_with(&key, <[u8]>::len).unwrap(), expected.map(<[u8]>::len));
        assert_eq!(db.get_many(&[&b"never put"[..], &key]).unwrap(), [None, expected.map(<[u8]>::to_vec)]);
        assert_eq!(db.len().unwrap(), self.model.len() as u64);
        assert_eq!(db.is_empty().unwrap(), self.model.is_empty());
    }

    /// A scan with commits in the midst of it.
    fn walk(&mut self, db: &Db) {
        self.note("walk");
        let before = self.model.clone();
        let snapshot = db.begin_read().unwrap();
        let mut found = Vec::new();
        for pair in &snapshot {
            found.push(pair.unwrap());
            if self.rng.one_in(1 + before.len() as u64 / 4) {
                self.write(db);
            }
        }
        self.note("walked");
        compare(found, &before);
    }

    /// Another handle of this process, which shares all but its durability.
    fn second_handle(&mut self, db: &Db) {
        self.note("second handle");
        let durability = *self.rng.pick(&[Durability::Immediate, Durability::Eventual]);
        let other = Options::new().durability(durability).open(&self.path).unwrap();
        let before = self.model.clone();
        let snapshot = other.begin_read().unwrap();
        self.write(&other);
        self.write(db);
        same(&snapshot, &before);
        self.look(&other);
        drop(snapshot);
        self.note("close the second handle");
        other.close().unwrap();
        self.look(db);
    }

    /// A read-only handle beside the writer: it follows, and its snapshots stay.
    fn read_beside(&mut self, db: &Db) {
        self.note("read-only beside");
        let reader = Db::open_read_only(&self.path).unwrap();
        let before = self.model.clone();
        let first = reader.begin_read().unwrap();
        let second = reader.begin_read().unwrap();
        for _ in 0..3 {
            self.look(&reader);
            self.write(db);
        }
        self.checkpoint(db);
        same(&second, &before);
        drop(second);
        for _ in 0..self.rng.below(10) {
            self.write(db);
        }
        same(&first, &before);
        same(&reader.begin_read().unwrap(), &self.model);
        assert!(matches!(reader.put(b"k", b"v"), Err(Error::ReadOnly { .. })));
        assert!(matches!(reader.checkpoint(), Err(Error::ReadOnly { .. })));
        self.note("read-only has left");
    }

    /// A read-only handle while no writer is there; it may stay while later ones work.
    fn read_alone(&mut self) {
        self.check_alone();
        if self.rng.one_in(2) {
            self.alone = None;
        }
        if self.alone.is_none() && self.rng.one_in(2) {
            self.note("read-only alone");
            let reader = Db::open_read_only(&self.path).unwrap();
            self.whole(&reader);
            self.alone = Some((reader, self.model.clone()));
        }
    }

    fn check_alone(&mut self) {
        if let Some((reader, model)) = self.alone.take() {
            self.note("look at what the reader that was alone sees");
            same(&reader.begin_read().unwrap(), &model);
            self.alone = Some((reader, model));
        }
    }

    /// All of it: counts, pairs, checksums.
    fn whole(&mut self, db: &Db) {
        self.note("check all");
        self.look(db);
        same(&db.begin_read().unwrap(), &self.model);
        assert_eq!(db.check(true).unwrap(), []);
        let stats = db.stats().unwrap();
        assert_eq!(stats.live_keys, self.model.len() as u64);
        assert_eq!(stats.live_bytes, self.model.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>());
    }
}

/// The n-th key of so many: the first ones are empty, long, or prefixes of each other.
fn key(n: u64, count: u64, rng: &mut Rng) -> Bytes {
    let mut key = match n {
        0 if count > 2 => Vec::new(),
        1 if count > 2 && rng.one_in(4) => vec![7; MAX_KEY],
        2 if count > 2 => vec![7; MAX_KEY.min(1_000)],
        _ => n.to_le_bytes()[..=n.max(1).ilog2() as usize / 8].to_vec(),
    };
    if n % 7 == 3 {
        let more = rng.below(100);
        key.extend(rng.bytes(more as usize));
    }
    key.into()
}

/// A key for the trace.
fn name(key: &[u8]) -> String {
    format!("{:02x?}..{}", &key[..key.len().min(4)], key.len())
}

/// A snapshot holds these pairs: by iteration, and by asking for each of (at most 256 of) them.
fn same(snapshot: &ReadTxn, model: &Model) {
    compare(snapshot.iter().map(|pair| pair.unwrap()).collect(), model);
    let stride = 1 + model.len() / 256;
    let mut asked: Vec<_> = model.iter().step_by(stride).map(|(key, value)| (&**key, Some(&**value))).collect();
    asked.push((b"a key that is never put", None));
    let keys: Vec<_> = asked.iter().map(|&(key, _)| key).collect();
    for (&(key, expected), many) in asked.iter().zip(snapshot.get_many(&keys).unwrap()) {
        assert!(snapshot.get(key).unwrap() == expected, "value of {}", name(key));
        assert!(many == expected, "value of {} among many", name(key));
    }
}

/// These pairs, each once. The failure names one key instead of all.
fn compare(mut found: Vec<Pair>, model: &Model) {
    found.sort_unstable();
    let expected = model.iter().map(|(k, v)| (&**k, &**v));
    if let Some((found, expected)) = found.iter().copied().zip(expected).find(|(found, expected)| found != expected) {
        panic!("found {} = {}, expected {} = {}", name(found.0), name(found.1), name(expected.0), name(expected.1));
    }
    assert_eq!(found.len(), model.len(), "pairs");
}
