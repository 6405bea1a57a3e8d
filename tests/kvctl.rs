//! The contract of the command line, pinned with the built binary: bytes on stdout, exit codes,
//! what is said on stderr.

#![cfg(feature = "cli")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use slotdb::Db;
use tempfile::TempDir;

const KVCTL: &str = env!("CARGO_BIN_EXE_kvctl");

/// A directory of its own for each test; commands run inside.
struct Sandbox(TempDir);

/// How a command ended.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Sandbox {
    fn new() -> Sandbox {
        Sandbox(TempDir::new().expect("a temporary directory"))
    }

    /// With `app.db`, which holds these pairs.
    fn with(pairs: &[(&str, &str)]) -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.run(&["create", "app.db"]).prints("");
        for (key, value) in pairs {
            sandbox.run(&["put", "app.db", key, value]).prints("");
        }
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("the sandbox is writable");
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(KVCTL);
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env_remove("NO_COLOR");
        command
    }

    fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Run {
        Run::of(self.command(args))
    }

    fn feed<A: AsRef<OsStr>>(&self, args: &[A], input: impl AsRef<[u8]>) -> Run {
        self.write(".stdin", input);
        let input = File::open(self.path(".stdin")).expect("the input was just written");
        let mut command = self.command(args);
        command.stdin(input);
        Run::of(command)
    }

    /// A shell line in which `kvctl` is the tool under test.
    fn shell(&self, line: &str) -> Run {
        let bin = Path::new(KVCTL).parent().expect("the binary is in a directory");
        let path = std::env::var("PATH").expect("there is a PATH");
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", bin.display()));
        Run::of(command)
    }

    fn db(&self) -> Db {
        Db::open(self.path("app.db")).expect("the store opens")
    }
}

impl Run {
    fn of(mut command: Command) -> Run {
        let Output { status, stdout, stderr } = command.output().expect("the command starts");
        let err = String::from_utf8_lossy(&stderr).into_owned();
        Run { code: status.code(), out: stdout, err }
    }

    /// Success, and exactly this on stdout.
    #[track_caller]
    fn prints(&self, out: impl AsRef<[u8]>) {
        self.ends(0, out);
    }

    #[track_caller]
    fn ends(&self, code: i32, out: impl AsRef<[u8]>) {
        let out = out.as_ref();
        assert!(self.out == out, "expected {:?} in {self:?}", out.escape_ascii().to_string());
        assert_eq!(self.code, Some(code), "{self:?}");
    }

    /// Nothing on stdout, this code, and stderr contains the text.
    #[track_caller]
    fn fails(&self, code: i32, text: &str) {
        self.ends(code, "");
        assert!(self.err.contains(text), "expected {text:?} in {self:?}");
    }

    #[track_caller]
    fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(0), "{self:?}");
        let text = str::from_utf8(&self.out).expect("text on stdout");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.out.last(), Some(&b'\n'), "{self:?}");
        serde_json::from_slice(&self.out).expect("one JSON document on stdout")
    }
}

fn every_byte() -> Vec<u8> {
    (0..=255).collect()
}

#[test]
fn data_verbs() {
    let it = Sandbox::new();
    it.run(&["create", "app.db", "--extent-size", "64K", "--max-size", "1G"]).prints("");
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
        &["demo", "--seconds", "0"],
        &["demo", "--no-create"],
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

const VERBS: [&str; 16] = [
    "create",
    "put",
    "get",
    "del",
    "count",
    "scan",
    "stat",
    "who",
    "check",
    "checkpoint",
    "sync",
    "dump",
    "load",
    "demo",
    "completions",
    "man",
];

#[test]
fn help_lists_every_verb() {
    let it = Sandbox::new();
    let help = it.run(&["--help"]);
    let text = String::from_utf8_lossy(&help.out);
    let commands = text.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let listed: Vec<&str> = commands
        .expect("a list of commands")
        .lines()
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, VERBS);
}

#[test]
fn the_examples_in_help_work() {
    for verb in VERBS {
        let it = Sandbox::with(&[("greeting", "hello"), ("user:1", "Ada")]);
        let help = it.run(&[verb, "--help"]);
        let text = String::from_utf8_lossy(&help.out);
        let example = text.split("Example:\n").nth(1).expect(verb).trim();
        assert!(example.starts_with(&format!("kvctl {verb}")) || verb == "load", "{example}");
        assert!(!example.contains('\n'), "one example: {example}");
        let run = it.shell(example);
        assert_eq!(run.code, Some(0), "{example}: {run:?}");
        assert_eq!(run.err, "", "{example}");
    }
}

#[test]
fn completions_and_man_pages() {
    let it = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = it.run(&["completions", shell]);
        let script = String::from_utf8_lossy(&run.out);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(VERBS.iter().all(|verb| script.contains(verb)), "{shell}");
        assert!(!script.contains("agent"), "{shell}");
    }
    it.run(&["man", "some/man1"]).prints("");
    let mut pages: Vec<String> = fs::read_dir(it.path("some/man1"))
        .expect("the directory was made")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    pages.sort();
    let mut expected: Vec<String> = VERBS.iter().map(|verb| format!("kvctl-{verb}.1")).collect();
    expected.push("kvctl.1".into());
    expected.sort();
    assert_eq!(pages, expected);
    it.write("file", "");
    it.run(&["man", "file"]).fails(5, "file");
}

