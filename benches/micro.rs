//! Single operations on a store of a million keys, with statistics and a comparison with the last run:
//! `cargo bench --bench micro [-- NAME]`. `SLOTDB_DIR` says where the store lives.
//!
//! Keys are random and present, values have 100 bytes. Writes are Eventual overwrites in commits of their own, but for
//! those that say otherwise. Instructions, which do not depend on how busy the machine is, are counted by `count`.

mod common;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use slotdb::{Db, Durability, Options, Result};

use common::{Key, VALUE, key, shuffled};

const KEYS: u64 = 1_000_000;
const COMMIT: usize = 1000;

/// Keys one after the other, round and round.
struct Keys {
    keys: Vec<Key>,
    at: usize,
}

impl Keys {
    fn new(keys: Vec<Key>) -> Keys {
        Keys { keys, at: 0 }
    }

    /// The next `count`.
    fn some(&mut self, count: usize) -> &[Key] {
        if self.at + count > self.keys.len() {
            self.at = 0;
        }
        self.at += count;
        &self.keys[self.at - count..self.at]
    }

    fn one(&mut self) -> &Key {
        &self.some(1)[0]
    }
}

fn put_all(db: &Db, keys: &[Key]) -> Result<()> {
    let mut txn = db.begin_write()?;
    keys.iter().try_for_each(|key| txn.put(key, &[7; VALUE]))?;
    txn.commit().map(|_| ())
}

fn open(path: &Path, durability: Durability) -> Db {
    Options::new().create(true).durability(durability).open(path).expect("a store")
}

fn reads(criterion: &mut Criterion, db: &Db, keys: &mut Keys) {
    let mut absent = Keys::new((KEYS..2 * KEYS).map(key).collect());
    let mut group = criterion.benchmark_group("read");
    let snapshot = db.begin_read().expect("a snapshot");
    group.bench_function("get", |b| b.iter(|| snapshot.get(keys.one()).expect("a get").map(|value| value[0])));
    group.bench_function("get_with", |b| b.iter(|| db.get_with(keys.one(), |value| value[0]).expect("a get")));
    group.bench_function("get_miss", |b| b.iter(|| snapshot.get(absent.one()).expect("a get").is_none()));
    group.bench_function("snapshot", |b| b.iter(|| db.begin_read().expect("a snapshot").seq()));
    group.bench_function("scan", |b| {
        let mut pairs = snapshot.iter();
        b.iter(|| {
            if pairs.next().is_none() {
                pairs = snapshot.iter();
            }
        });
    });
    group.throughput(Throughput::Elements(16));
    group.bench_function("get_many16", |b| b.iter(|| black_box(snapshot.get_many(keys.some(16)).expect("gets"))));
    group.finish();
}

fn writes(criterion: &mut Criterion, db: &Db, durable: &Db, keys: &mut Keys) {
    let mut group = criterion.benchmark_group("write");
    group.bench_function("put_eventual", |b| b.iter(|| db.put(keys.one(), &[8; VALUE]).expect("a put")));
    group.bench_function("put_immediate", |b| b.iter(|| durable.put(keys.one(), &[9; VALUE]).expect("a put")));
    group.bench_function("delete", |b| b.iter_custom(|count| deletes(db, keys, count).expect("deletes")));
    group.throughput(Throughput::Elements(COMMIT as u64));
    group.bench_function("put_batch1000", |b| b.iter(|| put_all(db, keys.some(COMMIT)).expect("puts")));
    group.finish();
}

/// How long so many deletes take; the keys are put again outside of that.
fn deletes(db: &Db, keys: &mut Keys, count: u64) -> Result<Duration> {
    let (mut left, mut time) = (count as usize, Duration::ZERO);
    while left > 0 {
        let some = &keys.some(COMMIT)[..left.min(COMMIT)];
        let start = Instant::now();
        some.iter().try_for_each(|key| db.delete(key).map(|_| ()))?;
        time += start.elapsed();
        put_all(db, some)?;
        left -= some.len();
    }
    Ok(time)
}

/// An open of a store that nobody has open, and its first get.
fn opening(criterion: &mut Criterion, path: &Path) {
    criterion.bench_function("open_clean", |b| {
        b.iter_custom(|count| {
            let mut time = Duration::ZERO;
            for n in 0..count {
                let start = Instant::now();
                let db = Db::open(path).expect("a store");
                let found = db.get_with(&key(n), |_| ()).expect("a get");
                time += start.elapsed();
                assert!(found.is_some(), "a key is missing");
                db.close().expect("a clean close");
            }
            time
        });
    });
}

fn main() {
    let dir = std::env::var_os("SLOTDB_DIR").unwrap_or_else(|| "target".into());
    let dir = tempfile::Builder::new().prefix("slotdb-micro-").tempdir_in(dir).expect("a directory");
    let path = dir.path().join("store");
    let (db, durable) = (open(&path, Durability::Eventual), open(&path, Durability::Immediate));
    let mut keys = Keys::new(shuffled(KEYS, KEYS, 1));
    keys.keys.chunks(COMMIT).try_for_each(|keys| put_all(&db, keys)).expect("puts");
    db.checkpoint().expect("a checkpoint");

    let times = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    let mut criterion = times.configure_from_args();
    reads(&mut criterion, &db, &mut keys);
    writes(&mut criterion, &db, &durable, &mut keys);
    drop(durable);
    db.close().expect("a clean close");
    opening(&mut criterion, &path);
    criterion.final_summary();
}
