//! The order `storm`: random operations among others' random operations, each told before it begins and after it ends.
//!
//! `? N TIME OPERATIONS` announces operation N, which is one transaction over all keys it names; `! TIME RESULTS` gives
//! what came of each, or `! TIME doubt`, or `! TIME failed`. Times are those of the monotonic clock, which all
//! processes share. The moves of money that go with it are not told of: their sum is looked at.

use slotdb::{Db, Durability, Error, ReadTxn, Result, WriteTxn};

use crate::common::Rng;
use crate::data::{pad, padded};
use crate::options::number;
use crate::work::{TOTAL, balances, iterated, move_money, promise};
use crate::{fork, say};

/// A group of keys is worked on for so many operations of a process, then comes the next group: histories of keys stay
/// short, so that they can be checked.
const OPERATIONS: u64 = 10;
const KEYS: u64 = 6;
/// These keys hold one value, always: large transactions are likely to be died in.
const RING: u64 = 100;

/// `storm writer|compactor|reader ME SEED FROM TO PREFIX`
pub fn storm(db: &Db, words: &[&str]) -> Result<Result<String, String>> {
    let [role, me, seed, from, to, prefix] = *words else { panic!("storm {words:?}") };
    let mut worker = Worker { db, me: number(me), random: Rng::new(number(seed)), prefix, seq: 0 };
    for n in number(from)..number(to) {
        let told = match worker.random.below(100) {
            0..25 => worker.get(n),
            25..40 => worker.look(n),
            _ if role == "reader" => worker.get(n),
            40..48 => worker.put(n),
            48..55 => worker.delete(n),
            55..85 => worker.transact(n),
            85..95 => worker.sweep(n),
            95..97 if role == "compactor" && worker.random.one_in(4) => db.compact(|_| true).map(|_| Ok(())),
            95..97 => db.checkpoint().map(Ok),
            97..99 => db.sync().map(Ok),
            _ if worker.random.one_in(2) => worker.check(),
            _ => worker.fork(),
        };
        match told {
            Ok(Ok(())) => {}
            Ok(Err(wrong)) => return Ok(Err(wrong)),
            // A commit that waits for a stopped leader, a lock that a stopped process has.
            Err(Error::InDoubt { .. }) => say(&format!("! {} doubt", now())),
            Err(Error::Timeout { .. }) => say(&format!("! {} failed", now())),
            Err(e) => return Err(e),
        }
    }
    Ok(Ok("done".into()))
}

/// `recall KEYS`: gets them all, and tells of each.
pub fn recall(db: &Db, keys: &[&str]) -> Result<Result<String, String>> {
    for key in keys {
        say(&format!("? 0 {} get {key}", now()));
        let value = db.get_with(key.as_bytes(), padded)?;
        promise!(value != Some(None), "{key} holds bytes that nobody put there");
        say(&format!("! {} {}", now(), shown(value.flatten())));
    }
    Ok(Ok("done".into()))
}

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

struct Worker<'a> {
    db: &'a Db,
    me: u64,
    random: Rng,
    prefix: &'a str,
    /// The newest commit that was seen or made.
    seq: u64,
}

/// What is told, or a broken promise.
type Told = Result<Result<(), String>>;

