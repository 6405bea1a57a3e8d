//! The order `fork`: what a child may do with its parent's handles.

#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use nix::libc;
use slotdb::{Db, Result};

use crate::error;
use crate::session::Session;

/// Seconds after which a child ends by itself, should the test die before it has killed it.
const CHILD_LIVES: u32 = 120;

/// Who comes back from a fork.
pub enum Forked {
    /// The parent, with an answer.
    Parent(String),
    /// A child that leaves, with the way to tell its parent.
    Child(PipeWriter),
}

/// Forks. `stay`: the child lives on until it is killed; `leave`: it drops what it inherited and ends.
///
/// In the parent it answers the child's pid and what its calls came to.
pub fn fork(session: &mut Session<'_>, how: &str) -> Forked {
    let (from_child, mut to_parent) = std::io::pipe().expect("a pipe");
    // SAFETY: the child runs this thread alone, on a copy of all memory. It uses the handle that it inherited, which
    // is what this order is about, and the allocator, which is made for forks.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid != 0 {
        drop(to_parent);
        let mut from_child = BufReader::new(from_child);
        let mut answer = String::new();
        let read = from_child.read_line(&mut answer);
        if how == "leave" {
            let said = from_child.read_to_string(&mut answer);
            answer.push_str(&format!("{} {}", said.map_or("unreadable", |_| "then"), end_of(pid)));
        }
        let read = read.map_or("unreadable", |_| "says");
        return Forked::Parent(format!("child {pid} {read} {}", answer.replace('\n', " ")));
    }
    writeln!(to_parent, "{}", try_all(session)).expect("the parent reads");
    if how == "stay" {
        drop(to_parent);
        stay();
    }
    (session.txn, session.snapshots) = (None, Default::default());
    Forked::Child(to_parent)
}

/// Forks a child that tries to write, and lives on for a moment. What it could do, if anything; none also if it does
/// not say.
pub fn bystander(db: &Db) -> Option<String> {
    let (from_child, mut to_parent) = std::io::pipe().expect("a pipe");
    // SAFETY: as in `fork`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let tried = db.put(b"child", b"of a fork");
        let said = if matches!(tried, Err(slotdb::Error::Forked { .. })) { "\n" } else { "put\n" };
        let _ = to_parent.write_all(said.as_bytes());
        drop(to_parent);
        std::thread::sleep(std::time::Duration::from_millis(5));
        // SAFETY: ends this process without touching what it shares with its parent.
        unsafe { libc::_exit(0) };
    }
    drop(to_parent);
    let mut said = String::new();
    let _ = BufReader::new(from_child).read_line(&mut said);
    end_of(pid);
    Some(said.trim().to_string()).filter(|said| !said.is_empty())
}

/// Starts a program that lives on until it is killed; answers its pid.
pub fn spawn() -> String {
    let mut command = Command::new("sleep");
    let child = command.arg(CHILD_LIVES.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    format!("child {} sleeps", child.expect("there is a program sleep").id())
}

/// Starts a program that lives on for a moment, whatever becomes of this process.
pub fn spawn_briefly() {
    let mut command = Command::new("sleep");
    let child = command.arg("0.05").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    drop(child.expect("there is a program sleep"));
}

/// Tries every kind of call with what the parent had open.
fn try_all(session: &mut Session<'_>) -> String {
    let db = session.db;
    let mut tried = vec![
        ("get", db.get(b"key").map(drop)),
        ("put", db.put(b"key", b"of the child")),
        ("begin_read", db.begin_read().map(drop)),
        ("begin_write", db.begin_write().map(drop)),
        ("len", db.len().map(drop)),
        ("checkpoint", db.checkpoint()),
        ("sync", db.sync()),
        ("stats", db.stats().map(drop)),
        ("check", db.check(false).map(drop)),
    ];
    for snapshot in session.snapshots.values() {
        tried.push(("snapshot.get", snapshot.get(b"key").map(drop)));
        tried.push(("snapshot.iter", snapshot.iter().next().transpose().map(drop)));
    }
    if let Some(mut txn) = session.txn.take() {
        tried.push(("txn.put", txn.put(b"key", b"of the child")));
        tried.push(("txn.commit", txn.commit().map(drop)));
    }
    let kind = |done: Result<()>| match done {
        Ok(()) => "ok".to_string(),
        Err(e) => error(&e).split([' ', ':']).nth(1).unwrap_or_default().to_string(),
    };
    let words: Vec<String> = tried.into_iter().map(|(call, done)| format!("{call}={}", kind(done))).collect();
    words.join(" ")
}

/// Lives on until it is killed.
fn stay() -> ! {
    loop {
        // SAFETY: neither call touches memory.
        unsafe {
            libc::alarm(CHILD_LIVES);
            libc::pause();
        }
    }
}

/// Drops the inherited handle, tells what came of it, and ends.
pub fn leave(db: Db, mut parent: PipeWriter) -> ExitCode {
    let closed = db.close();
    let said = writeln!(parent, "close={}", closed.map_or_else(|e| error(&e), |()| "ok".to_string()));
    said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// Waits for a child and tells how it ended.
fn end_of(pid: libc::pid_t) -> String {
    let mut status = 0;
    // SAFETY: waits for our own child; `status` is where the answer goes.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waitpid");
    match libc::WIFEXITED(status) {
        true => format!("exit={}", libc::WEXITSTATUS(status)),
        false => format!("signal={}", libc::WTERMSIG(status)),
    }
}
