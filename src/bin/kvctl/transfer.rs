//! The verbs that move whole stores: `dump`, `load`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::mem;
use std::os::fd::AsFd;

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Serialize;
use slotdb::{Db, Durability};

use crate::args::{DurabilityArgs, MissingArgs, StoreArgs};
use crate::console::Console;
use crate::exit::Outcome;
use crate::progress::{Progress, Unit};
use crate::records::{Format, Record};

/// Print all pairs of one moment in a form that load reads
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl dump app.db > app.jsonl")]
pub struct DumpRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// One record a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub fn dump(request: &DumpRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let db = request.store.open_to_read()?;
    let txn = db.begin_read()?;
    // Between records on the same terminal a bar would only be noise.
    let shown = console.shows_progress() && !console.stdout_is_terminal();
    let mut progress = Progress::new(shown, Unit::Records, Some(db.len()?));
    for pair in txn.iter() {
        let (key, value) = pair?;
        request.format.write(console, key, value)?;
        progress.add(1);
    }
    Ok(Outcome::Yes)
}

/// Store the records that dump wrote, read from stdin
///
/// Records are committed in batches while they arrive, and are all durable when the verb returns.
/// A record that cannot be read ends the load; the records before it are kept.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl dump app.db | kvctl load copy.db")]
pub struct LoadRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// One record a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    durability: DurabilityArgs,
    #[command(flatten)]
    missing: MissingArgs,
}

pub fn load(request: &LoadRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    // One sync at the end makes all batches durable; one for each would only cost time.
    let db = request.store.open_to_write(Durability::Eventual, request.missing.missing())?;
    let mut loader = Loader { db: &db, batch: Vec::new(), batch_bytes: 0, loaded: 0 };
    let mut progress = Progress::new(console.shows_progress(), Unit::Bytes, stdin_size());
    let read = loader.read(request.format, &mut progress);
    progress.clear();

    // After a bad line too: the records before it are said to be loaded, so they must stay.
    let kept = loader.keep(request.durability.durability());
    let loaded = loader.loaded;
    read.map_err(|error| match &kept {
        Ok(()) => error.context(format!("after loading {loaded} records")),
        Err(_) => error,
    })?;
    kept?;
    db.close()?;
    if console.json {
        console.document(&Loaded { loaded })?;
    } else {
        writeln!(console, "{loaded}")?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct Loaded {
    loaded: u64,
}

const BATCH_RECORDS: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;
const READ_BUFFER: usize = 256 << 10;

/// Commits records in batches. A batch is complete before its transaction begins, so that the
/// writer lock is never held while waiting for input.
struct Loader<'db> {
    db: &'db Db,
    batch: Vec<Record>,
    batch_bytes: usize,
    loaded: u64,
}

impl Loader<'_> {
    fn read(&mut self, format: Format, progress: &mut Progress) -> anyhow::Result<()> {
        let mut input = BufReader::with_capacity(READ_BUFFER, io::stdin().lock());
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let length = input.read_until(b'\n', &mut line).context("cannot read stdin")?;
            if length == 0 {
                break;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let record = format.read(text).and_then(within_limits);
            match record.map_err(|why| anyhow!("line {number}: {why}"))? {
                Some((key, value)) => self.add(key, value)?,
                None => continue,
            }
            progress.add(length as u64);
        }
        Ok(())
    }

    fn add(&mut self, key: Vec<u8>, value: Vec<u8>) -> slotdb::Result<()> {
        self.batch_bytes += key.len() + value.len();
        self.batch.push((key, value));
        if self.batch.len() == BATCH_RECORDS || self.batch_bytes >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> slotdb::Result<()> {
        let batch = mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let mut txn = self.db.begin_write()?;
        for (key, value) in &batch {
            txn.put(key, value)?;
        }
        txn.commit()?;
        self.loaded += batch.len() as u64;
        Ok(())
    }

    /// Commits the last batch and makes all of them as safe as was asked for.
    fn keep(&mut self, durability: Durability) -> slotdb::Result<()> {
        if !self.batch.is_empty() {
            self.commit()?;
        }
        match durability {
            Durability::Immediate => self.db.sync(),
            Durability::Eventual => Ok(()),
        }
    }
}

/// Refuses what the store would refuse, while the line is still known.
fn within_limits(record: Option<Record>) -> Result<Option<Record>, String> {
    if let Some((key, value)) = &record {
        if key.len() > slotdb::MAX_KEY {
            return Err(format!("a key of {} bytes, above {}", key.len(), slotdb::MAX_KEY));
        }
        if value.len() as u64 > slotdb::MAX_VALUE {
            return Err(format!("a value of {} bytes, above {}", value.len(), slotdb::MAX_VALUE));
        }
    }
    Ok(record)
}

/// The bytes to come, if stdin is a file.
fn stdin_size() -> Option<u64> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let metadata = file.metadata().ok()?;
    metadata.is_file().then_some(metadata.len())
}