/// Runs with stdout and stderr on one terminal, and gives what appeared there.
fn on_a_terminal(mut command: Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
    let name = ptsname(&master, Vec::new()).expect("its name");
    let slave = || File::options().write(true).open(OsStr::from_bytes(name.to_bytes()));
    command.stdout(slave().expect("it opens")).stderr(slave().expect("it opens"));
    command.env("TERM", "xterm");
    let mut child = command.spawn().expect("kvctl starts");
    // The last copies of the other end must go, or reading never ends.
    drop(command);
    let mut shown = Vec::new();
    // Ends with an error when the last process on the terminal is gone.
    let _ = File::from(master).read_to_end(&mut shown);
    child.wait().expect("kvctl ends");
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn a_terminal_gets_newlines_and_colours() {
    let it = Sandbox::with(&[("a", "1"), ("b", "2")]);
    assert_eq!(on_a_terminal(it.command(&["get", "app.db", "a"])), "1\r\n");
    assert_eq!(on_a_terminal(it.command(&["get", "app.db", "a", "b"])), "1\r\n2\r\n");
    let check = ["check", "app.db"];
    assert_eq!(on_a_terminal(it.command(&check)), "\u{1b}[32mclean\u{1b}[0m\r\n");
    assert_eq!(on_a_terminal(it.command(&["check", "app.db", "--color=never"])), "clean\r\n");
    let mut plain = it.command(&check);
    plain.env("NO_COLOR", "1");
    assert_eq!(on_a_terminal(plain), "clean\r\n");
    let error = on_a_terminal(it.command(&["get", "none.db", "a"]));
    assert!(error.starts_with("\u{1b}[1m\u{1b}[31mkvctl:\u{1b}[0m "), "{error:?}");

    it.run(&["check", "app.db"]).prints("clean\n");
    it.run(&["check", "app.db", "--color", "always"]).prints("\u{1b}[32mclean\u{1b}[0m\n");
    let mut plain = it.command(&["check", "app.db", "--color", "always"]);
    plain.env("NO_COLOR", "1");
    Run::of(plain).prints("clean\n");
}

#[test]
fn the_demo_verifies() {
    let it = Sandbox::with(&[("mine", "stays")]);
    let run = it.run(&["demo", "app.db", "--seconds", "1", "--json"]);
    assert_eq!((run.code, &*run.err), (Some(0), ""), "{run:?}");
    let report = run.json();
    assert_eq!(report["verified"], true);
    for count in ["kills", "commits_acknowledged", "gets", "snapshots_verified"] {
        assert_ne!(report[count], 0, "{count} in {report}");
    }
    assert!(report["writers"].as_u64() >= Some(2) && report["readers"].as_u64() >= Some(2));
    it.run(&["get", "app.db", "mine"]).prints("stays");
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");

    let run = it.run(&["demo", "app.db", "--seconds", "1"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.lines().iter().any(|line| line.starts_with("verified")), "{run:?}");
}

#[test]
fn nothing_outlives_the_demo() {
    let it = Sandbox::new();
    let temporary = it.path("tmp");
    fs::create_dir(&temporary).expect("the sandbox is writable");
    for signal in ["-KILL", "-TERM"] {
        let mut command = it.command(&["demo", "--seconds", "600"]);
        command.env("TMPDIR", &temporary).stderr(Stdio::piped());
        let mut demo = command.spawn().expect("kvctl starts");
        let agents = wait_for(|| {
            let agents = children(&demo);
            (agents.len() >= 4).then_some(agents)
        });
        let kill = Command::new("kill").args([signal, &demo.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        let status = demo.wait().expect("it was killed");
        wait_for(|| agents.iter().all(|agent| !is_running(agent)).then_some(()));
        if signal == "-TERM" {
            assert_eq!(status.code(), Some(5), "an interrupt is a failure");
            let left = fs::read_dir(&temporary).expect("it is a directory").count();
            assert_eq!(left, 0, "the temporary store is removed");
        }
        // What the killed one could not remove.
        fs::remove_dir_all(&temporary).expect("the sandbox is writable");
        fs::create_dir(&temporary).expect("the sandbox is writable");
    }
}

/// Looks again and again, for a minute at most.
fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain");
}

/// State and parent of a process: the third and fourth field, behind the command in brackets.
fn state_and_parent(process: &str) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.into(), fields.next()?.parse().ok()?))
}

fn children(parent: &Child) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let names = processes.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| state_and_parent(name).is_some_and(|(_, of)| of == parent.id())).collect()
}

fn is_running(process: &str) -> bool {
    state_and_parent(process).is_some_and(|(state, _)| state != "Z")
}
