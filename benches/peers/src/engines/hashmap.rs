//! `HashMap` with foldhash: a ceiling. It lives in this process, and survives nothing.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::sync::{LazyLock, RwLock};

use foldhash::fast::RandomState;

use crate::data::{Head, Key, Seen, Value, value};
use crate::engine::{Class, Engine, Error, How, Processes, Result, Session, Store};

const WORKLOADS: &[&str] =
    &["load", "get", "get_oneshot", "get_many16", "get_miss", "get_2threads", "put_eventual", "scan"];

pub fn engine() -> Engine {
    Engine {
        name: "hashmap",
        about: "HashMap<Vec<u8>, Vec<u8>> in RAM behind a read-write lock, taken once for a run of gets and once for \
                each put: what a program would use for byte strings of any length",
        eventual: (Class::Ceiling, "RAM"),
        immediate: (Class::Ceiling, "RAM"),
        processes: Processes::One,
        threads: true,
        overwrite_batch: 1,
        only: Some(WORKLOADS),
        version: || Ok("foldhash 0.2".into()),
        open: |dir, _: How| open::<Vec<u8>, Vec<u8>>(dir, &BYTES),
    }
}

pub fn engine_inline() -> Engine {
    Engine {
        name: "hashmap-inline",
        about: "HashMap<[u8; 16], [u8; 100]>: lengths fixed at compile time, key and value in the table itself",
        open: |dir, _: How| open::<Key, Value>(dir, &ARRAYS),
        ..engine()
    }
}

type Map<K, V> = RwLock<HashMap<K, V, RandomState>>;

static BYTES: LazyLock<Map<Vec<u8>, Vec<u8>>> = LazyLock::new(Map::default);
static ARRAYS: LazyLock<Map<Key, Value>> = LazyLock::new(Map::default);

struct Ram<K: 'static, V: 'static>(&'static Map<K, V>);

fn open<K, V>(dir: &Path, map: &'static Map<K, V>) -> Result<Box<dyn Store>>
where
    K: Eq + Hash + Borrow<[u8]> + From<Key> + Send + Sync,
    V: AsRef<[u8]> + From<Value> + Send + Sync,
{
    // A new directory asks for a new store.
    let marker = dir.join("in-ram");
    if !marker.exists() {
        map.write().map_err(|_| poisoned())?.clear();
        std::fs::write(marker, "")?;
    }
    Ok(Box::new(Ram(map)))
}

fn poisoned() -> Error {
    "another thread has panicked".into()
}

impl<K, V> Store for Ram<K, V>
where
    K: Eq + Hash + Borrow<[u8]> + From<Key> + Send + Sync,
    V: AsRef<[u8]> + From<Value> + Send + Sync,
{
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self.0)))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

struct Thread<K: 'static, V: 'static>(&'static Map<K, V>);

impl<K, V> Session for Thread<K, V>
where
    K: Eq + Hash + Borrow<[u8]> + From<Key> + Send + Sync,
    V: AsRef<[u8]> + From<Value> + Send + Sync,
{
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let map = self.0.read().map_err(|_| poisoned())?;
        let mut seen = Seen::default();
        for key in keys {
            if let Some(value) = map.get(key.as_slice()) {
                seen.add(value.as_ref());
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        let map = self.0.read().map_err(|_| poisoned())?;
        Ok(map.get(key.as_slice()).map(|value| Head::of(value.as_ref())))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let mut map = self.0.write().map_err(|_| poisoned())?;
        for key in keys {
            map.insert(K::from(*key), V::from(value(key, version)));
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Seen> {
        let map = self.0.read().map_err(|_| poisoned())?;
        let mut seen = Seen::default();
        map.values().for_each(|value| seen.add(value.as_ref()));
        Ok(seen)
    }
}
