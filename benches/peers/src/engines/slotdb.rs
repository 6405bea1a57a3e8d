//! slotdb with its default options.

use std::path::Path;

use slotdb::{Db, Durability, Options};

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};

pub fn engine() -> Engine {
    Engine {
        name: "slotdb",
        about: "default options; gets in one read transaction; ReadTxn::get_many",
        eventual: (Class::Process, "Durability::Eventual: a power cut loses a suffix of the commits"),
        immediate: (Class::Durable, "Durability::Immediate: one flush, shared by commits of the same moment"),
        processes: Processes::Many,
        threads: true,
        overwrite_batch: 100,
        only: None,
        version: || Ok("this checkout".into()),
        open,
    }
}

struct Slotdb(Db);

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let mut options = Options::new();
    match how.mode {
        Mode::Eventual => options.create(true).durability(Durability::Eventual),
        Mode::Immediate => options.create(true),
        Mode::ReadOnly => options.read_only(true),
    };
    Ok(Box::new(Slotdb(options.open(dir.join("store.slotdb"))?)))
}

impl Store for Slotdb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(&self.0)))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}

struct Thread<'a>(&'a Db);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let txn = self.0.begin_read()?;
        let mut seen = Seen::default();
        for key in keys {
            if let Some(value) = txn.get(key)? {
                seen.add(value);
            }
        }
        Ok(seen)
    }

    fn get_many16(&mut self, keys: &[Key]) -> Result<Seen> {
        let txn = self.0.begin_read()?;
        let mut seen = Seen::default();
        for keys in keys.chunks(16) {
            txn.get_many(keys)?.into_iter().flatten().for_each(|value| seen.add(value));
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        Ok(self.0.get_with(key, Head::of)?)
    }

    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        Ok(self.0.put(key, &value(key, version))?)
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let mut txn = self.0.begin_write()?;
        for key in keys {
            txn.put(key, &value(key, version))?;
        }
        txn.commit()?;
        Ok(())
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        let mut txn = self.0.begin_write()?;
        let head = Head::of(txn.get(key)?.ok_or("a key is missing")?);
        txn.put(key, &value(key, head.version.wrapping_add(1)))?;
        txn.commit()?;
        Ok(())
    }

    fn scan(&mut self) -> Result<Seen> {
        let txn = self.0.begin_read()?;
        let mut seen = Seen::default();
        for pair in txn.iter() {
            seen.add(pair?.1);
        }
        Ok(seen)
    }
}
