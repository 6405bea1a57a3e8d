//! A small disk that is full: what frees space works, and makes room; and the power fails in it.

use std::time::Duration;

use slotdb::Durability::{Eventual, Immediate};
use slotdb::sim::{Call, SimDisk};

use super::base::{Base, EXTENT, key};
use super::judge::Cuts;
use super::run::{Run, Step, Writes, commit, options};
use super::seed;
use crate::common::{Rng, number};

#[test]
fn a_full_disk_is_compacted_and_filled_again() {
    let seed = seed();
    let base = Base::empty();
    let mut cuts = Cuts::new(seed, 1, false);
    for round in 0..number("SLOTDB_ROUNDS", 1) {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let mut run = Run::start(&base, 40, rng.next());
        run.limit(36 + rng.below(16));
        for cycle in 0..2 {
            let puts = fill(&mut run, &mut rng);
            assert!(puts > 5, "round {round}, cycle {cycle}: {puts} puts until it was full");
            overwrite(&mut run, &mut rng);
            empty(&mut run, &mut rng);
            run.play(&[Step::Compact, Step::Checkpoint]);
            if rng.one_in(3) {
                run.play(&[Step::Reopen]);
            }
        }
        cuts.every_moment(&format!("round {round}"), &mut run);
    }
    eprintln!("{} power cuts", cuts.tried);
}

/// A store to a page must not make its neighbours dirty: each extent of index pages is prepared before its first use.
#[test]
fn each_extent_of_index_pages_is_scattered() {
    let base = Base::empty();
    let disk = base.disk();
    let mut calm = options();
    calm.checkpoint_bytes(1 << 30);
    let db = disk.open(&calm).expect("the store opens");
    let pages = |extents: u64| extents * (EXTENT / 4096 - 1);
    let before = disk.count(Call::GiveBack);
    for n in (0usize..).step_by(100) {
        let writes: Writes = (n..n + 100).map(|n| (format!("{n}").into_bytes(), Some(Vec::new()))).collect();
        commit(&db, Eventual, &writes).expect("a commit");
        if db.stats().expect("the sizes").index_pages > pages(6) {
            break;
        }
    }
    let scattered = disk.count(Call::GiveBack) - before;
    assert!(scattered >= 5, "{scattered} extents of at least six");
}

/// Puts until the disk is full; how many.
fn fill(run: &mut Run, rng: &mut Rng) -> usize {
    for puts in 0.. {
        let len = *rng.pick(&[600, 12_000, 30_000]);
        let writes: Writes = vec![(key(rng.below(2_000) as usize), Some(rng.bytes(len)))];
        let durability = if rng.one_in(4) { Immediate } else { Eventual };
        let before = run.state().clone();
        run.play(&[Step::Commit(durability, writes)]);
        if *run.state() == before {
            return puts;
        }
    }
    unreachable!("the disk is small")
}

/// Deletes a third of the keys and puts the others again and again: what dies makes room.
fn overwrite(run: &mut Run, rng: &mut Rng) {
    let keys: Vec<Vec<u8>> = run.state().keys().cloned().collect();
    let (gone, kept) = keys.split_at(keys.len() / 3);
    gone.iter().for_each(|key| run.play(&[Step::Commit(Eventual, vec![(key.clone(), None)])]));
    for _ in 0..40 {
        let (key, bytes) = (rng.pick(kept).clone(), rng.bytes(600));
        run.play(&[Step::Commit(Eventual, vec![(key.clone(), Some(bytes.clone()))])]);
        assert!(run.state().get(&key) == Some(&bytes), "a put on a full disk");
    }
}

/// Deletes most keys, which is possible on a full disk.
fn empty(run: &mut Run, rng: &mut Rng) {
    let keys: Vec<Vec<u8>> = run.state().keys().cloned().collect();
    for key in keys {
        if !rng.one_in(8) {
            run.play(&[Step::Commit(Eventual, vec![(key.clone(), None)])]);
            assert!(!run.state().contains_key(&key), "a delete on a full disk");
        }
    }
}

