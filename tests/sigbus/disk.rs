//! A disk that fails to read: that of a file system on a loop device whose own file is cut.

use std::fs::File;

use nix::libc;
use rustix::fs::{Advice, fadvise};

use super::support::Agent;
use super::support::common::disk::Disk;
use super::tells_of_loss;

#[test]
fn what_a_disk_cannot_read_is_an_error() {
    let Some(disk) = Disk::ext4(64) else {
        eprintln!("skipped what_a_disk_cannot_read_is_an_error: it takes root and mkfs.ext4");
        return;
    };
    let path = disk.path().join("store");
    let mut maker = Agent::open("maker", &path, "create eventual");
    maker.ok("fill k 0 2000 10000");
    maker.ok("close");
    let file = File::open(&path).expect("the store");
    file.sync_all().expect("a sync");
    fadvise(&file, 0, None, Advice::DontNeed).expect("it leaves memory");
    let mut guarded = Agent::open("guarded", &path, "guard eventual");
    let mut other = Agent::open("other", &path, "eventual");
    disk.cut(16);
    let read = |n: u64| guarded.ask(&format!("matches k{n} ~10000.{n}"));
    let answers: Vec<String> = (0..2000).step_by(10).map(read).collect();
    let right = answers.iter().take_while(|answer| *answer == "true").count();
    assert!(right < answers.len() && answers[right..].iter().all(|answer| tells_of_loss(answer)), "{answers:?}");
    for order in ["put k1 new", "put fresh new", "delete k1", "scan", "check", "checkpoint", "sync", "close"] {
        let answer = guarded.ask(order);
        assert!(tells_of_loss(&answer), "{order}: {answer}");
    }
    assert_eq!(other.attempt("scan"), None);
    other.died_of(libc::SIGBUS);
}
