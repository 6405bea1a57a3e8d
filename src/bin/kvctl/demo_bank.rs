//! What the demo keeps in the store, so that every loss shows: accounts whose sum never changes,
//! a counter for each writer, and a receipt for each of a writer's latest transfers.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use anyhow::{Context, anyhow, bail};
use slotdb::{Db, ReadTxn, WriteTxn};

pub const WRITERS: usize = 2;
pub const ACCOUNTS: u64 = 64;
const OPENING_BALANCE: u64 = 1_000;
pub const SUM: u64 = ACCOUNTS * OPENING_BALANCE;
/// Each receipt takes the place of the one this many transfers before.
const RECEIPTS: u64 = 1_024;

fn account_key(account: u64) -> String {
    format!("kvctl-demo/account/{account:02}")
}

fn counter_key(writer: usize) -> String {
    format!("kvctl-demo/counter/{writer}")
}

fn receipt_key(writer: usize, transfer: u64) -> String {
    format!("kvctl-demo/receipt/{writer}/{:04}", transfer % RECEIPTS)
}

fn number(key: &str, value: Option<&[u8]>) -> anyhow::Result<u64> {
    let value = value.with_context(|| format!("{key} is gone"))?;
    let text = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.with_context(|| format!("{key} holds no number"))
}

/// Opens all accounts and sets all counters to zero, in one transaction.
pub fn open_accounts(db: &Db) -> slotdb::Result<()> {
    let mut txn = db.begin_write()?;
    for account in 0..ACCOUNTS {
        let balance = OPENING_BALANCE.to_string();
        txn.put(account_key(account).as_bytes(), balance.as_bytes())?;
    }
    for writer in 0..WRITERS {
        txn.put(counter_key(writer).as_bytes(), b"0")?;
    }
    txn.commit().map(drop)
}

/// The writer's latest transfer, as the next one would find it.
pub fn latest_transfer(txn: &WriteTxn<'_>, writer: usize) -> anyhow::Result<u64> {
    let key = counter_key(writer);
    number(&key, txn.get(key.as_bytes())?)
}

/// Moves an amount between two accounts and counts it; gives the number of the transfer.
pub fn transfer(txn: &mut WriteTxn<'_>, writer: usize, dice: &mut Dice) -> anyhow::Result<u64> {
    let from = dice.below(ACCOUNTS);
    let to = (from + 1 + dice.below(ACCOUNTS - 1)) % ACCOUNTS;
    let (from, to) = (account_key(from), account_key(to));
    let balance = number(&from, txn.get(from.as_bytes())?)?;
    let other_balance = number(&to, txn.get(to.as_bytes())?)?;
    let amount = dice.below(balance + 1);
    txn.put(from.as_bytes(), (balance - amount).to_string().as_bytes())?;
    txn.put(to.as_bytes(), (other_balance + amount).to_string().as_bytes())?;

    let count = (latest_transfer(txn, writer)? + 1).to_string();
    let transfer = count.parse()?;
    txn.put(counter_key(writer).as_bytes(), count.as_bytes())?;
    txn.put(receipt_key(writer, transfer).as_bytes(), count.as_bytes())?;
    Ok(transfer)
}

/// What one snapshot holds.
pub struct Snapshot {
    pub seq: u64,
    pub counters: Vec<u64>,
    pub gets: u64,
}

/// Reads a snapshot and verifies the sum of its accounts.
pub fn read_snapshot(txn: &ReadTxn<'_>) -> anyhow::Result<Snapshot> {
    let mut sum: u64 = 0;
    for account in 0..ACCOUNTS {
        let key = account_key(account);
        let balance = number(&key, txn.get(key.as_bytes())?)?;
        sum = sum.checked_add(balance).ok_or_else(|| anyhow!("{key} holds {balance}"))?;
    }
    let seq = txn.seq();
    if sum != SUM {
        bail!("snapshot {seq}: the accounts sum up to {sum}, not to {SUM}");
    }
    let mut counters = Vec::with_capacity(WRITERS);
    for writer in 0..WRITERS {
        let key = counter_key(writer);
        counters.push(number(&key, txn.get(key.as_bytes())?)?);
    }
    Ok(Snapshot { seq, counters, gets: ACCOUNTS + WRITERS as u64 })
}

/// Verifies the receipts of a writer whose latest transfer is `latest`.
pub fn verify_receipts(txn: &ReadTxn<'_>, writer: usize, latest: u64) -> anyhow::Result<()> {
    for transfer in latest.saturating_sub(RECEIPTS - 1).max(1)..=latest {
        let key = receipt_key(writer, transfer);
        let found = number(&key, txn.get(key.as_bytes())?)?;
        if found != transfer {
            bail!("{key} is of transfer {found}, not of {transfer}");
        }
    }
    Ok(())
}

/// Random numbers, good enough to choose accounts and moments.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        // The standard library's hash seeds are random.
        Dice(RandomState::new().build_hasher().finish())
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
