//! Dump, load, stat, who.

use crate::sandbox::{KVCTL, Run, Sandbox, every_byte, overwrite};
use serde_json::{Value, json};
use slotdb::Db;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn dump_formats_are_pinned() {
    let it = Sandbox::with(&[]);
    it.run(&["put", "app.db", "k\t\u{e4}", "a\n\r\\\"\u{1f600}"]).prints("");
    it.run(&["dump", "app.db"]).prints("{\"key\":\"k\\t\u{e4}\",\"value\":\"a\\n\\r\\\\\\\"\u{1f600}\"}\n");
    it.run(&["dump", "app.db", "--format", "tsv"]).prints("k\\t\u{e4}\ta\\n\\r\\\\\"\u{1f600}\n");
    it.run(&["del", "app.db", "k\t\u{e4}"]).prints("1\n");
    it.feed(&["put", "app.db", "k"], b"\x00\xff\xe2\x82").prints("");
    it.run(&["dump", "app.db", "--format", "jsonl"]).prints("{\"key\":\"k\",\"value\":{\"base64\":\"AP/igg==\"}}\n");
    it.run(&["dump", "app.db", "--format", "tsv"]).prints(b"k\t\x00\\xff\\xe2\\x82\n");
}

#[test]
fn dump_and_load_give_back_every_byte() {
    let it = Sandbox::with(&[("", "empty key"), ("empty value", ""), ("both\\", "\\x41\\")]);
    let db = it.db();
    let mut txn = db.begin_write().expect("the lock is free");
    for byte in 0..=255 {
        txn.put(&[byte], &[byte]).expect("a put");
        txn.put(&[b'k', byte, byte], &[0xc3, byte, b'v']).expect("a put");
    }
    txn.put(&every_byte(), &every_byte()).expect("a put");
    txn.put(b"nothing at all", b"").expect("a put");
    txn.commit().expect("a commit");
    drop(db);
    let expected = it.run(&["scan", "app.db", "--encoding", "hex"]);
    assert_eq!(expected.lines().len(), 3 + 512 + 2);
    for format in ["jsonl", "tsv"] {
        let copy = format!("{format}.db");
        let dump = it.run(&["dump", "app.db", "--format", format]);
        it.feed(&["load", &copy, "--format", format], &dump.out).prints("517\n");
        let loaded = it.run(&["scan", &copy, "--encoding", "hex"]);
        assert_eq!(loaded.lines(), expected.lines(), "{format}");
        it.run(&["check", &copy, "--deep"]).prints("clean\n");
    }
}

#[test]
fn load_takes_many_records_and_raw_bytes() {
    let it = Sandbox::new();
    let records: String = (0..2_500).map(|n| format!("key {n}\tvalue {n}\n")).collect();
    it.feed(&["load", "app.db", "--format", "tsv"], records).prints("2500\n");
    it.run(&["count", "app.db"]).prints("2500\n");
    it.run(&["get", "app.db", "key 0", "key 2499"]).prints("value 0\nvalue 2499");
    it.feed(&["load", "app.db", "--format", "tsv", "--eventual"], b"\xff\t\x00\r\n\nlast\t\xc3").prints("2\n");
    it.run(&["get", "app.db", "ff", "--encoding", "hex"]).prints("000d");
    it.run(&["get", "app.db", "last"]).prints(b"\xc3");
}

#[test]
fn load_names_a_bad_line_and_keeps_those_before() {
    let it = Sandbox::new();
    let good = |from, to| -> String { (from..to).map(|n| format!("{{\"key\":\"{n}\",\"value\":\"v\"}}\n")).collect() };
    for (bad, why) in [
        ("{\"key\":\"a\"}", "value"),
        ("{\"key\":\"a\",\"value\":\"b\",\"ttl\":5}", "ttl"),
        ("{\"key\":\"a\",\"value\":{\"base64\":\"!\"}}", "base64"),
        ("nonsense", "column 2"),
    ] {
        let input = format!("{}{bad}\n{}", good(0, 1_204), good(5_000, 5_001));
        let run = it.feed(&["load", "app.db"], input);
        run.fails(5, "line 1205");
        run.fails(5, "after loading 1204 records");
        run.fails(5, why);
        it.run(&["count", "app.db"]).prints("1204\n");
    }
    it.feed(&["load", "app.db", "--format", "tsv"], "a\tb\nno tab\n").fails(5, "line 2");
    it.feed(&["load", "app.db", "--format", "tsv"], "a\tb\tc\n").fails(5, "line 1");
    it.feed(&["load", "app.db", "--format", "tsv"], "a\\q\tb\n").fails(5, "line 1");
}

