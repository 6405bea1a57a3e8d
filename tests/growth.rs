//! A store grows while others read it through mappings that are too small for it.

mod support;

use support::common::number;
use support::data::{bytes, shown};
use support::model::Model;
use support::{Agent, Place, eventually, seed};

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

/// The file is sound, so a process that gets no address space for the rest of it must not speak of damage. It goes on
/// as soon as it gets some.
#[test]
fn who_cannot_follow_the_file_says_so() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create eventual extent=65536");
    let mut model = Model::default();
    model.tell(&mut writer, "fill k 0 100 1000");
    let options = ["extent=65536", "ro", "extent=65536 guard"];
    let mut others = options.map(|options| Agent::open(options, &place.store(), &format!("{options} reserve=4096")));
    for other in &mut others {
        other.says("get k7", &shown(&bytes("~1000.7")));
        other.ok("limit 8000000");
    }
    model.tell(&mut writer, "fill m 0 40 1000000");
    model.tell(&mut writer, "fill k 50 4000 100");
    for other in &mut others {
        let says_so = |order: &str, answer: String| {
            assert!(answer.starts_with("error Io: ") && answer.contains("map failed"), "{order}: {answer}");
        };
        for order in ["get m39", "scan", "check", "stats", "processes", "get m39"] {
            let answer = other.ask(order);
            says_so(order, answer);
        }
    }
    for other in [0, 2] {
        for order in ["put key value", "delete k7", "txn begin", "checkpoint", "compact", "sync", "batch immediate a=b"]
        {
            others[other].fails(order, "Io");
        }
    }
    for other in &mut others {
        other.ok("limit none");
        model.is_in(other);
    }
    model.tell(&mut others[0], "put key value");
    model.is_in(&mut writer);
    others[0].ok("checkpoint");
    others[2].ok("sync");
}

/// A leader that stands still before a step of its flush finds the file longer than its map when it goes on, and gets
/// no address space for the rest. A sync that fails is final for all, so it must not come to one.
#[test]
fn a_leader_that_cannot_follow_the_file_poisons_nobody() {
    let place = Place::in_memory();
    let options = "eventual extent=65536";
    let mut writer = Agent::open("writer", &place.store(), &format!("create {options}"));
    let mut model = Model::default();
    for step in 0.. {
        let mut leader = Agent::open("leader", &place.store(), &format!("{options} reserve=4096"));
        model.tell(&mut writer, &format!("put key {step}"));
        leader.ok("limit 2000000");
        leader.ok(&format!("stop before {step}"));
        leader.send("sync");
        let mut answer = None;
        eventually("the flush stops or is done", || {
            answer = leader.heard().next();
            answer.is_some() || leader.rests()
        });
        let is_done = answer.is_some();
        model.tell(&mut writer, &format!("fill v{step} 0 4 1000000"));
        leader.go_on();
        let answer = answer.or_else(|| leader.answer()).expect("it lives");
        assert!(answer == "ok" || answer.contains("map failed"), "before step {step}: {answer}");
        leader.well("steps 0");
        leader.ok("limit none");
        leader.ok("sync");
        model.is_in(&mut leader);
        if is_done {
            assert!(step > 3, "a flush has more steps than {step}");
            return;
        }
    }
}
