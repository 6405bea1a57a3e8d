//! What LMDB and libmdbx have in common: a read transaction of each thread that is reset and renewed, and one write
//! transaction at a time.

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Result, Session, Store};

/// An open environment, and the calls of its library.
pub trait Environment: Sync {
    /// A transaction, which stays in its thread.
    type Txn;

    fn begin(&self, read_only: bool) -> Result<Self::Txn>;

    fn reset(&self, reader: &mut Self::Txn);

    fn renew(&self, reader: &mut Self::Txn) -> Result<()>;

    fn abort(&self, txn: Self::Txn);

    fn commit(&self, txn: Self::Txn) -> Result<()>;

    /// None: there is no such key.
    fn get<R>(&self, txn: &Self::Txn, key: &Key, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>>;

    fn put(&self, txn: &mut Self::Txn, key: &Key, value: &[u8]) -> Result<()>;

    /// Goes through all values.
    fn each(&self, txn: &Self::Txn, each: impl FnMut(&[u8])) -> Result<()>;

    fn sync(&self) -> Result<()>;
}

/// The store that an environment is.
pub struct Tree<E>(pub E);

impl<E: Environment> Store for Tree<E> {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { env: &self.0, reader: None }))
    }

    fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Thread<'a, E: Environment> {
    env: &'a E,
    /// A read transaction that is reset, after the first read.
    reader: Option<E::Txn>,
}

impl<E: Environment> Drop for Thread<'_, E> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.env.abort(reader);
        }
    }
}

impl<E: Environment> Thread<'_, E> {
    fn read<R>(&mut self, work: impl FnOnce(&E, &E::Txn) -> Result<R>) -> Result<R> {
        let mut reader = match self.reader.take() {
            Some(mut reader) => {
                self.env.renew(&mut reader)?;
                reader
            }
            None => self.env.begin(true)?,
        };
        let result = work(self.env, &reader);
        self.env.reset(&mut reader);
        self.reader = Some(reader);
        result
    }

    fn write(&mut self, work: impl FnOnce(&E, &mut E::Txn) -> Result<()>) -> Result<()> {
        let mut txn = self.env.begin(false)?;
        match work(self.env, &mut txn) {
            Ok(()) => self.env.commit(txn),
            Err(error) => {
                self.env.abort(txn);
                Err(error)
            }
        }
    }
}

impl<E: Environment> Session for Thread<'_, E> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        self.read(|env, txn| {
            for key in keys {
                env.get(txn, key, |value| seen.add(value))?;
            }
            Ok(seen)
        })
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        self.read(|env, txn| env.get(txn, key, Head::of))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        self.write(|env, txn| keys.iter().try_for_each(|key| env.put(txn, key, &value(key, version))))
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        self.write(|env, txn| {
            let head = env.get(txn, key, Head::of)?.ok_or("a key is missing")?;
            env.put(txn, key, &value(key, head.version.wrapping_add(1)))
        })
    }

    fn scan(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        self.read(|env, txn| env.each(txn, |value| seen.add(value)))?;
        Ok(seen)
    }
}
