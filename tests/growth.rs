//! A store grows while others read it through mappings that are too small for it.

mod support;

use support::common::number;
use support::data::{bytes, shown};
use support::{Agent, Place, seed};

/// Bytes of a value.
const VALUE: usize = 1 << 20;
/// Address space that readers reserve at first.
const RESERVE: u64 = 64 << 20;

/// SLOTDB_GROW sets to how many bytes the file grows; 512 MiB by default, 2 GiB before a release.
#[test]
fn readers_follow_a_file_that_outgrows_their_mappings() {
    let target = number("SLOTDB_GROW", 512 << 20);
    let place = Place::on_disk();
    let mut writer = Agent::open("writer", &place.store(), &format!("create eventual reserve={RESERVE}"));
    writer.ok(&format!("put first ~{VALUE}.8"));
    let first = shown(&bytes(&format!("~{VALUE}.8")));

    let seed = seed();
    let mut readers: Vec<Agent> = ["", "ro"]
        .iter()
        .map(|options| Agent::open("reader", &place.store(), &format!("{options} reserve={RESERVE}")))
        .collect();
    for (n, reader) in readers.iter_mut().enumerate() {
        // The slice is held while the mapping that it came from is outgrown again and again.
        reader.says("borrow first", &first);
        reader.patient(900);
        reader.send(&format!("follow {} {VALUE}", seed.wrapping_add(n as u64)));
    }
    writer.patient(900);
    let grown = writer.well(&format!("grow {target} {VALUE}"));
    for reader in &mut readers {
        let followed = reader.answer().expect("the reader lives");
        let maps = followed.strip_prefix("followed ").and_then(|rest| rest.split("maps=").nth(1)?.parse::<u64>().ok());
        let doublings = u64::from((target / RESERVE).ilog2());
        assert!(maps.is_some_and(|maps| maps > doublings), "{reader:?} with {doublings} doublings: {followed}");
        assert!(reader.stat("mapped_bytes") >= target);
        assert_eq!(reader.well("release"), first, "what was borrowed before");
        reader.is_clean();
    }
    assert!(grown.starts_with("grown "), "{grown}");
    writer.is_clean();
    let digest = writer.well("scan");
    writer.kill();
    for reader in &mut readers {
        reader.says("scan", &digest);
    }
    // One more comes with a reservation of a page.
    let mut late = Agent::open("late", &place.store(), "reserve=4096");
    late.says("scan", &digest);
    late.ok("put last _");
    readers[1].says("get last", "_");
}