impl Worker<'_> {
    /// A key of the group of operation `n`.
    fn key(&mut self, n: u64) -> String {
        format!("{}.{}.{}", self.prefix, n / OPERATIONS, self.random.below(KEYS))
    }

    fn invoke(&self, n: u64, operations: &str) {
        say(&format!("? {n} {} {operations}", now()));
    }

    fn told(results: &str) -> Told {
        say(&format!("! {} {results}", now()));
        Ok(Ok(()))
    }

    fn get(&mut self, n: u64) -> Told {
        let key = self.key(n);
        self.invoke(n, &format!("get {key}"));
        let value = self.db.get_with(key.as_bytes(), padded)?;
        promise!(value != Some(None), "{key} holds bytes that nobody put there");
        Self::told(&shown(value.flatten()))
    }

    /// A snapshot: several keys, and the sum of the accounts before and after.
    fn look(&mut self, n: u64) -> Told {
        let keys = [self.key(n), self.key(n)];
        self.invoke(n, &format!("get {} get {}", keys[0], keys[1]));
        let snapshot = self.db.begin_read()?;
        promise!(snapshot.seq() >= self.seq, "a snapshot of {} after {}", snapshot.seq(), self.seq);
        self.seq = snapshot.seq();
        let results = read(&snapshot, &keys)?;
        let sum = if self.random.one_in(16) { iterated(&snapshot, &[])?.0 } else { balances(&snapshot)? };
        promise!(sum == TOTAL, "accounts sum up to {sum} at {}", snapshot.seq());
        if self.random.one_in(2) {
            let first = snapshot.get(b"ring0")?;
            for key in ring() {
                promise!(snapshot.get(&key)? == first, "{key:?} is not as the others at {}", snapshot.seq());
            }
        }
        let again = read(&snapshot, &keys)?;
        promise!(results == again, "{keys:?} are {results}, then in the same snapshot {again}");
        Self::told(&results)
    }

    fn put(&mut self, n: u64) -> Told {
        let (key, value) = (self.key(n), self.value(n, 0));
        self.invoke(n, &format!("put {key} {value}"));
        self.db.put(key.as_bytes(), &pad(value))?;
        Self::told("ok")
    }

    fn delete(&mut self, n: u64) -> Told {
        let key = self.key(n);
        self.invoke(n, &format!("delete {key}"));
        let was = self.db.delete(key.as_bytes())?;
        Self::told(&was.to_string())
    }

    /// One to three keys in one transaction, and usually a move of money.
    fn transact(&mut self, n: u64) -> Told {
        let mut keys: Vec<String> = (0..=self.random.below(3)).map(|_| self.key(n)).collect();
        keys.sort();
        keys.dedup();
        let mut operations = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let value = self.value(n, i as u64);
            let verb = *self.random.pick(&["put", "swap", "swap", "delete"]);
            let value = if verb == "delete" { String::new() } else { value.to_string() };
            operations.push(format!("{verb} {key} {value}"));
        }
        self.invoke(n, &operations.join(" "));
        let mut txn = self.db.begin_write()?;
        let durable = self.random.one_in(3);
        txn.set_durability(if durable { Durability::Immediate } else { Durability::Eventual });
        let mut results = Vec::new();
        for operation in &operations {
            let words: Vec<&str> = operation.split_whitespace().collect();
            let result = obey(&mut txn, &words)?;
            promise!(result.is_some(), "{operation}: the key holds bytes that nobody put there");
            results.extend(result);
        }
        if !self.random.one_in(4) {
            move_money(&mut txn, &mut self.random)?;
        }
        if self.random.one_in(100) {
            // The program inherits nothing of the writer lock, which is held.
            fork::spawn_briefly();
        }
        if self.random.one_in(20) {
            drop(txn);
            say(&format!("! {} failed", now()));
            return Ok(Ok(()));
        }
        let seq = txn.commit()?;
        Self::told(&results.join(" "))?.ok();
        // Whoever begins to read now sees this commit.
        promise!(seq >= self.seq, "commit {seq} after {}", self.seq);
        self.seq = seq;
        Ok(Ok(()))
    }

    /// One value for all keys of the ring, which are not told of.
    fn sweep(&mut self, n: u64) -> Told {
        let value = pad(self.value(n, 0));
        let mut txn = self.db.begin_write()?;
        for key in ring() {
            txn.put(&key, &value)?;
        }
        move_money(&mut txn, &mut self.random)?;
        txn.set_durability(if self.random.one_in(3) { Durability::Immediate } else { Durability::Eventual });
        self.seq = txn.commit()?;
        Ok(Ok(()))
    }

    /// Beside all the others, and whoever of them has just died, nothing is wrong.
    fn check(&mut self) -> Told {
        let faults = self.db.check(true)?;
        promise!(faults.is_empty(), "{} faults, the first is {:?}", faults.len(), faults[0]);
        Ok(Ok(()))
    }

    /// A child that has all descriptors and handles, and may use none; it may outlive its parent.
    fn fork(&mut self) -> Told {
        let allowed = fork::bystander(self.db);
        promise!(allowed.is_none(), "a forked child did {allowed:?}");
        Ok(Ok(()))
    }

    /// A value that nobody else puts anywhere.
    fn value(&self, n: u64, i: u64) -> u64 {
        (self.me * 100_000 + n) * 4 + i
    }
}

fn ring() -> impl Iterator<Item = Vec<u8>> {
    (0..RING).map(|n| format!("ring{n}").into_bytes())
}

/// Obeys one operation of a transaction; none if what it finds makes no sense.
fn obey(txn: &mut WriteTxn<'_>, words: &[&str]) -> Result<Option<String>> {
    match *words {
        ["put", key, value] => txn.put(key.as_bytes(), &pad(number(value))).map(|()| Some("ok".into())),
        ["delete", key] => Ok(Some(txn.delete(key.as_bytes())?.to_string())),
        ["swap", key, value] => {
            let old = txn.get(key.as_bytes())?.map(padded);
            txn.put(key.as_bytes(), &pad(number(value)))?;
            Ok((old != Some(None)).then(|| shown(old.flatten())))
        }
        _ => panic!("no such operation: {words:?}"),
    }
}

fn read(snapshot: &ReadTxn<'_>, keys: &[String]) -> Result<String> {
    let read = |key: &String| Ok(shown(snapshot.get(key.as_bytes())?.and_then(padded)));
    Ok(keys.iter().map(read).collect::<Result<Vec<_>>>()?.join(" "))
}

fn shown(value: Option<u64>) -> String {
    value.map_or("none".into(), |value| value.to_string())
}