/// While room is made for a transaction the writer lock is free, and what it has read may change: then it is refused.
#[test]
fn a_transaction_that_waited_for_room_rests_on_what_it_has_read() {
    let mut rng = Rng::new(seed());
    let base = Base::empty();
    let disk = base.disk();
    let mut patient = options();
    patient.durability(Eventual).lock_timeout(Duration::from_millis(100));
    let (db, other) = (disk.open(&patient).expect("a store"), disk.open(&patient).expect("a store"));
    disk.limit(40);
    let keys = (0..).find(|&n| db.put(&key(n), &rng.bytes(9_000)).is_err()).expect("the disk is small");
    (0..keys).step_by(2).for_each(|n| assert!(db.delete(&key(n)).expect("a delete on a full disk")));
    let count = |bytes: Option<&[u8]>| bytes.map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let (told, heard) = std::sync::mpsc::channel();
    let (mut own, mut beside) = (0, 0);
    for n in 0..300 {
        let (other, told) = (other.clone(), told.clone());
        disk.before(Call::Sync, move || {
            let mut txn = other.begin_write().expect("the writer lock is free");
            let next = count(txn.get(b"count").expect("a get")) + 1;
            txn.put(b"count", &next.to_le_bytes()).expect("a put");
            told.send(txn.commit()).expect("somebody listens");
        });
        let mut txn = db.begin_write().expect("the writer lock");
        let next = count(txn.get(b"count").expect("a get")) + 1;
        txn.put(b"count", &next.to_le_bytes()).expect("a put");
        txn.put(&key(1 + n % keys / 2 * 2), &rng.bytes(9_000)).expect("a put");
        own += u64::from(txn.commit().is_ok());
        beside += heard.try_iter().filter(Result::is_ok).count() as u64;
    }
    assert!(own > 100 && beside > 5, "{own} transactions, {beside} beside them");
    db.checkpoint().expect("a checkpoint");
    beside += heard.try_iter().filter(Result::is_ok).count() as u64;
    assert_eq!(count(db.get(b"count").expect("a get").as_deref()), own + beside);
}

/// Calls to the disk that the work makes: writes, syncs, requests for space.
fn calls<R>(disk: &SimDisk, work: impl FnOnce() -> R) -> ([u64; 3], R) {
    let count = || [Call::Write, Call::Sync, Call::Allocate].map(|call| disk.count(call));
    let before = count();
    let done = work();
    let after = count();
    (std::array::from_fn(|n| after[n] - before[n]), done)
}

/// A put that is refused again asks the disk for space and no more; once there is some, the next put finds it.
#[test]
fn a_refused_put_is_cheap_until_space_returns() {
    let mut rng = Rng::new(seed());
    let base = Base::empty();
    for way in ["delete", "delete of another", "snapshot", "snapshot of another", "disk"] {
        let disk = base.disk();
        let mut eventual = options();
        eventual.durability(Eventual);
        let open = || disk.open(&eventual).expect("a store");
        let (db, other) = (open(), open());
        disk.limit(64);
        let keys = (0..).find(|&n| db.put(&key(n), &rng.bytes(9_000)).is_err()).expect("the disk is small");
        let reader = if way.ends_with("another") { &other } else { &db };
        let snapshot = way.starts_with("snapshot").then(|| reader.begin_read().expect("a snapshot"));
        if snapshot.is_some() {
            (0..8).for_each(|n| assert!(other.delete(&key(n)).expect("a delete on a full disk")));
        }
        let put = || db.put(&key(keys), &[1; 9_000]);
        let mut last = [u64::MAX; 3];
        for _ in 0..4 {
            let refused;
            (last, refused) = calls(&disk, put);
            assert!(matches!(refused, Err(slotdb::Error::Full { .. })), "{way}: {refused:?}");
        }
        assert!(last[..2] == [0, 0] && last[2] <= 4, "{way}: {last:?} calls for a put that is refused again");
        match way {
            "delete" | "delete of another" => {
                let deleter = if way == "delete" { &db } else { &other };
                (0..keys / 2).for_each(|n| assert!(deleter.delete(&key(n)).expect("a delete on a full disk")));
            }
            "snapshot" | "snapshot of another" => drop(snapshot),
            _ => disk.limit(80),
        }
        put().unwrap_or_else(|e| panic!("{way}: {e}"));
    }
}
