//! Exit codes.

use crate::sandbox::{Run, Sandbox};
use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

#[test]
fn wrong_usage_is_2() {
    let it = Sandbox::with(&[("a", "1")]);
    for args in [
        &[][..],
        &["frobnicate"],
        &["get"],
        &["get", "app.db"],
        &["del", "app.db"],
        &["get", "app.db", "a", "--frobnicate"],
        &["put", "app.db", "k", "v", "--if-absent", "--if-equals", "1"],
        &["put", "app.db", "k", "v", "--value-file", "app.db"],
        &["put", "app.db", "k", "v", "extra"],
        &["put", "app.db", "k", "v", "--ttl", "1s"],
        &["put", "app.db", "k", "v", "--timeout", "5"],
        &["scan", "app.db", "--limit", "x"],
        &["scan", "app.db", "--count", "--keys-only"],
        &["get", "app.db", "a", "--encoding", "rot13"],
        &["dump", "app.db", "--format", "xml"],
        &["create", "b.db", "--max-size", "1 parsec"],
        &["create", "b.db", "--max-size", "1M"],
        &["create", "b.db", "--extent-size", "3M"],
        &["demo", "--seconds", "0"],
        &["demo", "--no-create"],
        &["torture"],
        &["torture", "app.db", "--rounds", "0"],
        &["torture", "app.db", "--processes", "1"],
        &["torture", "app.db", "--rounds", "1", "--seconds", "1"],
        &["torture", "app.db", "--fs", "ext4"],
        &["torture", "app.db", "--power-cut", "--fs", "tmpfs"],
        &["completions", "tcsh"],
        &["incr", "app.db", "a"],
    ] {
        it.run(args).fails(2, "");
    }
    it.run(&["scan", "app.db"]).prints("a\t1\n");
}

#[test]
fn damage_is_3() {
    let it = Sandbox::with(&[("key", "a value to look for")]);
    it.write("foreign", "not a store, but long enough to hold a header\n".repeat(2_000));
    it.write("empty", "");
    let whole = fs::read(it.path("app.db")).expect("the store reads");
    it.write("truncated", &whole[..whole.len() / 2]);
    it.write("short", &whole[..20]);
    for file in ["foreign", "empty", "truncated", "short"] {
        for args in [
            &["get", file, "key"][..],
            &["scan", file],
            &["count", file],
            &["stat", file],
            &["who", file],
            &["dump", file],
            &["put", file, "k", "v"],
            &["del", file, "key"],
            &["sync", file],
            &["checkpoint", file],
            &["compact", file],
        ] {
            it.run(args).fails(3, file);
        }
        it.feed(&["load", file], "").fails(3, file);
        assert_eq!(it.run(&["check", file]).code, Some(3), "{file}");
    }
}

#[test]
fn check_finds_a_flipped_byte() {
    let it = Sandbox::with(&[("key", "a value to look for")]);
    it.run(&["check", "app.db"]).prints("clean\n");
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");
    // A record that recovery would replay looks like the torn end of the log; one before does not.
    it.run(&["checkpoint", "app.db"]).prints("");
    let mut bytes = fs::read(it.path("app.db")).expect("the store reads");
    let needle = b"value to look";
    let at = bytes.windows(needle.len()).position(|window| window == needle);
    bytes[at.expect("the value is in the file")] ^= 1;
    it.write("app.db", bytes);
    let run = it.run(&["check", "app.db", "--deep"]);
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.out.starts_with(b"offset "), "{run:?}");
    let report = it.run(&["check", "app.db", "--deep", "--json"]).json();
    assert_eq!(report["clean"], false);
    assert!(report["faults"][0]["offset"].is_u64() && report["faults"][0]["what"].is_string());
}

#[test]
fn a_lock_that_is_held_is_4() {
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    let txn = db.begin_write().expect("the lock is free");
    let holder = std::process::id().to_string();
    it.run(&["put", "app.db", "a", "2", "--timeout", "100ms"]).fails(4, &holder);
    it.run(&["del", "app.db", "a", "--timeout", "100ms"]).fails(4, &holder);
    let record = "{\"key\":\"a\",\"value\":\"2\"}\n";
    it.feed(&["load", "app.db", "--timeout", "100ms"], record).fails(4, &holder);
    // Readers do not wait for it.
    it.run(&["get", "app.db", "a", "--timeout", "100ms"]).prints("1");
    drop(txn);
    it.run(&["put", "app.db", "a", "2", "--timeout", "1m"]).prints("");
    assert_eq!(db.get(b"a").expect("the store reads"), Some(b"2".to_vec()));
}

