//! Putting, getting, deleting, scanning; how bytes are written down.

use crate::sandbox::{Sandbox, every_byte};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn data_verbs() {
    let it = Sandbox::new();
    it.run(&["create", "app.db", "--extent-size", "64K", "--max-size", "1G"]).prints("");
    assert_eq!(it.run(&["stat", "app.db", "--json"]).json()["max_size"], 1 << 30);
    it.run(&["create", "app.db"]).fails(5, "app.db");
    it.run(&["count", "app.db"]).prints("0\n");
    it.run(&["scan", "app.db"]).prints("");
    it.run(&["put", "app.db", "a", "one"]).prints("");
    it.run(&["put", "app.db", "b", "two", "--eventual"]).prints("");
    it.run(&["put", "app.db", "a", "three"]).prints("");
    it.run(&["get", "app.db", "a"]).prints("three");
    it.run(&["get", "app.db", "b", "a", "b"]).prints("two\nthree\ntwo");
    it.run(&["get", "app.db", "x"]).fails(1, "absent: x");
    it.run(&["get", "app.db", "x", "--quiet"]).ends(1, "");
    it.run(&["get", "app.db", "b", "x", "a"]).ends(1, "two\nthree");
    it.run(&["count", "app.db"]).prints("2\n");
    it.run(&["del", "app.db", "a", "x"]).prints("1\n");
    it.run(&["del", "app.db", "a", "x"]).ends(1, "0\n");
    it.run(&["del", "app.db", "b", "--eventual"]).prints("1\n");
    it.run(&["count", "app.db"]).prints("0\n");
}

#[test]
fn put_creates_unless_told_not_to() {
    let it = Sandbox::new();
    it.run(&["put", "app.db", "a", "1", "--no-create"]).fails(5, "app.db");
    it.feed(&["load", "app.db", "--no-create"], "").fails(5, "app.db");
    it.run(&["demo", "app.db", "--no-create"]).fails(5, "app.db");
    it.run(&["torture", "app.db", "--no-create"]).fails(5, "app.db");
    assert!(!it.path("app.db").exists());
    it.run(&["put", "app.db", "a", "1"]).prints("");
    it.run(&["put", "app.db", "b", "2", "--no-create"]).prints("");
    it.feed(&["load", "other.db"], "").prints("0\n");
    it.run(&["count", "other.db"]).prints("0\n");
}

#[test]
fn conditional_put() {
    let it = Sandbox::with(&[("a", "1")]);
    it.run(&["put", "app.db", "a", "2", "--if-absent"]).fails(1, "not written");
    it.run(&["put", "app.db", "a", "2", "--if-absent", "--quiet"]).ends(1, "");
    it.run(&["put", "app.db", "a", "2", "--if-equals", "0"]).fails(1, "another value");
    it.run(&["put", "app.db", "b", "2", "--if-equals", ""]).fails(1, "absent");
    it.run(&["get", "app.db", "a"]).prints("1");
    it.run(&["count", "app.db"]).prints("1\n");
    it.run(&["put", "app.db", "a", "2", "--if-equals", "1"]).prints("");
    it.run(&["put", "app.db", "b", "3", "--if-absent", "--eventual"]).prints("");
    it.run(&["get", "app.db", "a", "b"]).prints("2\n3");
    let hex = ["put", "app.db", "61", "00", "--encoding", "hex", "--if-equals", "32"];
    it.run(&hex).prints("");
    it.run(&["get", "app.db", "a"]).prints("\0");
}

#[test]
fn values_come_from_arguments_stdin_and_files() {
    let it = Sandbox::with(&[]);
    it.feed(&["put", "app.db", "stdin"], every_byte()).prints("");
    it.write("value", every_byte());
    it.run(&["put", "app.db", "file", "--value-file", "value"]).prints("");
    for key in ["stdin", "file"] {
        it.run(&["get", "app.db", key]).prints(every_byte());
    }
    it.run(&["put", "app.db", "empty"]).prints("");
    it.run(&["put", "app.db", "", "empty key"]).prints("");
    it.run(&["get", "app.db", "empty"]).prints("");
    it.run(&["get", "app.db", ""]).prints("empty key");
    it.run(&["put", "app.db", "-1", "-2.5"]).prints("");
    it.run(&["put", "app.db", "--", "--key", "--value"]).prints("");
    it.run(&["get", "app.db", "--", "-1", "--key"]).prints("-2.5\n--value");
    let argument = OsStr::from_bytes(b"\xff\xc3\x28");
    it.run(&[OsStr::new("put"), OsStr::new("app.db"), argument, argument]).prints("");
    it.run(&[OsStr::new("get"), OsStr::new("app.db"), argument]).prints(argument.as_bytes());
    it.run(&["put", "app.db", "k", "--value-file", "none"]).fails(5, "none");
    it.run(&["get", "app.db", "k"]).ends(1, "");
}

#[test]
fn a_large_value() {
    let it = Sandbox::with(&[]);
    let value: Vec<u8> = every_byte().into_iter().cycle().take(5_000_003).collect();
    it.feed(&["put", "app.db", "large"], &value).prints("");
    it.run(&["get", "app.db", "large"]).prints(&value);
    it.shell("kvctl dump app.db | kvctl load copy.db && kvctl get copy.db large")
        .ends(0, [b"1\n", &value[..]].concat());
}

