//! Power cuts, and the judge of what they leave.

use std::ops::Range;

use slotdb::Durability;
use slotdb::sim::{Moment, SimDisk};

use super::base::{Base, EXTENT, contents};
use super::run::{Run, after, commit, options};
use super::{Promise, State};
use crate::common::Rng;
use crate::common::raw::{Image, LOG};

/// Up to so many outcomes of a moment are all tried.
const ALL: u64 = 64;
/// Where the stamp of an index page is.
const STAMP: Range<u64> = 28..32;

/// Cuts the power, and counts.
pub struct Cuts {
    rng: Rng,
    /// Random cuts of a moment.
    each: u64,
    /// Whether all outcomes are tried where they are few.
    all: bool,
    /// Whether what few calls have written is torn, all of it at once.
    torn: bool,
    pub tried: u64,
}

impl Cuts {
    pub fn new(seed: u64, each: u64, all: bool) -> Cuts {
        Cuts { rng: Rng::new(seed), each, all, torn: false, tried: 0 }
    }

    /// Cuts that also tear all that is in flight, if it is little.
    pub fn tearing(seed: u64, each: u64) -> Cuts {
        Cuts { torn: true, ..Cuts::new(seed, each, false) }
    }

    /// Power cuts at all moments that a run has kept: all outcomes if they are few.
    pub fn every_moment(&mut self, name: &str, run: &mut Run) {
        for (moment, promise) in run.moments() {
            let name = format!("{name}, cut at call {}", moment.calls);
            let choices = moment.choices();
            let outcomes = choices.iter().try_fold(1u64, |all, n| all.checked_mul(*n)).unwrap_or(u64::MAX);
            if self.all && outcomes <= ALL {
                for n in 0..outcomes {
                    let image = moment.cut(&picks(n, &choices), self.rng.next());
                    self.judge(run, image, moment.claimed, &promise, &name);
                }
            }
            if self.torn
                && let Some(image) = moment.cut_all_torn(self.rng.next())
            {
                self.judge(run, image, moment.claimed, &promise, &name);
            }
            for _ in 0..self.each {
                let image = moment.cut_anyhow(self.rng.next());
                self.judge(run, image, moment.claimed, &promise, &name);
            }
        }
    }

    fn judge(&mut self, run: &Run, image: Vec<u8>, claimed: u64, promise: &Promise, name: &str) {
        self.tried += 1;
        let applied = judge(run.base(), image, promise, name, &mut self.rng);
        assert!(applied >= claimed, "{name}: {claimed} was durable, {applied} is found");
    }
}

/// The digits of `n`, whose bases are the choices.
pub fn picks(mut n: u64, choices: &[u64]) -> Vec<u64> {
    let digit = |base: &u64| {
        let digit = n % base;
        n /= base;
        digit
    };
    choices.iter().map(digit).collect()
}

/// What an opening finds and does.
pub struct Examined {
    pub state: State,
    /// Seq of the state.
    pub applied: u64,
    pub disk: SimDisk,
    /// One in so many moments of the opening.
    pub moments: Vec<Moment>,
}

/// Opens an image on a disk of its own, looks at everything, and closes it again.
pub fn examine(base: &Base, image: Vec<u8>, keep: u64, noise: u64) -> Examined {
    let disk = SimDisk::new(base.dir.path(), image, EXTENT).expect("room for a disk");
    disk.keep_one_in(keep, noise);
    let db = disk.open(&options()).unwrap_or_else(|e| panic!("cannot open after a power cut: {e}"));
    let state = contents(&db);
    let faults = db.check(true).expect("a check");
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(db.len().expect("a count"), state.len() as u64);
    let applied = db.stats().expect("the sizes").seq.applied;
    drop(db);
    let mut moments = disk.take_kept();
    moments.push(disk.now().expect("memory can be read"));
    Examined { state, applied, disk, moments }
}

/// What an image holds is promised; opened again it is the same; a commit that follows stays. Returns the seq that
/// was found.
pub fn judge(base: &Base, image: Vec<u8>, promise: &Promise, name: &str, rng: &mut Rng) -> u64 {
    let found = examine(base, image, 0, 0);
    let at = promise.iter().position(|state| *state == found.state);
    assert!(at.is_some(), "{name}: not one of the {} states that are allowed", promise.len());
    if !rng.one_in(8) {
        return found.applied;
    }
    stays_as_it_is(&found.disk, name);
    let moment = found.disk.now().expect("memory can be read");
    let again = examine(base, moment.cut_anyhow(rng.next()), 0, 0);
    assert!(again.state == found.state, "{name}: another state after a second power cut");
    let db = again.disk.open(&options()).unwrap_or_else(|e| panic!("{name}: opened again: {e}"));
    assert!(contents(&db) == found.state, "{name}: another state when opened again");
    let writes = vec![(b"k1".to_vec(), Some(rng.bytes(30)))];
    commit(&db, Durability::Immediate, &writes).unwrap_or_else(|e| panic!("{name}: a commit after it: {e}"));
    let moment = again.disk.now().expect("memory can be read");
    let last = examine(base, moment.cut_anyhow(rng.next()), 0, 0);
    assert!(last.state == after(&found.state, &writes), "{name}: a commit after recovery, and a cut: another state");
    found.applied
}

/// Opened again a store stays as it is in every byte that a recovery reads: header, blob, log, the index pages that the
/// blob names. Their stamps are only for processes that share them.
fn stays_as_it_is(disk: &SimDisk, name: &str) {
    let image = || Image(disk.content().expect("memory can be read"));
    let before = image();
    let db = disk.open(&options()).unwrap_or_else(|e| panic!("{name}: opened again: {e}"));
    let after = image();
    // Closing may give space back.
    drop(db);
    let header = before.header();
    let blob = before.blob(&header);
    let records = before.batches(&header).into_iter().flat_map(|batch| batch.records);
    let replayed: Vec<Range<u64>> = records.map(|record| record.position..record.position + record.len()).collect();
    let tail = replayed.last().map_or(header.log, |last| last.end);
    let segments = blob.runs.iter().filter(|run| run.kind == LOG);
    let segments = segments.map(|run| run.first * EXTENT..(run.first + u64::from(run.run)) * EXTENT);
    // Behind the tail there may be anything, until it is wiped.
    let logged = segments.map(|segment| if segment.contains(&tail) { segment.start..tail } else { segment });
    let pages = blob.pages.iter().map(|page| page.position);
    let pages = pages.flat_map(|at| [at..at + STAMP.start, at + STAMP.end..at + 4096]);
    let mut ranges = vec![0..EXTENT, header.blob..header.blob + header.blob_len];
    ranges.extend(logged.chain(pages).chain(replayed));
    for Range { start, end } in ranges {
        let is_same = before.slice(start, end - start) == after.slice(start, end - start);
        assert!(is_same, "{name}: opened again, the file has changed between {start} and {end}");
    }
}
