//! How long single puts take while a store grows, and what the longest of them waited for:
//! `cargo bench --bench pauses [-- KEYS]` (10,000,000). `SLOTDB_DIR` says where the store lives.
//!
//! Own Eventual commits of new random keys with values of 100 bytes, at first alone, then in a new store beside a
//! thread of gets. Each of the longest pauses is shown with the time that its thread ran, waited for a processor and
//! slept, and with the rare steps that the engine told the log meanwhile (`log::debug`), in brackets those of the
//! thread that makes a checkpoint beside it. A virtual machine whose host has to find the memory first runs longer.

#![allow(clippy::print_stdout, reason = "a benchmark tells what it found")]

mod common;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use slotdb::{Db, Durability, Options};

use common::{Rng, VALUE, key};

/// Pauses that are kept, and those shown one by one.
const KEPT: usize = 100;
const SHOWN: usize = 12;
/// A pause is at least so long, in nanoseconds.
const LEAST: u64 = 20_000;
/// Operations between two looks at the clocks of the thread.
const STRIDE: u64 = 32;

/// The engine's thread for checkpoints.
const CHECKPOINT: &str = "slotdb-checkpoint";

/// What the engine has told in that thread, and when.
static BESIDE: Mutex<Vec<(Instant, String)>> = Mutex::new(Vec::new());

thread_local! {
    /// What the engine has told in this thread since the last operation.
    static TOLD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what the engine tells.
struct Told;

impl log::Log for Told {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let text = text.split_once(": ").map_or(text.as_str(), |(_, text)| text).to_string();
        if std::thread::current().name() == Some(CHECKPOINT) {
            BESIDE.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), text));
        } else {
            TOLD.with_borrow_mut(|told| told.push(text));
        }
    }

    fn flush(&self) {}
}

/// Durations in nanoseconds, to 1.6 %.
struct Histogram(Vec<u64>);

impl Histogram {
    fn place(nanos: u64) -> usize {
        let shift = nanos.max(1).ilog2().saturating_sub(6);
        (u64::from(shift) * 64 + (nanos >> shift)) as usize
    }

    fn add(&mut self, nanos: u64) {
        self.0[Histogram::place(nanos)] += 1;
    }

    /// In microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let mut left = (self.0.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let found = self.0.iter().position(|&count| {
            left = left.saturating_sub(count);
            left == 0
        });
        let place = found.unwrap_or(0) as u64;
        let shift = (place / 64).saturating_sub(1);
        ((place - shift * 64) << shift) as f64 / 1e3
    }
}

/// The clocks of a thread, in nanoseconds: ran, and waited for a processor.
struct Clocks {
    schedule: File,
    ran: u64,
    waited: u64,
}

impl Clocks {
    fn new() -> Clocks {
        let schedule = File::open("/proc/thread-self/schedstat").expect("the thread's times");
        Clocks { schedule, ran: 0, waited: 0 }
    }

    /// How far each has gone since the last look.
    fn look(&mut self) -> (u64, u64) {
        let mut text = [0; 80];
        let len = self.schedule.read_at(&mut text, 0).expect("the thread's times");
        let mut words = std::str::from_utf8(&text[..len]).unwrap_or_default().split(' ');
        let waited = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let ran = clock_gettime(ClockId::ThreadCPUTime);
        let ran = ran.tv_sec as u64 * 1_000_000_000 + ran.tv_nsec as u64;
        let gone = (ran - self.ran, waited - self.waited);
        (self.ran, self.waited) = (ran, waited);
        gone
    }
}

/// A long operation.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pause {
    nanos: u64,
    /// Which operation it was.
    at: u64,
    ran: u64,
    waited: u64,
    told: Vec<String>,
    /// The same of the checkpoint's thread, if there is one.
    beside: Option<String>,
}

impl Pause {
    fn cause(&self) -> String {
        let slept = self.nanos.saturating_sub(self.ran + self.waited);
        let most = self.ran.max(self.waited).max(slept);
        let how = if most == slept {
            "slept"
        } else if most == self.ran {
            "ran"
        } else {
            "waited for a processor"
        };
        let without_numbers = |text: &String| {
            let words = text.split(|c: char| c.is_ascii_digit()).filter(|words| !words.is_empty());
            words.collect::<Vec<_>>().join("n")
        };
        let mut names: Vec<String> = self.told.iter().map(without_numbers).collect();
        names.dedup();
        let beside = if self.beside.is_some() { ", beside a checkpoint" } else { "" };
        format!("{how}{beside}: {}", names.join("; "))
    }
}

/// What the operations of a thread have taken.
struct Record {
    all: Histogram,
    longest: BinaryHeap<Reverse<Pause>>,
    clocks: Clocks,
    count: u64,
    sum: u64,
}

impl Record {
    fn new() -> Record {
        let all = Histogram(vec![0; Histogram::place(u64::MAX) + 1]);
        Record { all, longest: BinaryHeap::new(), clocks: Clocks::new(), count: 0, sum: 0 }
    }

