//! Read transactions: one snapshot, pinned for as long as it lives.

use crate::engine::Engine;
use crate::error::Result;
use crate::format::hash_key;
use crate::readers::Pin;
use crate::txn::scan::Iter;

/// A snapshot of the store. What it reads does not change, whatever others commit.
///
/// It holds back the reuse of what was replaced since it began, so a snapshot held for long makes the file grow.
pub struct ReadTxn<'db> {
    engine: &'db Engine,
    pin: Pin,
}

impl<'db> ReadTxn<'db> {
    pub(crate) fn begin(engine: &'db Engine) -> Result<ReadTxn<'db>> {
        engine.check_fork()?;
        let pin = engine.core.pin()?;
        engine.core.date_pin(&pin);
        engine.core.settled(Ok(ReadTxn { engine, pin }))
    }

    /// The value of a key, borrowed from the map for as long as the snapshot lives. Takes no lock and copies nothing.
    ///
    /// # Errors
    /// `Corrupt` if the index or the record is damaged; `Poisoned`; `Forked`. With `Options::guard_sigbus`, `Truncated`
    /// or `Io` after a page was lost; a value that was borrowed before may read as zeros from then on, and another call
    /// tells whether it does.
    pub fn get<'t>(&'t self, key: &[u8]) -> Result<Option<&'t [u8]>> {
        match self.get_fast(key) {
            Some(found) => Ok(found),
            None => self.get_slow(key),
        }
    }

    /// What nearly every get comes to; none where something has to be looked at more closely.
    #[inline(always)]
    fn get_fast<'t>(&'t self, key: &[u8]) -> Option<Option<&'t [u8]>> {
        let core = &self.engine.core;
        if self.engine.is_forked() || core.map.is_guarded() {
            return None;
        }
        let found = core.find_fast(hash_key(key, core.geometry.seed), key, self.pin.seq)?;
        if core.is_poisoned() { None } else { Some(found.map(|record| record.value())) }
    }

    #[inline(never)]
    fn get_slow<'t>(&'t self, key: &[u8]) -> Result<Option<&'t [u8]>> {
        self.engine.check_fork()?;
        let core = &self.engine.core;
        let hash = hash_key(key, core.geometry.seed);
        let found = core.search_at(hash, key, self.pin.seq).map_err(|e| core.cause(e))?;
        core.check_poison()?;
        Ok(found.map(|record| record.value()))
    }

    /// The values of many keys, in their order: as `get` for each, but their cache misses overlap.
    ///
    /// # Errors
    /// As `get`.
    pub fn get_many<'t, K: AsRef<[u8]>>(&'t self, keys: &[K]) -> Result<Vec<Option<&'t [u8]>>> {
        self.engine.check_fork()?;
        let core = &self.engine.core;
        let mut values = Vec::with_capacity(keys.len());
        let found = core.find_many_at(keys, self.pin.seq, |record| values.push(record.map(|record| record.value())));
        found.map_err(|e| core.cause(e))?;
        core.check_poison()?;
        Ok(values)
    }

    /// All pairs, in no particular order, each key once; borrowed as by `get`. Cost: a walk over the index, and a
    /// record for each key. An error, of the kinds that `get` has, ends it.
    pub fn iter(&self) -> Iter<'_> {
        Iter::new(self.engine, self.pin.seq)
    }

    /// The seq of the commit that this is a snapshot of, as `WriteTxn::commit` returned it; 0: nothing yet.
    pub fn seq(&self) -> u64 {
        self.pin.seq
    }
}

impl<'t> IntoIterator for &'t ReadTxn<'_> {
    type Item = Result<(&'t [u8], &'t [u8])>;
    type IntoIter = Iter<'t>;

    fn into_iter(self) -> Iter<'t> {
        self.iter()
    }
}

impl std::fmt::Debug for ReadTxn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadTxn").field("seq", &self.pin.seq).finish_non_exhaustive()
    }
}

impl Drop for ReadTxn<'_> {
    fn drop(&mut self) {
        if !self.engine.is_forked() {
            self.engine.core.unpin(self.pin);
        }
    }
}
