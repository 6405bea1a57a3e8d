//! Agents: real processes that obey typed orders, and the stores they share.

#![allow(dead_code, reason = "each test program uses a part")]

#[path = "../common/mod.rs"]
pub mod common;
#[path = "../agent/data.rs"]
pub mod data;
pub mod locks;
pub mod model;
pub mod trial;

use std::cell::Cell;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::libc;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// After so long without an answer an agent hangs, which is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that obeys. It is killed when it goes out of scope.
pub struct Agent {
    name: String,
    child: Child,
    /// The agent itself, which may be a child of the child.
    pid: Pid,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    patience: Cell<Duration>,
}

impl Agent {
    /// Starts a process without a store. The name is for messages.
    pub fn new(name: &str) -> Agent {
        let child = spawn(&mut Command::new(AGENT)).expect("the agent starts");
        let pid = Pid::from_child(&child);
        Agent::listen_to(name, child, pid)
    }

    /// Starts a process that is number 1 in a PID namespace of its own; none where that is not allowed.
    pub fn in_own_namespace(name: &str) -> Option<Agent> {
        let mut wrapper = Command::new("unshare");
        // It complains whenever its child was killed.
        wrapper.args(["--pid", "--fork", "--kill-child", AGENT]).stderr(Stdio::null());
        let child = spawn(&mut wrapper).ok()?;
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let wrapper = Pid::from_child(&child);
        let mut agent = Agent::listen_to(name, child, wrapper);
        // Once it has answered it has begun.
        agent.attempt("steps 0")?;
        let pid = std::fs::read_to_string(children).expect("the wrapper waits for the agent");
        agent.pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("the wrapper has one child");
        Some(agent)
    }

    fn listen_to(name: &str, mut child: Child, pid: Pid) -> Agent {
        let orders = child.stdin.take();
        let out = child.stdout.take().expect("stdout is piped");
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Agent { name: name.to_string(), child, pid, orders, answers, patience: Cell::new(PATIENCE) }
    }

    /// Starts a process and opens a store.
    pub fn open(name: &str, path: &Path, options: &str) -> Agent {
        let mut agent = Agent::new(name);
        agent.reopen(path, options);
        agent
    }

    /// Opens a store in a process that has none open.
    pub fn reopen(&mut self, path: &Path, options: &str) {
        self.ok(&format!("open {} {options}", path.display()));
    }

    /// Some work takes longer than a wait for a lock.
    pub fn patient(&self, seconds: u64) {
        self.patience.set(Duration::from_secs(seconds));
    }

    /// Gives an order and does not wait for the answer.
    pub fn send(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("the pipe is open");
        // A process that is dead already shows when its answer does not come.
        let _ = writeln!(orders, "{order}");
    }

