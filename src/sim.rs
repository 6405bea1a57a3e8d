//! A disk that loses its power: the engine's other disk, for tests.
//!
//! The file lies in memory and is mapped as any other, so stores through the map work as they do on a real one.
//! Beside it stands what the medium holds for certain, and for each sector of 512 bytes all values it was given
//! since: a power cut leaves any of them, each sector for itself. A sync makes its range certain. What is stored
//! through the map is noticed at the next call, and is taken for something that may have reached the medium at any
//! moment.
//!
//! A failed sync leaves its sectors clean: a later one does not write them, unless they are written again. To store
//! through the map what stands there already would make them dirty too, which cannot be seen; so each opening makes
//! those dirty that have been changed through the map only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tempfile::NamedTempFile;

use crate::control::{LAYOUT, VOLATILE_LEN, Word, load};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::fault;
use crate::format::round_up;
use crate::options::Options;
use crate::sys::disk::Disk;
use crate::sys::file;
use crate::sys::map::Map;

mod moment;

pub use moment::Moment;
use moment::Noise;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;
/// Address space of a map: these stores are small, and are opened often.
const RESERVE: u64 = 64 << 20;
/// Bytes of memory that are looked at together.
const PIECE: usize = 16 << 10;

/// Calls that reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Disk::write`
    Write,
    /// `Disk::sync`
    Sync,
    /// `Disk::allocate`
    Allocate,
    /// `Disk::punch`, `Disk::scatter` and `Disk::truncate`
    GiveBack,
    /// A map becomes longer with its file.
    Map,
}

/// What changes with each call.
struct State {
    now: Moment,
    /// The file as it was at the last call.
    seen: Vec<u8>,
    /// Sectors that the next sync of their range writes.
    dirty: BTreeSet<u64>,
    /// Extents that have space.
    held: BTreeSet<u64>,
    /// So many have at most.
    room: u64,
    /// Calls so far, by kind.
    counts: [u64; 5],
    /// The call that fails.
    failing: Option<(Call, u64, ErrorKind)>,
    failed: bool,
    /// Who makes it dies before it can tell.
    deadly: bool,
    /// Syncs that have failed.
    errors: u64,
    /// Whoever had the file open then is told so at his next sync.
    tells: bool,
    /// One in so many moments is kept; 0: none.
    keep: u64,
    kept: Vec<Moment>,
    noise: Noise,
}

/// What somebody does beside a call, once.
type Work = Box<dyn FnOnce() + Send>;

struct Inner {
    file: NamedTempFile,
    extent: u64,
    state: Mutex<State>,
    /// What somebody else does before a call of this kind.
    beside: Mutex<Option<(Call, Work)>>,
    /// Growths of maps until one is refused.
    refusal: Arc<AtomicI64>,
}

/// The simulated disk, with one file. Clones are the same disk; each opening maps it anew, and knows of so many errors.
#[derive(Clone)]
pub struct SimDisk(Arc<Inner>, Arc<Map>, Arc<AtomicU64>);

impl SimDisk {
    /// A disk that holds `image`, the file of a store with this extent size. `dir` should be in memory.
    pub fn new(dir: &Path, image: Vec<u8>, extent: u64) -> io::Result<SimDisk> {
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(&image)?;
        let refusal = Arc::new(AtomicI64::new(i64::MAX));
        let map = map(&file, extent, &refusal)?;
        let seen = image.clone();
        let now = Moment {
            durable: Arc::new(image),
            lens: Vec::new(),
            maybe: BTreeMap::new(),
            written: BTreeSet::new(),
            volatile: extent..extent + round_up(VOLATILE_LEN, extent),
            calls: 0,
            note: 0,
            claimed: 0,
        };
        let state = State {
            seen,
            dirty: BTreeSet::new(),
            held: (0..(now.durable.len() as u64).div_ceil(extent)).collect(),
            room: u64::MAX,
            counts: [0; 5],
            failing: None,
            failed: false,
            deadly: false,
            errors: 0,
            tells: false,
            keep: 0,
            kept: Vec::new(),
            noise: Noise(0),
            now,
        };
        Ok(SimDisk(
            Arc::new(Inner { file, extent, state: Mutex::new(state), beside: Mutex::default(), refusal }),
            map,
            Arc::default(),
        ))
    }

