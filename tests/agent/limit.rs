//! Orders that hinder a process: address space that is used up, a stop before a step.

use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

/// From now on the process gets no more than so many bytes of address space, beside what it has.
pub fn limit(spare: u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("what the process has");
    let pages: u64 = statm.split(' ').next().and_then(|word| word.parse().ok()).expect("pages come first");
    set(Some(pages * page_size() as u64 + spare));
}

/// Ends the limit.
pub fn lift() {
    set(getrlimit(Resource::As).maximum);
}

fn set(current: Option<u64>) {
    let maximum = getrlimit(Resource::As).maximum;
    setrlimit(Resource::As, Rlimit { current, maximum }).expect("below the maximum");
}

/// Stops the process until somebody lets it go on.
pub fn stop() {
    kill_process(getpid(), Signal::STOP).expect("a process may stop itself");
}
