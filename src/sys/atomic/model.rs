//! Shared cells in a model of weak memory (loom).
//!
//! Loom's atomics cannot lie in mapped memory. So a cell stays where it is and gives a run its first value; what is
//! stored during the run goes to an atomic of loom's that stands for the address, and is gone with the run. Outside of
//! runs cells are what they are otherwise. Bytes of the log have no values here: loom only checks that whoever reads
//! them has synchronized with whoever wrote them, and the other way round.
//!
//! All of a run's stand-ins are made before its threads begin, or whoever meets a cell first would seem to have stored
//! to it. Which ones it takes is found out by running: a run that meets a cell without one goes on without looking at
//! its order, and has to be repeated. See [`learned`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64 as Modelled;

/// Bytes of the log that are looked at together: records are aligned to them.
const GRAIN: u64 = 8;

/// What has a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The cell at an address, and its value before the run.
    Cell(usize, u64),
    /// A few bytes of the log, by position / `GRAIN`.
    Grain(u64),
    /// A lock of the kernel, by the byte's place.
    Lock(u64),
}

#[derive(Default)]
struct Run {
    cells: HashMap<usize, Rc<Modelled>>,
    grains: HashMap<u64, Rc<UnsafeCell<()>>>,
    locks: HashMap<u64, Rc<Modelled>>,
    /// Values of cells without a stand-in.
    plain: HashMap<usize, u64>,
    learned: Vec<Place>,
    victim: Option<Victim>,
}

/// A thread that is going to die.
struct Victim {
    thread: loom::thread::ThreadId,
    /// Steps before its death.
    left: u64,
    dead: bool,
}

impl Run {
    fn add(&mut self, place: Place) {
        match place {
            Place::Cell(address, value) => drop(self.cells.insert(address, Rc::new(Modelled::new(value)))),
            Place::Grain(number) => drop(self.grains.insert(number, Rc::new(UnsafeCell::new(())))),
            Place::Lock(byte) => drop(self.locks.insert(byte, Rc::new(Modelled::new(0)))),
        }
    }

    fn learn(&mut self, place: Place) {
        if !self.learned.contains(&place) {
            self.learned.push(place);
        }
    }
}

/// Where a cell is.
enum Home<'a> {
    /// In memory: no run.
    Memory(&'a std::sync::atomic::AtomicU64),
    /// In the model.
    Model(Rc<Modelled>),
    /// In a run that did not expect it, at this address.
    Plain(usize),
    /// Out of reach: the thread is dead, and only unwinds.
    Nowhere,
}

impl Home<'_> {
    fn load(&self, order: Ordering) -> u64 {
        match self {
            Home::Memory(cell) => cell.load(order),
            Home::Model(cell) => cell.load(order),
            Home::Plain(address) => in_run(|run| run.plain[address]).unwrap_or_default(),
            Home::Nowhere => 0,
        }
    }

    fn store(&self, value: u64, order: Ordering) {
        match self {
            Home::Memory(cell) => cell.store(value, order),
            Home::Model(cell) => cell.store(value, order),
            Home::Plain(address) => drop(in_run(|run| run.plain.insert(*address, value))),
            Home::Nowhere => {}
        }
    }

    /// Changes the value of a cell that is not in the model; returns the old one.
    fn change(&self, change: impl FnOnce(u64) -> u64) -> u64 {
        let old = self.load(Ordering::Relaxed);
        self.store(change(old), Ordering::Relaxed);
        old
    }
}