    /// Opens the store. Memory is as the last one who had it open left it.
    ///
    /// # Errors
    /// As `Options::open`.
    pub fn open(&self, options: &Options) -> Result<Db> {
        let errors = {
            let mut state = self.0.state.lock();
            let State { now, dirty, .. } = &mut *state;
            dirty.extend(now.maybe.keys().filter(|sector| !now.written.contains(sector)));
            Arc::new(AtomicU64::new(state.errors))
        };
        let path = self.0.file.path();
        let io = |source| Error::Io { path: path.to_path_buf(), op: "map", offset: None, source };
        let disk = SimDisk(self.0.clone(), map(&self.0.file, self.0.extent, &self.0.refusal).map_err(io)?, errors);
        Db::open_on(path, options, Box::new(disk))
    }

    /// Remembers a number of the caller's with all moments from now on.
    pub fn note(&self, note: u64) {
        self.0.state.lock().now.note = note;
    }

    /// Keeps the moment before each call from now on; of several, one in `n`.
    pub fn keep_one_in(&self, n: u64, noise: u64) {
        let mut state = self.0.state.lock();
        (state.keep, state.noise) = (n, Noise(noise));
    }

    /// The moments that were kept so far.
    pub fn take_kept(&self) -> Vec<Moment> {
        std::mem::take(&mut self.0.state.lock().kept)
    }

    /// What a power cut now may leave.
    pub fn now(&self) -> io::Result<Moment> {
        let mut state = self.0.state.lock();
        self.observe(&mut state)?;
        Ok(state.now.clone())
    }

    /// The file as those see it who have it open.
    pub fn content(&self) -> io::Result<Vec<u8>> {
        std::fs::read(self.0.file.path())
    }

    /// Notices what was stored through the map since the last call, and keeps the moment.
    pub fn mark(&self) -> io::Result<()> {
        let mut state = self.0.state.lock();
        self.observe(&mut state)?;
        state.keep();
        Ok(())
    }

    /// The `n`-th call of a kind from now on, counted from 0, fails with this error (a map only for want of memory).
    pub fn fail(&self, call: Call, n: u64, error: ErrorKind) {
        let mut state = self.0.state.lock();
        let (refusal, n) = match call {
            Call::Map => (n as i64, u64::MAX),
            _ => (i64::MAX, state.counts[call as usize] + n),
        };
        self.0.refusal.store(refusal, Ordering::Relaxed);
        (state.failing, state.failed, state.deadly) = (Some((call, n, error)), false, false);
    }

    /// As `fail`; and the process that makes the call, if it is a mortal one, dies before its next step.
    pub fn fail_and_die(&self, call: Call, n: u64) {
        self.fail(call, n, ErrorKind::Other);
        self.0.state.lock().deadly = true;
    }

    /// Somebody else does this at the next sync, or for `Call::GiveBack` at the next call of `Disk::punch`, before
    /// anything is synced or punched.
    pub fn before(&self, call: Call, work: impl FnOnce() + Send + 'static) {
        *self.0.beside.lock() = Some((call, Box::new(work)));
    }

    /// The turn of whoever waits for a call of this kind.
    fn yield_to_other(&self, call: Call) {
        let work = self.0.beside.lock().take_if(|(awaited, _)| *awaited as usize == call as usize);
        if let Some((_, work)) = work {
            work();
        }
    }

    /// From now on a sync also fails if another one has, of somebody else, since the store was opened: once each, and
    /// whatever its range. So does Linux since 4.13 (errseq_t); without this the disk tells nobody but the caller.
    pub fn tell_all(&self) {
        self.0.state.lock().tells = true;
    }

    /// The disk is full when so many extents have space.
    pub fn limit(&self, extents: u64) {
        self.0.state.lock().room = extents;
    }

    /// Whether the call that was to fail has.
    pub fn has_failed(&self) -> bool {
        self.0.state.lock().failed || self.0.refusal.load(Ordering::Relaxed) < 0
    }

    /// Calls of a kind so far.
    pub fn count(&self, call: Call) -> u64 {
        self.0.state.lock().counts[call as usize]
    }

