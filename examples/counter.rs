//! Several processes count in one store: run it in as many terminals as you like, and kill any of them.
//!
//! `cargo run --release --example counter -- counter.slotdb`

use std::io::Write;

use slotdb::Db;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "counter.slotdb".into());
    let db = Db::create(path)?;
    for _ in 0..1000 {
        // One writer at a time in all processes: nobody counts in between.
        let mut txn = db.begin_write()?;
        let count = txn.get(b"count")?.and_then(|value| value.try_into().ok()).map_or(0, u64::from_le_bytes) + 1;
        txn.put(b"count", &count.to_le_bytes())?;
        txn.commit()?;
        writeln!(std::io::stdout(), "{count}")?;
    }
    Ok(())
}
