//! At the bound of the file: what frees space works, and once there is space again writing goes on.

use slotdb::{Error, Options};

use super::ledger::{EXTENT, Ledger, key, options};
use crate::support::common::{Rng, number};
use crate::support::{Agent, Place, seed};

/// Copies of index pages that the standing reserve has room for, with extents of `EXTENT`: a delete takes one at most.
const COPIES: u64 = EXTENT / 4096 - 1;

/// Puts new keys until there is no room for the next one, which it returns.
fn fill(ledger: &mut Ledger, from: u64, len: usize) -> u64 {
    (from..).find(|&n| !put(ledger, n, len)).unwrap()
}

/// Whether there was room.
fn put(ledger: &mut Ledger, n: u64, len: usize) -> bool {
    let value = ledger.rng.bytes(len);
    match ledger.db().put(&key(n), &value) {
        Ok(()) => drop(ledger.model.insert(key(n), value)),
        Err(Error::MaxSize { .. }) => return false,
        Err(e) => panic!("put {n}: {e}"),
    }
    true
}

/// Puts at random; how many of them found room.
fn overwrite(ledger: &mut Ledger, keys: u64, len: usize, puts: u64) -> u64 {
    (0..puts).map(|_| ledger.rng.below(keys)).collect::<Vec<_>>().into_iter().filter(|&n| put(ledger, n, len)).count()
        as u64
}

/// A compaction of a full store may find that there is too little room, or too little in one piece.
fn compact(ledger: &Ledger) {
    match ledger.db().compact(|_| true) {
        Ok(_) | Err(Error::MaxSize { .. } | Error::Full { .. }) => {}
        Err(e) => panic!("compact: {e}"),
    }
}

#[test]
fn at_its_greatest_size_a_store_can_be_compacted() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    let mut end = fill(&mut ledger, 0, 1_000);
    for round in 0..4 {
        ledger.db().checkpoint().unwrap();
        compact(&ledger);
        ledger.is_sound();
        (0..end).filter(|n| n % 8 != round).for_each(|n| {
            if ledger.model.contains_key(&key(n)) {
                ledger.delete(n);
            }
        });
        assert!(ledger.db().compact(|_| true).unwrap());
        ledger.is_sound();
        let before = ledger.model.len();
        end = fill(&mut ledger, end, 1_000);
        assert!(ledger.model.len() > before + 1_000, "round {round}: {} pairs fit", ledger.model.len() - before);
        ledger.close();
        ledger.open(&options());
        ledger.is_sound();
        end = fill(&mut ledger, end, 1_000);
    }
    // The bound is of the store; whoever opens it with another one raises it for all who have it open.
    let mut raised = Options::new();
    raised.max_size(128 * EXTENT);
    ledger.close();
    ledger.open(&raised);
    let more = fill(&mut ledger, end, 1_000);
    assert!(more > end + 1_000, "{} pairs fit", more - end);
    ledger.is_sound();
}

#[test]
fn each_handle_of_a_process_may_set_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = options().create(true).max_size(64 * EXTENT).open(&path).unwrap();
    assert_eq!(first.stats().unwrap().max_size, Some(64 * EXTENT));
    let other = Options::new().max_size(128 * EXTENT).open(&path).unwrap();
    assert_eq!(first.stats().unwrap().max_size, Some(128 * EXTENT));
    first.checkpoint().unwrap();
    drop((first, other));
    // Alone it reads in private memory, which the bound is not about.
    let read_only = Options::new().read_only(true).open(&path).unwrap();
    assert_eq!(read_only.stats().unwrap().max_size, Some(128 * EXTENT));
}

/// What dies makes room as long as three quarters of the bound live, or less: in files of 128 extents.
#[test]
fn at_its_greatest_size_a_store_is_overwritten_for_ever() {
    for (extent, max, len) in [(64 << 10, 8 << 20, 1_000), (128 << 10, 16 << 20, 100), (2 << 20, 256 << 20, 20_000)] {
        let mut ledger = Ledger::new(options().extent_size(extent).max_size(max), seed());
        let keys = (0..)
            .find(|&n| n % 100 == 0 && ledger.live() + 100 * len as u64 > max / 4 * 3 || !put(&mut ledger, n, len));
        let (keys, live) = (keys.unwrap(), ledger.live());
        assert!(live + 200 * len as u64 > max / 4 * 3, "full with {live} bytes that live");
        assert_eq!(overwrite(&mut ledger, keys, len, 3 * keys), 3 * keys, "extents of {extent} bytes");
        ledger.is_sound();
        assert!(ledger.sizes().0 <= max);
    }
}