    /// The answer to the order before; none if the process died instead.
    pub fn answer(&self) -> Option<String> {
        match self.answers.recv_timeout(self.patience.get()) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("{} hangs", self.name),
        }
    }

    /// What it has said so far, without waiting for more.
    pub fn heard(&self) -> impl Iterator<Item = String> {
        self.answers.try_iter()
    }

    /// All that one that is dead has said and nobody has listened to.
    pub fn last_words(&self) -> impl Iterator<Item = String> {
        std::iter::from_fn(|| self.answer())
    }

    /// An order and its answer.
    #[track_caller]
    pub fn ask(&mut self, order: &str) -> String {
        let answer = self.attempt(order);
        answer.unwrap_or_else(|| panic!("{} died of {order:?}", self.name))
    }

    /// An order that may be the last.
    pub fn attempt(&mut self, order: &str) -> Option<String> {
        self.send(order);
        self.answer()
    }

    /// An order that must not fail; its answer.
    #[track_caller]
    pub fn well(&mut self, order: &str) -> String {
        let answer = self.ask(order);
        let bad = ["error", "wrong", "what?", "faults"].iter().any(|word| answer.starts_with(word));
        assert!(!bad, "{}: {order}: {answer}", self.name);
        answer
    }

    /// An order whose answer must be this.
    #[track_caller]
    pub fn says(&mut self, order: &str, answer: &str) {
        let said = self.ask(order);
        assert_eq!(said, answer, "{}: {order}", self.name);
    }

    #[track_caller]
    pub fn ok(&mut self, order: &str) {
        self.says(order, "ok");
    }

    /// An order that must fail with an error of this kind; its text.
    #[track_caller]
    pub fn fails(&mut self, order: &str, kind: &str) -> String {
        let answer = self.ask(order);
        assert!(answer.starts_with(&format!("error {kind}:")), "{}: {order}: {answer}", self.name);
        answer
    }

    /// One number of `stats`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> u64 {
        let stats = self.well("stats");
        let value = stats.split(' ').find_map(|word| word.strip_prefix(&format!("{name}=")));
        value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {name} in {stats}"))
    }

    /// Everything is as it should be, checksums included.
    #[track_caller]
    pub fn is_clean(&mut self) {
        self.says("check", "clean");
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn signal(&self, signal: Signal) {
        // A process that is dead already shows when its answer does not come.
        let _ = kill_process(self.pid, signal);
    }

    /// Stops the process where it stands, unless it is dead; it still has all its locks.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        eventually("the process stops", || self.rests());
    }

    /// Whether the process is stopped, or dead.
    pub fn rests(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok();
        let state = stat.and_then(|stat| stat.rsplit(") ").next()?.chars().next());
        state.is_none_or(|state| "TZX".contains(state))
    }

    /// Lets a stopped process go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// `kill -9`; returns when the process is gone, with all its locks.
    pub fn kill(&mut self) {
        if self.child.try_wait().expect("our own child").is_none() {
            self.signal(Signal::KILL);
        }
        self.child.wait().expect("our own child");
    }

    /// Whether the process has ended, however.
    pub fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// The process has killed itself at an armed step.
    #[track_caller]
    pub fn was_killed(&mut self) {
        self.died_of(libc::SIGKILL);
    }

    /// The process was ended by this signal.
    #[track_caller]
    pub fn died_of(&mut self, signal: i32) {
        let status = self.child.wait().expect("our own child");
        assert_eq!(status.signal(), Some(signal), "{}: {status}", self.name);
    }
}

const AGENT: &str = env!("CARGO_BIN_EXE_slotdb-agent");

fn spawn(command: &mut Command) -> std::io::Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.pid())
    }
}

/// Waits for something that must come about.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A process that outlives its parent, until it goes out of scope.
pub struct Orphan(Pid);

impl Orphan {
    /// The child of which an answer to `fork stay` tells.
    pub fn of(answer: &str) -> Orphan {
        let pid = answer.strip_prefix("child ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        Orphan(pid.and_then(Pid::from_raw).unwrap_or_else(|| panic!("no pid in {answer}")))
    }

    pub fn is_alive(&self) -> bool {
        rustix::process::test_kill_process(self.0).is_ok()
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        // It waits for nothing but this signal, so the pid is still its own.
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// A directory with room for a store.
pub struct Place(TempDir);

impl Place {
    /// On the disk.
    pub fn on_disk() -> Place {
        Place(tempfile::tempdir().expect("a temporary directory"))
    }

    /// In memory if possible: where processes die and the power stays on, flushes only cost time.
    pub fn in_memory() -> Place {
        Place(common::fast_dir())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }
}

/// The seed of a test: from SLOTDB_SEED, or new; printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed = common::number("SLOTDB_SEED", now);
    eprintln!("SLOTDB_SEED={seed}");
    seed
}

/// How often a random test is repeated: SLOTDB_ROUNDS, or so many times.
pub fn rounds(default: u64) -> u64 {
    common::number("SLOTDB_ROUNDS", default)
}
