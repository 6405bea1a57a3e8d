//! A table of extents that lies behind what is in use.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::ledger::EXTENT;
use crate::support::model::Model;
use crate::support::{Agent, Place};

/// Where the shared words name the second part of the table (src/control.rs), which is for extents from this one on.
const SECOND_PART: u64 = EXTENT + 129 * 8;
const FIRST_OF_IT: u64 = 4096;
/// Values of 611 extents each: 7 of them need the second part.
const LEN: u64 = 40_000_000;
const VALUES: u64 = 7;

#[test]
fn a_compaction_keeps_the_table_for_what_is_in_use() {
    let place = Place::in_memory();
    let options = "create eventual extent=65536";
    let mut agent = Agent::open("writer", &place.store(), options);
    let mut model = Model::default();
    model.tell(&mut agent, &format!("fill v 0 {} {LEN}", VALUES + 1));
    agent.ok("close");
    // While somebody reads an older checkpoint, the table finds room only behind all that this may name.
    let mut reader = Agent::open("reader", &place.store(), "ro");
    agent.reopen(&place.store(), options);
    model.tell(&mut agent, "put key value");
    agent.ok("checkpoint");
    agent.ok("close");
    agent.reopen(&place.store(), options);
    reader.ok("close");
    model.tell(&mut agent, &format!("delete v{VALUES}"));
    agent.ok("compact");
    let mut word = [0; 8];
    File::open(place.store()).unwrap().read_exact_at(&mut word, SECOND_PART).unwrap();
    let (part, used) = (u64::from_le_bytes(word) / EXTENT, VALUES * LEN.div_ceil(EXTENT));
    assert!(used > FIRST_OF_IT && part > used + LEN / EXTENT, "a table at {part} for {used} extents");
    model.is_in(&mut agent);
    model.tell(&mut agent, &format!("fill w 0 1 {LEN}"));
    model.is_in(&mut agent);
}
