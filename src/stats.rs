//! Numbers about a store and the processes that use it.

use std::time::SystemTime;

use crate::control::{Core, PROCESSES, Word};
use crate::engine::Engine;
use crate::error::{Error, Held, Result};
use crate::format::PAGE;
use crate::format::extent::{Kind, PageState};
use crate::format::header::VERSION;
use crate::readers::time;
use crate::space::reusable;

/// Sizes in bytes and counts. A picture of a moving store: the numbers are each right at some instant of the call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Length of the file.
    pub file_bytes: u64,
    /// Keys that have a value.
    pub live_keys: u64,
    /// Bytes of their keys and values.
    pub live_bytes: u64,
    /// Bytes of log segments in use that are not live records.
    pub dead_bytes: u64,
    /// Bytes of extents that are free, or will be when readers and checkpoint have passed them.
    pub free_bytes: u64,
    /// Of the free bytes, those whose space has been given back to the file system, or may have been.
    pub hole_bytes: u64,
    /// Bytes of extents and index pages that are out of use and wait for snapshots or for a checkpoint.
    pub retired_bytes: u64,
    /// Of the retired bytes, those that wait for nothing but a snapshot to end.
    pub held_bytes: u64,
    /// Bytes of index pages and directory.
    pub index_bytes: u64,
    /// Bytes of log segments.
    pub log_bytes: u64,
    /// Log segments.
    pub segments: u64,
    /// Index pages in use.
    pub index_pages: u64,
    /// Processes that have the store open for writing, this one included.
    pub processes: u64,
    /// Snapshots that are open.
    pub readers: u64,
    /// Oldest seq that a snapshot reads, or may still begin to read.
    pub horizon: u64,
    /// Bytes of log that a recovery would replay.
    pub log_since_checkpoint_bytes: u64,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Address space reserved by this process.
    pub mapped_bytes: u64,
    /// Hard bound of the file.
    pub max_size: Option<u64>,
    /// The four seqs.
    pub seq: Seqs,
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Version of the file format.
    pub format_version: u32,
    /// A sync has failed.
    pub poisoned: bool,
    /// The file system loses all with the power.
    pub volatile_fs: bool,
}

/// How far the store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seqs {
    /// Last commit in the index.
    pub applied: u64,
    /// Last commit that new snapshots see.
    pub visible: u64,
    /// Last commit that a power cut cannot undo.
    pub durable: u64,
    /// Last commit that needs no replay.
    pub checkpoint: u64,
}

/// A process that has the store open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its number in the store.
    pub number: u32,
    /// Its process id, as it sees it itself.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// When it opened the store.
    pub attached_at: SystemTime,
    /// Proven by its lock, not by its pid.
    pub alive: bool,
    /// Since when it has the writer lock, if it does.
    pub writer_since: Option<SystemTime>,
    /// Its snapshots.
    pub pins: Vec<PinInfo>,
}

/// A snapshot that is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PinInfo {
    /// What it reads.
    pub seq: u64,
    /// When it began; none for a single get.
    pub since: Option<SystemTime>,
    /// Bytes that were retired after what it reads: they stay at least until it ends, and snapshots as old.
    pub holds_bytes: u64,
}

/// Something that is out of use and not yet reusable.
struct Retired {
    seq: u64,
    seen: bool,
    bytes: u64,
}

/// Space by use.
#[derive(Default)]
struct Space {
    log: u64,
    live: u64,
    segments: u64,
    free: u64,
    holes: u64,
}

impl Core {
    fn space(&self) -> Space {
        let mut space = Space::default();
        let mut n = 0;
        while n < self.extents_in_reach() {
            let extent = self.extent(n);
            let bytes = extent.run() * self.geometry.extent;
            match extent.state().kind() {
                Kind::Log => {
                    space.log += bytes;
                    space.live = space.live.saturating_add(extent.live());
                    space.segments += 1;
                }
                Kind::Free | Kind::Retired => space.free += bytes,
                Kind::Hole | Kind::Punching => {
                    space.free += bytes;
                    space.holes += bytes;
                }
                _ => {}
            }
            n += if matches!(extent.state().kind(), Kind::Free | Kind::Fixed | Kind::Inner) { 1 } else { extent.run() };
        }
        space
    }

