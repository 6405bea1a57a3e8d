//! Compaction, and the file that a close cuts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use slotdb::{Db, Durability, Options, WriteTxn};

use super::ledger::{EXTENT, Ledger, all, is_in, key, options};
use crate::support::common::raw::Image;
use crate::support::{Agent, Place, seed};

const KEYS: u64 = 4_000;
/// Extents that a compacted file keeps beside what lives: fixed ones, tail, index, directory, blob, the reserve.
const KEPT: u64 = 24;

/// A store of which 99 % are deleted.
fn emptied() -> Ledger {
    let mut ledger = Ledger::new(&options(), seed());
    (0..KEYS).for_each(|n| ledger.put(n, 1_000));
    (0..KEYS).filter(|n| n % 100 != 7).for_each(|n| ledger.delete(n));
    ledger
}

#[test]
fn what_is_deleted_goes_back() {
    let mut ledger = emptied();
    let (long, _) = ledger.sizes();
    assert!(ledger.db().compact(|_| true).unwrap());
    ledger.is_sound();
    let most = ledger.live() + KEPT * EXTENT;
    let (len, blocks) = ledger.sizes();
    assert_eq!(len, long, "others may have the file mapped");
    assert!(blocks <= most, "{blocks} bytes of the disk, at most {most}");
    ledger.close();
    let (len, blocks) = ledger.sizes();
    assert!(len <= most && blocks <= most, "a file of {len}, {blocks} of the disk, at most {most}");
    ledger.open(Options::new().read_only(true));
    ledger.is_sound();
    ledger.close();
    ledger.open(&options());
    ledger.is_sound();
    (0..KEYS).for_each(|n| ledger.put(n, 900));
    ledger.is_sound();
}

/// What a closed store keeps beside what lives: header and shared words, blob, directory, the reserve.
const CLOSED: u64 = 6 + 1 + 1 + 3;
/// Pages of an index extent that hold slots, of 128 KiB.
const SLOT_PAGES: u64 = 31;

/// With extents of the usual size, where log and index lie in blocks of their own while a store grows.
#[test]
fn a_compacted_file_is_hardly_longer_than_what_lives() {
    for (live, of) in [(30_000, 3), (90_000, 3), (130_000, 8)] {
        let mut ledger = Ledger::new(Options::new().create(true).durability(Durability::Eventual), seed());
        (0..of * live).for_each(|n| ledger.put(n, 100));
        (0..of * live).filter(|n| n % of != 1).for_each(|n| ledger.delete(n));
        assert!(ledger.db().compact(|_| true).unwrap());
        let stats = ledger.db().stats().unwrap();
        ledger.close();
        let (len, _) = ledger.sizes();
        let image = Image::read(&ledger.path());
        let runs = image.blob(&image.header()).runs;
        let log = runs.iter().map(|run| run.live).sum::<u64>().div_ceil(stats.extent_size);
        let index = stats.index_pages.div_ceil(SLOT_PAGES);
        let extents = len / stats.extent_size;
        // Some more, for what segments have over, and for what the last pass has left in the way.
        let most = log + index + CLOSED + 1 + log / 2;
        assert!(extents <= most, "{extents} extents of {most}: {log} for the log, {index} for the index");
    }
}

/// Long values too: those that fill two extents badly, those of which a block holds two, and those of many extents.
#[test]
fn a_compacted_file_of_long_values_is_hardly_longer_than_what_lives() {
    for len in [150_000, 700_000, 3_000_000] {
        let mut ledger = Ledger::new(Options::new().create(true).durability(Durability::Eventual), seed());
        let keys = 90_000_000 / len as u64;
        (0..keys).for_each(|n| ledger.put(n, len));
        for _ in 0..keys {
            let n = ledger.rng.below(keys);
            ledger.put(n, len);
        }
        assert!(ledger.db().compact(|_| true).unwrap());
        let (_, compacted) = ledger.sizes();
        ledger.is_sound();
        ledger.close();
        let (closed, _) = ledger.sizes();
        let live = ledger.live();
        // A sixteenth is left over of segments, and what is at the rear has to fit into what is free in front.
        assert!(compacted <= live + live / 6, "values of {len}: {compacted} bytes on the disk for {live}");
        assert!(closed <= live + live / 4, "values of {len}: {closed} bytes closed for {live}");
    }
}

