//! The workloads: names, units, and what they do.

use crate::engine::Mode;
use crate::measure::Task;

/// How a workload is measured.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// One thread of this process.
    Alone(Task),
    Threads(Task, usize),
    Processes(Task, usize, Keys),
    /// All records in random order, in commits of 1,000, and a sync.
    Load,
    OpenClean,
    OpenAfterKill,
    SizeAfterLoad,
    SizeAfterOverwrites,
}

/// Which keys a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    Uniform,
    Zipfian,
}

#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub unit: &'static str,
    pub mode: Mode,
    pub kind: Kind,
}

impl Workload {
    pub fn more_is_better(&self) -> bool {
        self.unit == "ops/s"
    }
}

/// Those that share one opening of a store; they run in this order, engines interleaved from group to group.
pub const GROUPS: [&[Workload]; 6] = [LOAD, READ, EVENTUAL, IMMEDIATE, PROCESSES, OPEN];

const LOAD: &[Workload] = &[
    eventual("load", "records a second: commits of 1,000 random keys, one sync at the end", "ops/s", Kind::Load),
    eventual("size_after_load", "MiB of disk after that, closed", "MiB", Kind::SizeAfterLoad),
];

const READ: &[Workload] = &[
    eventual("get", "a present key, in one snapshot", "ns", Kind::Alone(Task::Gets)),
    eventual("get_oneshot", "a present key, its newest value, a snapshot each", "ns", Kind::Alone(Task::Get)),
    eventual("get_many16", "a key, 16 asked for in one call", "ns", Kind::Alone(Task::GetMany16)),
    eventual("get_miss", "an absent key, in one snapshot", "ns", Kind::Alone(Task::Gets)),
    eventual("get_2threads", "gets a second of two threads", "ops/s", Kind::Threads(Task::Gets, 2)),
    eventual("scan", "a record of a scan of all", "ns", Kind::Alone(Task::Scan)),
];

const EVENTUAL: &[Workload] =
    &[eventual("put_eventual", "an overwrite in a commit of its own, not synced", "ns", Kind::Alone(Task::Put))];

const IMMEDIATE: &[Workload] = &[
    immediate("put_immediate", "an overwrite in a durable commit of its own", "ns", Kind::Alone(Task::Put)),
    immediate("put_immediate_8threads", "commits a second of 8 threads", "ops/s", Kind::Threads(Task::Put, 8)),
    immediate(
        "batch1000_immediate",
        "records a second, durable commits of 1,000 overwrites",
        "ops/s",
        Kind::Alone(Task::Batch1000),
    ),
];

const UPDATES: Kind = Kind::Processes(Task::Put, 8, Keys::Uniform);

const PROCESSES: &[Workload] = &[
    processes("get_1process", "gets a second of one process", Task::Gets, 1, Keys::Uniform),
    processes("get_2processes", "gets a second of two processes", Task::Gets, 2, Keys::Uniform),
    processes(
        "mixed95_2processes",
        "operations a second of two processes: 95 % gets one by one, 5 % eventual commits",
        Task::Mixed(5),
        2,
        Keys::Uniform,
    ),
    immediate("put_immediate_8processes", "durable commits a second of 8 processes", "ops/s", UPDATES),
    processes("ycsb_a_1process", A, Task::Mixed(50), 1, Keys::Zipfian),
    processes("ycsb_a_2processes", A, Task::Mixed(50), 2, Keys::Zipfian),
    processes("ycsb_a_4processes", A, Task::Mixed(50), 4, Keys::Zipfian),
    processes("ycsb_b_1process", B, Task::Mixed(5), 1, Keys::Zipfian),
    processes("ycsb_b_2processes", B, Task::Mixed(5), 2, Keys::Zipfian),
    processes("ycsb_b_4processes", B, Task::Mixed(5), 4, Keys::Zipfian),
    processes("ycsb_c_1process", C, Task::Mixed(0), 1, Keys::Zipfian),
    processes("ycsb_c_2processes", C, Task::Mixed(0), 2, Keys::Zipfian),
    processes("ycsb_c_4processes", C, Task::Mixed(0), 4, Keys::Zipfian),
    processes("ycsb_f_1process", F, Task::Modify(50), 1, Keys::Zipfian),
    processes("ycsb_f_2processes", F, Task::Modify(50), 2, Keys::Zipfian),
    processes("ycsb_f_4processes", F, Task::Modify(50), 4, Keys::Zipfian),
];

const A: &str = "YCSB A, zipfian: 50 % gets, 50 % eventual commits; operations a second";
const B: &str = "YCSB B, zipfian: 95 % gets, 5 % eventual commits; operations a second";
const C: &str = "YCSB C, zipfian: gets; operations a second";
const F: &str = "YCSB F, zipfian: 50 % gets, 50 % read, change and write, eventual; operations a second";

const OPEN: &[Workload] = &[
    eventual("open_clean", "open and first get after a close, the file in the page cache", "ms", Kind::OpenClean),
    eventual(
        "open_after_kill",
        "open and first get after a kill -9 of a process that made eventual commits for a second",
        "ms",
        Kind::OpenAfterKill,
    ),
];

/// Once, after all rounds.
pub const LAST: Workload = eventual(
    "size_after_3n_overwrites",
    "MiB of disk after 3 n random overwrites, closed",
    "MiB",
    Kind::SizeAfterOverwrites,
);

const fn eventual(name: &'static str, about: &'static str, unit: &'static str, kind: Kind) -> Workload {
    Workload { name, about, unit, mode: Mode::Eventual, kind }
}

const fn immediate(name: &'static str, about: &'static str, unit: &'static str, kind: Kind) -> Workload {
    Workload { name, about, unit, mode: Mode::Immediate, kind }
}

const fn processes(name: &'static str, about: &'static str, task: Task, count: usize, keys: Keys) -> Workload {
    eventual(name, about, "ops/s", Kind::Processes(task, count, keys))
}

pub fn all() -> impl Iterator<Item = Workload> {
    GROUPS.iter().copied().flatten().copied().chain([LAST])
}

pub fn named(name: &str) -> Option<Workload> {
    all().find(|workload| workload.name == name)
}
