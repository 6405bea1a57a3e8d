//! Instructions of single operations, which do not depend on how busy the machine is:
//!
//! ```sh
//! cargo bench --bench count --no-run      # names the program
//! valgrind --tool=callgrind PROGRAM get 100000
//! valgrind --tool=callgrind PROGRAM get 0
//! ```
//!
//! The difference of the two totals, divided by the count, is what one operation takes.

use std::hint::black_box;

use slotdb::{Db, Durability, Options};

const KEYS: u64 = 20_000;

fn key(n: u64) -> [u8; 16] {
    let low = (n % KEYS).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&low.to_le_bytes());
    key[8..].copy_from_slice(&(low ^ low >> 31).to_le_bytes());
    key
}

fn work(db: &Db, what: &str, count: u64) -> slotdb::Result<()> {
    let value = [7; 100];
    let snapshot = db.begin_read()?;
    match what {
        "get" => (0..count).try_for_each(|n| snapshot.get(&key(n)).map(|v| _ = black_box(v)))?,
        "get_with" => (0..count).try_for_each(|n| db.get_with(&key(n), |v| v[0]).map(|v| _ = black_box(v)))?,
        "get_miss" => (0..count).try_for_each(|n| snapshot.get(&key(n)[1..]).map(|v| _ = black_box(v)))?,
        "get_many16" => {
            for first in (0..count).step_by(16) {
                let keys: [_; 16] = std::array::from_fn(|n| key(first + n as u64));
                black_box(snapshot.get_many(&keys)?);
            }
        }
        "scan" => snapshot.iter().take(count as usize).try_for_each(|pair| pair.map(|pair| _ = black_box(pair)))?,
        "put" => {
            drop(snapshot);
            (0..count).try_for_each(|n| db.put(&key(n), &value))?;
        }
        "put_batch1000" => {
            drop(snapshot);
            for first in (0..count).step_by(1000) {
                let mut txn = db.begin_write()?;
                (first..first + 1000).try_for_each(|n| txn.put(&key(n), &value))?;
                txn.commit()?;
            }
        }
        other => panic!("no such operation: {other}"),
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (what, count) = match &words[..] {
        [what, count] => (what.as_str(), count.parse()?),
        _ => ("get", 100_000),
    };
    let dir = tempfile::tempdir()?;
    let mut options = Options::new();
    let db = options.create(true).durability(Durability::Eventual).open(dir.path().join("store"))?;
    (0..KEYS).try_for_each(|n| db.put(&key(n), &[7; 100]))?;
    Ok(work(&db, what, count)?)
}
