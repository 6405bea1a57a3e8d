//! Read-only processes: beside writers, alone, and alone while writers come.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::started;
use super::support::model::Model;
use super::support::{Agent, Place};

#[test]
fn a_read_only_process_sees_what_others_commit() {
    let place = Place::in_memory();
    let mut writer = started(&place, "");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    reader.says("get key", "value");
    writer.well("snapshot begin old");
    reader.well("snapshot begin old");
    for n in 0..50 {
        writer.ok(&format!("put key {n}"));
        reader.says("get key", &n.to_string());
        writer.ok(&format!("put new{n} _"));
        reader.says(&format!("get new{n}"), "_");
    }
    for agent in [&mut writer, &mut reader] {
        agent.says("snapshot get old key", "value");
        agent.says("snapshot get old new7", "none");
    }
    for order in ["put a b", "delete a", "txn begin", "checkpoint", "sync"] {
        reader.fails(order, "ReadOnly");
    }
    // The one who wrote goes; the reader stays, and sees what the next one writes.
    writer.ok("close");
    reader.says("get key", "49");
    let mut next = Agent::open("next", &place.store(), "");
    next.ok("put key next");
    reader.says("get key", "next");
    reader.says("snapshot get old key", "value");
}

/// Locks of one open file merge, so a reader's second look must not give up what its snapshot holds.
#[test]
fn a_read_only_snapshot_holds_its_space_whatever_else_the_reader_does() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536 eventual");
    let mut model = Model::default();
    model.tell(&mut writer, "fill k 0 500 300");
    writer.ok("sync");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    reader.well("snapshot begin held");
    reader.well("snapshot begin other");
    reader.ok("snapshot end other");
    reader.well("get k7");
    let then = model.digest();
    for round in 0..10 {
        for n in 0..500 {
            model.tell(&mut writer, &format!("put k{n} ~{}.{round}", 300 + round));
        }
        writer.ok("checkpoint");
        reader.says("snapshot scan held", &then);
    }
    reader.says("scan", &model.digest());
}

/// A reader among writers counts as one of those who share the words: when all writers are gone, the next one does not
/// recover, and so forget its snapshot.
#[test]
fn a_read_only_snapshot_outlives_the_writers() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536 eventual");
    let mut model = Model::default();
    model.tell(&mut writer, "fill k 0 500 300");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    reader.well("snapshot begin held");
    let then = model.digest();
    for life in 0..3 {
        for round in 0..5 {
            for n in 0..500 {
                model.tell(&mut writer, &format!("put k{n} ~{}.{life}{round}", 300 + round));
            }
            writer.ok("checkpoint");
            reader.says("snapshot scan held", &then);
        }
        writer.kill();
        writer = Agent::open("next writer", &place.store(), "eventual");
    }
    reader.says("scan", &model.digest());
}

/// Length, times and content of a file.
fn picture(place: &Place) -> (u64, i64, i64, u32) {
    let meta = fs::metadata(place.store()).expect("the store is there");
    let bytes = fs::read(place.store()).expect("the store can be read");
    (meta.len(), meta.mtime(), meta.mtime_nsec(), crc32fast::hash(&bytes))
}

#[test]
fn reading_alone_leaves_every_byte_as_it_was() {
    for (clean, durability) in [(true, "immediate"), (false, "immediate"), (false, "eventual")] {
        let place = Place::in_memory();
        let mut model = Model::default();
        let mut writers: Vec<Agent> = (0..2)
            .map(|n| Agent::open(&format!("writer {n}"), &place.store(), "create extent=65536 checkpoint=50000"))
            .collect();
        for n in 0..60 {
            let batch = format!("batch {durability} k{}=~{}.{n} once{n}=_ -once{}", n % 7, 100 * (n % 20), n / 2);
            model.tell(&mut writers[n % 2], &batch);
        }
        for writer in &mut writers {
            if clean {
                writer.ok("close");
            } else {
                writer.kill();
            }
        }
        let before = picture(&place);
        let mut reader = Agent::open("reader", &place.store(), "ro");
        let mut another = Agent::open("another reader", &place.store(), "ro");
        for reader in [&mut reader, &mut another] {
            model.is_in(reader);
            reader.fails("put a b", "ReadOnly");
        }
        assert_eq!(picture(&place), before, "clean: {clean}, {durability}");
        reader.ok("close");
        another.kill();
        assert_eq!(picture(&place), before, "clean: {clean}, {durability}");
        // A file that may not be written to can be read all the same.
        fs::set_permissions(place.store(), fs::Permissions::from_mode(0o444)).expect("it is ours");
        reader.reopen(&place.store(), "ro");
        model.is_in(&mut reader);
        reader.ok("close");
        assert_eq!(picture(&place), before);
    }
}

/// Somebody who reads alone is not disturbed by those who write later.
#[test]
fn one_who_reads_alone_keeps_what_was_there() {
    for clean in [true, false] {
        let place = Place::in_memory();
        let mut model = Model::default();
        let mut writer = Agent::open("writer", &place.store(), "create extent=65536 eventual");
        model.tell(&mut writer, "fill k 0 400 300");
        if clean {
            writer.ok("checkpoint");
        }
        writer.kill();
        let mut reader = Agent::open("reader", &place.store(), "ro");
        let then = model.digest();
        reader.says("scan", &then);
        // The second writer recovers from a checkpoint that does not name what the reader uses.
        for life in 0..2 {
            let mut writer = Agent::open("later writer", &place.store(), "eventual");
            for round in 0..10 {
                for n in 0..400 {
                    model.tell(&mut writer, &format!("put k{n} ~{}.{life}{round}", 300 + round));
                }
                writer.ok("checkpoint");
                reader.says("scan", &then);
            }
            writer.kill();
        }
        reader.is_clean();
        reader.ok("close");
        reader.reopen(&place.store(), "ro");
        model.is_in(&mut reader);
    }
}
