//! Gets and Eventual puts take no memory from the allocator once the store is warm.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use slotdb::{Durability, Options};

/// The system's allocator, which counts what this thread asks for.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all of it is the system's; a count that is const-initialized and has no destructor needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` asked for, in this thread.
fn calls(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

#[test]
fn gets_and_puts_allocate_nothing() {
    const KEYS: u32 = 10_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    let db = Options::new().create(true).durability(Durability::Eventual).open(path).expect("create");
    let put_all = || (0..KEYS).for_each(|n| db.put(&n.to_le_bytes(), &[7; 100]).expect("put"));
    put_all();
    db.checkpoint().expect("checkpoint");
    // Each page is copied once after a checkpoint, and a segment is opened now and then.
    put_all();
    let puts = calls(put_all);
    assert!(puts < u64::from(KEYS) / 1_000, "{puts} allocations in {KEYS} puts");

    let found = |value: &[u8]| assert_eq!(value.len(), 100);
    let gets = calls(|| {
        for n in 0..KEYS {
            db.get_with(&n.to_le_bytes(), found).expect("get").expect("there");
        }
        let snapshot = db.begin_read().expect("read");
        for n in 0..KEYS {
            found(snapshot.get(&n.to_le_bytes()).expect("get").expect("there"));
        }
    });
    assert_eq!(gets, 0, "allocations in gets");
}
