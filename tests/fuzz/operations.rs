//! Operations on a store and on a `BTreeMap`, as the bytes say.

use std::collections::BTreeMap;
use std::path::Path;

use slotdb::{Db, Durability, Options, ReadTxn, WriterLock};

use super::forge::Choices;
use crate::common::fast_dir;
use crate::common::raw::Image;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Steps of one run: more find nothing that fewer do not.
const STEPS: usize = 400;

pub fn run(choices: &mut Choices) {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let mut options = Options::new();
    let setup = choices.byte();
    let extent = 64 << 10 << (setup & 1);
    options.create(true).extent_size(extent).slack(32 * extent).reserve(if setup & 2 == 0 { 1 } else { 1 << 28 });
    options.max_dead_ratio(if setup & 4 == 0 { 0.1 } else { 0.9 });
    if setup & 8 != 0 {
        options.checkpoint_bytes(4 << 10);
    }
    if setup & 0x70 != 0 {
        options.writer_lock(WriterLock::EachCommit);
    }
    let mut pairs = Pairs::new();
    let mut steps = 0;
    while !choices.is_done() && steps < STEPS {
        let durability = *choices.pick(&[Durability::Eventual, Durability::Immediate]);
        let db = options.durability(durability).open(&path).unwrap();
        lifetime(&path, &db, &mut pairs, choices, &mut steps);
        same(&db.begin_read().unwrap(), &pairs);
        assert_eq!(db.check(true).unwrap(), []);
        // A copy is what a killed process would have left behind.
        if choices.byte() & 1 == 0 {
            Image::read(&path).write(&dir.path().join("copy")).unwrap();
            db.close().unwrap();
            std::fs::rename(dir.path().join("copy"), &path).unwrap();
        } else {
            db.close().unwrap();
        }
    }
    let db = options.open(&path).unwrap();
    same(&db.begin_read().unwrap(), &pairs);
    assert_eq!(db.check(true).unwrap(), []);
}

/// From one opening to the next.
fn lifetime(path: &Path, db: &Db, pairs: &mut Pairs, choices: &mut Choices, steps: &mut usize) {
    let mut held: Vec<(ReadTxn, Pairs)> = Vec::new();
    while !choices.is_done() && *steps < STEPS {
        *steps += 1;
        match choices.byte() % 16 {
            0..=3 => {
                let (key, value) = (key(choices), value(choices));
                db.put(&key, &value).unwrap();
                pairs.insert(key, value);
            }
            4 | 5 => {
                let key = key(choices);
                assert_eq!(db.delete(&key).unwrap(), pairs.remove(&key).is_some());
            }
            6 | 7 => transaction(db, pairs, choices),
            8 => fill(db, pairs, choices),
            9 => db.checkpoint().unwrap(),
            10 => {
                held.truncate(3);
                held.push((db.begin_read().unwrap(), pairs.clone()));
            }
            11 => held.pop().into_iter().for_each(|(snapshot, pairs)| same(&snapshot, &pairs)),
            12 => {
                let reader = Options::new().read_only(true).open(path).unwrap();
                same(&reader.begin_read().unwrap(), pairs);
            }
            13 => db.sync().unwrap(),
            14 => {
                let key = key(choices);
                assert_eq!(db.get(&key).unwrap().as_ref(), pairs.get(&key));
                assert_eq!(db.len().unwrap(), pairs.len() as u64);
            }
            _ => break,
        }
    }
    held.iter().for_each(|(snapshot, pairs)| same(snapshot, pairs));
}

/// A few writes together, which may come to nothing.
fn transaction(db: &Db, pairs: &mut Pairs, choices: &mut Choices) {
    let mut after = pairs.clone();
    let mut txn = db.begin_write().unwrap();
    let what = choices.byte();
    if what & 2 != 0 {
        txn.set_durability(Durability::Immediate);
    }
    for _ in 0..what >> 4 {
        let key = key(choices);
        if choices.byte() & 1 == 0 {
            let value = value(choices);
            txn.put(&key, &value).unwrap();
            after.insert(key.clone(), value);
        } else {
            assert_eq!(txn.delete(&key).unwrap(), after.remove(&key).is_some());
        }
        assert_eq!(txn.get(&key).unwrap(), after.get(&key).map(Vec::as_slice));
    }
    if what & 1 == 0 {
        txn.commit().unwrap();
        *pairs = after;
    }
}

/// Many keys in one transaction: pages split, the directory doubles.
fn fill(db: &Db, pairs: &mut Pairs, choices: &mut Choices) {
    let (first, count, gone) = (choices.below(2_000) as u32, u32::from(choices.byte()) * 4, choices.byte() & 1 == 0);
    let mut txn = db.begin_write().unwrap();
    for n in first..first + count {
        let key = n.to_le_bytes().to_vec();
        if gone {
            assert_eq!(txn.delete(&key).unwrap(), pairs.remove(&key).is_some());
        } else {
            txn.put(&key, &key).unwrap();
            pairs.insert(key.clone(), key);
        }
    }
    txn.commit().unwrap();
}

/// One of 24 keys; some are empty or long.
fn key(choices: &mut Choices) -> Vec<u8> {
    match choices.byte() % 24 {
        0 => Vec::new(),
        1 => vec![7; 5_000],
        n => vec![n; 1 + usize::from(n % 5)],
    }
}

/// Mostly short, some longer than an extent.
fn value(choices: &mut Choices) -> Vec<u8> {
    let (what, fill) = (choices.byte(), choices.byte());
    let len = match what {
        250.. => 70_000 + usize::from(fill) * 500,
        200.. => usize::from(fill) * 64,
        _ => usize::from(what),
    };
    vec![fill; len]
}

/// The snapshot has these pairs, each once.
fn same(snapshot: &ReadTxn, pairs: &Pairs) {
    let mut found: Vec<(&[u8], &[u8])> = snapshot.iter().map(|pair| pair.unwrap()).collect();
    found.sort_unstable();
    assert!(found.into_iter().eq(pairs.iter().map(|(k, v)| (&k[..], &v[..]))), "what a scan finds");
    for (key, value) in pairs.iter().step_by(1 + pairs.len() / 64) {
        assert!(snapshot.get(key).unwrap() == Some(&value[..]), "what a get finds");
    }
}
