//! sled.

use std::path::Path;

use sled::{Batch, Config, Db, Mode as Sled};

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};

pub fn engine() -> Engine {
    Engine {
        name: "sled",
        about: "Mode::HighThroughput, cache of the size of the data (at least the default 1 GiB)",
        eventual: (Class::Buffered, "written every 500 ms; a death takes what was put since"),
        immediate: (Class::Process, "flush() after each commit: written, the device is not told to flush"),
        processes: Processes::One,
        threads: true,
        overwrite_batch: 1,
        only: None,
        version: || Ok("0.34".into()),
        open,
    }
}

struct Tree {
    db: Db,
    flush: bool,
}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let db = Config::new()
        .path(dir.join("store.sled"))
        .mode(Sled::HighThroughput)
        .cache_capacity((how.n * 300).max(1 << 30))
        .open()?;
    Ok(Box::new(Tree { db, flush: how.mode == Mode::Immediate }))
}

impl Store for Tree {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }
}

struct Thread<'a>(&'a Tree);

impl Thread<'_> {
    fn commit(&self) -> Result<()> {
        if self.0.flush {
            self.0.db.flush()?;
        }
        Ok(())
    }
}

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            if let Some(value) = self.0.db.get(key)? {
                seen.add(&value);
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        Ok(self.0.db.get(key)?.map(|value| Head::of(&value)))
    }

    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        self.0.db.insert(key, value(key, version).as_slice())?;
        self.commit()
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let mut batch = Batch::default();
        for key in keys {
            batch.insert(key, value(key, version).as_slice());
        }
        self.0.db.apply_batch(batch)?;
        self.commit()
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        let next = |old: Option<&[u8]>| old.map(|old| value(key, Head::of(old).version.wrapping_add(1)).to_vec());
        self.0.db.update_and_fetch(key, next)?.ok_or("a key is missing")?;
        self.commit()
    }

    fn scan(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        for pair in self.0.db.iter() {
            seen.add(&pair?.1);
        }
        Ok(seen)
    }
}