    /// Some of what a failed sync left clean leaves memory, and comes back as the medium has it.
    pub fn evict(&self, noise: u64) -> io::Result<()> {
        let mut noise = Noise(noise);
        let mut state = self.0.state.lock();
        self.observe(&mut state)?;
        let State { now, seen, dirty, .. } = &mut *state;
        let end = now.durable.len().min(seen.len()) as u64 / SECTOR;
        let clean: Vec<u64> = now.maybe.keys().copied().filter(|n| *n < end && !dirty.contains(n)).collect();
        for sector in clean {
            let values = &now.maybe[&sector];
            let pick = noise.below(2 + values.len() as u64) as usize;
            if pick > values.len() {
                continue;
            }
            let place = place(sector);
            let value = values.get(pick).map_or(&now.durable[place.clone()], |value| &value[..]);
            self.0.file.as_file().write_all_at(value, sector * SECTOR)?;
            seen[place.clone()].copy_from_slice(value);
            let value = value.to_vec();
            Arc::make_mut(&mut now.durable)[place].copy_from_slice(&value);
            now.forget(sector);
        }
        Ok(())
    }

    /// Notes what has changed in memory since the last look.
    fn observe(&self, state: &mut State) -> io::Result<()> {
        let file = self.0.file.as_file();
        let len = file.metadata()?.len();
        state.seen.resize(len as usize, 0);
        let volatile = state.now.volatile.clone();
        for part in [0..volatile.start, volatile.end..len] {
            let mut at = part.start;
            while at < part.end {
                let mut memory = [0; PIECE];
                let memory = &mut memory[..PIECE.min((part.end - at) as usize)];
                file.read_exact_at(memory, at)?;
                if *memory != state.seen[at as usize..at as usize + memory.len()] {
                    assert!(state.held.contains(&(at / self.0.extent)), "a store to no space");
                    state.take_over(at / SECTOR, memory);
                }
                at += memory.len() as u64;
            }
        }
        state.now.claimed = self.claimed(volatile.start);
        Ok(())
    }

    fn extents(&self, pos: u64, len: u64) -> Range<u64> {
        pos / self.0.extent..(pos + len).div_ceil(self.0.extent)
    }

    /// Others may count on this at once.
    fn claimed(&self, control: u64) -> u64 {
        let word = |word: Word| self.1.words::<1>(control + word as u64 * 8).map_or(0, |cell| load(&cell[0]));
        if word(Word::Layout) == LAYOUT { word(Word::Durable) } else { 0 }
    }

    /// Every call begins here: the moment before it, and whether it fails.
    fn begin(&self, state: &mut State, call: Call) -> io::Result<()> {
        self.observe(state)?;
        state.keep();
        state.now.calls += 1;
        state.counts[call as usize] += 1;
        match state.failing {
            Some((kind, n, error)) if kind == call && state.counts[call as usize] == n + 1 => {
                state.failed = true;
                if state.deadly {
                    fault::doom();
                }
                Err(error.into())
            }
            _ => Ok(()),
        }
    }
}

fn map(file: &NamedTempFile, extent: u64, refusal: &Arc<AtomicI64>) -> io::Result<Arc<Map>> {
    let mut map = Map::shared(file.as_file(), true, extent, RESERVE, None)?;
    map.refuse_by(refusal.clone());
    Ok(Arc::new(map))
}

