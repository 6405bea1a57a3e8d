//! Forked children: what they inherit is of no use to them, and they keep nothing from anybody.

use super::started;
use super::support::{Agent, Orphan, Place, rounds};

#[test]
fn a_forked_child_gets_errors_and_the_parent_notices_nothing() {
    let place = Place::in_memory();
    let mut parent = started(&place, "eventual");
    parent.well("snapshot begin old");
    parent.ok("txn begin");
    parent.ok("txn put key changed");
    let said = parent.well("fork leave");
    let calls = "get put begin_read begin_write len checkpoint sync stats check";
    let held = "snapshot.get snapshot.iter txn.put txn.commit";
    for call in [calls, held].iter().flat_map(|calls| calls.split(' ')) {
        assert!(said.contains(&format!(" {call}=Forked ")), "{call} in {said}");
    }
    assert!(said.contains(" close=ok ") && said.ends_with("exit=0"), "{said}");
    // The child has dropped the transaction and the snapshot, closed the handle and gone: all is still the parent's.
    let mut other = Agent::open("other", &place.store(), "timeout=100");
    other.fails("txn begin", "Timeout");
    parent.says("txn get key", "changed");
    parent.well("txn commit");
    parent.says("snapshot get old key", "value");
    other.says("get key", "changed");
    other.ok("put key again");
    parent.says("get key", "again");
    parent.ok("checkpoint");
    parent.is_clean();
}

#[test]
fn a_child_that_outlives_its_parent_keeps_none_of_its_locks() {
    for held in ["a transaction", "a snapshot", "nothing"] {
        let place = Place::in_memory();
        let mut parent = started(&place, "");
        let mut other = Agent::open("other", &place.store(), "timeout=2000");
        match held {
            "a transaction" => parent.ok("txn begin"),
            "a snapshot" => drop(parent.well("snapshot begin old")),
            _ => {}
        }
        let child = Orphan::of(&parent.well("fork stay"));
        parent.kill();
        assert!(child.is_alive());
        other.ok("put key mine");
        assert!(other.ask("processes").contains(&format!(" {}(slotdb-agent) dead", parent.pid())));
        other.ok("checkpoint");
        // Sweeping the dead is the business of whoever looks for space; a newcomer takes their place.
        let mut newcomer = Agent::open("newcomer", &place.store(), "");
        newcomer.says("get key", "mine");
        newcomer.ok("close");
        other.ok("close");
        // Nobody is attached any more, so the next one is alone and may recover.
        let mut next = Agent::open("next", &place.store(), "timeout=2000");
        next.says("get key", "mine");
        next.is_clean();
        assert!(child.is_alive());
    }
}

/// A program that a process starts inherits nothing by which it could hold a lock of it.
#[test]
fn a_program_spawned_under_the_writer_lock_holds_nothing() {
    for dies in [true, false] {
        let place = Place::in_memory();
        let mut parent = started(&place, "");
        let mut other = Agent::open("other", &place.store(), "timeout=5000");
        parent.well("snapshot begin old");
        parent.ok("txn begin");
        parent.ok("txn put key changed");
        let program = Orphan::of(&parent.well("spawn"));
        if dies {
            parent.kill();
        } else {
            parent.well("txn commit");
            parent.ok("close");
        }
        other.says("get key", if dies { "value" } else { "changed" });
        other.ok("put key mine");
        other.ok("checkpoint");
        other.is_clean();
        other.ok("close");
        // Nobody is attached any more, so the next one is alone and may recover.
        let mut next = Agent::open("next", &place.store(), "timeout=5000");
        next.says("get key", "mine");
        next.is_clean();
        assert!(program.is_alive());
    }
}

/// The threads of the parent do not exist in a child, and it must not wait for them.
#[test]
fn a_child_forked_beside_a_checkpoint_can_leave() {
    let place = Place::on_disk();
    let mut parent = Agent::open("parent", &place.store(), "create extent=65536 checkpoint=20000 eventual");
    for n in 0..rounds(30) {
        parent.well(&format!("batch k=v l=~15000.{n} m=~15000.{n}"));
        let said = parent.well("fork leave");
        assert!(said.contains(" close=ok ") && said.ends_with("exit=0"), "{said}");
    }
    parent.is_clean();
    parent.ok("close");
}