/// A segment of three long values looks as if it were worth moving, where the average tells nothing of their length,
/// and takes as much again: they would go to and fro, with a checkpoint each time.
#[test]
fn a_refused_put_moves_each_record_once() {
    let mut ledger = Ledger::new(options().extent_size(128 << 10).max_size(16 << 20), seed());
    (0..10_000).for_each(|n| ledger.put(n, 10));
    let keys = fill(&mut ledger, 10_000, 150_000);
    for n in 0..3 {
        let before = ledger.db().stats().unwrap().seq.applied;
        assert!(!put(&mut ledger, 10_000 + n, 150_000), "there is room");
        let moves = ledger.db().stats().unwrap().seq.applied - before;
        assert!(moves <= 2 * (keys - 10_000), "{moves} commits for {} long values", keys - 10_000);
    }
    ledger.is_sound();
}

/// The same of stores that were full of what lives before some of it was deleted, with segments of one extent and of
/// many: a long one gives nothing back before all that lives in it has moved.
#[test]
fn a_store_that_was_full_makes_room_from_long_segments_too() {
    for (max, len) in [(18 << 20, 1_000), (32 << 20, 100), (48 << 20, 1_000), (72 << 20, 1_000)] {
        let mut ledger = Ledger::new(options().extent_size(128 << 10).max_size(max), seed());
        let keys = fill(&mut ledger, 0, len);
        let mut order: Vec<u64> = (0..keys).collect();
        order.sort_by_cached_key(|_| ledger.rng.next());
        let surplus = (ledger.live() - max / 4 * 3).div_ceil(ledger.live() / keys) as usize;
        let kept = order.split_off(surplus);
        order.into_iter().for_each(|n| ledger.delete(n));
        for i in 0..kept.len().min(15_000) {
            let n = *ledger.rng.pick(&kept);
            assert!(put(&mut ledger, n, len), "overwrite {i} of {} keys at {max}", kept.len());
        }
        ledger.is_sound();
    }
}

/// The image of so large an index takes extents in a row, and what is free in a full store lies apart.
#[test]
fn a_full_store_of_many_keys_has_a_place_for_each_checkpoint() {
    let first = seed();
    for round in 0..number("SLOTDB_ROUNDS", 1) {
        let seed = first.wrapping_add(round);
        eprintln!("round {round}: seed {seed}");
        let mut rng = Rng::new(seed);
        let place = Place::in_memory();
        let db = options().max_size((68 << 20) + rng.below(12 << 20)).open(place.store()).unwrap();
        let key = |n: u64| n.to_le_bytes();
        let puts = |from: u64, count: u64| {
            let mut txn = db.begin_write().unwrap();
            (from..from + count).for_each(|n| txn.put(&key(n), b"value").unwrap());
            txn.commit().is_ok()
        };
        let many = (0..).step_by(100).find(|&n| !puts(n, 100)).unwrap();
        let keys = (many..).find(|&n| !puts(n, 1)).unwrap();
        let (mut order, checkpoints) = ((0..keys).collect::<Vec<_>>(), 1_000 + rng.below(100_000));
        order.sort_by_cached_key(|_| rng.next());
        for (n, key) in order.iter().take(keys as usize / 7).map(|&n| key(n)).enumerate() {
            assert!(db.delete(&key).unwrap_or_else(|e| panic!("delete {n} of {keys}: {e}")));
            if rng.one_in(checkpoints) {
                db.checkpoint().unwrap();
            }
        }
        db.checkpoint().unwrap();
        assert_eq!(db.len().unwrap(), keys - keys / 7);
        assert_eq!(db.check(false).unwrap(), []);
    }
}

/// In whatever state a full store is, each delete is possible, in any order; and afterwards there is room again.
#[test]
fn in_a_full_store_deletes_always_work() {
    let first = seed();
    for round in 0..8 * number("SLOTDB_ROUNDS", 1) {
        let seed = first.wrapping_add(round);
        eprintln!("round {round}: seed {seed}");
        let mut rng = Rng::new(seed);
        let (extent, len) = (*rng.pick(&[EXTENT, 2 * EXTENT]), *rng.pick(&[5, 100, 1_000, 3_000]));
        let mut ledger = Ledger::new(options().extent_size(extent).max_size((48 + rng.below(60)) * extent), seed);
        let keys = fill(&mut ledger, 0, len);
        overwrite(&mut ledger, keys, len, rng.below(keys.min(2_000)));
        if rng.one_in(2) {
            compact(&ledger);
        }
        let mut order: Vec<u64> = (0..keys).collect();
        if !rng.one_in(4) {
            order.sort_by_cached_key(|_| rng.next());
        }
        let beside = order.split_off(order.len() - COPIES as usize);
        let (checkpoints, compactions) = (2 + rng.below(1_000), 100 + rng.below(3_000));
        for &n in &order[..order.len() / 4] {
            ledger.delete(n);
            if rng.one_in(checkpoints) {
                ledger.db().checkpoint().unwrap();
            }
            if rng.one_in(compactions) {
                compact(&ledger);
            }
        }
        fill(&mut ledger, keys, len);
        beside_a_snapshot(&mut ledger, &beside, &mut rng);
        for &n in &order[order.len() / 4..] {
            ledger.delete(n);
        }
        ledger.is_sound();
        let before = ledger.model.len() as u64;
        let more = fill(&mut ledger, 2 * keys, len) - 2 * keys;
        assert!(before + more > keys / 2, "room for {more} of {keys}");
        ledger.is_sound();
    }
}

