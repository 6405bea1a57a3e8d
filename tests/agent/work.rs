//! Work that an agent does on its own while others do theirs.
//!
//! A broken promise is an answer that begins with `wrong`.

use std::collections::{BTreeMap, BTreeSet};

use slotdb::{Db, Durability, ReadTxn, Result, WriteTxn};

use crate::common::Rng;
use crate::data;
use crate::options::number;
use crate::storm;

/// Accounts `acct0`, `acct1`, ... and what they hold together.
const ACCOUNTS: u64 = 16;
pub const TOTAL: u64 = 16_000;

/// Orders for work.
pub fn obey(db: &Db, words: &[&str]) -> Result<String> {
    match *words {
        ["endow"] => endow(db),
        ["transfer", me, seed, count] => transfer(db, me, number(seed), number(count)),
        ["watch", ref writers @ ..] => told(watch(db, writers)?),
        ["group", prefix, threads, count] => group(db, prefix, number(threads), number(count)),
        ["grow", bytes, len] => grow(db, number(bytes), number(len)),
        ["storm", ref words @ ..] => told(storm::storm(db, words)?),
        ["recall", ref keys @ ..] => told(storm::recall(db, keys)?),
        ["follow", seed, len] => told(follow(db, number(seed), number(len))?),
        _ => Ok(format!("what? {words:?}")),
    }
}

fn told(judged: Result<String, String>) -> Result<String> {
    Ok(judged.unwrap_or_else(|wrong| format!("wrong: {wrong}")))
}

/// Fails with a sentence unless a promise holds.
macro_rules! promise {
    ($holds:expr, $($sentence:tt)*) => {
        if !$holds {
            return Ok(Err(format!($($sentence)*)));
        }
    };
}
pub(crate) use promise;

fn endow(db: &Db) -> Result<String> {
    let mut txn = db.begin_write()?;
    for n in 0..ACCOUNTS {
        txn.put(&account(n), (TOTAL / ACCOUNTS).to_string().as_bytes())?;
    }
    txn.commit().map(|seq| seq.to_string())
}

fn account(n: u64) -> Vec<u8> {
    format!("acct{n}").into_bytes()
}

/// A number stored as text; nothing is 0.
fn stored(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |text| number(str::from_utf8(text).expect("numbers are text")))
}

/// Moves money about. Each commit also counts up `last:ME` and adds `log:ME:N`; in the end there is `done:ME`.
fn transfer(db: &Db, me: &str, seed: u64, count: u64) -> Result<String> {
    let mut random = Rng::new(seed);
    let last = format!("last:{me}");
    for n in 1..=count {
        let mut txn = db.begin_write()?;
        let before = stored(txn.get(last.as_bytes())?);
        if before != n - 1 {
            return Ok(format!("wrong: {last} was {before} before commit {n}"));
        }
        move_money(&mut txn, &mut random)?;
        txn.put(last.as_bytes(), n.to_string().as_bytes())?;
        txn.put(format!("log:{me}:{n}").as_bytes(), seed.to_string().as_bytes())?;
        let durable = random.one_in(8);
        txn.set_durability(if durable { Durability::Immediate } else { Durability::Eventual });
        txn.commit()?;
    }
    db.put(format!("done:{me}").as_bytes(), b"")?;
    Ok(format!("done {count}"))
}

/// Moves an amount from one account to another.
pub fn move_money(txn: &mut WriteTxn<'_>, random: &mut Rng) -> Result<()> {
    let (from, to) = (account(random.below(ACCOUNTS)), account(random.below(ACCOUNTS)));
    let amount = random.below(stored(txn.get(&from)?) + 1);
    let rest = stored(txn.get(&from)?) - amount;
    txn.put(&from, rest.to_string().as_bytes())?;
    let sum = stored(txn.get(&to)?) + amount;
    txn.put(&to, sum.to_string().as_bytes())
}