/// What long values leave over is not dead: a compaction may not move them for its sake in each pass. Beside short
/// values the average tells nothing of it, and one pass may not move them twice.
#[test]
fn a_compaction_moves_long_values_a_few_times() {
    for short in [100, 100_000, 150_000] {
        let mut ledger = Ledger::new(Options::new().create(true).durability(Durability::Eventual), seed());
        let long = if short == 100_000 { short } else { 150_000 };
        for n in (0..800).chain((0..800).filter(|n| n % 3 == 1)) {
            ledger.put(n, if n.is_multiple_of(2) { short } else { long });
        }
        let mut walked = 0;
        let done = ledger.db().compact(|so_far| {
            walked = so_far.walked_bytes;
            true
        });
        assert!(done.unwrap());
        assert!(walked <= 4 * ledger.live(), "{short}: {walked} bytes walked for {} that live", ledger.live());
        ledger.is_sound();
    }
}

/// Log at the rear, behind space that was given back, moves to the front, so that a close can cut the file.
#[test]
fn what_is_at_the_rear_moves_to_the_front() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..2 * KEYS).for_each(|n| ledger.put(n, 1_000));
    (0..KEYS).for_each(|n| ledger.delete(n));
    ledger.close();
    // To a new lifetime, all that is not in use is a hole.
    ledger.open(&options());
    assert!(ledger.db().compact(|_| true).unwrap());
    ledger.is_sound();
    // Half as long again as it is; what is not moved leaves it twice as long.
    let most = ledger.live() * 3 / 2 + KEPT * EXTENT;
    ledger.close();
    let (len, _) = ledger.sizes();
    assert!(len <= most, "a file of {len} bytes, at most {most}");
}

/// Extents that the first part of the extent table has room for, and some more.
const MANY: usize = 4200;

/// The extents behind the last one in use are not counted any more, whoever else has the store open; and the file grows
/// over them again.
#[test]
fn a_compaction_leaves_the_end_of_the_file() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..KEYS).for_each(|n| ledger.put(n, 100));
    let mut other = Agent::open("other", &ledger.path(), "eventual");
    let (db, stop) = (ledger.db(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(db.stats().unwrap().live_keys >= KEYS, "whoever looks at the table meanwhile");
            }
        });
        for _ in 0..3 {
            other.ok(&format!("put long ^{}", MANY * EXTENT as usize));
            other.says("delete long", "true");
            assert!(db.compact(|_| true).unwrap());
            let (len, _) = ledger.sizes();
            let stats = db.stats().unwrap();
            assert_eq!(stats.file_bytes, len, "it is as long as it was");
            assert!(stats.hole_bytes < len / 8, "{stats:?} of {len}");
            other.is_clean();
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(db);
    ledger.is_sound();
    other.ok("close");
    ledger.close();
    let (len, _) = ledger.sizes();
    assert!(len <= ledger.live() + KEPT * EXTENT, "{len} bytes");
    ledger.open(&options());
    ledger.is_sound();
}

/// A store so long that it needs more than the first part of the extent table, which the opening has made anew.
#[test]
fn a_compaction_leaves_the_table_of_what_is_in_use() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..KEYS).for_each(|n| ledger.put(n, 100));
    ledger.db().put(b"long", &vec![7; MANY * EXTENT as usize]).unwrap();
    ledger.model.insert(b"long".to_vec(), vec![7; MANY * EXTENT as usize]);
    ledger.close();
    ledger.open(&options());
    ledger.db().put(b"rear", &vec![8; 64 * EXTENT as usize]).unwrap();
    assert!(ledger.db().delete(b"rear").unwrap());
    assert!(ledger.db().compact(|_| true).unwrap());
    ledger.is_sound();
    (0..KEYS).for_each(|n| ledger.put(n, 110));
    ledger.is_sound();
    ledger.close();
    ledger.open(&options());
    ledger.is_sound();
}

