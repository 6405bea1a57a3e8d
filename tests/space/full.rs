//! At the bound of the file: what frees space works, and once there is space again writing goes on.

use slotdb::{Error, Options};

use super::ledger::{EXTENT, Ledger, key, options};
use crate::support::seed;

fn fill(ledger: &mut Ledger, from: u64) -> u64 {
    for n in from.. {
        let value = ledger.rng.bytes(1_000);
        match ledger.db().put(&key(n), &value) {
            Ok(()) => drop(ledger.model.insert(key(n), value)),
            Err(Error::MaxSize { .. } | Error::Full { .. }) => return n,
            Err(e) => panic!("put {n}: {e}"),
        }
    }
    unreachable!("the store has a bound")
}

#[test]
fn at_its_greatest_size_a_store_can_be_compacted() {
    let mut ledger = Ledger::new(options().max_size(64 * EXTENT), seed());
    let mut end = fill(&mut ledger, 0);
    for round in 0..4 {
        ledger.db().checkpoint().unwrap();
        match ledger.db().compact(|_| true) {
            Ok(_) | Err(Error::MaxSize { .. }) => {}
            Err(e) => panic!("compact: {e}"),
        }
        ledger.is_sound();
        (0..end).filter(|n| n % 8 != round).for_each(|n| {
            if ledger.model.contains_key(&key(n)) {
                ledger.delete(n);
            }
        });
        assert!(ledger.db().compact(|_| true).unwrap());
        ledger.is_sound();
        let before = ledger.model.len();
        end = fill(&mut ledger, end);
        assert!(ledger.model.len() > before + 1_000, "round {round}: {} pairs fit", ledger.model.len() - before);
        ledger.close();
        ledger.open(&options());
        ledger.is_sound();
        end = fill(&mut ledger, end);
    }
    // The bound is of the store; whoever opens it with another one raises it for all who have it open.
    let mut raised = Options::new();
    raised.max_size(128 * EXTENT);
    ledger.close();
    ledger.open(&raised);
    let more = fill(&mut ledger, end);
    assert!(more > end + 1_000, "{} pairs fit", more - end);
    ledger.is_sound();
}

#[test]
fn each_handle_of_a_process_may_set_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = options().create(true).max_size(64 * EXTENT).open(&path).unwrap();
    assert_eq!(first.stats().unwrap().max_size, Some(64 * EXTENT));
    let other = Options::new().max_size(128 * EXTENT).open(&path).unwrap();
    assert_eq!(first.stats().unwrap().max_size, Some(128 * EXTENT));
    first.checkpoint().unwrap();
    drop((first, other));
    // Alone it reads in private memory, which the bound is not about.
    let read_only = Options::new().read_only(true).open(&path).unwrap();
    assert_eq!(read_only.stats().unwrap().max_size, Some(128 * EXTENT));
}