    /// What is out of use and not yet reusable: extents, and pages in extents that are in use.
    fn retired(&self) -> Vec<Retired> {
        let mut retired = Vec::new();
        for n in 0..self.extents_in_reach() {
            let extent = self.extent(n);
            let state = extent.state();
            match state.kind() {
                Kind::Retired => {
                    let bytes = extent.run() * self.geometry.extent;
                    retired.push(Retired { seq: state.number(), seen: state.is_seen(), bytes });
                }
                Kind::Index if self.get(Word::RetiredPages) > 0 => {
                    for position in (self.position_of(n)..self.position_of(n + 1)).step_by(PAGE as usize) {
                        if let PageState::Retired { seq, seen } = self.page_state(position) {
                            retired.push(Retired { seq, seen, bytes: PAGE });
                        }
                    }
                }
                _ => {}
            }
        }
        retired
    }

    /// The error of an operation; of one that found no space, with the snapshot that keeps some.
    #[cold]
    pub fn explained(&self, mut error: Error) -> Error {
        if let Error::Full { held, .. } | Error::MaxSize { held, .. } = &mut error
            && let Ok(seq) = self.horizon()
            && seq < self.get(Word::Checkpoint)
        {
            *held = Some(Held { seq, bytes: held_by(seq, &self.retired()) });
        }
        error
    }
}

/// Bytes that a snapshot of `seq` keeps from being reused.
fn held_by(seq: u64, retired: &[Retired]) -> u64 {
    retired.iter().filter(|each| each.seq > seq).map(|each| each.bytes).sum()
}

impl Engine {
    /// Numbers about the store. Cost: a walk over the extent table.
    pub fn stats(&self) -> Result<Stats> {
        let core = &self.core;
        let (applied, ends) = core.ends();
        let (space, retired) = (core.space(), core.retired());
        let horizon = core.cell_pins().iter().map(|&(_, seq, _)| seq).fold(core.get(Word::Visible), u64::min);
        let checkpoint = core.get(Word::Checkpoint);
        let held = retired.iter().filter(|each| {
            reusable(each.seq, each.seen, u64::MAX, checkpoint) && !reusable(each.seq, each.seen, horizon, checkpoint)
        });
        // In private memory the store itself has no bound.
        let max = core.get(if core.shared { Word::MaxSize } else { Word::MaxSizeStored });
        Ok(Stats {
            file_bytes: core.file_len()?,
            live_keys: ends.live_keys,
            live_bytes: ends.live_bytes,
            dead_bytes: space.log.saturating_sub(space.live),
            free_bytes: space.free,
            hole_bytes: space.holes,
            retired_bytes: retired.iter().map(|each| each.bytes).sum(),
            held_bytes: held.map(|each| each.bytes).sum(),
            index_bytes: core.index_bytes(),
            log_bytes: space.log,
            segments: space.segments,
            index_pages: core.pages_in_use(),
            processes: self.processes()?.iter().filter(|p| p.alive).count() as u64,
            readers: core.cell_pins().len() as u64,
            horizon,
            log_since_checkpoint_bytes: self.log_since_checkpoint(),
            extent_size: core.geometry.extent,
            mapped_bytes: core.map.reserved(),
            max_size: (max != 0).then_some(max),
            seq: Seqs { applied, visible: core.get(Word::Visible), durable: core.get(Word::Durable), checkpoint },
            uuid: core.geometry.uuid,
            format_version: VERSION,
            poisoned: core.get(Word::Poisoned) != 0,
            volatile_fs: core.volatile_fs,
        })
    }

    /// Processes that have the store open for writing, dead ones that nobody has swept included.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let core = &self.core;
        core.cover()?;
        let pins = core.cell_pins();
        let retired = if pins.is_empty() { Vec::new() } else { core.retired() };
        let pin_info = |&(_, seq, since): &(u64, u64, u64)| PinInfo {
            seq,
            since: (since != 0).then(|| time(since)),
            holds_bytes: held_by(seq, &retired),
        };
        let holder = core.get(Word::Holder).checked_sub(1);
        let mut processes = Vec::new();
        for number in 0..PROCESSES {
            let Some((pid, command, since)) = core.process_entry(number) else { continue };
            let own = pins.iter().filter(|&&(owner, _, _)| owner == number);
            processes.push(ProcessInfo {
                number: number as u32,
                pid,
                command,
                attached_at: time(since),
                alive: core.is_alive(number)?,
                writer_since: (holder == Some(number)).then(|| time(core.get(Word::HolderSince))),
                pins: own.map(pin_info).collect(),
            });
        }
        Ok(processes)
    }
}