/// One who only reads has the file as it was: it is not cut under it, and nothing that it reads goes back.
#[test]
fn a_file_that_a_lone_reader_has_is_not_cut() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..KEYS).for_each(|n| ledger.put(n, 1_000));
    ledger.close();
    let then = ledger.model.clone();
    let mut reader = Agent::open("reader", &ledger.path(), "ro");
    let seen = reader.well("scan");
    ledger.open(&options());
    (0..KEYS).filter(|n| n % 100 != 7).for_each(|n| ledger.delete(n));
    let own = Options::new().read_only(true).open(ledger.path()).unwrap();
    assert!(ledger.db().compact(|_| true).unwrap());
    drop(own);
    let (long, _) = ledger.sizes();
    reader.says("scan", &seen);
    ledger.close();
    assert_eq!(ledger.sizes().0, long, "a reader was there");
    reader.says("scan", &seen);
    reader.is_clean();
    reader.says("len", &then.len().to_string());
    reader.ok("close");
    ledger.open(&options());
    ledger.is_sound();
    assert!(ledger.db().compact(|_| true).unwrap());
    ledger.close();
    assert!(ledger.sizes().0 < long / 4, "nobody is there");
}

/// Free space at the end of the file that nobody has cut off yet: one who reads alone has it mapped.
#[test]
fn a_long_file_that_a_lone_reader_has_is_not_cut() {
    let place = Place::in_memory();
    let long = || std::fs::metadata(place.store()).unwrap().len();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536 eventual");
    writer.ok("fill k 0 100 100");
    writer.ok("put long ^2000000");
    writer.says("delete long", "true");
    writer.ok("compact");
    writer.kill();
    let mut reader = Agent::open("reader", &place.store(), "ro");
    let seen = reader.well("scan");
    let before = long();
    options().open(place.store()).unwrap().close().unwrap();
    assert_eq!(long(), before, "a reader is there");
    reader.says("scan", &seen);
    reader.is_clean();
    reader.ok("close");
    options().open(place.store()).unwrap().close().unwrap();
    assert!(long() < before, "nobody is there, and still it has {before} bytes");
}

/// Nobody has to compact a store that was emptied: the last one to close makes it short.
#[test]
fn a_close_shortens_what_was_emptied() {
    let mut ledger = emptied();
    let most = ledger.live() + 2 * KEPT * EXTENT;
    ledger.close();
    let (len, blocks) = ledger.sizes();
    assert!(len <= most && blocks <= most, "a file of {len}, {blocks} of the disk, at most {most}");
    ledger.open(&options());
    ledger.is_sound();
}

/// A few pages that were not copied since the checkpoint are spread over extents that nobody needs beside them. A store
/// that is closed does without these.
#[test]
fn a_close_leaves_nearly_empty_index_extents() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..30_000).for_each(|n| ledger.put(n, 20));
    ledger.db().checkpoint().unwrap();
    let pages = ledger.db().stats().unwrap().index_pages;
    // Of about 140 pages a tenth is met by none of so many keys.
    (0..pages * 23 / 10).for_each(|n| ledger.put(n, 30));
    ledger.db().checkpoint().unwrap();
    let stats = ledger.db().stats().unwrap();
    ledger.close();
    let least = stats.log_bytes / EXTENT + stats.index_pages / 15;
    let (_, blocks) = ledger.sizes();
    assert!(blocks <= (least + 17) * EXTENT, "{} extents of the disk, {least} would do", blocks / EXTENT);
    ledger.open(&options());
    ledger.is_sound();
}

/// Ended at each step: whatever was done stands.
#[test]
fn a_compaction_that_ends_early() {
    for last in 0.. {
        let mut ledger = Ledger::new(&options(), 1);
        (0..400).for_each(|n| ledger.put(n, 2_000));
        (0..400).filter(|n| n % 10 != 7).for_each(|n| ledger.delete(n));
        let mut step = 0;
        let ended = ledger.db().compact(|compaction| {
            assert!(compaction.live_bytes <= compaction.used_bytes);
            step += 1;
            step <= last
        });
        ledger.is_sound();
        ledger.put(1_000 + last, 3_000);
        ledger.close();
        ledger.open(&options());
        ledger.is_sound();
        if ended.unwrap() {
            assert!(last > 0, "it was not asked");
            return;
        }
    }
}

