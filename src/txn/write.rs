//! Write transactions: one at a time in all processes, all or nothing.

use crate::engine::Engine;
use crate::engine::commit::Committed;
use crate::engine::lock::WriterGuard;
use crate::error::{Error, Result};
use crate::format::hash_key;
use crate::format::record::Kind;
use crate::log::Record;
use crate::options::Durability;
use crate::space::Claim;

/// Tries of a commit where there is no room for it, each with room made after it; then there is one more.
const TRIES: usize = 3;

/// A write transaction. It holds the writer lock of the store until it is committed or dropped; dropping it undoes it.
pub struct WriteTxn<'db> {
    engine: &'db Engine,
    writer: WriterGuard<'db>,
    durability: Durability,
}

impl<'db> WriteTxn<'db> {
    pub(crate) fn begin(engine: &'db Engine, durability: Durability) -> Result<WriteTxn<'db>> {
        engine.check_fork()?;
        Ok(WriteTxn { engine, writer: engine.lock_writer()?, durability })
    }

    /// The value of a key: this transaction's own write, else the newest committed one.
    ///
    /// The newest commit may be an Immediate one of another process that is not durable yet; a commit of this
    /// transaction waits for it.
    ///
    /// # Errors
    /// `Corrupt` if the index or the record is damaged; `Forked`. With `Options::guard_sigbus`, `Truncated` or `Io`
    /// after a page was lost; a value that was borrowed before may read as zeros from then on, and the commit tells
    /// whether it does. The transaction goes on.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.engine.check_fork()?;
        let hash = self.hash(key);
        if let Some(entry) = self.writer.batch().find(hash, key) {
            return Ok((entry.kind == Kind::Put).then(|| self.writer.batch().value(entry)));
        }
        let newest = self.newest(hash, key)?.filter(|record| !record.is_tombstone());
        let verified = newest.map(|record| self.engine.core.verified(record)).transpose()?;
        Ok(verified.map(|record| record.value()))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// `KeyTooLong`, `ValueTooLong`, `Forked`; the transaction goes on without this write.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let hash = self.hash(key);
        if self.writer.batch().is_empty() {
            // Of more than one write the misses are going to overlap with each other.
            self.engine.core.prefetch_line(hash);
        }
        self.put_hashed(hash, key, value)
    }

    /// As `put`, with the hash of the key, whose line of the index was asked for.
    pub(crate) fn put_hashed(&mut self, hash: u64, key: &[u8], value: &[u8]) -> Result<()> {
        self.engine.check_fork()?;
        self.engine.core.check_lengths(key, value)?;
        self.writer.batch_mut().push(Kind::Put, hash, key, value, None);
        Ok(())
    }

    /// Removes a key; whether it was there, in the store or in this transaction.
    ///
    /// # Errors
    /// As `get`; the transaction goes on without this write.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool> {
        self.engine.check_fork()?;
        let hash = self.hash(key);
        let written = self.writer.batch().find(hash, key).map(|entry| entry.kind);
        let stored = self.newest(hash, key)?.map(|record| (record.position, record.is_tombstone()));
        match (written, stored) {
            (Some(Kind::Delete), _) => return Ok(false),
            (_, Some((prev, false))) => self.writer.batch_mut().push(Kind::Delete, hash, key, &[], Some(prev)),
            (Some(_), _) => self.writer.batch_mut().withdraw(hash, key),
            (None, _) => return Ok(false),
        }
        Ok(true)
    }

    /// Overrides the handle's durability for this transaction.
    pub fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }

    /// Commits, and returns the seq of the commit (of the newest one, if there was nothing to write).
    ///
    /// Immediate: one flush of the log, shared with all who commit at that time. Eventual: no system call on most
    /// commits but the lock's. With nothing to write, an Immediate commit still waits until what it may have read is
    /// durable.
    ///
    /// # Errors
    /// `Corrupt`: the index or a record that is replaced is damaged; the transaction is undone.
    /// `Full`, `MaxSize`: nothing was written, the transaction is undone. What is dead was made room of as far as that
    /// went (see `Options::max_size`); if others committed meanwhile it is worth another try. `Poisoned`: likewise
    /// undone, and so is `Unsupported`: keys whose hashes were chosen to collide. `InDoubt`: a write or sync failed
    /// midway, or the flush of another process did not come to its end within `Options::lock_timeout`; the commit is
    /// there whole or not at all, which shows on reading once another write transaction has begun, or after a failed
    /// sync on reopening. `Forked`: this is a child, and the transaction is still the parent's.
    pub fn commit(self) -> Result<u64> {
        self.engine.check_fork()?;
        let WriteTxn { engine, mut writer, durability } = self;
        let (seq, wait) = if writer.batch().is_empty() {
            // A value that it has read may have been lost meanwhile.
            engine.core.check_map()?;
            (engine.core.ends().0, engine.must_wait(durability))
        } else {
            let committed;
            (writer, committed) = commit_with_room(engine, writer, durability).map_err(|e| engine.core.explained(e))?;
            writer.keep = !committed.wait;
            (committed.seq, committed.wait)
        };
        let wrote = !writer.batch().is_empty();
        let opened = !writer.batch().segments().is_empty();
        drop(writer);
        if wait {
            let unknown = |e| if wrote { engine.in_doubt(seq, e) } else { e };
            engine.wait_durable(seq).map_err(unknown)?;
        }
        if let Err(e) = engine.checkpoint_if_due() {
            // The commit stands; the next one tries again.
            log::warn!("checkpoint: {e}");
        }
        if wrote && opened {
            engine.restore_reserve();
        }
        Ok(seq)
    }

    fn hash(&self, key: &[u8]) -> u64 {
        hash_key(key, self.engine.core.geometry.seed)
    }

    fn newest(&self, hash: u64, key: &[u8]) -> Result<Option<Record<'_>>> {
        self.engine.core.settled(self.engine.core.find(hash, key))
    }
}

impl std::fmt::Debug for WriteTxn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteTxn").field("durability", &self.durability).finish_non_exhaustive()
    }
}

/// Commits the batch of a writer. Where the store is full, room is made and it is tried again, unless somebody else got
/// in between, or nothing has come of that.
fn commit_with_room<'a>(
    engine: &'a Engine,
    mut writer: WriterGuard<'a>,
    durability: Durability,
) -> Result<(WriterGuard<'a>, Committed)> {
    let (mut claim, later) = match writer.batch().has_puts() {
        true => (Claim::Put, Claim::Put),
        false => (Claim::Delete, Claim::LastDelete),
    };
    let since = engine.core.ends().0 + 1;
    for _ in 0..TRIES {
        let full = match engine.commit_batch(writer.batch_mut(), durability, claim) {
            Err(full @ (Error::Full { .. } | Error::MaxSize { .. })) => full,
            done => return done.map(|committed| (writer, committed)),
        };
        let before = engine.core.prospects();
        let Some(again) = engine.room_for(writer, since)? else { return Err(full) };
        if claim == later && engine.core.prospects() == before {
            return Err(full);
        }
        (writer, claim) = (again, later);
    }
    engine.commit_batch(writer.batch_mut(), durability, claim).map(|committed| (writer, committed))
}
