//! Pins, the horizon, and the processes that own them.
//!
//! A reader announces the seq it reads in a cell of its own and looks again; whoever reuses space loads visible first
//! and scans the cells after (the reader table of LMDB, with hazard-pointer ordering: Michael, "Hazard Pointers",
//! 2004). Read-only openers cannot write cells: they hold a shared byte lock whose place is the seq.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::control::{CELLS, Core, PROCESSES, Word, store};
use crate::error::{Error, Holder, Result};
use crate::sys::atomic::{AtomicU64, fence};
use crate::sys::host;
use crate::sys::lock::Mode;

/// Byte locks, far beyond the end of any file.
pub mod bytes {
    /// Held exclusively while a handle opens or closes the store.
    pub const OPEN: u64 = 1 << 62;
    /// Held by whoever uses the shared words; exclusively by who sets them up.
    pub const ATTACH: u64 = OPEN + 1;
    /// Held shared by read-only openers.
    pub const READ_ONLY: u64 = OPEN + 2;
    /// Held while a checkpoint runs.
    pub const CHECKPOINT: u64 = OPEN + 3;
    /// Held by the flush leader.
    pub const SYNC: u64 = OPEN + 4;
    /// One byte a process.
    pub const PROCESS: u64 = OPEN + (1 << 20);
    /// One byte a seq: pins of read-only openers.
    pub const PIN: u64 = 1 << 61;
    /// One byte a checkpoint generation: read-only openers that are alone hold the one they have recovered from.
    pub const GENERATION: u64 = 1 << 60;
}

/// Lanes a process spreads its threads over; each keeps a cell.
const LANES: usize = 64;
/// Lanes a thread tries before it takes a cell of its own.
const TRIES: usize = 4;
/// Beyond so many cells in use a process takes another one only when all that it has hold a pin.
const PLENTY: u64 = CELLS / 2;

/// This process's place in the tables.
pub struct Lanes {
    /// Process number + 1; 0: not in the table.
    number: AtomicU32,
    /// Cell + 1 of each lane; 0: none yet.
    cells: [AtomicU32; LANES],
    /// Cells owned beyond those of the lanes, not in use.
    spare: Mutex<Vec<u32>>,
    /// Pins by byte lock, by seq: locks of one descriptor on one byte are one lock.
    bytes: Mutex<BTreeMap<u64, u32>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes {
            number: AtomicU32::new(0),
            cells: [const { AtomicU32::new(0) }; LANES],
            spare: Mutex::default(),
            bytes: Mutex::default(),
        }
    }
}

/// An announced seq. Unpinned by `Core::unpin`.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    /// What the snapshot reads.
    pub seq: u64,
    place: Place,
}

/// A pin that ends with its scope.
pub struct ScopedPin<'a> {
    core: &'a Core,
    pin: Pin,
}

impl ScopedPin<'_> {
    /// What may be read.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.pin.seq
    }
}

impl Drop for ScopedPin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.core.unpin(self.pin);
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// A lane's cell.
    Lane(u32),
    /// A cell of its own.
    Spare(u32),
    /// A byte lock.
    Byte,
    /// Nobody else can change anything.
    Nothing,
}

/// Words of a reader cell.
const CELL_SEQ: usize = 0;
const CELL_OWNER: usize = 1;
const CELL_SINCE: usize = 2;

/// Words of a process entry.
pub const PROCESS_PID: usize = 0;
/// When it attached, nanoseconds since the epoch.
pub const PROCESS_SINCE: usize = 1;
const PROCESS_COMMAND: usize = 2;
const COMMAND_WORDS: usize = 4;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The lane this thread starts its search at.
#[inline]
fn lane() -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    LANE.with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT.fetch_add(1, Ordering::Relaxed) as usize);
        }
        lane.get()
    })
}

impl Core {
    /// This process's number + 1, as it stands in words that name a process.
    pub fn me(&self) -> u64 {
        u64::from(self.lanes.number.load(Ordering::Relaxed))
    }

    /// Announces the visible seq and returns it: until `unpin`, nothing that a snapshot of it can reach is reused.
    #[inline]
    pub fn pin(&self) -> Result<Pin> {
        self.check_poison()?;
        if !self.shared {
            return Ok(Pin { seq: self.get(Word::Visible), place: Place::Nothing });
        }
        if !self.writable {
            return self.pin_byte();
        }
        let lane = lane();
        for n in 0..TRIES {
            let cell = self.lanes.cells[(lane + n) % LANES].load(Ordering::Relaxed);
            if cell == 0 {
                break;
            }
            if let Some(pin) = self.pin_in(cell - 1) {
                return Ok(pin);
            }
        }
        self.pin_slow(lane)
    }

