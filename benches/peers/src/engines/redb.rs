//! redb.

use std::path::Path;

use redb::{
    Builder, ConcurrencyMode, Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition,
};

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

pub fn engine() -> Engine {
    Engine {
        name: "redb",
        about: "cache of the size of the data (at least the default 1 GiB); ConcurrencyMode::MultiWriter where several \
                processes have it open; gets in one read transaction",
        eventual: (Class::Buffered, "Durability::None: a death takes all commits since the last durable one"),
        immediate: (Class::Durable, "Durability::Immediate"),
        processes: Processes::ManyDurable,
        threads: true,
        overwrite_batch: 100,
        only: None,
        version: || Ok("4".into()),
        open,
    }
}

enum File {
    Writable(Database),
    ReadOnly(ReadOnlyDatabase),
}

struct Redb {
    file: File,
    durability: Durability,
}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let path = dir.join("store.redb");
    let mut builder = Builder::new();
    builder.set_cache_size((how.n as usize * 300).max(1 << 30));
    if how.shared {
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
    }
    let durability = if how.mode == Mode::Immediate { Durability::Immediate } else { Durability::None };
    let file = match how.mode {
        Mode::ReadOnly => File::ReadOnly(builder.open_read_only(path)?),
        Mode::Eventual | Mode::Immediate => File::Writable(builder.create(path)?),
    };
    Ok(Box::new(Redb { file, durability }))
}

impl Redb {
    fn read(&self) -> Result<ReadTransaction> {
        Ok(match &self.file {
            File::Writable(db) => db.begin_read()?,
            File::ReadOnly(db) => db.begin_read()?,
        })
    }

    fn write(
        &self,
        durability: Durability,
        work: impl FnOnce(&mut redb::Table<&[u8], &[u8]>) -> Result<()>,
    ) -> Result<()> {
        let File::Writable(db) = &self.file else { return Err("opened to read".into()) };
        let mut txn = db.begin_write()?;
        txn.set_durability(durability)?;
        work(&mut txn.open_table(TABLE)?)?;
        Ok(txn.commit()?)
    }
}

impl Store for Redb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        self.write(Durability::Immediate, |_| Ok(()))
    }
}

struct Thread<'a>(&'a Redb);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let table = self.0.read()?.open_table(TABLE)?;
        let mut seen = Seen::default();
        for key in keys {
            if let Some(value) = table.get(key.as_slice())? {
                seen.add(value.value());
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        let table = self.0.read()?.open_table(TABLE)?;
        Ok(table.get(key.as_slice())?.map(|value| Head::of(value.value())))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        self.0.write(self.0.durability, |table| {
            for key in keys {
                table.insert(key.as_slice(), value(key, version).as_slice())?;
            }
            Ok(())
        })
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        self.0.write(self.0.durability, |table| {
            let head = Head::of(table.get(key.as_slice())?.ok_or("a key is missing")?.value());
            table.insert(key.as_slice(), value(key, head.version.wrapping_add(1)).as_slice())?;
            Ok(())
        })
    }

    fn scan(&mut self) -> Result<Seen> {
        let table = self.0.read()?.open_table(TABLE)?;
        let mut seen = Seen::default();
        for pair in table.iter()? {
            seen.add(pair?.1.value());
        }
        Ok(seen)
    }
}
