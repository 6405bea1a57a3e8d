//! Compact.

use crate::sandbox::{Run, Sandbox};
use slotdb::Options;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::{fs, thread, time::Duration};

const KEPT: u64 = 120;
const VALUE: u64 = 64 << 10;

/// With a store of 60 MiB in which one of eight values is left, and none of which commits have cleaned.
fn wasteful() -> Sandbox {
    let it = Sandbox::new();
    let db = Options::new().max_dead_ratio(0.9).create(true).open(it.path("app.db")).expect("the store opens");
    let mut txn = db.begin_write().expect("the lock is free");
    for n in 0..KEPT * 8 {
        txn.put(&n.to_le_bytes(), &vec![n as u8; VALUE as usize]).expect("a put");
    }
    txn.commit().expect("a commit");
    let mut txn = db.begin_write().expect("the lock is free");
    for n in (0..KEPT * 8).filter(|n| n % 8 != 0) {
        txn.delete(&n.to_le_bytes()).expect("a delete");
    }
    txn.commit().expect("a commit");
    db.close().expect("the store closes");
    it
}

fn sizes(it: &Sandbox) -> (u64, u64) {
    let file = fs::metadata(it.path("app.db")).expect("the store is there");
    (file.len(), file.blocks() * 512)
}

#[test]
fn compact_gives_space_back_and_says_how_much() {
    let it = wasteful();
    let (file, _) = sizes(&it);
    let before = it.run(&["scan", "app.db", "--encoding", "hex"]);
    let report = it.run(&["compact", "app.db", "--json"]).json();
    let (len, disk) = sizes(&it);
    assert_eq!((&report["before"]["file_bytes"], &report["after"]["file_bytes"]), (&file.into(), &len.into()));
    assert_eq!(report["after"]["disk_bytes"], disk);
    assert!(len < file / 2 && disk < file / 2, "{report}");
    assert_eq!(report["live_bytes"], KEPT * (VALUE + 8), "{report}");
    assert_eq!(report["held_bytes"], 0, "{report}");
    assert_eq!(it.run(&["scan", "app.db", "--encoding", "hex"]).lines(), before.lines());
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");
    let text = it.run(&["compact", "app.db"]);
    assert!(text.lines()[0].starts_with("file "), "{text:?}");
}

#[test]
fn others_stay_attached_while_it_compacts() {
    let it = wasteful();
    let (_, before) = sizes(&it);
    let db = it.db();
    let snapshot = db.begin_read().expect("a snapshot");
    it.run(&["compact", "app.db"]).lines();
    assert_eq!(snapshot.get(&16u64.to_le_bytes()).expect("a read"), Some(&[16; VALUE as usize][..]));
    drop(snapshot);
    it.run(&["compact", "app.db"]).lines();
    assert!(sizes(&it).1 < before);
    db.put(b"k", b"v").expect("a put");
    it.run(&["get", "app.db", "k"]).prints("v");
}

#[test]
fn an_interrupt_ends_it_between_steps() {
    let it = wasteful();
    let db = it.db();
    let txn = db.begin_write().expect("the lock is free");
    let mut command = it.command(&["compact", "app.db"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvctl starts");
    // It has its handlers before it attaches, and waits for the lock that is held here.
    while db.processes().expect("a list").len() < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the child is there");
    drop(txn);
    Run::from(child.wait_with_output().expect("kvctl ends")).fails(5, "interrupted");
    drop(db);
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");
}

#[test]
fn a_lock_that_is_held_ends_it() {
    let it = wasteful();
    let db = it.db();
    let txn = db.begin_write().expect("the lock is free");
    it.run(&["compact", "app.db", "--timeout", "100ms"]).fails(4, "");
    drop(txn);
    it.run(&["compact", "none.db"]).fails(5, "none.db");
}
