//! Splits and the growth of the directory beside readers; the death of a writer in between.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Process, Store, explore, spawn};
use crate::control::Word;
use crate::format::slot::{split_at, suffix};
use crate::space::Claim;
use crate::sys::atomic::model;

/// As many keys as the first page takes; the next one splits it and doubles the directory.
fn full_store() -> Arc<Store> {
    Store::new(split_at(0, 0))
}

/// The keys of both halves are found, and a new one with its commit.
#[test]
fn a_split_hides_no_key() {
    let store = full_store();
    let new = store.key(store.keys.len());
    explore(2, move || {
        let (writing, reading) = (store.process(), store.process().warm(1));
        let seq = writing.load(Word::Visible);
        let reader = spawn({
            let new = new.clone();
            move || {
                let pin = reading.pin().expect("pinned");
                for key in &reading.store.keys[..2] {
                    assert_eq!(reading.get(key, pin.seq).as_ref(), Some(key));
                    assert_eq!(reading.search(key, pin.seq).as_ref(), Some(key));
                }
                assert_eq!(reading.get(&new, pin.seq), (pin.seq > seq).then_some(new));
                reading.unpin(pin);
            }
        });
        writing.put(&new, &new);
        reader.join().expect("read");
    });
}

/// A scan meets every key once.
#[test]
fn a_scan_beside_a_split_meets_every_key_once() {
    let store = full_store();
    let new = store.key(store.keys.len());
    explore(1, move || {
        let (writing, reading) = (store.process(), store.process().warm(1));
        let seq = writing.load(Word::Visible);
        let reader = spawn({
            let new = new.clone();
            move || {
                let pin = reading.pin().expect("pinned");
                let pairs = crate::txn::scan::Iter::new(&reading.engine, pin.seq).map(|pair| pair.expect("no damage"));
                let mut met: Vec<_> = pairs.map(|(key, _)| key.to_vec()).collect();
                reading.unpin(pin);
                let mut keys = reading.store.keys.clone();
                keys.extend((pin.seq > seq).then_some(new));
                (met.sort(), keys.sort());
                assert_eq!(met, keys);
            }
        });
        writing.put(&new, &new);
        reader.join().expect("read");
    });
}

/// The directory moves to a larger run.
#[test]
fn a_directory_that_moves_hides_no_key() {
    let store = Store::new(2);
    explore(3, move || {
        let (writing, reading) = (store.process(), store.process().warm(1));
        let reader = spawn(move || {
            let pin = reading.pin().expect("pinned");
            for key in &reading.store.keys {
                assert_eq!(reading.get(key, pin.seq).as_ref(), Some(key));
            }
            reading.unpin(pin);
        });
        let depth = writing.load(Word::DirectoryRoom).ilog2() + 1;
        writing.ensure_directory_room(depth, Claim::Reserve).expect("space");
        writing.double_directory().expect("room");
        reader.join().expect("read");
    });
}

/// A writer dies before each of its steps in a commit that splits a page, beside a get; the next writer finishes or
/// drops its batch, and nothing is lost.
#[test]
fn a_split_outlives_its_writer() {
    let store = full_store();
    let new = [store.key(store.keys.len()), store.key(store.keys.len() + 1)];
    let alive = Arc::new(AtomicBool::new(false));
    let mut steps = 0;
    while !alive.load(Ordering::Relaxed) {
        explore(1, {
            let (store, new, alive) = (store.clone(), new.clone(), alive.clone());
            move || die_in_a_split(&store, &new, steps, &alive)
        });
        steps += 1;
    }
    assert!(steps > 30, "the commit took {steps} steps only");
}

fn die_in_a_split(store: &Arc<Store>, new: &[Vec<u8>; 2], steps: u64, alive: &Arc<AtomicBool>) {
    let (dying, taking) = (store.process(), store.process().warm(1));
    store.wipe(dying.ends().1.tail);
    let seq = dying.load(Word::Visible);
    let writer = spawn({
        let (new, alive) = (new[0].clone(), alive.clone());
        move || {
            let commit = AssertUnwindSafe(|| {
                model::die_after(steps);
                dying.put(&new, &new);
            });
            alive.store(catch_unwind(commit).is_ok(), Ordering::Relaxed);
        }
    });
    let pin = taking.pin().expect("pinned");
    assert_eq!(taking.get(&store.keys[1], pin.seq).as_ref(), Some(&store.keys[1]));
    taking.unpin(pin);
    writer.join().expect("a death is no failure");
    let now = taking.put(&new[1], &new[1]);
    assert!(now == seq + 1 || now == seq + 2);
    check_directory(&taking);
    for key in store.keys.iter().chain([&new[1]]) {
        assert_eq!(taking.get(key, now).as_ref(), Some(key));
    }
    assert_eq!(taking.get(&new[0], now), (now == seq + 2).then(|| new[0].clone()));
}

/// All entries of a page lead to it, and nowhere else.
fn check_directory(core: &Process) {
    let root = core.root();
    for index in 0..1u64 << root.depth() {
        let entry = core.entry(index).expect("an entry");
        let page = core.page(entry.page()).expect("a page");
        assert!(
            page.is(suffix(index, entry.depth()), entry.depth()),
            "entry {index} leads to the page of another suffix"
        );
        let first = core.entry(suffix(index, entry.depth())).expect("an entry");
        assert_eq!(first.page(), entry.page(), "entries of one suffix lead to different pages");
    }
}