    fn time(&mut self, work: impl FnOnce()) {
        if self.count.is_multiple_of(STRIDE) {
            self.clocks.look();
        }
        let start = Instant::now();
        work();
        let nanos = start.elapsed().as_nanos() as u64;
        self.all.add(nanos);
        let told = TOLD.take();
        let least = self.longest.peek().map_or(0, |least| least.0.nanos);
        if nanos >= LEAST && (self.longest.len() < KEPT || nanos > least) {
            let (ran, waited) = self.clocks.look();
            let beside = told_beside(start);
            self.longest.push(Reverse(Pause { nanos, at: self.count, ran: ran.min(nanos), waited, beside, told }));
            if self.longest.len() > KEPT {
                self.longest.pop();
            }
        }
        self.count += 1;
        self.sum += nanos;
    }

    fn report(self, what: &str) {
        let [half, p99, p999, p9999] = [0.5, 0.99, 0.999, 0.9999].map(|share| self.all.quantile(share));
        let longest: Vec<Pause> = self.longest.into_sorted_vec().into_iter().map(|pause| pause.0).collect();
        println!(
            "{what}: {} in {:.1} s; p50 {half:.2} us, p99 {p99:.1}, p99.9 {p999:.1}, p99.99 {p9999:.0}, \
             longest {:.2} ms",
            self.count,
            self.sum as f64 / 1e9,
            longest.first().map_or(0, |pause| pause.nanos) as f64 / 1e6,
        );
        let ms = |nanos: u64| nanos as f64 / 1e6;
        for pause in longest.iter().take(SHOWN) {
            let slept = pause.nanos.saturating_sub(pause.ran + pause.waited);
            println!(
                "  {:8.2} ms, number {:9}: ran {:.2}, waited for a processor {:.2}, slept {:.2}{} {}",
                ms(pause.nanos),
                pause.at,
                ms(pause.ran),
                ms(pause.waited),
                ms(slept),
                pause.beside.as_ref().map_or(String::new(), |told| format!(" [checkpoint: {told}]")),
                pause.told.join("; "),
            );
        }
        let mut causes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for pause in &longest {
            let cause = causes.entry(pause.cause()).or_default();
            *cause = (cause.0 + 1, cause.1 + pause.nanos);
        }
        let mut causes: Vec<(String, (u64, u64))> = causes.into_iter().collect();
        causes.sort_by_key(|cause| Reverse(cause.1.1));
        for (cause, (count, nanos)) in causes {
            println!("  {count:3} of the longest {}, {:8.2} ms: {cause}", longest.len(), ms(nanos));
        }
    }
}

/// What the thread of a checkpoint has told since then; none if there was no such thread.
fn told_beside(since: Instant) -> Option<String> {
    let all = BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
    let told: Vec<&str> = all.iter().rev().take_while(|told| told.0 >= since).map(|told| told.1.as_str()).collect();
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    let is_there = !told.is_empty() || names.any(|name| CHECKPOINT.starts_with(name.trim_end()));
    is_there.then(|| told.into_iter().rev().collect::<Vec<_>>().join("; "))
}

fn puts(db: &Db, keys: u64, done: &AtomicU64) -> Record {
    let mut record = Record::new();
    for n in 0..keys {
        let key = key(n);
        record.time(|| db.put(&key, &[n as u8; VALUE]).expect("a put"));
        done.store(n + 1, Ordering::Relaxed);
    }
    record
}

/// Gets of keys that are there, until all are.
fn gets(db: &Db, keys: u64, done: &AtomicU64) -> Record {
    let (mut record, mut rng) = (Record::new(), Rng(42));
    loop {
        match done.load(Ordering::Relaxed) {
            0 => std::thread::yield_now(),
            there if there == keys => return record,
            there => {
                let key = key(rng.below(there));
                record
                    .time(|| assert_eq!(db.get_with(&key, <[u8]>::len).expect("a get"), Some(VALUE), "a key is gone"));
            }
        }
    }
}

fn grow(dir: &Path, keys: u64, beside: bool) {
    let dir = tempfile::Builder::new().prefix("slotdb-pauses-").tempdir_in(dir).expect("a directory");
    let path = dir.path().join("store");
    let db = Options::new().create_new(true).durability(Durability::Eventual).open(&path).expect("a new store");
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = beside.then(|| scope.spawn(|| gets(&db, keys, &done)));
        puts(&db, keys, &done).report(if beside { "puts beside gets" } else { "puts alone" });
        if let Some(record) = reader.and_then(|reader| reader.join().ok()) {
            record.report("gets beside puts");
        }
    });
    db.close().expect("a clean close");
}

fn main() {
    let keys = std::env::args().skip(1).find_map(|arg| arg.replace('_', "").parse().ok()).unwrap_or(10_000_000);
    let dir = std::env::var_os("SLOTDB_DIR").unwrap_or_else(|| "target".into());
    log::set_logger(&Told).expect("the only logger");
    log::set_max_level(log::LevelFilter::Debug);
    grow(dir.as_ref(), keys, false);
    grow(dir.as_ref(), keys, true);
}
