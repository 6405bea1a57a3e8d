//! A directory to run commands in, and what came of them.

use serde_json::Value;
use slotdb::Db;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub const KVCTL: &str = env!("CARGO_BIN_EXE_kvctl");

/// A directory of its own for each test; commands run inside.
pub struct Sandbox(pub TempDir);

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        Sandbox(TempDir::new().expect("a temporary directory"))
    }

    /// With `app.db`, which holds these pairs.
    pub fn with(pairs: &[(&str, &str)]) -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.run(&["create", "app.db"]).prints("");
        for (key, value) in pairs {
            sandbox.run(&["put", "app.db", key, value]).prints("");
        }
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("the sandbox is writable");
    }

    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(KVCTL);
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env_remove("NO_COLOR");
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Run {
        Run::of(self.command(args))
    }

    pub fn feed<A: AsRef<OsStr>>(&self, args: &[A], input: impl AsRef<[u8]>) -> Run {
        self.write(".stdin", input);
        let input = File::open(self.path(".stdin")).expect("the input was just written");
        let mut command = self.command(args);
        command.stdin(input);
        Run::of(command)
    }

    /// A shell line in which `kvctl` is the tool under test.
    pub fn shell(&self, line: &str) -> Run {
        let bin = Path::new(KVCTL).parent().expect("the binary is in a directory");
        let path = std::env::var("PATH").expect("there is a PATH");
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", bin.display()));
        Run::of(command)
    }

    pub fn db(&self) -> Db {
        Db::open(self.path("app.db")).expect("the store opens")
    }
}

impl Run {
    pub fn of(mut command: Command) -> Run {
        Run::from(command.output().expect("the command starts"))
    }

    pub fn from(Output { status, stdout, stderr }: Output) -> Run {
        let err = String::from_utf8_lossy(&stderr).into_owned();
        Run { code: status.code(), out: stdout, err }
    }

    /// Success, and exactly this on stdout.
    #[track_caller]
    pub fn prints(&self, out: impl AsRef<[u8]>) {
        self.ends(0, out);
    }

    #[track_caller]
    pub fn ends(&self, code: i32, out: impl AsRef<[u8]>) {
        let out = out.as_ref();
        assert!(self.out == out, "expected {:?} in {self:?}", out.escape_ascii().to_string());
        assert_eq!(self.code, Some(code), "{self:?}");
    }

    /// Nothing on stdout, this code, and stderr contains the text.
    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        self.ends(code, "");
        assert!(self.err.contains(text), "expected {text:?} in {self:?}");
    }

    #[track_caller]
    pub fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(0), "{self:?}");
        let text = str::from_utf8(&self.out).expect("text on stdout");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.out.last(), Some(&b'\n'), "{self:?}");
        serde_json::from_slice(&self.out).expect("one JSON document on stdout")
    }
}

pub fn every_byte() -> Vec<u8> {
    (0..=255).collect()
}

/// Writes the same few keys until most of the log is dead.
pub fn overwrite(db: &Db) {
    for round in 0..40u8 {
        let mut txn = db.begin_write().expect("the lock is free");
        for key in 0..8u8 {
            txn.put(&[key], &vec![round; 64 << 10]).expect("a put");
        }
        txn.commit().expect("a commit");
    }
}