thread_local! {
    // Loom runs all threads of a model on one.
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Begins a run, inside of a model, with stand-ins for these places.
pub fn begin(places: &[Place]) {
    let mut run = Run::default();
    places.iter().for_each(|&place| run.add(place));
    RUN.set(Some(run));
}

/// Ends a run. Places it has met without a stand-in: it has to be repeated with them.
pub fn learned() -> Vec<Place> {
    RUN.take().map_or_else(Vec::new, |run| run.learned)
}

fn in_run<T>(f: impl FnOnce(&mut Run) -> T) -> Option<T> {
    RUN.with_borrow_mut(|run| run.as_mut().map(f))
}

/// As std's.
pub fn fence(order: Ordering) {
    match in_run(|_| ()) {
        Some(()) => loom::sync::atomic::fence(order),
        None => std::sync::atomic::fence(order),
    }
}

/// A cell that processes share.
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicU64(std::sync::atomic::AtomicU64);

impl AtomicU64 {
    /// As std's.
    pub const fn new(value: u64) -> AtomicU64 {
        AtomicU64(std::sync::atomic::AtomicU64::new(value))
    }

    /// As std's.
    pub fn into_inner(self) -> u64 {
        self.0.into_inner()
    }

    /// As std's.
    pub fn as_ptr(&self) -> *mut u64 {
        self.0.as_ptr()
    }

    fn home(&self) -> Home<'_> {
        if is_dead() {
            return Home::Nowhere;
        }
        let address = self.as_ptr() as usize;
        let modelled = in_run(|run| {
            if let Some(cell) = run.cells.get(&address) {
                return Home::Model(cell.clone());
            }
            let value = self.0.load(Ordering::Relaxed);
            run.plain.entry(address).or_insert(value);
            run.learn(Place::Cell(address, value));
            Home::Plain(address)
        });
        modelled.unwrap_or(Home::Memory(&self.0))
    }

    /// As std's.
    pub fn load(&self, order: Ordering) -> u64 {
        self.home().load(order)
    }

    /// As std's.
    pub fn store(&self, value: u64, order: Ordering) {
        step();
        self.home().store(value, order);
    }

    /// As std's.
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        step();
        match self.home() {
            Home::Memory(cell) => cell.swap(value, order),
            Home::Model(cell) => cell.swap(value, order),
            home => home.change(|_| value),
        }
    }

    /// As std's.
    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        step();
        match self.home() {
            Home::Memory(cell) => cell.fetch_add(value, order),
            Home::Model(cell) => cell.fetch_add(value, order),
            home => home.change(|old| old.wrapping_add(value)),
        }
    }

    /// As std's.
    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        step();
        match self.home() {
            Home::Memory(cell) => cell.fetch_max(value, order),
            Home::Model(cell) => cell.fetch_max(value, order),
            home => home.change(|old| old.max(value)),
        }
    }

    /// As std's.
    pub fn compare_exchange(&self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        step();
        match self.home() {
            Home::Memory(cell) => cell.compare_exchange(old, new, success, failure),
            Home::Model(cell) => cell.compare_exchange(old, new, success, failure),
            home => match home.change(|found| if found == old { new } else { found }) {
                found if found == old => Ok(found),
                found => Err(found),
            },
        }
    }
}

/// The process of this thread dies before the `steps`-th thing that others can see: the thread unwinds, and whatever it
/// does meanwhile has no effect.
pub fn die_after(steps: u64) {
    in_run(|run| run.victim = Some(Victim { thread: loom::thread::current().id(), left: steps, dead: false }));
}

fn victim<T>(f: impl FnOnce(&mut Victim) -> T) -> Option<T> {
    in_run(|run| {
        let victim = run.victim.as_mut()?;
        (victim.thread == loom::thread::current().id()).then(|| f(victim))
    })
    .flatten()
}

fn is_dead() -> bool {
    victim(|victim| victim.dead).unwrap_or(false)
}

/// Something that others can see.
fn step() {
    let dies = victim(|victim| {
        let dies = victim.left == 0 && !victim.dead;
        victim.dead |= dies;
        victim.left = victim.left.saturating_sub(1);
        dies
    });
    if dies == Some(true) {
        std::panic::resume_unwind(Box::new("death"));
    }
}

/// Somebody reads these bytes, or writes them.
pub fn touch(position: u64, len: u64, write: bool) {
    if write {
        step();
    }
    if len == 0 || is_dead() {
        return;
    }
    for number in position / GRAIN..=(position + len - 1) / GRAIN {
        let grain = in_run(|run| {
            let grain = run.grains.get(&number).cloned();
            if grain.is_none() {
                run.learn(Place::Grain(number));
            }
            // A run that is repeated anyhow does not know all that synchronizes.
            grain.filter(|_| run.learned.is_empty())
        });
        match grain.flatten() {
            Some(grain) if write => grain.with_mut(|_| ()),
            Some(grain) => grain.with(|_| ()),
            None => {}
        }
    }
}

/// A call of the kernel about the lock of this byte: before it, other threads may run; it synchronizes with those about
/// the same byte.
pub fn kernel_lock(byte: u64) {
    // Of the dead too: their locks are given back.
    let lock = in_run(|run| {
        let lock = run.locks.get(&byte).cloned();
        if lock.is_none() {
            run.learn(Place::Lock(byte));
        }
        lock
    });
    if let Some(lock) = lock.flatten() {
        // AcqRel: as the kernel does.
        lock.fetch_add(1, Ordering::AcqRel);
    }
}

/// Lets other threads run; a sleep of the kernel's. False outside of runs.
pub fn sleep() -> bool {
    let modelled = in_run(|_| ()).is_some();
    if modelled {
        loom::thread::yield_now();
    }
    modelled
}
