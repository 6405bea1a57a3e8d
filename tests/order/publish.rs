//! What a commit publishes: its ends, its record, its seq.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Process, Store, explore, spawn};
use crate::control::{Ends, Word};
use crate::options::Durability;

/// Whoever reads tail and chain without the writer lock gets those of one seq.
#[test]
fn ends_are_those_of_their_seq() {
    let store = Store::new(1);
    explore(3, move || {
        let (writing, reading) = (store.process(), store.process());
        let (first, ends) = writing.ends();
        let of = move |seq: u64| Ends { tail: ends.tail + 64 * (seq - first), live_keys: seq, ..ends };
        writing.publish(first + 1, of(first + 1));
        let reader = spawn(move || {
            let (seq, found) = reading.ends();
            assert_eq!(found, of(seq), "the ends of another seq");
        });
        (first + 2..first + 4).for_each(|seq| writing.publish(seq, of(seq)));
        reader.join().expect("read");
    });
}

/// Group commit: what is visible is on the disk, and whoever returns sees its own commit.
#[test]
fn visible_is_durable() {
    let store = Store::new(1);
    explore(2, move || {
        let leading = store.process();
        let (seq, ends) = leading.ends();
        let of = move |n: u64| Ends { tail: ends.tail + 64 * n, ..ends };
        leading.lift(Word::Durable, seq);
        leading.set(Word::Cursor, ends.tail);
        leading.lift(Word::LastImmediate, seq + 2);
        leading.publish(seq + 1, of(1));
        let wait = |n: u64| {
            let core = leading.clone();
            spawn(move || {
                if n == 2 {
                    core.publish(seq + 2, of(2));
                }
                core.engine.wait_durable(seq + n).expect("durable");
                assert!(core.load(Word::Visible) >= seq + n, "returned, but not visible");
            })
        };
        let waiting = [wait(1), wait(2)];
        let visible = leading.load(Word::Visible);
        let synced = leading.synced.load(Ordering::Acquire);
        assert!(visible == seq || synced >= of(visible - seq).tail, "visible, but not on the disk");
        waiting.into_iter().for_each(|thread| thread.join().expect("waited"));
    });
}

/// An Immediate commit of one process and an Eventual one of another: the second does not carry the first into sight
/// before that is on the disk.
#[test]
fn an_eventual_commit_publishes_no_other() {
    let store = Store::new(1);
    let new = [store.key(1), store.key(2)];
    explore(1, move || {
        let process = || store.process().warm(1);
        let (immediate, eventual) = (process(), process());
        let commit = |core: &Arc<Process>, key: &[u8], durability| {
            let (core, key) = (core.clone(), key.to_vec());
            spawn(move || {
                let seq = core.put_as(&key, &key, durability);
                assert!(core.load(Word::Visible) >= seq, "returned, but not visible");
            })
        };
        let writers =
            [commit(&immediate, &new[0], Durability::Immediate), commit(&eventual, &new[1], Durability::Eventual)];
        let pin = eventual.pin().expect("pinned");
        let record = eventual.find_at(store.hash(&new[0]), &new[0], pin.seq).expect("no damage");
        if let Some(record) = record {
            let synced = immediate.synced.load(Ordering::Acquire).max(eventual.synced.load(Ordering::Acquire));
            assert!(synced > record.position, "visible, but not on the disk");
        }
        eventual.unpin(pin);
        writers.into_iter().for_each(|writer| writer.join().expect("committed"));
    });
}

/// A commit of a new version, and one of a new key, beside gets of both.
#[test]
fn snapshots_see_whole_records() {
    let store = Store::new(2);
    let new = store.key(2);
    explore(2, move || {
        let (writing, reading) = (store.process(), store.process().warm(1));
        let (old, new) = (store.keys[0].clone(), new.clone());
        let seq = writing.load(Word::Visible);
        let reader = spawn({
            let (old, new) = (old.clone(), new.clone());
            move || {
                let pin = reading.pin().expect("pinned");
                let (first, second) = (reading.get(&old, pin.seq), reading.get(&new, pin.seq));
                reading.unpin(pin);
                let expected = if pin.seq == seq { old.clone() } else { b"newer".to_vec() };
                assert_eq!(first, Some(expected));
                assert_eq!(second, (pin.seq == seq + 2).then(|| new.clone()));
            }
        });
        assert_eq!(writing.put(&old, b"newer"), seq + 1);
        assert_eq!(writing.put(&new, &new), seq + 2);
        reader.join().expect("read");
    });
}