#[test]
fn a_missing_store_is_5() {
    let it = Sandbox::new();
    for args in [
        &["get", "app.db", "a"][..],
        &["del", "app.db", "a"],
        &["count", "app.db"],
        &["scan", "app.db"],
        &["stat", "app.db"],
        &["who", "app.db"],
        &["check", "app.db"],
        &["checkpoint", "app.db"],
        &["compact", "app.db"],
        &["sync", "app.db"],
        &["dump", "app.db"],
        &["create", "no/such/directory/app.db"],
        &["put", "no/such/directory/app.db", "a", "1"],
    ] {
        it.run(args).fails(5, "app.db");
    }
    assert!(!it.path("app.db").exists());
}

#[test]
fn a_limit_on_files_is_5() {
    let it = Sandbox::with(&[("a", "1")]);
    it.shell("ulimit -f 100; exec kvctl put new.db a 1").fails(5, "new.db: no space");
    let names: Vec<_> = fs::read_dir(it.0.path()).expect("the sandbox is there").flatten().collect();
    assert!(names.iter().all(|name| !name.file_name().as_encoded_bytes().starts_with(b".slotdb-")), "{names:?}");
    it.run(&["get", "app.db", "a"]).prints("1");
}

#[test]
fn a_store_that_is_cut_while_it_is_printed_is_3() {
    const VALUE: usize = 32 << 10;
    let it = Sandbox::new();
    let keys: Vec<String> = (0..64).map(|n| format!("key{n}")).collect();
    let records: String = keys.iter().map(|key| format!("{key}\t{}\n", "v".repeat(VALUE))).collect();
    it.feed(&["load", "app.db", "--format", "tsv"], records).prints("64\n");
    let arguments: Vec<&str> = ["get", "app.db"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let mut command = it.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvctl starts");
    let mut out = child.stdout.take().expect("a pipe");
    // All values have been found now, and a pipe takes few of them.
    out.read_exact(&mut [0]).expect("kvctl prints");
    File::options().write(true).open(it.path("app.db")).and_then(|file| file.set_len(1 << 20)).expect("a cut");
    out.read_to_end(&mut Vec::new()).expect("kvctl prints");
    let run = Run::from(child.wait_with_output().expect("kvctl ends"));
    assert!(run.code == Some(3) && run.err.contains("truncated"), "{run:?}");
}

#[test]
fn too_long_a_key_is_5() {
    let it = Sandbox::with(&[]);
    let key = "k".repeat(65_535);
    it.run(&["put", "app.db", &key, "v"]).prints("");
    it.run(&["put", "app.db", &format!("{key}k"), "v"]).fails(5, "");
    let records = format!("a\tb\n{key}k\tv\n");
    it.feed(&["load", "app.db", "--format", "tsv"], records).fails(5, "line 2");
    it.run(&["count", "app.db"]).prints("2\n");
}

#[test]
fn a_full_stdout_is_5() {
    let it = Sandbox::with(&[("a", "1")]);
    for args in [
        &["get", "app.db", "a"][..],
        &["scan", "app.db"],
        &["count", "app.db"],
        &["dump", "app.db"],
        &["stat", "app.db"],
        &["who", "app.db"],
        &["check", "app.db"],
        &["sync", "app.db", "--json"],
        &["completions", "bash"],
        &["--help"],
        &["put", "--help"],
        &["--version"],
    ] {
        let mut command = it.command(args);
        command.stdout(File::create("/dev/full").expect("/dev/full opens"));
        Run::of(command).fails(5, "stdout");
    }
    // More than fits a buffer.
    it.feed(&["put", "app.db", "large"], vec![b'x'; 1 << 20]).prints("");
    let mut command = it.command(&["get", "app.db", "large"]);
    command.stdout(File::create("/dev/full").expect("/dev/full opens"));
    Run::of(command).fails(5, "stdout");
}

#[test]
fn a_closed_pipe_is_0() {
    let it = Sandbox::with(&[]);
    it.feed(&["put", "app.db", "large"], vec![b'x'; 1 << 20]).prints("");
    for args in [
        &["get", "app.db", "large"][..],
        &["scan", "app.db"],
        &["dump", "app.db"],
        &["get", "app.db", "large", "--json"],
        &["get", "app.db", "6c61726765", "--encoding", "hex"],
    ] {
        let mut command = it.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kvctl starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("kvctl ends");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(output.stderr, b"", "{args:?}");
    }
}
