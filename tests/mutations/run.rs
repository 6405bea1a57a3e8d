//! Builds and tests a sabotaged copy of the tree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::list::Mutation;
use crate::sabotaged;

/// What is copied: all that the package is built from.
const PARTS: [&str; 9] =
    ["Cargo.toml", "Cargo.lock", "README.md", "src", "tests", "benches", "examples", "docs", "CHANGELOG.md"];
/// A test that is not done after so long, or after so many times what it takes without a sabotage, counts as red: the
/// sabotage made it wait for ever.
const PATIENCE: Duration = Duration::from_secs(180);
const TIMES: u32 = 10;
const BUILD_PATIENCE: Duration = Duration::from_secs(1800);

/// The copy, with a target directory that all runs share.
struct Bench {
    tree: PathBuf,
    target: PathBuf,
    /// How long each test may take.
    patience: BTreeMap<&'static str, Duration>,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Green,
    Red(String),
}

/// Runs sabotages one after the other, and returns the names of those that no test noticed.
pub fn run(chosen: &[&Mutation]) -> Vec<String> {
    let mut bench = Bench::new();
    let mut survivors = Vec::new();
    for mutation in chosen {
        let learnt = bench.learn(mutation.test);
        let start = Instant::now();
        let outcome = learnt.and_then(|()| bench.try_one(mutation));
        let text = match &outcome {
            Ok(how) => format!("noticed ({how})"),
            Err(why) => format!("NOT NOTICED: {why}"),
        };
        eprintln!("{:32} {:>4} s  {}  {text}", mutation.name, start.elapsed().as_secs(), mutation.test);
        if outcome.is_err() {
            survivors.push(mutation.name.to_string());
        }
    }
    eprintln!("{} of {} sabotages noticed", chosen.len() - survivors.len(), chosen.len());
    survivors
}

impl Bench {
    fn new() -> Bench {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scratch = root.join("target/mutations");
        let bench = Bench { tree: scratch.join("tree"), target: scratch.join("target"), patience: BTreeMap::new() };
        for part in PARTS {
            copy(&root.join(part), &bench.tree.join(part));
        }
        bench
    }

    /// Runs a test without a sabotage: one that is red anyway, or a name that no test has, proves nothing.
    fn learn(&mut self, test: &'static str) -> Result<(), String> {
        if self.patience.contains_key(test) {
            return Ok(());
        }
        if let Some(why) = self.build(test) {
            return Err(format!("does not build without a sabotage\n{why}"));
        }
        let start = Instant::now();
        if let End::Red(why) = self.test(test, BUILD_PATIENCE) {
            return Err(format!("red without a sabotage: {why}"));
        }
        self.patience.insert(test, PATIENCE.max(start.elapsed() * TIMES));
        Ok(())
    }

    fn try_one(&self, mutation: &Mutation) -> Result<String, String> {
        let path = self.tree.join(mutation.file);
        let text = fs::read_to_string(&path).expect("the copy has all files");
        fs::write(&path, sabotaged(mutation, &text)?).expect("the copy is ours");
        let built = self.build(mutation.test);
        let end = if built.is_none() { self.test(mutation.test, self.patience[mutation.test]) } else { End::Green };
        fs::write(&path, text).expect("the copy is ours");
        match (built, end) {
            (Some(why), _) => Err(format!("does not build\n{why}")),
            (None, End::Green) => Err(mutation.why.to_string()),
            (None, End::Red(how)) => Ok(how),
        }
    }

    /// Why it does not build, if it does not.
    fn build(&self, test: &str) -> Option<String> {
        match self.cargo(test, &["--no-run"], BUILD_PATIENCE) {
            (End::Green, _) => None,
            (End::Red(_), output) => Some(output),
        }
    }

    fn test(&self, test: &str, patience: Duration) -> End {
        match self.cargo(test, &[], patience) {
            (End::Green, output) if !output.contains(" passed") || output.contains("running 0 tests") => {
                End::Red("there is no such test".to_string())
            }
            (end, _) => end,
        }
    }

    /// `cargo test` with the words of an entry: `NAME=value` for the environment, then arguments.
    fn cargo(&self, test: &str, more: &[&str], patience: Duration) -> (End, String) {
        let mut log = tempfile::tempfile().expect("a temporary file");
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target).env("CARGO_PROFILE_DEV_DEBUG", "false");
        command.env_remove("SLOTDB_MUTATIONS").env("RUST_BACKTRACE", "0");
        command.args(["test", "--offline", "--no-default-features", "--features", "faults"]);
        for word in test.split(' ') {
            match word.split_once('=') {
                Some((name, value)) if !word.starts_with('-') => drop(command.env(name, value)),
                _ => drop(command.arg(word)),
            }
        }
        let output = |log: &File| Stdio::from(log.try_clone().expect("a descriptor"));
        command.args(more).stdin(Stdio::null()).stdout(output(&log)).stderr(output(&log)).process_group(0);
        let mut child = command.spawn().expect("cargo starts");
        let start = Instant::now();
        let end = loop {
            match child.try_wait().expect("our own child") {
                Some(status) if status.success() => break End::Green,
                Some(status) => break End::Red(status.to_string()),
                None if start.elapsed() > patience => {
                    // The whole group, agents and children of tests included.
                    kill_process_group(Pid::from_child(&child), Signal::KILL).expect("our own group");
                    child.wait().expect("our own child");
                    break End::Red(format!("not done after {} s", patience.as_secs()));
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let mut text = String::new();
        log.rewind().and_then(|()| log.read_to_string(&mut text)).expect("what cargo says is text");
        (end, text)
    }
}

/// Copies files that differ, so that the others need no new build.
fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        let new = fs::read(from).expect("a file of the repository");
        if fs::read(to).ok().as_ref() != Some(&new) {
            fs::create_dir_all(to.parent().expect("below the tree")).expect("the copy is ours");
            fs::write(to, new).expect("the copy is ours");
        }
        return;
    }
    for entry in fs::read_dir(from).expect("a directory of the repository") {
        let entry = entry.expect("a directory entry");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}