#[test]
fn encodings_work_both_ways() {
    let it = Sandbox::with(&[]);
    let put = |key: &str, value: &str, encoding| {
        it.run(&["put", "app.db", key, value, "--encoding", encoding]).prints("");
    };
    put("00fF", "4a", "hex");
    put("AAE=", "/w==", "base64");
    put(r"\x00\t\\", r"a\nb\xfe", "escaped");
    let raw: &[(&[u8], &[u8])] = &[(b"\x00\xff", b"J"), (b"\x00\x01", b"\xff"), (b"\x00\t\\", b"a\nb\xfe")];
    let db = it.db();
    for (key, value) in raw {
        assert_eq!(db.get(key).expect("the store reads").as_deref(), Some(*value));
    }
    drop(db);
    let get = |key: &str, encoding| it.run(&["get", "app.db", key, "--encoding", encoding]);
    get("00ff", "hex").prints("4a");
    get("AAE=", "base64").prints("/w==");
    get(r"\x00\x09\\", "escaped").prints(r"a\nb\xfe");
    let scan = |encoding| it.run(&["scan", "app.db", "--encoding", encoding]);
    assert_eq!(scan("hex").lines(), ["0001\tff", "00095c\t610a62fe", "00ff\t4a"]);
    assert_eq!(scan("base64").lines(), ["AAE=\t/w==", "AAlc\tYQpi/g==", "AP8=\tSg=="]);
    assert_eq!(scan("escaped").lines(), [r"\x00\t\\	a\nb\xfe", r"\x00\x01	\xff", r"\x00\xff	J"]);
    for (encoding, bad) in [("hex", "0"), ("hex", "zz"), ("base64", "A"), ("escaped", r"\q")] {
        it.run(&["put", "app.db", bad, "v", "--encoding", encoding]).fails(2, encoding);
        it.run(&["get", "app.db", bad, "--encoding", encoding]).fails(2, encoding);
        it.run(&["del", "app.db", bad, "--encoding", encoding]).fails(2, encoding);
        it.feed(&["put", "app.db", "", "--encoding", encoding], bad).fails(5, "stdin");
    }
    it.run(&["count", "app.db"]).prints("3\n");
}

#[test]
fn an_encoded_value_can_be_piped() {
    let it = Sandbox::with(&[]);
    it.feed(&["put", "app.db", "from"], every_byte()).prints("");
    for (encoding, key) in [("raw", "from"), ("hex", "66726f6d"), ("base64", "ZnJvbQ=="), ("escaped", "from")] {
        let copy = format!(
            "kvctl get app.db {key} --encoding {encoding} | \
             kvctl put {encoding}.db {key} --encoding {encoding}"
        );
        it.shell(&copy).prints("");
        it.run(&["get", &format!("{encoding}.db"), "from"]).prints(every_byte());
    }
}

#[test]
fn scan_selects() {
    let it = Sandbox::with(&[("u:1", "a"), ("u:2", "b"), ("v:1", "c")]);
    let scan = |args: &[&str]| it.run(&[&["scan", "app.db"], args].concat());
    assert_eq!(scan(&[]).lines(), ["u:1\ta", "u:2\tb", "v:1\tc"]);
    assert_eq!(scan(&["--prefix", "u:"]).lines(), ["u:1\ta", "u:2\tb"]);
    assert_eq!(scan(&["--keys-only"]).lines(), ["u:1", "u:2", "v:1"]);
    assert_eq!(scan(&["--limit", "2"]).lines().len(), 2);
    scan(&["--limit", "0"]).prints("");
    scan(&["--count"]).prints("3\n");
    scan(&["--count", "--prefix", "u"]).prints("2\n");
    scan(&["--count", "--limit", "1", "--prefix", "u"]).prints("1\n");
    scan(&["--prefix", "763a", "--encoding", "hex"]).prints("763a31\t63\n");
    scan(&["--prefix", "v", "--json"]).prints("{\"key\":\"v:1\",\"value\":\"c\"}\n");
    scan(&["--prefix", "v", "--json", "--keys-only"]).prints("{\"key\":\"v:1\"}\n");
    scan(&["--count", "--json"]).prints("{\"count\":3}\n");
}

#[test]
fn json_results() {
    let it = Sandbox::new();
    it.run(&["create", "app.db", "--json"]).prints("{\"created\":true}\n");
    let put = |args: &[&str]| it.run(&[&["put", "app.db", "--json"], args].concat());
    put(&["a", "1"]).prints("{\"written\":true}\n");
    put(&["a", "2", "--if-absent"]).ends(1, "{\"written\":false}\n");
    put(&["ff", "c3", "--encoding", "hex"]).prints("{\"written\":true}\n");
    let get = |args: &[&str]| it.run(&[&["get", "app.db", "--json"], args].concat());
    get(&["a"]).prints("{\"key\":\"a\",\"value\":\"1\"}\n");
    get(&["ff", "61", "--encoding", "hex"]).prints(
        "{\"key\":{\"base64\":\"/w==\"},\"value\":{\"base64\":\"ww==\"}}\n\
         {\"key\":\"a\",\"value\":\"1\"}\n",
    );
    get(&["a", "x"]).ends(1, "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"x\",\"value\":null}\n");
    it.run(&["count", "app.db", "--json"]).prints("{\"count\":2}\n");
    it.run(&["del", "app.db", "a", "--json"]).prints("{\"removed\":1}\n");
    it.run(&["del", "app.db", "a", "--json"]).ends(1, "{\"removed\":0}\n");
    it.run(&["check", "app.db", "--json"]).prints("{\"clean\":true,\"faults\":[]}\n");
    it.feed(&["load", "app.db", "--json"], "").prints("{\"loaded\":0}\n");
    for verb in ["sync", "checkpoint"] {
        let seq = it.run(&[verb, "app.db", "--json"]).json()["seq"].clone();
        assert!(seq["durable"].is_u64() && seq["checkpoint"].is_u64(), "{seq}");
        assert_eq!(seq["durable"], seq["applied"]);
    }
}
