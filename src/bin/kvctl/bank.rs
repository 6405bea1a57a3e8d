//! What a crew keeps in the store, so that every loss shows: accounts whose sum never changes,
//! a counter for each writer, and a receipt for each of a writer's latest transfers.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use anyhow::{Context, anyhow, bail, ensure};
use slotdb::{Db, Options, ReadTxn, WriteTxn};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const ACCOUNTS: u64 = 64;
const OPENING_BALANCE: u64 = 1_000;
const SUM: u64 = ACCOUNTS * OPENING_BALANCE;
/// Each receipt takes the place of the one this many transfers before.
const RECEIPTS: u64 = 1_024;

/// The keys of a crew, and how it opens the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    pub writers: usize,
    pub manner: Manner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As anybody would.
    Usual,
    /// With many checkpoints, so that what is rare is common.
    Harsh,
}

const CHECKPOINT: u64 = 1 << 20;
/// One of so many transfers comes with a change of all accounts.
const ROTATE: u64 = 4;

impl Bank {
    /// Accounts, counters and receipts have this before their names.
    fn prefix(self) -> &'static str {
        match self.manner {
            Manner::Usual => "kvctl-demo/",
            Manner::Harsh => "kvctl-torture/",
        }
    }

    pub fn options(self) -> Options {
        let mut options = crate::args::guarded();
        if self.manner == Manner::Harsh {
            options.checkpoint_bytes(CHECKPOINT);
        }
        options
    }

    fn account_key(self, account: u64) -> String {
        format!("{}account/{account:02}", self.prefix())
    }

    fn counter_key(self, writer: usize) -> String {
        format!("{}counter/{writer}", self.prefix())
    }

    fn receipt_key(self, writer: usize, transfer: u64) -> String {
        format!("{}receipt/{writer}/{:04}", self.prefix(), transfer % RECEIPTS)
    }

    /// Opens all accounts and sets all counters to zero, in one transaction; its seq.
    pub fn open_accounts(self, db: &Db) -> slotdb::Result<u64> {
        let mut txn = db.begin_write()?;
        for account in 0..ACCOUNTS {
            let balance = OPENING_BALANCE.to_string();
            txn.put(self.account_key(account).as_bytes(), balance.as_bytes())?;
        }
        for writer in 0..self.writers {
            txn.put(self.counter_key(writer).as_bytes(), b"0")?;
        }
        txn.commit()
    }

    /// The writer's latest transfer, as the next one would find it.
    pub fn latest_transfer(self, txn: &WriteTxn<'_>, writer: usize) -> anyhow::Result<u64> {
        let key = self.counter_key(writer);
        number(&key, txn.get(key.as_bytes())?)
    }

    /// Moves an amount between two accounts and counts it; gives the number of the transfer.
    pub fn transfer(self, txn: &mut WriteTxn<'_>, writer: usize, dice: &mut Dice) -> anyhow::Result<u64> {
        if self.manner == Manner::Harsh && dice.below(ROTATE) == 0 {
            self.rotate(txn)?;
        }
        let from = dice.below(ACCOUNTS);
        let to = (from + 1 + dice.below(ACCOUNTS - 1)) % ACCOUNTS;
        let (from, to) = (self.account_key(from), self.account_key(to));
        let balance = number(&from, txn.get(from.as_bytes())?)?;
        let other_balance = number(&to, txn.get(to.as_bytes())?)?;
        let amount = dice.below(balance + 1);
        txn.put(from.as_bytes(), (balance - amount).to_string().as_bytes())?;
        txn.put(to.as_bytes(), (other_balance + amount).to_string().as_bytes())?;

        let count = (self.latest_transfer(txn, writer)? + 1).to_string();
        let transfer = count.parse()?;
        txn.put(self.counter_key(writer).as_bytes(), count.as_bytes())?;
        txn.put(self.receipt_key(writer, transfer).as_bytes(), count.as_bytes())?;
        Ok(transfer)
    }

    /// Gives each account what the one before it had: in so large a transaction a process is likely to be killed.
    fn rotate(self, txn: &mut WriteTxn<'_>) -> anyhow::Result<()> {
        let key = self.account_key(ACCOUNTS - 1);
        let mut carried = number(&key, txn.get(key.as_bytes())?)?;
        for account in 0..ACCOUNTS {
            let key = self.account_key(account);
            let balance = number(&key, txn.get(key.as_bytes())?)?;
            txn.put(key.as_bytes(), carried.to_string().as_bytes())?;
            carried = balance;
        }
        Ok(())
    }

    /// Reads a snapshot and verifies the sum of its accounts.
    pub fn read_snapshot(self, txn: &ReadTxn<'_>) -> anyhow::Result<Snapshot> {
        let mut sum: u64 = 0;
        for account in 0..ACCOUNTS {
            let key = self.account_key(account);
            let balance = number(&key, txn.get(key.as_bytes())?)?;
            sum = sum.checked_add(balance).ok_or_else(|| anyhow!("{key} holds {balance}"))?;
        }
        let seq = txn.seq();
        if sum != SUM {
            bail!("snapshot {seq}: the accounts sum up to {sum}, not to {SUM}");
        }
        let mut counters = Vec::with_capacity(self.writers);
        for writer in 0..self.writers {
            let key = self.counter_key(writer);
            counters.push(number(&key, txn.get(key.as_bytes())?)?);
        }
        Ok(Snapshot { seq, counters, gets: ACCOUNTS + self.writers as u64 })
    }

    /// Verifies the receipts of a writer whose latest transfer is `latest`.
    fn verify_receipts(self, txn: &ReadTxn<'_>, writer: usize, latest: u64) -> anyhow::Result<()> {
        for transfer in latest.saturating_sub(RECEIPTS - 1).max(1)..=latest {
            let key = self.receipt_key(writer, transfer);
            let found = number(&key, txn.get(key.as_bytes())?)?;
            ensure!(found == transfer, "{key} is of transfer {found}, not of {transfer}");
        }
        Ok(())
    }

    /// Verifies sums, receipts and every checksum of the store.
    pub fn examine(self, db: &Db) -> anyhow::Result<Snapshot> {
        let txn = db.begin_read()?;
        let snapshot = self.read_snapshot(&txn)?;
        for (writer, &latest) in snapshot.counters.iter().enumerate() {
            self.verify_receipts(&txn, writer, latest)?;
        }
        drop(txn);
        if let Some(fault) = db.check(true)?.first() {
            bail!("offset {}: {}", fault.offset, fault.what);
        }
        Ok(snapshot)
    }
}

