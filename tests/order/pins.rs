//! Pin, publish, retire, reuse; cells of dead processes.

use super::{Process, Store, explore, spawn};
use crate::control::Word;
use crate::format::PAGE;
use crate::format::extent::{Kind, PageState};
use crate::index::directory::Intent;
use crate::space::{Claim, reusable};
use crate::sys::atomic::model::touch;

/// Where something lies that the next commit retires. The model complains of whoever writes to it beside a reader.
const SPACE: u64 = 1 << 40;

/// Two processes: one reads, the other reuses what the next commit retires. Somebody else makes that commit visible.
#[test]
fn nothing_is_reused_below_a_pin() {
    let store = Store::new(1);
    explore(3, move || {
        let (reading, reusing) = (store.process().warm(1), store.process());
        let seq = reading.load(Word::Visible);
        let reader = spawn({
            let core = reading.clone();
            move || {
                let pin = core.pin().expect("pinned");
                if pin.seq == seq {
                    touch(SPACE, 8, false);
                    assert_eq!(core.cell_pins().len(), 1, "the pin of a living process was cleared");
                }
                core.unpin(pin);
            }
        });
        let publisher = spawn({
            let core = reading.clone();
            move || {
                let (_, ends) = core.ends();
                core.publish(seq + 1, ends);
                core.lift(Word::Visible, seq + 1);
            }
        });
        if reusable(seq + 1, false, reusing.horizon().expect("a horizon"), 0) {
            touch(SPACE, 8, true);
        }
        reader.join().expect("read");
        publisher.join().expect("published");
    });
}

/// An extent that was retired is handed out again only when no snapshot reads it, and a checkpoint need not.
#[test]
fn extents_are_handed_out_again_after_their_readers() {
    let store = Store::new(1);
    explore(2, move || {
        let (reading, writing) = (store.process().warm(1), store.process());
        let (seq, ends) = writing.ends();
        let extent = writing.take_run(Kind::Directory, 1, Claim::Reserve).expect("space");
        writing.set(Word::Free, 0);
        writing.set(Word::MaxSize, 1);
        (0..writing.extents()).filter(|&n| writing.extent(n).state().kind() == Kind::Free).for_each(|n| {
            writing.extent(n).set_state(crate::format::extent::ExtentState::new(Kind::Fixed));
        });
        let reader = spawn({
            let core = reading.clone();
            move || {
                let pin = core.pin().expect("pinned");
                if pin.seq == seq {
                    touch(SPACE, 8, false);
                }
                core.unpin(pin);
            }
        });
        writing.retire_run(extent, seq + 1, false);
        writing.publish(seq + 1, ends);
        writing.lift(Word::Visible, seq + 1);
        if let Ok(again) = writing.take_run(Kind::Log, 1, Claim::Reserve) {
            assert_eq!(again, extent);
            touch(SPACE, 8, true);
        }
        reader.join().expect("read");
    });
}

/// A page gives way to its copy and is reused: whoever may still walk it finds its slots.
#[test]
fn pages_are_reused_after_their_readers() {
    let store = Store::new(1);
    explore(2, move || {
        let (reading, writing) = (store.process().warm(1), store.process());
        let (seq, ends) = writing.ends();
        let old = writing.entry(0).expect("an entry").page();
        let new = writing.take_page(Claim::Reserve).expect("a page");
        writing.add(Word::RetiredPages, writing.geometry.pages() as i64);
        let reader = spawn({
            let core = reading.clone();
            move || {
                let pin = core.pin().expect("pinned");
                let key = &core.store.keys[0];
                assert_eq!(core.get(key, pin.seq).as_ref(), Some(key));
                core.unpin(pin);
            }
        });
        let page = |position| writing.page(position).expect("a page");
        page(new).copy_from(page(old));
        writing.point(Intent { suffix: 0, depth: 0, a: new, b: None }).expect("pointed");
        writing.retire_page(old, seq + 1, false);
        writing.publish(seq + 1, ends);
        writing.lift(Word::Visible, seq + 1);
        let free = writing.load(Word::FreePages);
        writing.ensure_pages(free + 1, Claim::Reserve).expect("pages");
        if writing.page_state(old) == PageState::Free {
            page(old).clear(0, 0);
        }
        assert!(old.is_multiple_of(PAGE));
        reader.join().expect("read");
    });
}

/// A process dies with a pin. One process sweeps its cell while a new one takes its number, and another one its cell.
#[test]
fn cells_of_the_dead_are_cleared_once() {
    let store = Store::new(1);
    explore(2, move || {
        let (sweeping, other) = (store.process(), store.process());
        let dead = store.process();
        let (number, seq) = (dead.me() - 1, dead.load(Word::Visible));
        dead.pin().expect("pinned");
        drop(dead);
        sweeping.lift(Word::Visible, seq + 1);
        let pins = |core: &Process| {
            let pin = core.pin().expect("pinned");
            let mine = core.cell_pins().into_iter().filter(|&(owner, ..)| owner + 1 == core.me());
            assert_eq!(mine.map(|(_, seq, _)| seq).collect::<Vec<_>>(), [pin.seq], "a living pin was cleared");
            core.unpin(pin);
        };
        let newcomer = {
            let store = store.clone();
            spawn(move || {
                let core = store.process();
                pins(&core);
            })
        };
        let claimer = spawn(move || pins(&other));
        sweeping.sweep_process(number).expect("locks");
        newcomer.join().expect("read");
        claimer.join().expect("read");
        assert_eq!(sweeping.horizon().expect("a horizon"), seq + 1, "a dead pin holds the horizon");
    });
}
