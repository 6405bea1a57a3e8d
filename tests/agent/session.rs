//! An open store, and what is held open across orders.

use std::collections::BTreeMap;

use slotdb::{Db, Durability, ReadTxn, Result, WriteTxn};

use crate::data::{self, Digest, Write};
use crate::fork::{self, Forked};
use crate::options::number;
use crate::{Talk, anywhere, error, work};

/// Why a session ended.
pub enum End {
    /// The store is to be closed.
    Close,
    /// The test is gone.
    Gone,
    /// This is a forked child that is to leave, and tell its parent.
    Child(std::io::PipeWriter),
}

/// One open store.
pub struct Session<'db> {
    pub db: &'db Db,
    pub txn: Option<WriteTxn<'db>>,
    pub snapshots: BTreeMap<String, ReadTxn<'db>>,
}

/// What an order comes to.
enum Done {
    Answer(String),
    End(End),
}

impl<'db> Session<'db> {
    pub fn new(db: &'db Db) -> Session<'db> {
        Session { db, txn: None, snapshots: BTreeMap::new() }
    }

    /// Obeys until the store is to be closed.
    pub fn serve(&mut self, talk: &mut Talk) -> End {
        while let Some(order) = talk.order() {
            let words: Vec<&str> = order.split_whitespace().collect();
            if words == ["release"] {
                return End::Close;
            }
            match self.obey(&words, talk) {
                Ok(Done::Answer(answer)) => talk.answer(&answer),
                Ok(Done::End(end)) => return end,
                Err(e) => talk.answer(&error(&e)),
            }
        }
        End::Gone
    }

    fn obey(&mut self, words: &[&str], talk: &mut Talk) -> Result<Done> {
        let answer = match *words {
            ["close"] => {
                (self.txn, self.snapshots) = (None, BTreeMap::new());
                return Ok(Done::End(End::Close));
            }
            ["exit"] => return Ok(Done::End(End::Gone)),
            ["fork", how] => {
                return Ok(match fork::fork(self, how) {
                    Forked::Parent(answer) => Done::Answer(answer),
                    Forked::Child(parent) => Done::End(End::Child(parent)),
                });
            }
            ["borrow", key] => return self.borrow(key, talk),
            ["put", key, value] => self.db.put(&data::bytes(key), &data::bytes(value)).map(ok)?,
            ["get", key] => value(self.db.get_with(&data::bytes(key), data::shown)?),
            ["matches", key, pattern] => self.matches(key, pattern)?,
            ["delete", key] => self.db.delete(&data::bytes(key))?.to_string(),
            ["batch", ref writes @ ..] => self.batch(writes)?,
            ["fill", prefix, from, to, len] => self.fill(prefix, number(from), number(to), number(len))?,
            ["txn", ref order @ ..] => self.txn(order)?,
            ["snapshot", order, name, ref key @ ..] => self.snapshot(order, name, key)?,
            ["scan"] => digest(&self.db.begin_read()?)?,
            ["len"] => self.db.len()?.to_string(),
            ["lose", position, "before", steps] => {
                let (db, position) = (self.db.clone(), number(position));
                let lose = move || db.lose_page(position).expect("a page of the file");
                slotdb::fault::arm_with(number(steps), Box::new(lose));
                ok(())
            }
            ["lose", position] => self.db.lose_page(number(position)).map(ok).expect("a page of the file"),
            ["checkpoint"] => self.db.checkpoint().map(ok)?,
            ["compact"] => self.db.compact(|_| true).map(ok)?,
            ["sync"] => self.db.sync().map(ok)?,
            ["check"] => self.check()?,
            ["stats"] => self.stats()?,
            ["processes"] => self.processes()?,
            _ => match anywhere(words) {
                Some(answer) => answer,
                None => work::obey(self.db, words)?,
            },
        };
        Ok(Done::Answer(answer))
    }

    /// Borrows a value from the map and goes on with other orders; `release` shows what the slice holds then.
    fn borrow(&mut self, key: &str, talk: &mut Talk) -> Result<Done> {
        let snapshot = self.db.begin_read()?;
        let Some(slice) = snapshot.get(&data::bytes(key))? else { return Ok(Done::Answer("none".into())) };
        talk.answer(&data::shown(slice));
        match self.serve(talk) {
            End::Close => Ok(Done::Answer(data::shown(slice))),
            end => Ok(Done::End(end)),
        }
    }

    fn matches(&self, key: &str, pattern: &str) -> Result<String> {
        let (len, seed) = data::generated(pattern).expect("~LEN.SEED");
        let matches = |bytes: &[u8]| bytes.len() == len && data::is_filled(bytes, seed);
        Ok(self.db.get_with(&data::bytes(key), matches)?.map_or("none".into(), |same| same.to_string()))
    }

    /// `batch [immediate|eventual] WRITES`: all in one commit; answers its seq.
    fn batch(&self, writes: &[&str]) -> Result<String> {
        let mut txn = self.db.begin_write()?;
        let writes = match writes {
            ["immediate", rest @ ..] => {
                txn.set_durability(Durability::Immediate);
                rest
            }
            ["eventual", rest @ ..] => {
                txn.set_durability(Durability::Eventual);
                rest
            }
            all => all,
        };
        for word in writes {
            match Write::parse(word) {
                Write::Put(key, value) => txn.put(&key, &value)?,
                Write::Delete(key) => drop(txn.delete(&key)?),
            }
        }
        txn.commit().map(|seq| seq.to_string())
    }

    fn fill(&self, prefix: &str, from: u64, to: u64, len: usize) -> Result<String> {
        for (key, value) in data::filling(prefix, from, to, len) {
            self.db.put(key.as_bytes(), &data::bytes(&value))?;
        }
        Ok("ok".into())
    }

    /// A write transaction that stays open from order to order.
    fn txn(&mut self, order: &[&str]) -> Result<String> {
        match *order {
            ["begin"] => self.txn = Some(self.db.begin_write()?),
            ["abort"] => self.txn = None,
            ["put", key, value] => self.open_txn().put(&data::bytes(key), &data::bytes(value))?,
            ["delete", key] => return self.open_txn().delete(&data::bytes(key)).map(|there| there.to_string()),
            ["get", key] => return Ok(value(self.open_txn().get(&data::bytes(key))?.map(data::shown))),
            ["eventual"] => self.open_txn().set_durability(Durability::Eventual),
            ["commit"] => return self.txn.take().expect("begun").commit().map(|seq| seq.to_string()),
            _ => panic!("txn {order:?}"),
        }
        Ok("ok".into())
    }

    fn open_txn(&mut self) -> &mut WriteTxn<'db> {
        self.txn.as_mut().expect("a transaction was begun")
    }