#[test]
fn stat_has_the_promised_fields() {
    let it = Sandbox::with(&[("key", "value")]);
    let stat = it.run(&["stat", "app.db", "--json"]).json();
    for field in [
        "file_bytes",
        "live_keys",
        "live_bytes",
        "dead_bytes",
        "free_bytes",
        "hole_bytes",
        "retired_bytes",
        "held_bytes",
        "disk_bytes",
        "index_bytes",
        "segments",
        "processes",
        "readers",
        "horizon",
        "log_since_checkpoint_bytes",
    ] {
        assert!(stat[field].is_u64(), "{field} in {stat}");
    }
    for field in ["applied", "visible", "durable", "checkpoint"] {
        assert!(stat["seq"][field].is_u64(), "seq.{field} in {stat}");
    }
    assert_eq!((&stat["live_keys"], &stat["live_bytes"]), (&json!(1), &json!(8)));
    let length = fs::metadata(it.path("app.db")).expect("the store is there").len();
    assert_eq!(stat["file_bytes"], length);
    let text = it.run(&["stat", "app.db"]);
    assert!(text.lines().contains(&"keys        1"), "{text:?}");
}

#[test]
fn who_names_processes_pins_and_the_writer() {
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    let snapshot = db.begin_read().expect("a snapshot");
    let txn = db.begin_write().expect("the lock is free");
    let who = it.run(&["who", "app.db", "--json"]).json();
    let processes = who["processes"].as_array().expect("a list");
    assert_eq!(processes.len(), 1, "{who}");
    let this = &processes[0];
    assert_eq!(this["pid"], std::process::id());
    assert_eq!(this["alive"], true);
    assert_eq!(this["writer"], true);
    assert!(this["command"].is_string() && this["attached_at"].is_string(), "{who}");
    assert!(this["pins"][0]["seq"].is_u64(), "{who}");
    let text = it.run(&["who", "app.db"]);
    assert!(text.lines().iter().any(|line| line.starts_with("PID ")), "{text:?}");
    drop((snapshot, txn));
}

#[test]
fn a_snapshot_shows_what_it_holds_until_it_ends() {
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    let pin = || it.run(&["who", "app.db", "--json"]).json()["processes"][0]["pins"][0].clone();
    let held = || it.run(&["stat", "app.db", "--json"]).json()["held_bytes"].as_u64();
    assert!(pin().is_null());
    let snapshot = db.begin_read().expect("a snapshot");
    overwrite(&db);
    db.checkpoint().expect("a checkpoint");
    let shown = pin();
    assert!(shown["age_seconds"].as_f64() > Some(0.0), "{shown}");
    let holds = shown["holds_bytes"].as_u64();
    assert!(holds > Some(0), "{shown}");
    assert!(held() > Some(0) && held() <= holds, "{:?} of {holds:?}", held());
    let text = it.run(&["who", "app.db"]);
    assert!(text.lines().iter().any(|line| line.contains(" s, holds ")), "{text:?}");
    // One that began after all that reads nothing old.
    drop(snapshot);
    assert!(pin().is_null());
    assert_eq!(held(), Some(0));
    let late = db.begin_read().expect("a snapshot");
    assert_eq!(pin()["holds_bytes"], 0);
    drop(late);
}

/// The pins of one process may fill more columns than a width in a format has (65,535).
#[test]
fn who_lists_as_many_snapshots_as_there_may_be() {
    const SNAPSHOTS: usize = 4_000;
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    let snapshots: Vec<_> = (0..SNAPSHOTS).map(|_| db.begin_read().expect("a snapshot")).collect();
    let text = it.run(&["who", "app.db"]);
    assert!(text.lines().iter().any(|line| line.matches("holds").count() == SNAPSHOTS), "{:?}", text.err);
    drop(snapshots);
}

/// What `who` lists of this process, and the numbers of `stat` that snapshots change. Another test's command has the
/// locks of this process too, for the moment until it has begun.
fn seen(it: &Sandbox) -> (Vec<Value>, [u64; 4]) {
    let who = it.run(&["who", "app.db", "--json"]).json();
    let stat = it.run(&["stat", "app.db", "--json"]).json();
    let number = |name: &str| stat[name].as_u64().expect("a number");
    let mut processes = who["processes"].as_array().expect("a list").clone();
    processes.retain(|process| process["pid"] == std::process::id());
    (processes, ["processes", "readers", "horizon", "held_bytes"].map(number))
}

