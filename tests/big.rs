//! The largest and the smallest keys and values.

mod support;

use support::common::number;
use support::{Agent, Place};

/// The large value: 300 MiB, with SLOTDB_BIG=1 as much as 3 GiB.
fn large() -> u64 {
    if number("SLOTDB_BIG", 0) == 0 { 300 << 20 } else { 3 << 30 }
}

#[test]
fn a_large_value_is_read_from_the_map_by_another_process() {
    let place = Place::on_disk();
    let len = large();
    let mut writer = Agent::open("writer", &place.store(), "create");
    let mut reader = Agent::open("reader", &place.store(), "ro reserve=1000000");
    for agent in [&writer, &reader] {
        agent.patient(900);
    }
    writer.ok("put small before");
    writer.ok(&format!("put large ~{len}.1"));
    reader.says(&format!("matches large ~{len}.1"), "true");
    let shown = reader.well("borrow large");
    assert!(shown.starts_with(&format!("#{len}:")), "{shown}");

    // What was borrowed stays, though the key has another value by now.
    writer.ok("put large small");
    reader.says("get large", "small");
    writer.ok("checkpoint");
    reader.says("release", &shown);

    writer.ok(&format!("put large ~{len}.2"));
    writer.is_clean();
    writer.kill();
    reader.says(&format!("matches large ~{len}.2"), "true");
    reader.ok("close");
    // Nobody has it open and nobody closed it: recovery checks each byte of it.
    for options in ["ro", "", ""] {
        reader.reopen(&place.store(), options);
        reader.says(&format!("matches large ~{len}.2"), "true");
        reader.says("get small", "before");
        reader.says("len", "2");
        reader.ok("close");
    }
}

#[test]
fn a_key_of_the_greatest_length() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    writer.ok("put ~65535.1 value");
    writer.ok("put ~65535.2 ~100000.3");
    writer.ok("put ~65534.1 shorter");
    let error = writer.fails("put ~65536.1 value", "KeyTooLong");
    assert!(error.contains("65536") && error.contains("65535"), "{error}");
    writer.ok("txn begin");
    writer.fails("txn put ~65536.1 value", "KeyTooLong");
    writer.ok("txn put after it_goes_on");
    writer.well("txn commit");
    for agent in [&mut writer, &mut reader] {
        agent.says("get ~65535.1", "value");
        agent.says("matches ~65535.2 ~100000.3", "true");
        agent.says("get ~65534.1", "shorter");
        agent.says("get ~65536.1", "none");
        agent.says("get after", "it_goes_on");
        agent.says("len", "4");
        agent.is_clean();
    }
    writer.says("delete ~65536.1", "false");
    writer.says("delete ~65535.1", "true");
    writer.kill();
    reader.ok("close");
    for options in ["ro", ""] {
        reader.reopen(&place.store(), options);
        reader.says("get ~65535.1", "none");
        reader.says("matches ~65535.2 ~100000.3", "true");
        reader.says("len", "3");
        reader.is_clean();
        reader.ok("close");
    }
}

#[test]
fn the_empty_key_and_the_empty_value() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    writer.says("get _", "none");
    writer.says("delete _", "false");
    writer.ok("put _ of_the_empty_key");
    writer.ok("put key _");
    for agent in [&mut writer, &mut reader] {
        agent.says("get _", "of_the_empty_key");
        agent.says("get key", "_");
        agent.says("len", "2");
        agent.says("borrow key", "_");
        agent.says("release", "_");
    }
    writer.ok("put _ _");
    reader.says("get _", "_");
    writer.kill();
    reader.ok("close");
    reader.reopen(&place.store(), "");
    reader.says("get _", "_");
    reader.says("delete _", "true");
    reader.says("get _", "none");
    reader.says("get key", "_");
    reader.is_clean();
}
