//! Timed runs: what one thread does with one session, and several threads with one store.

use std::sync::Barrier;
use std::time::Instant;

use crate::data::{Head, Key, Rng, Seen, Sequence, check, key};
use crate::engine::{Result, Session, Store};

/// Operations and how long they took.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub ops: u64,
    pub seconds: f64,
}

impl Timed {
    pub fn nanos(self) -> f64 {
        self.seconds * 1e9 / self.ops as f64
    }

    pub fn rate(self) -> f64 {
        self.ops as f64 / self.seconds
    }
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Gets in runs of 4,096, each as of one moment.
    Gets,
    GetMany16,
    /// Gets one by one, each of the newest value.
    Get,
    /// Puts in commits of their own.
    Put,
    /// Puts in commits of 1,000.
    Batch1000,
    /// So many per cent of the operations put, the others get.
    Mixed(u8),
    /// So many per cent of the operations read, change and write, the others get.
    Modify(u8),
    Scan,
}

impl Task {
    pub fn writes(self) -> bool {
        matches!(self, Task::Put | Task::Batch1000 | Task::Mixed(1..) | Task::Modify(1..))
    }
}

/// What a run is made of.
pub struct Run<'a> {
    pub task: Task,
    pub sequence: &'a Sequence,
    /// Where in the sequence it begins.
    pub from: usize,
    pub seconds: f64,
    /// Whether the keys are in the store.
    pub present: bool,
    /// Whether each commit waits for the disk.
    pub durable: bool,
    /// Whether nobody else writes.
    pub alone: bool,
}