/// Beside a snapshot, which keeps all that these deletes replace, the standing reserve has room for them, whatever puts
/// and compactions there were.
fn beside_a_snapshot(ledger: &mut Ledger, deletes: &[u64], rng: &mut Rng) {
    let db = ledger.db();
    let snapshot = db.begin_read().unwrap();
    let then = ledger.model.clone();
    for round in 0..rng.below(4) {
        match rng.below(3) {
            0 => drop(fill(ledger, 1_000_000 + round * 1_000, 100)),
            1 => db.checkpoint().unwrap(),
            _ => compact(ledger),
        }
    }
    deletes.iter().for_each(|&n| ledger.delete(n));
    assert!(super::ledger::all(&snapshot) == then, "the snapshot has changed");
}

/// With nothing dead there is nothing to gain, and that is no error.
#[test]
fn a_full_store_of_what_lives_is_compact() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    fill(&mut ledger, 0, 1_000);
    assert!(ledger.db().compact(|_| true).unwrap());
    assert!(ledger.db().compact(|_| true).unwrap());
    ledger.is_sound();
}

/// Beside a snapshot nothing comes back for what is moved, so there is no room for it, and that is no error either.
#[test]
fn what_a_snapshot_keeps_in_a_full_store_is_compact() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    fill(&mut ledger, 0, 1_000);
    let db = ledger.db();
    let snapshot = db.begin_read().unwrap();
    (0..COPIES).for_each(|n| ledger.delete(n));
    assert!(ledger.db().compact(|_| true).unwrap());
    assert_eq!(snapshot.get(&key(0)).unwrap().map(<[u8]>::len), Some(1_000));
    drop(snapshot);
    ledger.is_sound();
}

/// Who finds no space beside an old snapshot is told so, whoever has it; and once it has ended there is room.
#[test]
fn the_error_names_a_snapshot_that_keeps_space() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    let db = ledger.db();
    let keys = fill(&mut ledger, 0, 1_000) / 2;
    let refused_without = || {
        let error = (0..keys).find_map(|n| db.put(&key(n), &[1; 1_000]).err());
        let Some(error) = error else { return };
        let Error::MaxSize { held: None, .. } = &error else { panic!("{error}") };
        assert!(!error.to_string().contains("snapshot"), "{error}");
    };
    refused_without();
    (keys..2 * keys).for_each(|n| ledger.delete(n));
    // One that only reads leaves no trace but a lock.
    for mode in ["eventual", "ro"] {
        let mut other = Agent::open("other", &ledger.path(), mode);
        let seq: u64 = other.well("snapshot begin it").parse().unwrap();
        let (found, bytes) = loop {
            let mut puts = (0..keys).map(|n| db.put(&key(n), &[2; 1_000]));
            match puts.find_map(Result::err) {
                Some(ref e @ Error::MaxSize { held: Some(ref held), .. }) => {
                    let says = format!("a snapshot of commit {seq} keeps what died since, {} bytes", held.bytes);
                    assert!(e.to_string().contains(&says), "{e}");
                    break (held.seq, held.bytes);
                }
                Some(e) => panic!("{e}"),
                None => {}
            }
        };
        assert_eq!(found, seq);
        let stats = db.stats().unwrap();
        assert!(bytes > EXTENT && bytes <= stats.retired_bytes, "{bytes} of {stats:?}");
        drop(other);
        refused_without();
    }
}

/// Index pages that a snapshot has kept can be had once it has ended, although nothing else has become free.
#[test]
fn a_full_store_finds_the_pages_that_a_snapshot_kept() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    let keys = fill(&mut ledger, 0, 5);
    // The log goes on in what only deletes may take, so there is room for puts as long as there are pages for copies.
    ledger.delete(0);
    let db = ledger.db();
    let snapshot = db.begin_read().unwrap();
    let mut puts = 0;
    loop {
        db.checkpoint().unwrap();
        let n = 1 + ledger.rng.below(keys - 1);
        if !put(&mut ledger, n, 5) {
            break;
        }
        puts += 1;
    }
    assert!(puts > 0, "no page could be copied");
    drop(snapshot);
    assert!(put(&mut ledger, 1, 5), "after {puts} puts");
    ledger.is_sound();
}