fn place(sector: u64) -> Range<usize> {
    (sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize
}

fn sectors(pos: u64, len: u64) -> Range<u64> {
    pos / SECTOR..(pos + len).div_ceil(SECTOR)
}

impl State {
    fn keep(&mut self) {
        if self.keep != 0 && self.noise.below(self.keep) == 0 {
            self.kept.push(self.now.clone());
        }
    }

    /// Notes the sectors of `memory`, from sector `first` on, that differ from what was seen last.
    fn take_over(&mut self, first: u64, memory: &[u8]) {
        for (n, value) in memory.chunks(SECTOR as usize).enumerate() {
            let sector = first + n as u64;
            let place = place(sector);
            if self.seen[place.clone()] == *value {
                continue;
            }
            self.seen[place.clone()].copy_from_slice(value);
            self.dirty.insert(sector);
            let durable = self.now.durable.get(place).is_some_and(|durable| durable == value);
            let values = self.now.maybe.get(&sector);
            if !durable && values.is_none_or(|values| values.iter().all(|known| **known != *value)) {
                self.now.maybe.entry(sector).or_default().push(value.into());
            }
        }
    }

    /// A sync that went well.
    fn make_durable(&mut self, sectors: Range<u64>) {
        let durable = Arc::make_mut(&mut self.now.durable);
        durable.resize(self.seen.len(), 0);
        self.now.lens.clear();
        let written: Vec<u64> = self.dirty.range(sectors).copied().collect();
        for &sector in &written {
            durable[place(sector)].copy_from_slice(&self.seen[place(sector)]);
            self.dirty.remove(&sector);
        }
        written.into_iter().for_each(|sector| self.now.forget(sector));
    }
}

impl Disk for SimDisk {
    fn map(&self) -> &Arc<Map> {
        &self.1
    }

    fn write(&self, pos: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let begun = self.begin(&mut state, Call::Write);
        assert!(self.extents(pos, bytes.len() as u64).all(|n| state.held.contains(&n)), "a write to no space");
        // A failed write leaves any part.
        let part = if begun.is_err() { state.noise.below(bytes.len() as u64) as usize } else { bytes.len() };
        self.0.file.as_file().write_all_at(&bytes[..part], pos)?;
        self.observe(&mut state)?;
        for sector in sectors(pos, part as u64) {
            state.dirty.insert(sector);
            if state.now.maybe.contains_key(&sector) {
                state.now.written.insert(sector);
            }
        }
        begun
    }

    fn sync(&self, pos: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.yield_to_other(Call::Sync);
        let mut state = self.0.state.lock();
        let range = sectors(pos, len);
        match self.begin(&mut state, Call::Sync) {
            Ok(()) => state.make_durable(range),
            Err(error) => {
                state.dirty.retain(|sector| !range.contains(sector));
                state.errors += 1;
                self.2.store(state.errors, Ordering::Relaxed);
                return Err(error);
            }
        }
        let known = self.2.swap(state.errors, Ordering::Relaxed);
        if state.tells && known < state.errors { Err(ErrorKind::Other.into()) } else { Ok(()) }
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.state.lock();
        self.begin(&mut state, Call::Allocate)?;
        let wanted: Vec<u64> = self.extents(pos, len).filter(|n| !state.held.contains(n)).collect();
        if (state.held.len() + wanted.len()) as u64 > state.room {
            return Err(ErrorKind::StorageFull.into());
        }
        let before = self.len()?;
        file::allocate(self.0.file.as_file(), pos, len)?;
        let end = self.len()?;
        // Space that cannot be mapped is given back, as on a real disk.
        self.1.set_len(end).or_else(|e| self.0.file.as_file().set_len(before).and(Err(e)))?;
        state.held.extend(wanted);
        if end > state.seen.len() as u64 {
            state.seen.resize(end as usize, 0);
            state.now.lens.push(end);
        }
        Ok(())
    }

    fn punch(&self, pos: u64, len: u64) -> io::Result<()> {
        self.yield_to_other(Call::GiveBack);
        let mut state = self.0.state.lock();
        self.begin(&mut state, Call::GiveBack)?;
        file::punch(self.0.file.as_file(), pos, len)?;
        self.observe(&mut state)?;
        let gone = self.extents(pos, len);
        state.held.retain(|n| !gone.contains(n));
        Ok(())
    }

    fn scatter(&self, pos: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.state.lock();
        self.begin(&mut state, Call::GiveBack)?;
        // What stood there is gone, the space is not.
        file::punch(self.0.file.as_file(), pos, len)?;
        self.observe(&mut state)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.state.lock();
        self.begin(&mut state, Call::GiveBack)?;
        self.0.file.as_file().set_len(len)?;
        state.seen.truncate(len as usize);
        let left = self.extents(0, len);
        state.held.retain(|n| left.contains(n));
        state.dirty.retain(|sector| sector * SECTOR < len);
        state.now.lens.push(len);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.file.as_file().metadata()?.len())
    }
}