    /// Pins in the cell of a lane, unless it is in use.
    #[inline]
    fn pin_in(&self, cell: u32) -> Option<Pin> {
        let seq = self.get(Word::Visible);
        // SeqCst: claims the cell and announces; a full barrier before the second look at `visible`.
        let words = self.cell(u64::from(cell));
        words[CELL_SEQ].compare_exchange(0, seq + 1, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        Some(Pin { seq: self.look_again(&words[CELL_SEQ], seq), place: Place::Lane(cell) })
    }

    /// Looks again at `visible` until it is what the cell says; the cell was announced by a SeqCst operation.
    #[inline]
    fn look_again(&self, cell: &AtomicU64, mut seq: u64) -> u64 {
        loop {
            if cfg!(loom) || !cfg!(target_arch = "x86_64") {
                // SeqCst fence: pairs with the one in `scan_cells`. Either the scan sees this cell, or this load sees
                // the `visible` that the scan began with. On x86 the announcing instruction is a full barrier itself;
                // loom takes it for AcqRel.
                fence(Ordering::SeqCst);
            }
            let again = self.get(Word::Visible);
            if again == seq {
                return seq;
            }
            seq = again;
            // SeqCst: announces; an exchange, since that is a full barrier on x86 where a store is none.
            cell.swap(seq + 1, Ordering::SeqCst);
        }
    }

    #[cold]
    fn pin_slow(&self, lane: usize) -> Result<Pin> {
        let spare = self.lanes.spare.lock().pop();
        if spare.is_none()
            && self.get(Word::CellsUsed) > PLENTY
            && let Some(pin) = self.pin_in_any_lane()
        {
            return Ok(pin);
        }
        let cell = match spare {
            Some(cell) => cell,
            None => self.claim_cell()?,
        };
        let empty = (0..TRIES).find(|n| {
            let lane = &self.lanes.cells[(lane + n) % LANES];
            spare.is_none() && lane.compare_exchange(0, cell + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        if empty.is_some() {
            return self.pin();
        }
        let seq = self.get(Word::Visible);
        let words = self.cell(u64::from(cell));
        // SeqCst: announces, as in `pin`.
        words[CELL_SEQ].swap(seq + 1, Ordering::SeqCst);
        Ok(Pin { seq: self.look_again(&words[CELL_SEQ], seq), place: Place::Spare(cell) })
    }

    /// Pins in a cell that the lane of some thread keeps, if one of them reads nothing now.
    fn pin_in_any_lane(&self) -> Option<Pin> {
        let mut cells = self.lanes.cells.iter().filter_map(|lane| lane.load(Ordering::Relaxed).checked_sub(1));
        cells.find_map(|cell| self.pin_in(cell))
    }

    fn pin_byte(&self) -> Result<Pin> {
        let mut pinned = self.lanes.bytes.lock();
        loop {
            let seq = self.get(Word::Visible);
            let count = pinned.get(&seq).copied().unwrap_or(0);
            if count == 0 {
                let byte = self.locks.try_byte(bytes::PIN + seq, Mode::Shared);
                if !byte.map_err(|e| self.io("pin", None, e))? {
                    return Err(self.corrupt(0, "a pin is locked against readers"));
                }
            }
            // The lock is held before the second look, as with cells.
            if self.get(Word::Visible) == seq {
                pinned.insert(seq, count + 1);
                return Ok(Pin { seq, place: Place::Byte });
            }
            if count == 0 {
                self.unlock_pin(seq);
            }
        }
    }

    fn unpin_byte(&self, seq: u64) {
        let mut pinned = self.lanes.bytes.lock();
        let count = pinned.get(&seq).copied().unwrap_or(0);
        if count > 1 {
            pinned.insert(seq, count - 1);
        } else {
            pinned.remove(&seq);
            self.unlock_pin(seq);
        }
    }

    fn unlock_pin(&self, seq: u64) {
        if let Err(e) = self.locks.unlock_byte(bytes::PIN + seq) {
            log::error!("{}: unpin failed: {e}", self.path.display());
        }
    }

    /// Ends a pin.
    #[inline]
    pub fn unpin(&self, pin: Pin) {
        match pin.place {
            // Release: the reads under the pin come before it ends.
            Place::Lane(cell) => self.cell(u64::from(cell))[CELL_SEQ].store(0, Ordering::Release),
            Place::Spare(cell) => {
                // Release: as above.
                self.cell(u64::from(cell))[CELL_SEQ].store(0, Ordering::Release);
                self.lanes.spare.lock().push(cell);
            }
            Place::Byte => self.unpin_byte(pin.seq),
            Place::Nothing => {}
        }
    }

    /// A pin that ends with its scope.
    #[inline]
    pub fn pin_for_one_get(&self) -> Result<ScopedPin<'_>> {
        Ok(ScopedPin { core: self, pin: self.pin()? })
    }

    /// Notes when a pin began, for those who look for old ones.
    pub fn date_pin(&self, pin: &Pin) {
        if let Place::Lane(cell) | Place::Spare(cell) = pin.place {
            self.cell(u64::from(cell))[CELL_SINCE].store(host::coarse_now(), Ordering::Relaxed);
        }
    }

    fn claim_cell(&self) -> Result<u32> {
        let mut free = self.free_cell();
        if free.is_none() {
            // Dead processes own theirs until somebody sweeps them.
            for number in 0..PROCESSES {
                self.sweep_process(number)?;
            }
            free = self.free_cell();
        }
        let n = free.ok_or_else(|| Error::TooManyReaders { path: self.path.clone() })?;
        self.lift(Word::CellsUsed, n + 1);
        Ok(n as u32)
    }

    fn free_cell(&self) -> Option<u64> {
        (0..CELLS).find(|&n| {
            let owner = &self.cell(n)[CELL_OWNER];
            owner.load(Ordering::Relaxed) == 0
                // AcqRel: the cell is ours, and whatever its last owner did with it is past.
                && owner.compare_exchange(0, self.me(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// The least seq that a snapshot may read, now or later. Sweeps dead processes if one of them holds it back.
    pub fn horizon(&self) -> Result<u64> {
        if !self.shared {
            return Ok(self.get(Word::Visible));
        }
        let (oldest, newest) = self.scan_cells();
        let oldest = if oldest < newest && self.sweep_dead(newest)? { self.scan_cells().0 } else { oldest };
        let horizon = self.oldest_byte_pin(oldest);
        // A lost cell holds nothing back.
        self.settled(horizon)
    }

    /// The oldest pin in a cell, or visible. A hint: it asks for neither dead processes nor read-only openers, and may
    /// miss a pin that is being made.
    pub fn oldest_pin(&self) -> u64 {
        self.pins().fold(self.get(Word::Visible), u64::min)
    }

    /// The oldest pin in a cell, or visible; and visible.
    fn scan_cells(&self) -> (u64, u64) {
        let visible = self.get(Word::Visible);
        // SeqCst fence: pairs with the one in `look_again`.
        fence(Ordering::SeqCst);
        (self.pins().fold(visible, u64::min), visible)
    }

    /// What the cells announce.
    fn pins(&self) -> impl Iterator<Item = u64> {
        let used = self.get(Word::CellsUsed).min(CELLS);
        // Acquire: an ended pin's reads come before whatever is done with the space.
        (0..used).filter_map(|n| self.cell(n)[CELL_SEQ].load(Ordering::Acquire).checked_sub(1))
    }

    /// The oldest pin of a read-only opener below `below`, or `below`.
    pub fn oldest_byte_pin(&self, mut below: u64) -> Result<u64> {
        let failed = |e| self.io("lock query", None, e);
        if self.locks.conflict(bytes::READ_ONLY, 1).map_err(failed)?.is_none() {
            return Ok(below);
        }
        while below > 0 {
            match self.locks.conflict(bytes::PIN, below).map_err(failed)? {
                Some(place) => below = place.saturating_sub(bytes::PIN).min(below - 1),
                None => break,
            }
        }
        Ok(below)
    }

    /// Clears the cells of dead processes that pin less than `below`. Whether there were any.
    fn sweep_dead(&self, below: u64) -> Result<bool> {
        let mut swept = false;
        for n in 0..self.get(Word::CellsUsed).min(CELLS) {
            let cell = self.cell(n);
            let pinned = cell[CELL_SEQ].load(Ordering::Relaxed);
            let owner = cell[CELL_OWNER].load(Ordering::Relaxed);
            if pinned != 0 && pinned <= below && owner != 0 && owner != self.me() {
                swept |= self.sweep_process(owner - 1)?;
            }
        }
        Ok(swept)
    }

    /// Clears the entry and the cells of a process, if it is dead: its byte is held meanwhile, so that nobody takes the
    /// number before its cells are clear.
    pub fn sweep_process(&self, number: u64) -> Result<bool> {
        if number >= PROCESSES || number + 1 == self.me() || !self.try_process_byte(number)? {
            return Ok(false);
        }
        self.clear_process(number);
        self.locks.unlock_byte(bytes::PROCESS + number).map_err(|e| self.io("unlock", None, e))?;
        Ok(true)
    }

    fn try_process_byte(&self, number: u64) -> Result<bool> {
        self.locks.try_byte(bytes::PROCESS + number, Mode::Exclusive).map_err(|e| self.io("lock", None, e))
    }

    fn clear_process(&self, number: u64) {
        for n in 0..self.get(Word::CellsUsed).min(CELLS) {
            let cell = self.cell(n);
            if cell[CELL_OWNER].load(Ordering::Relaxed) == number + 1 {
                store(&cell[CELL_SEQ], 0);
                store(&cell[CELL_OWNER], 0);
            }
        }
        store(&self.process(number)[PROCESS_PID], 0);
    }

    /// Takes a process number and writes who we are. The byte lock is the proof of life; the entry only describes.
    pub fn enter_process(&self) -> Result<()> {
        for number in 0..PROCESSES {
            if !self.try_process_byte(number)? {
                continue;
            }
            self.clear_process(number);
            let entry = self.process(number);
            let mut command = host::command();
            command.resize(COMMAND_WORDS * 8, 0);
            for (n, word) in command.chunks_exact(8).enumerate() {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(word);
                entry[PROCESS_COMMAND + n].store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            }
            entry[PROCESS_SINCE].store(host::coarse_now(), Ordering::Relaxed);
            store(&entry[PROCESS_PID], u64::from(host::pid()));
            self.lanes.number.store(number as u32 + 1, Ordering::Relaxed);
            return Ok(());
        }
        Err(Error::TooManyProcesses { path: self.path.clone() })
    }

    /// Gives the process number and all cells back.
    pub fn leave_process(&self) {
        if let Some(number) = self.me().checked_sub(1) {
            self.clear_process(number);
        }
    }

    /// Pid and command of an entry; no pid: not in use.
    pub fn process_entry(&self, number: u64) -> Option<(u32, String, u64)> {
        let entry = self.process(number);
        let pid = crate::control::load(&entry[PROCESS_PID]) as u32;
        if pid == 0 {
            return None;
        }
        let words = &entry[PROCESS_COMMAND..PROCESS_COMMAND + COMMAND_WORDS];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect();
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        let command = String::from_utf8_lossy(&bytes[..end]).into_owned();
        Some((pid, command, entry[PROCESS_SINCE].load(Ordering::Relaxed)))
    }

    /// Whether the process of that number holds its byte.
    pub fn is_alive(&self, number: u64) -> Result<bool> {
        if number + 1 == self.me() {
            return Ok(true);
        }
        let held = self.locks.conflict(bytes::PROCESS + number, 1).map_err(|e| self.io("lock query", None, e))?;
        Ok(held.is_some())
    }

    /// Pins in cells: owner's number, seq, begin (0: a single get, or not noted).
    pub fn cell_pins(&self) -> Vec<(u64, u64, u64)> {
        let used = self.get(Word::CellsUsed).min(CELLS);
        let pin = |n| {
            let cell = self.cell(n);
            let seq = cell[CELL_SEQ].load(Ordering::Relaxed).checked_sub(1)?;
            let owner = cell[CELL_OWNER].load(Ordering::Relaxed).checked_sub(1)?;
            Some((owner, seq, cell[CELL_SINCE].load(Ordering::Relaxed)))
        };
        (0..used).filter_map(pin).collect()
    }

    /// Seqs that snapshots of this handle pin by byte locks, once for each.
    pub fn own_byte_pins(&self) -> Vec<u64> {
        let pinned = self.lanes.bytes.lock();
        pinned.iter().flat_map(|(&seq, &count)| std::iter::repeat_n(seq, count as usize)).collect()
    }

    /// Who holds a lock, as far as its word (process number + 1) tells, and since when it has or might have had it.
    pub fn holder(&self, word: u64) -> Option<Holder> {
        let number = word.checked_sub(1).filter(|&n| n < PROCESSES)?;
        let (pid, command, attached) = self.process_entry(number)?;
        let since = if self.get(Word::Holder) == word { self.get(Word::HolderSince) } else { attached };
        Some(Holder { pid, command, since: time(since) })
    }
}

/// Nanoseconds since the epoch as a time.
pub fn time(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}