/// Looks at snapshots, each of which must make sense, until all writers are done.
fn watch(db: &Db, writers: &[&str]) -> Result<Result<String, String>> {
    let mut seen: BTreeMap<&str, u64> = writers.iter().map(|&w| (w, 0)).collect();
    let (mut seq, mut rounds) = (0, 0u64);
    loop {
        let snapshot = db.begin_read()?;
        promise!(snapshot.seq() >= seq, "a snapshot of {} after one of {seq}", snapshot.seq());
        seq = snapshot.seq();
        let sum = balances(&snapshot)?;
        promise!(sum == TOTAL || seq == 0, "accounts sum up to {sum} at {seq}");
        for (writer, seen) in &mut seen {
            let last = stored(snapshot.get(format!("last:{writer}").as_bytes())?);
            promise!(last >= *seen, "last:{writer} went back from {seen} to {last}");
            let newest = snapshot.get(format!("log:{writer}:{last}").as_bytes())?;
            promise!(last == 0 || newest.is_some(), "log:{writer}:{last} is not there at {seq}");
            let next = snapshot.get(format!("log:{writer}:{}", last + 1).as_bytes())?;
            promise!(next.is_none(), "log:{writer}:{} is there already at {seq}", last + 1);
            *seen = db.get_with(format!("last:{writer}").as_bytes(), |v| stored(Some(v)))?.unwrap_or(0);
            promise!(*seen >= last, "a later get of last:{writer} gives {seen}, the snapshot had {last}");
        }
        if rounds.is_multiple_of(16) {
            let (sum, logs) = iterated(&snapshot, writers)?;
            let lasts = writers.iter().map(|w| Ok(stored(snapshot.get(format!("last:{w}").as_bytes())?)));
            let lasts = lasts.sum::<Result<u64>>()?;
            promise!(sum == TOTAL || seq == 0, "an iteration finds {sum} on the accounts at {seq}");
            promise!(logs == lasts, "an iteration finds {logs} log entries of {lasts} at {seq}");
        }
        let again = balances(&snapshot)?;
        promise!(again == sum, "accounts sum up to {sum}, then in the same snapshot to {again}");
        rounds += 1;
        let done = |w: &&str| Ok(snapshot.get(format!("done:{w}").as_bytes())?.is_some());
        if writers.iter().map(done).collect::<Result<Vec<_>>>()?.into_iter().all(|done| done) {
            return Ok(Ok(format!("watched {rounds}")));
        }
    }
}

/// What all accounts hold together in a snapshot.
pub fn balances(snapshot: &ReadTxn<'_>) -> Result<u64> {
    (0..ACCOUNTS).map(|n| Ok(stored(snapshot.get(&account(n))?))).sum()
}

/// What an iteration finds: the sum of the accounts, and how many log entries of the writers.
pub fn iterated(snapshot: &ReadTxn<'_>, writers: &[&str]) -> Result<(u64, u64)> {
    let logs_of: Vec<String> = writers.iter().map(|writer| format!("log:{writer}:")).collect();
    let (mut sum, mut logs) = (0, 0);
    for pair in snapshot {
        let (key, value) = pair?;
        if key.starts_with(b"acct") {
            sum += stored(Some(value));
        }
        logs += u64::from(logs_of.iter().any(|log| key.starts_with(log.as_bytes())));
    }
    Ok((sum, logs))
}

/// Durable commits from several threads at once, `PREFIX:THREAD:N` each.
fn group(db: &Db, prefix: &str, threads: u64, count: u64) -> Result<String> {
    let commit_all = |thread| (0..count).try_for_each(|n| db.put(format!("{prefix}:{thread}:{n}").as_bytes(), b"x"));
    let all: Result<()> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || commit_all(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    });
    all.map(|()| format!("committed {}", threads * count))
}

/// Adds values `v0`, `v1`, ... of `len` bytes until the file has `bytes`; `count` tells how many there are, `done`
/// ends it.
fn grow(db: &Db, bytes: u64, len: u64) -> Result<String> {
    let mut count = 0;
    while db.stats()?.file_bytes < bytes {
        let mut txn = db.begin_write()?;
        txn.put(format!("v{count}").as_bytes(), &data::bytes(&format!("~{len}.{count}")))?;
        count += 1;
        txn.put(b"count", count.to_string().as_bytes())?;
        txn.commit()?;
    }
    db.put(b"done", b"")?;
    Ok(format!("grown {count}"))
}

/// Reads what `grow` adds, as it adds it; answers how many mappings that took.
fn follow(db: &Db, seed: u64, len: usize) -> Result<Result<String, String>> {
    let mut random = Rng::new(seed);
    let (mut maps, mut before, mut rounds) = (BTreeSet::new(), 0, 0u64);
    loop {
        let snapshot = db.begin_read()?;
        let count = stored(snapshot.get(b"count")?);
        promise!(count >= before, "count went back from {before} to {count}");
        before = count;
        // The newest one is where the file has just grown to.
        for n in (0..count).rev().take(1).chain((0..count.min(4)).map(|_| random.below(count))) {
            let value = snapshot.get(format!("v{n}").as_bytes())?;
            promise!(
                value.is_some_and(|v| v.len() == len && data::is_filled(v, n)),
                "v{n} of {count} is not as written"
            );
        }
        if rounds.is_multiple_of(64) {
            let values = snapshot.iter().try_fold(0, |n, pair| pair.map(|(key, _)| n + u64::from(key[0] == b'v')))?;
            promise!(values == count, "an iteration finds {values} of {count} values");
        }
        maps.insert(db.stats()?.mapped_bytes);
        rounds += 1;
        if snapshot.get(b"done")?.is_some() {
            return Ok(Ok(format!("followed rounds={rounds} maps={}", maps.len())));
        }
    }
}
