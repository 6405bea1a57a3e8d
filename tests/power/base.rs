//! What histories begin with, and short histories that reach every protocol.

use slotdb::sim::SimDisk;
use slotdb::{Db, Durability, Options};
use tempfile::TempDir;

use super::State;
use super::run::Step;
use crate::common::{Rng, fast_dir};

/// Small, so that splits, new segments and growth are near.
pub const EXTENT: u64 = 64 << 10;

/// A store to begin with.
#[derive(Clone)]
pub struct Base {
    pub image: Vec<u8>,
    pub state: State,
    /// Where disks live.
    pub dir: std::sync::Arc<TempDir>,
}

impl Base {
    /// A simulated disk with the store on it.
    pub fn disk(&self) -> SimDisk {
        SimDisk::new(self.dir.path(), self.image.clone(), EXTENT).expect("room for a disk")
    }

    pub fn empty() -> Base {
        Base::new(false, |_| {})
    }

    /// So many keys with values of so many bytes.
    pub fn filled(keys: usize, len: usize, checkpoint: bool) -> Base {
        Base::new(checkpoint, |db| {
            let mut txn = db.begin_write().expect("a write transaction");
            (0..keys).for_each(|n| txn.put(&key(n), &vec![b'0'; len]).expect("a put"));
            txn.commit().expect("a commit");
        })
    }

    /// So many keys with values of so many bytes, of which all but every `left`-th are deleted; as a kill leaves it.
    pub fn emptied(keys: usize, len: usize, left: usize) -> Base {
        let fill = |db: &Db| {
            let mut txn = db.begin_write().expect("a write transaction");
            (0..keys).for_each(|n| txn.put(&key(n), &vec![b'0'; len]).expect("a put"));
            txn.commit().expect("a commit");
            db.checkpoint().expect("a checkpoint");
            let mut txn = db.begin_write().expect("a write transaction");
            for n in (0..keys).filter(|n| n % left != 0) {
                assert!(txn.delete(&key(n)).expect("a delete"));
            }
            txn.commit().expect("a commit");
        };
        Base::new(false, fill)
    }

    fn new(checkpoint: bool, fill: impl Fn(&Db)) -> Base {
        let dir = fast_dir();
        let path = dir.path().join("base");
        let db = Options::new().create(true).extent_size(EXTENT).slack(32 * EXTENT).open(&path).expect("a new store");
        fill(&db);
        if checkpoint {
            db.checkpoint().expect("a checkpoint");
        }
        let state = contents(&db);
        db.close().expect("a clean close");
        let image = std::fs::read(&path).expect("the file of the store");
        Base { image, state, dir: std::sync::Arc::new(dir) }
    }
}

/// All that a store holds.
pub fn contents(db: &Db) -> State {
    let snapshot = db.begin_read().expect("a snapshot");
    let pairs = snapshot.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())));
    State::new(pairs.collect::<Result<_, _>>().expect("all records can be read"))
}

pub fn key(n: usize) -> Vec<u8> {
    format!("k{n}").into_bytes()
}

/// A short history.
pub struct Workload {
    pub name: String,
    pub base: Base,
    pub steps: Vec<Step>,
}

fn is_long(name: &str) -> bool {
    ["emptied", "compacted", "cut"].iter().any(|word| name.starts_with(word))
}

impl Workload {
    /// Whether it makes many calls.
    pub fn is_long(&self) -> bool {
        is_long(&self.name)
    }
}

pub fn put(key: &str, len: usize) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.into(), Some(key.bytes().cycle().take(len).collect()))
}

pub fn delete(key: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.into(), None)
}

/// Histories of up to three commits, each with every mix of durabilities.
pub fn workloads() -> Vec<Workload> {
    use Durability::{Eventual as E, Immediate as I};
    let mut all = Vec::new();
    for (name, base, steps) in plans() {
        let mixes = [[I, E, I], [E, I, E], [I, I, I], [E, E, E]];
        // These are about checkpoints, whatever the commits are.
        let few = name.starts_with("after") || is_long(name);
        for mix in &mixes[..if few { 1 } else { 4 }] {
            let mut mix_left = mix.iter().cycle();
            let steps = steps.iter().cloned().map(|step| match step {
                Step::Commit(_, writes) => Step::Commit(*mix_left.next().unwrap_or(&I), writes),
                other => other,
            });
            all.push(Workload { name: format!("{name} {mix:?}"), base: base.clone(), steps: steps.collect() });
        }
    }
    all
}