impl Run<'_> {
    /// Operations between two looks at the clock.
    fn stride(&self) -> usize {
        let stride = match self.task {
            Task::Gets | Task::GetMany16 => 4096,
            Task::Batch1000 => 1000,
            Task::Put if self.durable => 1,
            Task::Get | Task::Put | Task::Mixed(_) | Task::Modify(_) | Task::Scan => 64,
        };
        stride.min(self.sequence.keys.len())
    }

    /// Does the task until the time is over, and verifies what it has read and put.
    pub fn time(&self, session: &mut dyn Session) -> Result<Timed> {
        if self.task == Task::Scan {
            return self.time_scans(session);
        }
        let (keys, stride) = (&self.sequence.keys, self.stride());
        let (mut seen, mut ops) = (Seen::default(), 0);
        let mut at = self.from % (keys.len() - stride + 1);
        let first = at;
        let versions = new_versions();
        let start = Instant::now();
        let seconds = loop {
            seen.merge(self.step(session, at, stride, versions + ops)?);
            ops += stride as u64;
            at += stride;
            if at + stride > keys.len() {
                at = 0;
            }
            let seconds = start.elapsed().as_secs_f64();
            if seconds >= self.seconds {
                break seconds;
            }
        };
        self.verify(session, &self.positions(first, stride, ops), versions, seen)?;
        Ok(Timed { ops, seconds })
    }

    fn step(&self, session: &mut dyn Session, at: usize, len: usize, version: u64) -> Result<Seen> {
        let keys = &self.sequence.keys[at..at + len];
        match self.task {
            Task::Gets => return session.gets(keys),
            Task::GetMany16 => return session.get_many16(keys),
            Task::Put => keys.iter().zip(version..).try_for_each(|(key, version)| session.put(key, version))?,
            Task::Batch1000 => session.put_batch(keys, version)?,
            Task::Get => keys.iter().try_for_each(|key| self.get(session, key))?,
            Task::Mixed(percent) | Task::Modify(percent) => {
                for (i, (key, dice)) in keys.iter().zip(&self.sequence.dice[at..]).enumerate() {
                    match self.task {
                        _ if *dice >= percent => self.get(session, key)?,
                        Task::Modify(_) => session.update(key)?,
                        _ => session.put(key, version + i as u64)?,
                    }
                }
            }
            Task::Scan => unreachable!("timed as a whole"),
        }
        Ok(Seen::default())
    }

    fn get(&self, session: &mut dyn Session, key: &Key) -> Result<()> {
        match session.get(key)? {
            Some(head) if head.check == check(key) => Ok(()),
            Some(_) => Err("a wrong value".into()),
            None => Err("a key is missing".into()),
        }
    }

    /// Where in the sequence a run has been.
    fn positions(&self, first: usize, stride: usize, ops: u64) -> Vec<usize> {
        let mut positions = Vec::with_capacity(ops as usize);
        let mut at = first;
        while positions.len() < ops as usize {
            positions.extend(at..at + stride);
            at += stride;
            if at + stride > self.sequence.keys.len() {
                at = 0;
            }
        }
        positions
    }

    /// Compares what gets have met with what they should have; reads the last puts again.
    fn verify(&self, session: &mut dyn Session, positions: &[usize], versions: u64, seen: Seen) -> Result<()> {
        let keys = &self.sequence.keys;
        match self.task {
            Task::Gets | Task::GetMany16 => {
                let expected =
                    if self.present { Seen::expect(positions.iter().map(|&at| &keys[at])) } else { Seen::default() };
                if seen != expected {
                    return Err(format!("met {seen:?}, expected {expected:?}").into());
                }
            }
            Task::Put if self.alone => {
                let recent = positions.iter().enumerate().rev().take(200.min(keys.len()));
                for (n, &at) in recent {
                    let head = session.get(&keys[at])?.ok_or("a key that was put is missing")?;
                    if head != (Head { check: check(&keys[at]), version: versions + n as u64 }) {
                        return Err(format!("put version {}, read {head:?}", versions + n as u64).into());
                    }
                }
            }
            _ => positions.iter().rev().take(200).try_for_each(|&at| self.get(session, &keys[at]))?,
        }
        Ok(())
    }

    fn time_scans(&self, session: &mut dyn Session) -> Result<Timed> {
        let n = self.sequence.keys.len() as u64;
        let mut ops = 0;
        let start = Instant::now();
        let seconds = loop {
            let seen = session.scan()?;
            if seen.found < n {
                return Err(format!("met {} records", seen.found).into());
            }
            ops += seen.found;
            let seconds = start.elapsed().as_secs_f64();
            if seconds >= self.seconds {
                break seconds;
            }
        };
        Ok(Timed { ops, seconds })
    }

    /// The same by threads of one store; the rates are added.
    pub fn time_threads(&self, store: &dyn Store, threads: usize) -> Result<Timed> {
        let barrier = Barrier::new(threads);
        let thread = |index: usize| {
            let run = Run { from: self.sequence.keys.len() / threads * index, alone: false, ..*self };
            let mut session = store.session();
            barrier.wait();
            run.time(&mut **session.as_mut().map_err(|error| error.to_string())?)
        };
        let thread = &thread;
        let times: Vec<Result<Timed>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|index| scope.spawn(move || thread(index))).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        sum(times.into_iter().collect::<Result<Vec<Timed>>>()?)
    }
}

/// A version that no run has put so far, with room for more above it: an engine may leave out a put that changes
/// nothing.
fn new_versions() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// What runs at the same time came to together: their rates added, over one second.
pub fn sum(times: Vec<Timed>) -> Result<Timed> {
    let rate: f64 = times.iter().map(|timed| timed.rate()).sum();
    let ops: u64 = times.iter().map(|timed| timed.ops).sum();
    Ok(Timed { ops, seconds: ops as f64 / rate })
}

/// Touches the store, so that caches are filled and pages mapped: all records, or a million, for two seconds at most.
pub fn warm(session: &mut dyn Session, n: u64) -> Result<()> {
    let start = Instant::now();
    let mut rng = Rng(7);
    let mut keys = Vec::with_capacity(4096);
    for _ in 0..n.min(1_000_000).div_ceil(4096) {
        keys.clear();
        keys.extend((0..4096).map(|_| key(rng.below(n))));
        if session.gets(&keys)?.found != 4096 {
            return Err("a loaded key is missing".into());
        }
        if start.elapsed().as_secs() >= 2 {
            break;
        }
    }
    Ok(())
}
