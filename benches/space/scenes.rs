//! Single scenes: a store that loses most of its keys, and a reader that stays.

#![allow(clippy::print_stdout, reason = "a benchmark tells what it found")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slotdb::{Db, ReadTxn};

use super::common::{Rng, VALUE, key};
use super::filled;

/// Gets of one measurement.
const GETS: u64 = 1_000_000;

fn place(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("slotdb-space-{}-{name}", std::process::id()))
}

fn report(what: &str, db: &Db, path: &Path) {
    let stats = db.stats().expect("the sizes");
    let meta = std::fs::metadata(path).expect("the file");
    // Keys and values, headers, index pages in use.
    let live = stats.live_bytes + stats.live_keys * 28 + stats.index_pages * 4096;
    println!(
        "{what:26} {} keys, live {:.2} MB (index {:.2}); file {:.2} MB, on the disk {:.2} MB = {:.2} x live + {:.1} MB",
        stats.live_keys,
        live as f64 / 1e6,
        (stats.index_pages * 4096) as f64 / 1e6,
        meta.len() as f64 / 1e6,
        (meta.blocks() * 512) as f64 / 1e6,
        meta.blocks() as f64 * 512.0 / live as f64,
        (meta.blocks() as f64 * 512.0 - live as f64) / 1e6,
    );
}

/// Who else uses a store during a compaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Nobody,
    /// Two readers, and a writer with a break of 100 us after each of its puts.
    Writer,
    /// Two readers, and a writer that never stops.
    BusyWriter,
}

/// 99 of 100 keys go, then a compaction, alone or beside two readers and a writer.
pub fn delete_most(n: u64, dir: &Path, beside: Beside) {
    let path = place(dir, "delete-most");
    let db = filled(&path, n);
    report("full", &db, &path);
    let start = Instant::now();
    let mut txn = db.begin_write().expect("a write transaction");
    for (count, k) in (0..n).filter(|k| k % 100 != 7).enumerate() {
        txn.delete(&key(k)).expect("a delete");
        if count % 1000 == 999 {
            txn.commit().expect("a commit");
            txn = db.begin_write().expect("a write transaction");
        }
    }
    txn.commit().expect("a commit");
    println!("{:26} {:.1} s", "deleting", start.elapsed().as_secs_f64());
    report("99 % deleted", &db, &path);
    let (stop, gets, puts, worst) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let kept = |rng: &mut Rng| key(rng.below(n / 100) * 100 + 7);
    std::thread::scope(|scope| {
        let (db, stop, gets, puts, worst, kept) = (&db, &stop, &gets, &puts, &worst, &kept);
        for seed in 0..if beside == Beside::Nobody { 0 } else { 3 } {
            scope.spawn(move || {
                let mut rng = Rng(seed);
                while !stop.load(Ordering::Relaxed) {
                    let key = kept(&mut rng);
                    if seed == 2 {
                        let begin = Instant::now();
                        db.put(&key, &[1; VALUE]).expect("a put");
                        worst.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                        puts.fetch_add(1, Ordering::Relaxed);
                        if beside == Beside::Writer {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                    } else {
                        assert_eq!(db.get_with(&key, <[u8]>::len).expect("a get"), Some(VALUE), "a key is gone");
                        gets.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let start = Instant::now();
        assert!(db.compact(|_| true).expect("a compaction"));
        stop.store(true, Ordering::Relaxed);
        println!("{:26} {:.1} s", "compacting", start.elapsed().as_secs_f64());
    });
    if beside != Beside::Nobody {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        println!("{:26} {} gets, {} puts, slowest {} us", "meanwhile", count(&gets), count(&puts), count(&worst));
    }
    report("compacted", &db, &path);
    db.close().expect("a clean close");
    println!("{:26} file {:.2} MB", "closed", std::fs::metadata(&path).expect("the file").len() as f64 / 1e6);
    std::fs::remove_file(&path).expect("the file goes");
}

fn get_time(n: u64, get: impl Fn(&[u8])) -> f64 {
    let mut rng = Rng(7);
    let start = Instant::now();
    (0..GETS).for_each(|_| get(&key(rng.below(n))));
    start.elapsed().as_nanos() as f64 / GETS as f64
}

/// A snapshot that is held during five overwrites of each key on average.
pub fn pinned(n: u64, dir: &Path) {
    let path = place(dir, "pinned");
    let db = filled(&path, n);
    let mut rng = Rng(42);
    let put = |count: u64, rng: &mut Rng| {
        (0..count).for_each(|_| db.put(&key(rng.below(n)), &[1; VALUE]).expect("a put"));
    };
    put(3 * n, &mut rng);
    let newest = || get_time(n, |key| assert!(db.get_with(key, |_| ()).expect("a get").is_some()));
    let of = |snapshot: &ReadTxn<'_>| get_time(n, |key| assert!(snapshot.get(key).expect("a get").is_some()));
    let before = newest();
    let snapshot = db.begin_read().expect("a snapshot");
    let fresh = of(&snapshot);
    report("snapshot taken", &db, &path);
    let log = db.stats().expect("the sizes").log_bytes;
    let start = Instant::now();
    put(5 * n, &mut rng);
    println!("{:26} {:.2} us a put", "overwriting under it", start.elapsed().as_secs_f64() * 1e6 / (5 * n) as f64);
    report("under it", &db, &path);
    let stats = db.stats().expect("the sizes");
    println!(
        "{:26} held {:.0} MB, log {:.0} MB, {:.0} MB before; records written by puts {:.0} MB",
        "",
        stats.held_bytes as f64 / 1e6,
        stats.log_bytes as f64 / 1e6,
        log as f64 / 1e6,
        (5 * n * 144) as f64 / 1e6,
    );
    let (beside, old, again) = (newest(), of(&snapshot), newest());
    drop(snapshot);
    let after = newest();
    println!(
        "{:26} others {before:.0} ns before, {beside:.0} and {again:.0} beside it, {after:.0} after it; \
         its own {fresh:.0} ns at first, {old:.0} at last",
        "a get",
    );
    put(3 * n, &mut rng);
    report("after it", &db, &path);
    drop(db);
    std::fs::remove_file(&path).expect("the file goes");
}