fn plans() -> Vec<(&'static str, Base, Vec<Step>)> {
    let commit = |writes: Vec<_>| Step::Commit(Durability::Immediate, writes);
    let one = |name: &str, len| commit(vec![put(name, len)]);
    let batch = || commit(vec![put("k1", 30), put("new", 900), delete("k2"), put("other", 1)]);
    let some = Base::filled(20, 100, false);
    let page_full = Base::filled(249, 20, true);
    let segment_full = Base::filled(12, 5_000, false);
    let index_sparse = Base::emptied(900, 8, 30);
    let log_dead = Base::emptied(14, 50_000, 7);
    let split = commit((0..9).map(|n| put(&format!("split{n}"), 10)).collect());
    vec![
        ("put", Base::empty(), vec![one("a", 10), one("b", 600), one("a", 20)]),
        ("delete", some.clone(), vec![commit(vec![delete("k1")]), one("k1", 5), commit(vec![delete("k1")])]),
        ("batch", some.clone(), vec![batch(), commit(vec![put("k3", 2_000), delete("new")]), batch()]),
        ("sync", some.clone(), vec![one("a", 10), Step::Sync, one("b", 10), Step::Sync]),
        ("split", page_full.clone(), vec![one("a", 10), split.clone(), Step::Checkpoint, one("b", 10)]),
        ("checkpoints", some.clone(), vec![batch(), Step::Checkpoint, one("k5", 10), Step::Checkpoint, one("c", 9)]),
        ("first checkpoint", page_full, vec![split, Step::Checkpoint]),
        ("segment", segment_full, vec![one("a", 3_000), commit(vec![put("b", 4_000), put("c", 9)]), one("d", 9)]),
        ("growth", some.clone(), vec![one("a", 150_000), one("b", 400_000), Step::Checkpoint, one("c", 9)]),
        ("emptied", index_sparse.clone(), vec![one("a", 9), Step::Checkpoint, one("b", 9), Step::Checkpoint]),
        ("compacted", index_sparse, vec![one("a", 9), Step::Compact, one("b", 9)]),
        ("compacted long values", log_dead.clone(), vec![one("k1", 9), Step::Compact, one("b", 9), Step::Reopen]),
        ("cut at close", log_dead, vec![one("k1", 9), Step::Checkpoint, Step::Reopen, one("b", 90_000), Step::Reopen]),
        ("reopened", some.clone(), vec![one("a", 9), batch(), Step::Reopen, Step::Sync, one("b", 9)]),
        ("reopened again", some.clone(), vec![batch(), Step::Checkpoint, Step::Reopen, one("b", 9), Step::Reopen]),
    ]
    .into_iter()
    .chain((0..5).map(|n| {
        let steps = vec![batch(), Step::FailingCheckpoint(n), one("k4", 9), Step::Checkpoint, one("k5", 700)];
        ("after a failed checkpoint", some.clone(), steps)
    }))
    .chain((0..5).map(|n| {
        let steps = vec![batch(), Step::FailingCheckpoint(n), Step::Reopen, one("k4", 9), Step::Checkpoint];
        ("after a checkpoint that died", some.clone(), steps)
    }))
    .collect()
}

/// Histories of one to three of the usual steps, one in so many of all there are; the durabilities are drawn.
pub fn usual_histories(one_in: u64, rng: &mut Rng) -> Vec<Workload> {
    let commit = |writes| Step::Commit(Durability::Immediate, writes);
    let steps = [
        ("put", commit(vec![put("new", 10)])),
        ("overwrite", commit(vec![put("k1", 30)])),
        ("delete", commit(vec![delete("k2")])),
        ("split", commit((0..9).map(|n| put(&format!("split{n}"), 10)).collect())),
        ("checkpoint", Step::Checkpoint),
        ("segment", commit(vec![put("long", 60_000)])),
    ];
    let base = Base::filled(249, 20, true);
    let mut all: Vec<Vec<usize>> = vec![vec![]];
    for len in 1..=3 {
        let longer = all.iter().filter(|history| history.len() + 1 == len);
        let longer = longer.flat_map(|history| (0..steps.len()).map(|n| [&history[..], &[n]].concat()));
        all.extend(longer.collect::<Vec<_>>());
    }
    let mut some = Vec::new();
    for history in &all[1..] {
        if !rng.one_in(one_in) {
            continue;
        }
        let drawn = history.iter().map(|&n| match &steps[n].1 {
            Step::Commit(_, writes) => {
                Step::Commit(*rng.pick(&[Durability::Immediate, Durability::Eventual]), writes.clone())
            }
            other => other.clone(),
        });
        let drawn = drawn.collect();
        let name = history.iter().map(|&n| steps[n].0).collect::<Vec<_>>().join(", ");
        some.push(Workload { name, base: base.clone(), steps: drawn });
    }
    some
}
