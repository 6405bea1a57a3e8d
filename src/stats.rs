//! Numbers about a store and the processes that use it.

use std::collections::HashSet;
use std::ops::Range;
use std::time::SystemTime;

use crate::control::{CELLS, Core, PROCESSES, Word};
use crate::engine::Engine;
use crate::error::{Error, Held, Result};
use crate::format::PAGE;
use crate::format::extent::{Kind, PageState};
use crate::format::header::VERSION;
use crate::readers::{bytes, time};
use crate::space::reusable;
use crate::sys::holders::Holder;
use crate::sys::host;

/// Where the locks are by which read-only openers pin.
const PINS: Range<u64> = bytes::PIN..bytes::OPEN;
/// Pins of read-only openers that are counted or listed, at most: anybody who may read the file may lock any byte.
const MOST_PINS: usize = CELLS as usize;

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
    /// Snapshots that are open. Of those that other read-only handles have, all that read the same commit count as one.
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

/// A process that has the store open for writing, or has a snapshot by a read-only handle.
///
/// A read-only handle leaves no trace in a store but locks: its process is the one that the system names as their
/// owner, if it does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its number in the store; none: by a read-only handle.
    pub number: Option<u32>,
    /// Its process id, as it sees it itself; by a read-only handle, as this process sees it. None where the system does
    /// not tell, since the process belongs to another user or is in another container.
    pub pid: Option<u32>,
    /// Its command; none where there is no pid.
    pub command: Option<String>,
    /// When it opened the store; not known of a read-only handle.
    pub attached_at: Option<SystemTime>,
    /// Proven by its lock, not by its pid.
    pub alive: bool,
    /// Since when it has the writer lock, if it does.
    pub writer_since: Option<SystemTime>,
    /// Its snapshots. By a read-only handle other than this one, those that read the same commit are one; and a handle
    /// that was opened when nobody else had the store open is one, for as long as it is open.
    pub pins: Vec<PinInfo>,
}

/// A snapshot that is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PinInfo {
    /// What it reads.
    pub seq: u64,
    /// When it began; none for a single get, and not known of a read-only handle.
    pub since: Option<SystemTime>,
    /// Bytes that were retired after what it reads: they stay at least until it ends, and snapshots as old.
    pub holds_bytes: u64,
}

/// Who pins by locks.
struct LockedPins {
    pid: Option<u32>,
    command: Option<String>,
    seqs: Vec<u64>,
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

    /// What other read-only handles pin: each piece is of one of them, or of several.
    fn locked_pins(&self) -> Result<Vec<Range<u64>>> {
        let failed = |e| self.io("lock query", None, e);
        if self.locks.conflict(bytes::READ_ONLY, 1).map_err(failed)?.is_none() {
            return Ok(Vec::new());
        }
        let mut pieces = self.locks.locked(&PINS, MOST_PINS).map_err(failed)?;
        let mut left = MOST_PINS as u64;
        for piece in &mut pieces {
            piece.end = piece.end.min(piece.start + left);
            left -= piece.end - piece.start;
        }
        Ok(pieces)
    }

    /// The pins of read-only handles by who has them: this handle first, then those that the system names, then what
    /// remains.
    fn locked_pins_by_holder(&self) -> Result<Vec<LockedPins>> {
        let own = LockedPins {
            pid: Some(host::pid()),
            command: Some(String::from_utf8_lossy(&host::command()).into_owned()),
            seqs: self.own_byte_pins(),
        };
        let mut found = vec![own];
        let pieces = self.locked_pins()?;
        if !pieces.is_empty() {
            let holders = self.locks.holders(&PINS).map_err(|e| self.io("lock query", None, e))?;
            let named = |Holder { pid, command, locks }| LockedPins { pid: Some(pid), command, seqs: seqs(&locks) };
            found.extend(holders.into_iter().map(named));
        }
        let known: HashSet<u64> = found[1..].iter().flat_map(|each| &each.seqs).copied().collect();
        for piece in pieces {
            let rest = seqs(&[piece]).into_iter().filter(|seq| !known.contains(seq)).collect();
            found.push(LockedPins { pid: None, command: None, seqs: rest });
        }
        found.retain(|each| !each.seqs.is_empty());
        Ok(found)
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

/// The seqs that locks of these places pin, oldest first.
fn seqs(locks: &[Range<u64>]) -> Vec<u64> {
    let mut seqs: Vec<u64> = locks.iter().cloned().flatten().take(MOST_PINS).map(|place| place - bytes::PIN).collect();
    seqs.sort_unstable();
    seqs
}

impl Engine {
    /// Numbers about the store. Cost: a walk over the extent table.
    pub fn stats(&self) -> Result<Stats> {
        let core = &self.core;
        let (applied, ends) = core.ends();
        let (space, retired) = (core.space(), core.retired());
        let mut pins: Vec<u64> = core.cell_pins().iter().map(|&(_, seq, _)| seq).chain(core.own_byte_pins()).collect();
        let horizon = pins.iter().copied().fold(core.get(Word::Visible), u64::min);
        let horizon = core.oldest_byte_pin(horizon)?;
        pins.extend(seqs(&core.locked_pins()?));
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
            processes: self.attached()?.iter().filter(|process| process.alive).count() as u64,
            readers: pins.len() as u64,
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

    /// Processes that have the store open for writing, dead ones that nobody has swept included; then who has snapshots
    /// by read-only handles.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let mut processes = self.attached()?;
        for LockedPins { pid, command, seqs } in self.core.locked_pins_by_holder()? {
            processes.push(ProcessInfo {
                number: None,
                pid,
                command,
                attached_at: None,
                alive: true,
                writer_since: None,
                pins: seqs.into_iter().map(|seq| PinInfo { seq, since: None, holds_bytes: 0 }).collect(),
            });
        }
        let mut pins = processes.iter_mut().flat_map(|process| &mut process.pins).peekable();
        let retired = if pins.peek().is_some() { self.core.retired() } else { Vec::new() };
        for pin in pins {
            pin.holds_bytes = held_by(pin.seq, &retired);
        }
        Ok(processes)
    }

    /// The processes of the table. What their pins hold is left to be counted.
    fn attached(&self) -> Result<Vec<ProcessInfo>> {
        let core = &self.core;
        core.cover()?;
        let pins = core.cell_pins();
        let pin_info = |&(_, seq, since): &_| PinInfo { seq, since: (since != 0).then(|| time(since)), holds_bytes: 0 };
        let holder = core.get(Word::Holder).checked_sub(1);
        let mut processes = Vec::new();
        for number in 0..PROCESSES {
            let Some((pid, command, since)) = core.process_entry(number) else { continue };
            let own = pins.iter().filter(|&&(owner, _, _)| owner == number);
            processes.push(ProcessInfo {
                number: Some(number as u32),
                pid: Some(pid),
                command: Some(command),
                attached_at: Some(time(since)),
                alive: core.is_alive(number)?,
                writer_since: (holder == Some(number)).then(|| time(core.get(Word::HolderSince))),
                pins: own.map(pin_info).collect(),
            });
        }
        Ok(processes)
    }
}