    /// A snapshot that stays open from order to order.
    fn snapshot(&mut self, order: &str, name: &str, key: &[&str]) -> Result<String> {
        match (order, key) {
            ("begin", []) => {
                let snapshot = self.db.begin_read()?;
                let seq = snapshot.seq().to_string();
                self.snapshots.insert(name.into(), snapshot);
                Ok(seq)
            }
            ("get", [key]) => Ok(value(self.snapshots[name].get(&data::bytes(key))?.map(data::shown))),
            ("scan", []) => digest(&self.snapshots[name]),
            ("end", []) => Ok(self.snapshots.remove(name).map_or("none".into(), ok)),
            _ => panic!("snapshot {order} {name} {key:?}"),
        }
    }

    fn check(&self) -> Result<String> {
        let faults = self.db.check(true)?;
        let mut answer = if faults.is_empty() { "clean".to_string() } else { "faults:".to_string() };
        for fault in faults {
            answer.push_str(&format!(" at {}: {};", fault.offset, fault.what));
        }
        Ok(answer)
    }

    fn stats(&self) -> Result<String> {
        let stats = self.db.stats()?;
        Ok(format!(
            "file_bytes={} live_keys={} free_bytes={} log_bytes={} index_pages={} index_bytes={} segments={} \
             mapped_bytes={} horizon={} applied={} visible={} durable={} checkpoint={}",
            stats.file_bytes,
            stats.live_keys,
            stats.free_bytes,
            stats.log_bytes,
            stats.index_pages,
            stats.index_bytes,
            stats.segments,
            stats.mapped_bytes,
            stats.horizon,
            stats.seq.applied,
            stats.seq.visible,
            stats.seq.durable,
            stats.seq.checkpoint
        ))
    }

    /// Pid, command, life and pinned seqs of every process that is listed.
    fn processes(&self) -> Result<String> {
        let mut answer = "processes:".to_string();
        for process in self.db.processes()? {
            let pins: Vec<u64> = process.pins.iter().map(|pin| pin.seq).collect();
            let alive = if process.alive { "alive" } else { "dead" };
            let pid = process.pid.map_or_else(|| "-".to_string(), |pid| pid.to_string());
            let command = process.command.unwrap_or_default();
            answer.push_str(&format!(" {pid}({command}) {alive} pins={pins:?}"));
        }
        Ok(answer)
    }
}

fn ok<T>(_: T) -> String {
    "ok".into()
}

fn value(shown: Option<String>) -> String {
    shown.unwrap_or_else(|| "none".into())
}

/// The digest of a snapshot.
pub fn digest(snapshot: &ReadTxn<'_>) -> Result<String> {
    let mut digest = Digest::default();
    for pair in snapshot {
        let (key, value) = pair?;
        digest.add(key, value);
    }
    Ok(digest.to_string())
}
