//! The power fails at every call that reaches the disk, and calls fail: what is found afterwards is a committed
//! prefix of history with everything in it that was acknowledged.
//!
//! The engine runs on a simulated disk. A failure prints the seed: `SLOTDB_SEED` replays it, `SLOTDB_ROUNDS` makes
//! for more cuts and longer histories.

mod base;
#[path = "../common/mod.rs"]
mod common;
mod full;
mod heirs;
mod judge;
mod run;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use base::{Base, EXTENT, contents, key, usual_histories, workloads};
use common::{Rng, number};
use judge::{Cuts, examine, judge, picks as picks_of};
use run::{Run, Step, Writes, after, commit, options};
use slotdb::sim::{Call, SimDisk};
use slotdb::{Db, Durability};

/// What a store holds.
type State = Arc<BTreeMap<Vec<u8>, Vec<u8>>>;

/// The states that may be found after a power cut.
type Promise = Arc<Vec<State>>;

/// The seed of a test, printed so that a failure can be replayed.
fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed = number("SLOTDB_SEED", now);
    eprintln!("SLOTDB_SEED={seed}");
    seed
}

#[test]
fn a_cut_at_every_call_of_short_histories() {
    let seed = seed();
    let rounds = number("SLOTDB_ROUNDS", 1);
    let mut cuts = Cuts::new(seed, rounds, true);
    for workload in workloads() {
        let mut run = Run::start(&workload.base, 1, seed);
        run.play(&workload.steps);
        cuts.every_moment(&workload.name, &mut run);
    }
    eprintln!("{} power cuts", cuts.tried);
}

/// Of puts, overwrites, deletes, splits, checkpoints and new segments, in any order: all with `SLOTDB_EXHAUSTIVE=1`.
#[test]
fn a_cut_at_every_call_of_usual_histories() {
    let seed = seed();
    let one_in = if number("SLOTDB_EXHAUSTIVE", 0) != 0 { 1 } else { 32 };
    let mut cuts = Cuts::new(seed, 1, true);
    let mut histories = 0;
    for round in 0..number("SLOTDB_ROUNDS", 1) {
        for workload in usual_histories(one_in, &mut Rng::new(seed.wrapping_add(round))) {
            let mut run = Run::start(&workload.base, 1, seed);
            run.play(&workload.steps);
            cuts.every_moment(&workload.name, &mut run);
            histories += 1;
        }
    }
    eprintln!("{histories} histories, {} power cuts", cuts.tried);
}

#[test]
fn random_cuts_of_long_histories() {
    let seed = seed();
    let rounds = number("SLOTDB_ROUNDS", 1);
    let base = Base::empty();
    let mut cuts = Cuts::new(seed, 2, false);
    for round in 0..8 * rounds {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let steps = random_steps(&mut rng, 150);
        let mut run = Run::start(&base, 12, rng.next());
        run.play(&steps);
        cuts.every_moment(&format!("history {round}"), &mut run);
    }
    eprintln!("{} power cuts", cuts.tried);
}

fn random_steps(rng: &mut Rng, count: usize) -> Vec<Step> {
    let step = |rng: &mut Rng| match rng.below(20) {
        0 => Step::Checkpoint,
        1 => Step::Sync,
        2 => Step::Reopen,
        3 if rng.one_in(2) => Step::Compact,
        n => Step::random_commit(rng, if n < 11 { Durability::Immediate } else { Durability::Eventual }),
    };
    (0..count).map(|_| step(rng)).collect()
}

#[test]
fn a_cut_inside_recovery_and_again() {
    let seed = seed();
    let rounds = number("SLOTDB_ROUNDS", 1);
    let mut rng = Rng::new(seed);
    let mut tried = 0;
    for workload in workloads() {
        let mut run = Run::start(&workload.base, 12, rng.next());
        run.play(&workload.steps);
        for (moment, promise) in run.moments() {
            for _ in 0..rounds {
                let first = examine(&workload.base, moment.cut_anyhow(rng.next()), 3, rng.next());
                for inside in first.moments {
                    let again = examine(&workload.base, inside.cut_anyhow(rng.next()), 6, rng.next());
                    for last in again.moments {
                        judge(&workload.base, last.cut_anyhow(rng.next()), &promise, &workload.name, &mut rng);
                        tried += 1;
                    }
                }
            }
        }
    }
    eprintln!("{tried} cuts inside a second recovery");
}