/// A reader without write permission pins by a lock: that has an owner as far as /proc tells, and no date.
#[test]
fn a_read_only_snapshot_shows_what_it_holds_until_it_ends() {
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    let reader = Db::open_read_only(it.path("app.db")).expect("the store opens");
    let snapshots = [reader.begin_read().expect("a snapshot"), reader.begin_read().expect("a snapshot")];
    let seq = snapshots[0].seq();
    overwrite(&db);
    db.checkpoint().expect("a checkpoint");
    let late = reader.begin_read().expect("a snapshot");
    let (processes, [writers, readers, horizon, held]) = seen(&it);
    assert_eq!((processes.len(), writers, readers, horizon), (2, 1, 2, seq), "{processes:?}");
    assert!(processes[0]["number"].is_u64() && processes[0]["pins"] == json!([]), "{processes:?}");
    let shown = &processes[1];
    let command = fs::read_to_string("/proc/self/comm").expect("there is a /proc");
    assert_eq!((&shown["pid"], &shown["command"]), (&json!(std::process::id()), &json!(command.trim_end())));
    assert_eq!((&shown["alive"], &shown["writer"]), (&json!(true), &json!(false)), "{shown}");
    let pins = shown["pins"].as_array().expect("a list");
    assert_eq!((pins.len(), &pins[0]["seq"], &pins[1]["seq"]), (2, &json!(seq), &json!(late.seq())), "{shown}");
    for unknown in [&shown["number"], &shown["attached_at"], &pins[0]["since"], &pins[0]["age_seconds"]] {
        assert!(unknown.is_null(), "{shown}");
    }
    let holds = pins[0]["holds_bytes"].as_u64().expect("a number");
    assert!(held > 0 && held <= holds && pins[1]["holds_bytes"] == 0, "{held}: {shown}");
    let text = it.run(&["who", "app.db"]);
    let row = format!("{}  alive  -  ", std::process::id());
    let is_row =
        |line: &str| squeezed(line).starts_with(&squeezed(&row)) && line.contains(&format!("  {seq} (-, holds "));
    assert!(text.lines().iter().any(|line| is_row(line)), "{text:?}");
    // The handle itself knows how many it has.
    assert_eq!((reader.stats().expect("numbers").readers, reader.stats().expect("numbers").horizon), (3, seq));
    assert_eq!(reader.processes().expect("a list")[1].pins.len(), 3);
    drop((snapshots, late));
    let (processes, [writers, readers, horizon, held]) = seen(&it);
    assert_eq!((processes.len(), writers, readers, held), (1, 1, 0, 0), "{processes:?}");
    assert_eq!(horizon, db.stats().expect("numbers").seq.visible);
}

/// One space between words.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where /proc does not show the reader, its pin is there all the same.
#[test]
fn a_pin_whose_process_cannot_be_seen_is_listed_without_it() {
    let it = Sandbox::with(&[("a", "1")]);
    let _db = it.db();
    let reader = Db::open_read_only(it.path("app.db")).expect("the store opens");
    let snapshot = reader.begin_read().expect("a snapshot");
    let elsewhere = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", KVCTL]).args(args).current_dir(it.0.path());
        Run::of(command)
    };
    if elsewhere(&["stat", "app.db"]).code != Some(0) {
        eprintln!("skipped a_pin_whose_process_cannot_be_seen_is_listed_without_it: unshare is not permitted here");
        return;
    }
    let who = elsewhere(&["who", "app.db", "--json"]).json();
    let shown = &who["processes"][1];
    assert!(shown["pid"].is_null() && shown["command"].is_null(), "{who}");
    assert_eq!((&shown["alive"], &shown["pins"][0]["seq"]), (&json!(true), &json!(snapshot.seq())), "{who}");
    let text = elsewhere(&["who", "app.db"]);
    assert!(text.lines().iter().any(|line| squeezed(line).starts_with("- alive - - ")), "{text:?}");
}

/// A reader that was alone pins what was there for as long as it has the store open, whoever comes.
#[test]
fn a_reader_that_was_alone_is_listed_too() {
    let it = Sandbox::with(&[("a", "1")]);
    let reader = Db::open_read_only(it.path("app.db")).expect("the store opens");
    let (alone, [_, readers, ..]) = seen(&it);
    assert_eq!((alone.len(), readers), (1, 1), "{alone:?}");
    assert_eq!(alone[0]["pid"], std::process::id());
    assert_eq!((reader.processes().expect("a list").len(), reader.stats().expect("numbers").readers), (0, 0));
    let db = it.db();
    overwrite(&db);
    db.checkpoint().expect("a checkpoint");
    let (beside, [_, readers, horizon, held]) = seen(&it);
    assert_eq!((beside.len(), readers, &beside[1]["pins"][0]["seq"]), (2, 1, &json!(horizon)), "{beside:?}");
    assert!(held > 0 && horizon < db.stats().expect("numbers").seq.visible);
    drop(reader);
    let (after, [_, readers, _, held]) = seen(&it);
    assert_eq!((after.len(), readers, held), (1, 0, 0), "{after:?}");
}

#[test]
fn reading_verbs_change_nothing() {
    let it = Sandbox::with(&[("a", "1"), ("b", "2")]);
    let before = fs::read(it.path("app.db")).expect("the store reads");
    let read_only = Permissions::from_mode(0o444);
    fs::set_permissions(it.path("app.db"), read_only).expect("the file is ours");
    for args in [
        &["get", "app.db", "a"][..],
        &["scan", "app.db"],
        &["count", "app.db"],
        &["stat", "app.db"],
        &["who", "app.db"],
        &["check", "app.db", "--deep"],
        &["dump", "app.db"],
    ] {
        let run = it.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
        assert!(fs::read(it.path("app.db")).expect("the store reads") == before, "{args:?}");
    }
}

#[test]
fn checkpoint_and_sync_are_silent() {
    let it = Sandbox::with(&[]);
    it.run(&["put", "app.db", "a", "1", "--eventual"]).prints("");
    it.run(&["sync", "app.db"]).prints("");
    it.run(&["checkpoint", "app.db"]).prints("");
    it.run(&["get", "app.db", "a"]).prints("1");
}
