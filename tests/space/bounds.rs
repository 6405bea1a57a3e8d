//! The file stays within bounds for ever, whatever the order of writes, and under a long reader by what is newly dead.

use slotdb::{Durability, Options};

use super::ledger::{EXTENT, Ledger, all, options};
use crate::support::{Place, rounds, seed};

/// Bytes of a value, on average.
const LEN: u64 = 1_000;
const KEYS: u64 = 3_000;

/// Writes by one rule; after each tenth of them the file is within its bound.
fn within_bounds(durability: Durability, writes: u64, mut write: impl FnMut(&mut Ledger, u64)) {
    let mut ledger = Ledger::new(options().durability(durability), seed());
    let writes = writes * rounds(1);
    // So much it has held at most: a file does not become shorter while it is open.
    let mut most = 0;
    for n in 0..writes {
        write(&mut ledger, n);
        if n % (writes / 10) == 0 {
            most = ledger.bound().max(most);
            let (len, _) = ledger.sizes();
            assert!(len <= most, "write {n}: {len} bytes, and {most} are allowed for {} live ones", ledger.live());
        }
    }
    ledger.is_sound();
    ledger.close();
    ledger.open(&options());
    ledger.is_sound();
}

fn len(ledger: &mut Ledger) -> usize {
    (LEN / 2 + ledger.rng.below(LEN)) as usize
}

fn put(ledger: &mut Ledger, n: u64) {
    let len = len(ledger);
    ledger.put(n, len);
}

#[test]
fn overwrites_in_any_order() {
    for durability in [Durability::Eventual, Durability::Immediate] {
        within_bounds(durability, 40_000, |ledger, n| {
            let n = if n < KEYS { n } else { ledger.rng.below(KEYS) };
            put(ledger, n);
        });
    }
}

#[test]
fn overwrites_of_few_keys_among_many() {
    within_bounds(Durability::Eventual, 30_000, |ledger, n| {
        let below = 1 + ledger.rng.below(KEYS);
        let n = if n < KEYS { n } else { ledger.rng.below(below) / 7 };
        put(ledger, n);
    });
}

#[test]
fn a_queue() {
    within_bounds(Durability::Eventual, 20_000, |ledger, n| {
        put(ledger, n);
        if n >= KEYS {
            ledger.delete(n - KEYS);
        }
    });
}

#[test]
fn growing_and_shrinking() {
    within_bounds(Durability::Eventual, 24_000, |ledger, n| {
        let key = n % KEYS;
        if (n / KEYS).is_multiple_of(2) { put(ledger, key) } else { ledger.delete(key) }
    });
}

/// What a snapshot holds back is what died since it began; once it has ended that is enough for all that follows.
#[test]
fn a_long_reader() {
    let mut ledger = Ledger::new(&options(), seed());
    (0..KEYS).for_each(|n| put(&mut ledger, n));
    for n in 0..10_000 {
        put(&mut ledger, n % KEYS);
    }
    let db = ledger.db();
    let (then, snapshot) = (ledger.model.clone(), db.begin_read().unwrap());
    let (before, _) = ledger.sizes();
    let mut written = 0;
    for round in 0..10 {
        for _ in 0..1_000 {
            let n = ledger.rng.below(KEYS);
            put(&mut ledger, n);
            written += LEN * 3 / 2 + 64;
        }
        assert!(all(&snapshot) == then, "another state in round {round}");
        if round % 4 == 3 {
            assert!(db.compact(|_| true).unwrap());
            assert!(all(&snapshot) == then, "another state after a compaction");
        }
    }
    let (held, _) = ledger.sizes();
    // Each compaction may copy all once more.
    let most = before + written + 3 * ledger.bound();
    assert!(held <= most, "{held} bytes, {before} before, {written} written");
    drop(snapshot);
    for n in 0..20_000 {
        put(&mut ledger, n % KEYS);
    }
    let (after, _) = ledger.sizes();
    // Growth is by whole blocks of 2 MiB; one for the log, and one for copies where a compaction left none.
    assert!(after <= held + (4 << 20), "{after} bytes, {held} while the reader was there");
    ledger.is_sound();
}

/// The index of a store that held many keys goes back as commits and checkpoints go on, and by compaction at once.
#[test]
fn an_index_that_shrinks() {
    for compacts in [false, true] {
        let mut ledger = Ledger::new(&options(), seed());
        let many = 20_000;
        (0..many).for_each(|n| ledger.put(n, 8));
        let db = ledger.db();
        db.checkpoint().unwrap();
        let full = db.stats().unwrap();
        let (then, snapshot) = (ledger.model.clone(), db.begin_read().unwrap());
        (0..many).filter(|n| n % 100 != 0).for_each(|n| ledger.delete(n));
        for round in 0..4 {
            ledger.put(round, 8);
            db.checkpoint().unwrap();
        }
        ledger.is_sound();
        assert!(all(&snapshot) == then, "another state");
        drop(snapshot);
        if compacts {
            assert!(db.compact(|_| true).unwrap());
        }
        for round in 0..if compacts { 0 } else { 12 } {
            ledger.put(round, 8);
            db.checkpoint().unwrap();
        }
        let sparse = db.stats().unwrap();
        assert!(sparse.index_pages * 8 < full.index_pages, "{} of {} pages", sparse.index_pages, full.index_pages);
        let extents = |bytes| bytes / EXTENT;
        let (sparse, full) = (extents(sparse.index_bytes), extents(full.index_bytes));
        assert!(sparse * 2 < full, "index of {sparse} extents, it was {full}");
        ledger.is_sound();
        (0..many).for_each(|n| ledger.put(n, 8));
        ledger.is_sound();
    }
}

#[test]
fn more_extents_than_the_first_part_of_their_table_holds() {
    const LONG: usize = 4_097 * EXTENT as usize;
    let place = Place::in_memory();
    options().open(place.store()).unwrap().put(b"long", &vec![7; LONG]).unwrap();
    for read_only in [true, false] {
        let db = Options::new().read_only(read_only).open(place.store()).unwrap();
        assert_eq!(db.get_with(b"long", <[u8]>::len).unwrap(), Some(LONG));
        assert_eq!(db.check(true).unwrap(), []);
    }
    assert!(options().open(place.store()).unwrap().delete(b"long").unwrap());
}