#[test]
fn every_call_fails_once() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut tried = 0;
    for workload in workloads() {
        for call in [Call::Write, Call::Sync, Call::Allocate, Call::GiveBack, Call::Map] {
            // Histories with many calls are sampled.
            let stride =
                if workload.is_long() && call != Call::GiveBack { 16 / number("SLOTDB_ROUNDS", 1).min(16) } else { 1 };
            for n in (rng.below(stride)..).step_by(stride as usize) {
                let error = *rng.pick(&[ErrorKind::StorageFull, ErrorKind::Other, ErrorKind::Interrupted]);
                let name = format!("{}: {call:?} {n} fails", workload.name);
                let mut run = Run::failing(&workload.base, call, n, error, rng.next());
                run.play(&workload.steps);
                if !run.has_failed() {
                    break;
                }
                run.goes_on(call, &name, &mut rng);
                run.survives(&name, &mut rng);
                tried += 1;
            }
        }
    }
    eprintln!("{tried} failures");
}

/// A batch that has lost a sector is dropped at recovery. If its beginning is left on the disk, the next one may bring
/// what it lacks, since both write the same bytes there, and lose its own beginning.
#[test]
fn a_lost_batch_is_not_completed_by_its_successor() {
    let mut rng = Rng::new(seed());
    let base = Base::empty();
    let long = (b"a".to_vec(), Some(rng.bytes(1500)));
    let batch = |last: &str| vec![long.clone(), (b"b".to_vec(), Some(last.into()))];
    let after_batch = |image: Vec<u8>, writes: &Writes| {
        let disk = SimDisk::new(base.dir.path(), image, EXTENT).expect("room for a disk");
        let db = disk.open(&options()).expect("a committed prefix");
        commit(&db, Durability::Eventual, writes).expect("a commit");
        disk.now().expect("memory can be read")
    };
    let whole = after_batch(base.image.clone(), &batch("lost"));
    let sectors = whole.choices().len() - 1;
    assert!(sectors >= 4, "the batch has sectors that both batches write alike");
    for lost in 0..sectors {
        let newest = whole.choices().into_iter().map(|n| n - 1).enumerate();
        let picks: Vec<u64> = newest.map(|(n, pick)| if n == lost + 1 { 0 } else { pick }).collect();
        let second = after_batch(whole.cut(&picks, rng.next()), &batch("next"));
        let promise = Promise::new(vec![base.state.clone(), after(&base.state, &batch("next"))]);
        for n in 0..second.choices().iter().product() {
            let image = second.cut(&picks_of(n, &second.choices()), rng.next());
            judge(&base, image, &promise, &format!("sector {lost} lost"), &mut rng);
        }
    }
}

/// A page that the checkpoint names is not handed out before the next one, however many are asked for after it was
/// copied.
#[test]
fn frozen_pages_outlive_their_copies() {
    let seed = seed();
    let base = Base::filled(1_500, 8, true);
    let writes = |keys: std::ops::Range<usize>| -> Writes { keys.map(|n| (key(n), Some(b"new".into()))).collect() };
    // All pages are copied; then so many split that halves need more than there are. Small commits ask for few pages,
    // and so take what is free before they take a new extent.
    let later = (0..900).map(|n| writes(1_500 + n * 3..1_503 + n * 3));
    let commits = [writes(0..1_500)].into_iter().chain(later);
    let steps: Vec<Step> = commits.map(|writes| Step::Commit(Durability::Eventual, writes)).collect();
    let mut run = Run::start(&base, 60, seed);
    run.play(&steps);
    let mut cuts = Cuts::new(seed, 1, false);
    cuts.every_moment("frozen pages", &mut run);
    eprintln!("{} power cuts", cuts.tried);
}

/// Two processes' handles of a disk.
fn two_handles(disk: &SimDisk) -> [Db; 2] {
    [(); 2].map(|()| disk.open(&options()).expect("a sound store"))
}

