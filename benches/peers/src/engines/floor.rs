//! Bounds that are no stores: what the machine allows, with nothing kept in order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::data::{KEY, Sequence, VALUE};
use crate::engine::Result;
use crate::measure::Timed;

/// A bound of one workload.
pub struct Floor {
    pub name: &'static str,
    pub about: &'static str,
    pub workload: &'static str,
    /// In a directory, for so many records, their order, for so many seconds.
    pub run: fn(&Path, u64, &Sequence, f64) -> Result<Timed>,
}

const RECORD: usize = KEY + VALUE;
const THREADS: usize = 8;
/// Room for what the durable floors write in one round.
const ROOM: u64 = 32 << 20;

pub fn floors() -> Vec<Floor> {
    vec![
        Floor {
            name: "loads64",
            about: "independent 64-byte loads at random in 176 bytes of RAM a record",
            workload: "get",
            run: loads,
        },
        Floor {
            name: "pwrite-fdatasync",
            about: "records appended to a file that grows, fdatasync after each",
            workload: "put_immediate",
            run: |dir, _, _, seconds| one(Log::growing(dir)?, seconds),
        },
        Floor {
            name: "pwrite-fdatasync-prewritten",
            about: "records written one after the other into a file of zeros, fdatasync after each",
            workload: "put_immediate",
            run: |dir, _, _, seconds| one(Log::prewritten(dir)?, seconds),
        },
        Floor {
            name: "group-commit",
            about: "8 threads append to one file that grows; one of those who wait calls fdatasync for all",
            workload: "put_immediate_8threads",
            run: |dir, _, _, seconds| group(Log::growing(dir)?, seconds),
        },
        Floor {
            name: "group-commit-prewritten",
            about: "the same into a file of zeros",
            workload: "put_immediate_8threads",
            run: |dir, _, _, seconds| group(Log::prewritten(dir)?, seconds),
        },
    ]
}

fn loads(_: &Path, n: u64, sequence: &Sequence, seconds: f64) -> Result<Timed> {
    let lines = (n as usize * 176).div_ceil(64);
    let memory: Vec<[u64; 8]> = (0..lines).map(|line| [line as u64; 8]).collect();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let (mut ops, mut sum) = (0, 0u64);
    let start = Instant::now();
    for keys in sequence.keys.chunks(4096).cycle() {
        for key in keys {
            let line = ((u128::from(word(&key[..8])) * lines as u128) >> 64) as usize;
            sum = memory[line].iter().fold(sum, |sum, word| sum.wrapping_add(*word));
        }
        ops += keys.len() as u64;
        if start.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let timed = Timed { ops, seconds: start.elapsed().as_secs_f64() };
    std::hint::black_box(sum);
    Ok(timed)
}

/// A file of records.
struct Log {
    file: File,
    /// A file of zeros is written from its start again when it is full.
    wrap: u64,
}

impl Log {
    fn growing(dir: &Path) -> Result<Log> {
        Ok(Log { file: File::create(dir.join("floor.log"))?, wrap: u64::MAX })
    }

    fn prewritten(dir: &Path) -> Result<Log> {
        let file = File::create(dir.join("floor.log"))?;
        file.write_all_at(&vec![0; ROOM as usize], 0)?;
        file.sync_all()?;
        Ok(Log { file, wrap: ROOM / RECORD as u64 })
    }

    fn append(&self, n: u64) -> std::io::Result<()> {
        self.file.write_all_at(&[n as u8; RECORD], n % self.wrap * RECORD as u64)
    }
}

fn one(log: Log, seconds: f64) -> Result<Timed> {
    let mut ops = 0;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        log.append(ops)?;
        log.file.sync_data()?;
        ops += 1;
    }
    Ok(Timed { ops, seconds: start.elapsed().as_secs_f64() })
}

/// What the threads of a group commit share: records written, records known to be on the disk.
#[derive(Default)]
struct State {
    next: u64,
    written: u64,
    durable: u64,
    syncing: bool,
}

fn group(log: Log, seconds: f64) -> Result<Timed> {
    let (state, changed) = (Mutex::new(State::default()), Condvar::new());
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let commit = || -> std::io::Result<()> {
        let mut held = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = held.next;
        held.next += 1;
        drop(held);
        log.append(mine)?;
        let mut held = state.lock().unwrap_or_else(PoisonError::into_inner);
        // Counts of writes that are done; a flush that begins later covers all of them.
        held.written += 1;
        let covered = held.written;
        while held.durable < covered {
            if held.syncing {
                held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            held.syncing = true;
            let covers = held.written;
            drop(held);
            let synced = log.file.sync_data();
            held = state.lock().unwrap_or_else(PoisonError::into_inner);
            held.syncing = false;
            held.durable = held.durable.max(covers);
            changed.notify_all();
            synced?;
        }
        Ok(())
    };
    let ops = std::thread::scope(|scope| {
        let work = || -> std::io::Result<u64> {
            let mut ops = 0;
            while Instant::now() < end {
                commit()?;
                ops += 1;
            }
            Ok(ops)
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<std::io::Result<u64>>()
    })?;
    Ok(Timed { ops, seconds: start.elapsed().as_secs_f64() })
}
