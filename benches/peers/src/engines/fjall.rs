//! fjall.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};

pub fn engine() -> Engine {
    Engine {
        name: "fjall",
        about: "block cache of the size of the data (at least 1 GiB), point reads expected to hit; gets in one \
                snapshot",
        eventual: (Class::Process, "the journal is written to the page cache with each commit"),
        immediate: (Class::Durable, "PersistMode::SyncData with each commit"),
        processes: Processes::One,
        threads: true,
        overwrite_batch: 1,
        only: None,
        version: || Ok("3.1".into()),
        open,
    }
}

struct Fjall {
    db: Database,
    records: Keyspace,
    persist: Option<PersistMode>,
}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let db = Database::builder(dir.join("store.fjall")).cache_size((how.n * 300).max(1 << 30)).open()?;
    let records = db.keyspace("records", || KeyspaceCreateOptions::default().expect_point_read_hits(true))?;
    let persist = (how.mode == Mode::Immediate).then_some(PersistMode::SyncData);
    Ok(Box::new(Fjall { db, records, persist }))
}

impl Store for Fjall {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Thread<'a>(&'a Fjall);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let snapshot = self.0.db.snapshot();
        let mut seen = Seen::default();
        for key in keys {
            if let Some(value) = snapshot.get(&self.0.records, key)? {
                seen.add(&value);
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        Ok(self.0.records.get(key)?.map(|value| Head::of(&value)))
    }

    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        self.0.records.insert(key, value(key, version).as_slice())?;
        if let Some(mode) = self.0.persist {
            self.0.db.persist(mode)?;
        }
        Ok(())
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let mut batch = self.0.db.batch().durability(self.0.persist);
        for key in keys {
            batch.insert(&self.0.records, key.as_slice(), value(key, version).as_slice());
        }
        Ok(batch.commit()?)
    }

    fn scan(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        for pair in self.0.records.iter() {
            seen.add(&pair.value()?);
        }
        Ok(seen)
    }
}