fn number(key: &str, value: Option<&[u8]>) -> anyhow::Result<u64> {
    let value = value.with_context(|| format!("{key} is gone"))?;
    let text = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.with_context(|| format!("{key} holds no number"))
}

/// What one snapshot holds.
pub struct Snapshot {
    pub seq: u64,
    pub counters: Vec<u64>,
    pub gets: u64,
}

/// All that is in a store, whoever put it there: pairs, and a sum over them that does not depend on their order.
pub fn digest(db: &Db) -> slotdb::Result<(u64, u64)> {
    let txn = db.begin_read()?;
    let (mut pairs, mut sum) = (0, 0u64);
    for pair in txn.iter() {
        let (key, value) = pair?;
        pairs += 1;
        sum = sum.wrapping_add(xxh3_64_with_seed(value, xxh3_64(key)));
    }
    Ok((pairs, sum))
}

/// Random numbers, good enough to choose accounts and moments.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A seed that nobody knows before.
    pub fn any_seed() -> u64 {
        // The standard library's hash seeds are random.
        RandomState::new().build_hasher().finish()
    }

    /// A seed for other dice.
    pub fn seed(&mut self) -> u64 {
        self.below(u64::MAX)
    }

    /// A number from 0 up to, not including, `bound`, which is not 0 (splitmix64).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