/// Pages that became one in a compaction are those of the last checkpoint until the next one stands: commits beside it
/// take none of them, however many they ask for.
#[test]
fn merged_pages_outlive_their_merger() {
    let mut rng = Rng::new(seed());
    let base = Base::filled(1_500, 8, true);
    let disk = base.disk();
    let [db, other] = two_handles(&disk);
    let deletes: Writes = (0..1_000).map(|n| (key(n), None)).collect();
    commit(&db, Durability::Eventual, &deletes).expect("a commit");
    db.checkpoint().expect("a checkpoint");
    let (mut state, mut cuts) = (after(&base.state, &deletes), 0);
    let ended = db.compact(|_| {
        // The index has shrunk, and its pages are retired. So many keys need more than are free.
        for n in (0..4_000).step_by(5) {
            let writes: Writes = (n..n + 5).map(|n| (key(2_000 + n), Some(b"new".into()))).collect();
            commit(&other, Durability::Immediate, &writes).expect("a commit beside it");
            state = after(&state, &writes);
            if n % 400 == 0 {
                let image = disk.now().expect("memory can be read").cut_anyhow(rng.next());
                judge(&base, image, &Promise::new(vec![state.clone()]), &format!("a cut after {n} keys"), &mut rng);
                cuts += 1;
            }
        }
        false
    });
    assert!(!ended.expect("a compaction") && cuts > 0, "somebody asked whether it goes on");
    assert!(contents(&db) == state, "what was committed beside it is there");
    let image = disk.now().expect("memory can be read").cut_anyhow(rng.next());
    judge(&base, image, &Promise::new(vec![state]), "a cut after it", &mut rng);
}

/// Commits go on while space is given back: none of it is handed out meanwhile.
#[test]
fn what_is_being_punched_is_nobodys() {
    let mut rng = Rng::new(seed());
    let base = Base::empty();
    let disk = base.disk();
    let [db, other] = two_handles(&disk);
    let eventual = |writes: &Writes| commit(&db, Durability::Eventual, writes).expect("a commit");
    eventual(&(0..60).map(|n| (key(n), Some(rng.bytes(50_000)))).collect());
    db.checkpoint().expect("a checkpoint");
    // Longer than what is left of the free extents; and many short ones, from the front on.
    let long: Writes = vec![(b"long".to_vec(), Some(rng.bytes(1_000_000)))];
    let short: Writes = (0..20).map(|n| (key(100 + n), Some(rng.bytes(30_000)))).collect();
    let (told, heard) = std::sync::mpsc::channel();
    let writes = [long, short];
    let beside = writes.clone();
    disk.before(Call::GiveBack, move || {
        let commits = beside.iter().map(|writes| commit(&other, Durability::Immediate, writes));
        told.send(commits.collect::<Result<Vec<_>, _>>()).expect("somebody listens");
    });
    eventual(&(0..60).map(|n| (key(n), None)).collect());
    db.checkpoint().expect("a checkpoint");
    heard.try_recv().expect("space was given back").expect("commits beside it");
    let expected = writes.iter().fold(base.state.clone(), |state, writes| after(&state, writes));
    assert!(contents(&db) == expected, "what was committed beside it is there");
    assert_eq!(db.check(true).expect("a check"), []);
    let image = disk.now().expect("memory can be read").cut_anyhow(rng.next());
    judge(&base, image, &Promise::new(vec![expected]), "a cut after it", &mut rng);
}

/// A commit comes between the flush that a checkpoint begins with and its freeze: what the image holds of it is durable
/// before a header names the image.
#[test]
fn a_checkpoint_names_no_log_that_is_not_there() {
    let mut rng = Rng::new(seed());
    let base = Base::empty();
    let disk = base.disk();
    let [db, other] = two_handles(&disk);
    let writes = [0, 10].map(|from| (from..from + 10).map(|n| (key(n), Some(rng.bytes(900)))).collect::<Writes>());
    commit(&db, Durability::Eventual, &writes[0]).expect("a commit");
    let (told, heard) = std::sync::mpsc::channel();
    let beside = writes[1].clone();
    disk.before(Call::Sync, move || {
        told.send(commit(&other, Durability::Eventual, &beside)).expect("somebody listens");
    });
    db.checkpoint().expect("a checkpoint");
    heard.try_recv().expect("the log was flushed").expect("a commit beside it");
    let first = after(&base.state, &writes[0]);
    let promise = Promise::new(vec![after(&first, &writes[1]), first]);
    for n in 0..20 {
        let image = disk.now().expect("memory can be read").cut_anyhow(rng.next());
        judge(&base, image, &promise, &format!("cut {n} after it"), &mut rng);
    }
}
