//! A small disk that is full: what frees space works, and makes room; and the power fails in it.

use slotdb::Durability::{Eventual, Immediate};

use slotdb::sim::Call;

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
