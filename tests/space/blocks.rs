//! How extents are handed out: in blocks of one sort, in segments with little left over, few for small stores.

use slotdb::{Durability, Options};

use super::ledger::Ledger;
use crate::support::common::raw::{Image, LOG, Run};
use crate::support::seed;

const BLOCK: u64 = 2 << 20;
/// Below this, blocks are mixed.
const MIXED: u64 = 8 << 20;

/// A store with extents of the usual size.
fn usual() -> Ledger {
    Ledger::new(Options::new().create(true).durability(Durability::Eventual), seed())
}

/// Bytes of an extent, and the runs of the last checkpoint.
fn runs(ledger: &Ledger) -> (u64, Vec<Run>) {
    ledger.db().checkpoint().unwrap();
    let image = Image::read(&ledger.path());
    let header = image.header();
    (header.extent, image.blob(&header).runs)
}

/// Bytes of all segments.
fn log_bytes(ledger: &Ledger) -> u64 {
    let (extent, runs) = runs(ledger);
    runs.iter().filter(|run| run.kind == LOG).map(|run| u64::from(run.run) * extent).sum()
}

#[test]
fn log_shares_no_huge_page_with_other_uses() {
    let mut ledger = usual();
    (0..250_000).for_each(|n| ledger.put(n, 200));
    (0..60_000).for_each(|n| ledger.put(2 * n, 90));
    let (extent, runs) = runs(&ledger);
    let sorts = |block: u64| {
        let inside = |run: &&Run| run.first * extent / BLOCK == block;
        let log = runs.iter().filter(inside).filter(|run| run.kind == LOG).count();
        (log, runs.iter().filter(inside).count() - log)
    };
    let blocks = MIXED / BLOCK..ledger.sizes().0 / BLOCK;
    assert!(blocks.clone().any(|n| sorts(n).0 > 0) && blocks.clone().any(|n| sorts(n).1 > 0), "{runs:?}");
    for n in blocks {
        let (log, others) = sorts(n);
        assert!(log == 0 || others == 0, "block {n}: {log} segments and {others} other runs");
    }
    // A long log goes on in whole blocks.
    let longest = runs.iter().filter(|run| run.kind == LOG).max_by_key(|run| run.run).unwrap();
    assert!(u64::from(longest.run) * extent == BLOCK && (longest.first * extent).is_multiple_of(BLOCK), "{longest:?}");
    ledger.is_sound();
}

/// One of 70,000 bytes in 131,072 would leave almost half of each segment over, and one of 1.1 million in a block.
#[test]
fn long_values_leave_little_over() {
    for len in [20_000, 45_000, 70_000, 100_000, 150_000, 300_000, 700_000, 1_100_000, 1_400_000] {
        let mut ledger = usual();
        (0..(60 << 20) / len as u64).for_each(|n| ledger.put(n, len));
        let (log, live) = (log_bytes(&ledger), ledger.live());
        assert!(log < live + live / 6, "{log} bytes of log for {live} with values of {len}");
    }
}

/// Before a log is so long that it goes on in whole blocks, its segments are as long as its records ask for.
#[test]
fn long_values_leave_little_over_in_a_short_log() {
    for len in [45_000, 70_000, 150_000] {
        let mut ledger = usual();
        (0..(10 << 20) / len as u64).for_each(|n| ledger.put(n, len));
        let (log, live) = (log_bytes(&ledger), ledger.live());
        assert!(log < live + live / 2, "{log} bytes of log for {live} with values of {len}");
    }
}

#[test]
fn a_small_store_is_a_small_file() {
    let mut ledger = usual();
    ledger.put(1, 100);
    ledger.close();
    assert!(ledger.sizes().0 < 2 << 20, "{} bytes", ledger.sizes().0);
}
