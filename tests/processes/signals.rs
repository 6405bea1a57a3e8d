//! Signals that come in the middle of system calls.

use super::started;
use super::support::model::Model;
use super::support::{Agent, Place};

/// Orders that make every kind of call: writes, syncs, locks, waits, growth by little and by much, holes, cuts.
const ORDERS: [&str; 8] = [
    "fill k 0 200 5000",
    "put long ~30000000.1",
    "batch immediate k1=new k2=~70000.1 -k3",
    "checkpoint",
    "delete long",
    "compact",
    "sync",
    "fill m 0 50 3000",
];

#[test]
fn calls_that_a_signal_interrupts_are_made_again() {
    for place in [Place::in_memory(), Place::on_disk()] {
        let mut pestered = started(&place, "extent=65536 checkpoint=200000");
        let mut other = Agent::open("other", &place.store(), "extent=65536");
        pestered.ok("pester 500");
        other.send("fill other 0 100 3000");
        let mut model = Model::default();
        ["put key value", "fill other 0 100 3000"].iter().for_each(|order| model.keep_pace(order));
        for order in ORDERS {
            model.tell(&mut pestered, order);
        }
        assert_eq!(other.answer().as_deref(), Some("ok"));
        model.is_in(&mut pestered);
        other.ok("close");
        pestered.ok("close");
        pestered.reopen(&place.store(), "extent=65536");
        model.is_in(&mut pestered);
    }
}
