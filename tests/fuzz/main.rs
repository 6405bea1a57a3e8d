//! The targets of `fuzz/` without a fuzzer: what was found is replayed from `tests/regressions/`, and random bytes are
//! tried. `SLOTDB_CASES` says how many for each target, `SLOTDB_SEED` which come first.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "targets.rs"]
mod targets;

use std::path::Path;
use std::thread;

use common::{Rng, number};
use targets::TARGETS;

#[test]
fn what_was_found_once_stays_mended() {
    let mut count = 0;
    for (name, target) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions").join(name);
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let note = Note(path.display().to_string());
            target(&std::fs::read(&path).unwrap());
            drop(note);
            count += 1;
        }
    }
    assert!(count >= TARGETS.len(), "each target has some");
}

/// Random bytes for one target.
fn random(name: &str, cases: u64) {
    let (_, target) = TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let first = number("SLOTDB_SEED", 1);
    for seed in first..first + number("SLOTDB_CASES", cases) {
        let note = Note(format!("again: SLOTDB_SEED={seed} SLOTDB_CASES=1 cargo test --test fuzz {name}"));
        let mut rng = Rng::new(seed);
        // Few edits reach deep, many reach odd combinations.
        let most = *rng.pick(&[12, 40, 200]);
        let len = rng.below(most) as usize;
        let mut data = rng.bytes(2 + len);
        if !rng.one_in(4) && name != "operations" {
            // With all checksums right.
            data[1] = 0;
        }
        target(&data);
        drop(note);
    }
}

#[test]
fn random_header() {
    random("header", 500);
}

#[test]
fn random_record() {
    random("record", 500);
}

#[test]
fn random_blob() {
    random("blob", 500);
}

#[test]
fn random_whole_file() {
    random("whole_file", 500);
}

#[test]
fn random_operations() {
    random("operations", 150);
}

/// Says how to see a failure again.
struct Note(String);

impl Drop for Note {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