/// Threads read and write while one compacts again and again.
#[test]
fn beside_readers_and_writers() {
    let mut ledger = emptied();
    let (db, over) = (ledger.db(), AtomicBool::new(false));
    let model = ledger.model.clone();
    let reads = |db: &Db| {
        while !over.load(Ordering::Relaxed) {
            let snapshot = db.begin_read().unwrap();
            let mut found = all(&snapshot);
            found.retain(|key, _| !key.starts_with(b"new"));
            assert!(found == model, "another state");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| reads(&db));
        scope.spawn(|| reads(&db));
        scope.spawn(|| {
            for n in 0u64.. {
                db.put(format!("new {}", n % 50).as_bytes(), &[n as u8; 3_000]).unwrap();
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..10 {
            assert!(db.compact(|_| true).unwrap());
        }
        over.store(true, Ordering::Relaxed);
    });
    for n in 0..50 {
        let new = format!("new {n}").into_bytes();
        if let Some(value) = db.get(&new).unwrap() {
            ledger.model.insert(new, value);
        }
    }
    drop(db);
    ledger.is_sound();
    ledger.close();
    ledger.open(&options());
    ledger.is_sound();
}

/// Processes that stay attached go on all along.
#[test]
fn beside_other_processes() {
    let place = Place::in_memory();
    let mut one = Agent::open("one", &place.store(), "create extent=65536 eventual");
    let mut two = Agent::open("two", &place.store(), "eventual");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    one.ok("fill k 0 2000 1000");
    let deletes: Vec<String> = (0..2_000).filter(|n| n % 50 != 0).map(|n| format!("-k{n}")).collect();
    reader.well("snapshot begin old");
    let old = reader.well("scan");
    one.well(&format!("batch {}", deletes.join(" ")));
    for round in 0..5 {
        two.send(&format!("fill w 0 300 {}", 1_000 + round));
        one.ok("compact");
        reader.says("snapshot scan old", &old);
        assert_eq!(two.answer().as_deref(), Some("ok"));
        let now = one.well("scan");
        reader.says("scan", &now);
        two.says("scan", &now);
        reader.is_clean();
    }
    let now = one.well("scan");
    one.ok("close");
    two.kill();
    reader.says("scan", &now);
    reader.ok("close");
    let mut last = Agent::open("last", &place.store(), "");
    last.says("scan", &now);
    last.is_clean();
    last.ok("compact");
    last.says("scan", &now);
    last.ok("close");
    let db = options().open(place.store()).unwrap();
    is_in(&db, &all(&db.begin_read().unwrap()));
    assert_eq!(db.get(&key(0)).unwrap(), None);
}

/// The checkpoint of a cut asks for no space around index pages, which would be behind the end if some lie last.
/// Whether they do depends on the seed of the store: they do in two of three.
#[test]
fn a_file_that_was_cut_ends_where_its_checkpoint_says() {
    const ALL: u64 = 270_000;
    for _ in 0..6 {
        let place = Place::in_memory();
        let db = options().open(place.store()).unwrap();
        let commit = |change: &dyn Fn(&mut WriteTxn<'_>, u64)| {
            for first in (0..ALL).step_by(1_000) {
                let mut txn = db.begin_write().unwrap();
                (first..first + 1_000).for_each(|n| change(&mut txn, n));
                txn.commit().unwrap();
            }
        };
        commit(&|txn, n| txn.put(&key(n), &[7; 20]).unwrap());
        commit(&|txn, n| assert!(n % 3 == 0 || txn.delete(&key(n)).unwrap()));
        assert!(db.compact(|_| true).unwrap());
        let before = db.stats().unwrap().file_bytes;
        db.close().unwrap();
        let image = Image::read(&place.store());
        assert_eq!(image.0.len() as u64, image.header().file_len);
        assert!(image.header().file_len < before, "not cut");
    }
}
