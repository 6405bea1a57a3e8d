//! A store beside a model of it, and what it may take.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use slotdb::{Db, Durability, Options, ReadTxn};

use crate::support::Place;
use crate::support::common::Rng;

pub const EXTENT: u64 = 64 << 10;
/// What a file takes however little it holds, in extents: the shared words, directory and table, index pages and their
/// copies, the reserves, segments half full.
const FIXED: u64 = 40;

pub type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

pub fn options() -> Options {
    let mut options = Options::new();
    options.create(true).extent_size(EXTENT).slack(32 * EXTENT).durability(Durability::Eventual);
    options
}

pub fn key(n: u64) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

/// All that a snapshot reads.
pub fn all(snapshot: &ReadTxn) -> Pairs {
    snapshot.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
}

/// An open store and what it should hold.
pub struct Ledger {
    pub place: Place,
    db: Option<Db>,
    pub model: Pairs,
    pub rng: Rng,
}

impl Ledger {
    pub fn new(options: &Options, seed: u64) -> Ledger {
        let place = Place::in_memory();
        let db = Some(options.open(place.store()).unwrap());
        Ledger { place, db, model: Pairs::new(), rng: Rng::new(seed) }
    }

    pub fn db(&self) -> Db {
        self.db.clone().unwrap()
    }

    pub fn path(&self) -> PathBuf {
        self.place.store()
    }

    pub fn put(&mut self, n: u64, len: usize) {
        let value = self.rng.bytes(len);
        self.db.as_ref().unwrap().put(&key(n), &value).unwrap();
        self.model.insert(key(n), value);
    }

    pub fn delete(&mut self, n: u64) {
        let was_there = self.db.as_ref().unwrap().delete(&key(n)).unwrap();
        assert_eq!(was_there, self.model.remove(&key(n)).is_some());
    }

    /// The store holds the model, whole.
    #[track_caller]
    pub fn is_sound(&self) {
        is_in(&self.db(), &self.model);
    }

    pub fn close(&mut self) {
        self.db.take().unwrap().close().unwrap();
    }

    pub fn open(&mut self, options: &Options) {
        self.db = Some(options.open(self.path()).unwrap());
    }

    /// Bytes that what lives takes, with the overhead of records and of the index.
    pub fn live(&self) -> u64 {
        let pairs: usize = self.model.iter().map(|(k, v)| k.len() + v.len()).sum();
        pairs as u64 + self.model.len() as u64 * (32 + 25)
    }

    /// What the file takes at most while its contents change.
    pub fn bound(&self) -> u64 {
        2 * self.live() + FIXED * EXTENT
    }

    /// Length of the file, and bytes of the disk that it takes.
    pub fn sizes(&self) -> (u64, u64) {
        let meta = fs::metadata(self.path()).unwrap();
        (meta.len(), meta.blocks() * 512)
    }
}

#[track_caller]
pub fn is_in(db: &Db, model: &Pairs) {
    assert!(all(&db.begin_read().unwrap()) == *model, "other contents");
    assert_eq!(db.check(true).unwrap(), []);
}
