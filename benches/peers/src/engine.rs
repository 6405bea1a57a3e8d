//! What every engine is behind: one trait to open it, one for what a thread does with it, one card that says what it
//! promises.

use std::path::Path;

use crate::data::{Head, Key, Seen};

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// When a commit returns, and whether the store may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the engine does it without waiting for the disk.
    Eventual,
    /// After a flush of the disk, where the engine can do that.
    Immediate,
    ReadOnly,
}

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub mode: Mode,
    /// How many records it is for.
    pub n: u64,
    /// Whether other processes have it open meanwhile.
    pub shared: bool,
}

/// What a commit that has returned is worth. Engines are ranked against the same class only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Atomic, and on the disk.
    Durable,
    /// On the disk, but a death in the middle of a write may leave half of it.
    Flushed,
    /// Atomic, and survives the death of the process; a power cut may take it.
    Process,
    /// Atomic; the death of the process takes the newest ones.
    Buffered,
    /// Not atomic, or a death may damage the store.
    None,
    /// No store: a bound that a store can be held against.
    Ceiling,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::Durable => "durable",
            Class::Flushed => "flushed, not atomic",
            Class::Process => "survives the process",
            Class::Buffered => "lost with the process",
            Class::None => "none",
            Class::Ceiling => "ceiling",
        }
    }
}

/// Who may have the store open at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// Any number of readers and writers.
    Many,
    /// The same, while all commits are durable.
    ManyDurable,
    /// Any number of readers, or one writer.
    Readers,
    One,
}

/// An engine's card.
pub struct Engine {
    pub name: &'static str,
    /// How it is configured.
    pub about: &'static str,
    pub eventual: (Class, &'static str),
    pub immediate: (Class, &'static str),
    pub processes: Processes,
    /// Whether threads may share one open store.
    pub threads: bool,
    /// Records of a commit in `size_after_3n_overwrites`: 100 where 3 n commits would take for ever.
    pub overwrite_batch: usize,
    /// The workloads it takes part in; none: all that it can do.
    pub only: Option<&'static [&'static str]>,
    /// Its version, or why it cannot be used here.
    pub version: fn() -> Result<String>,
    /// Opens the store in a directory; creates it if there is none.
    pub open: fn(&Path, How) -> Result<Box<dyn Store>>,
}

/// An open store.
pub trait Store: Sync {
    /// What one thread uses; made in that thread.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// Makes everything so far as durable as the engine can.
    fn sync(&self) -> Result<()>;

    /// As a program that ends in order; the rest is done by dropping it.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What a thread does with a store.
pub trait Session {
    /// Reads these keys as of one moment, where the engine has snapshots.
    fn gets(&mut self, keys: &[Key]) -> Result<Seen>;

    /// Reads these keys by 16 in one call, where the engine has such a call.
    fn get_many16(&mut self, keys: &[Key]) -> Result<Seen> {
        self.gets(keys)
    }

    /// Reads the newest value.
    fn get(&mut self, key: &Key) -> Result<Option<Head>>;

    /// A commit of one record.
    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        self.put_batch(std::slice::from_ref(key), version)
    }

    /// A commit of many records, or as near to it as the engine comes.
    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()>;

    /// Reads a value and writes a version that follows from it: in one transaction where the engine has such.
    fn update(&mut self, key: &Key) -> Result<()> {
        let head = self.get(key)?.ok_or("a key is missing")?;
        self.put(key, head.version.wrapping_add(1))
    }

    /// Reads all records.
    fn scan(&mut self) -> Result<Seen>;
}

impl Engine {
    /// The promise of a workload's commits.
    pub fn promise(&self, mode: Mode) -> (Class, &'static str) {
        if mode == Mode::Immediate { self.immediate } else { self.eventual }
    }
}
