//! Locks: who waits for whom, for how long, and what a wait in vain says.

use std::time::Duration;

use super::started;
use super::support::common::Rng;
use super::support::{Agent, Place, locks, rounds, seed};

#[test]
fn a_timeout_names_who_holds_the_writer_lock() {
    let place = Place::in_memory();
    let mut holder = started(&place, "");
    let mut waiter = Agent::open("waiter", &place.store(), "timeout=100");
    holder.ok("txn begin");
    let named = format!("process {} (slotdb-agent)", holder.pid());
    for order in ["put key mine", "txn begin", "delete key"] {
        let error = waiter.fails(order, "Timeout");
        assert!(error.contains("writer lock") && error.contains(&named), "{error}");
    }
    // A checkpoint begins under that lock; to read takes none.
    waiter.fails("txn begin", "Timeout");
    waiter.says("get key", "value");
    holder.ok("txn put key changed");
    holder.well("txn commit");
    waiter.says("get key", "changed");
    waiter.ok("put key mine");
    holder.says("get key", "mine");
}

#[test]
fn a_wait_for_the_writer_lock_ends_when_its_holder_is_killed() {
    for _ in 0..rounds(5) {
        let place = Place::in_memory();
        let mut holder = started(&place, "");
        let mut waiters = [1, 2].map(|n| Agent::open(&format!("waiter {n}"), &place.store(), "timeout=59000"));
        holder.ok("txn begin");
        holder.ok("txn put key lost");
        for (n, waiter) in waiters.iter_mut().enumerate() {
            waiter.send(&format!("put waiter{n} was_here"));
        }
        // Whether they wait already makes no difference to what must come.
        std::thread::sleep(Duration::from_millis(20));
        holder.kill();
        for waiter in &mut waiters {
            assert_eq!(waiter.answer().as_deref(), Some("ok"), "{waiter:?}");
        }
        let [one, two] = &mut waiters;
        one.says("get key", "value");
        one.says("get waiter1", "was_here");
        two.says("get waiter0", "was_here");
        two.is_clean();
    }
}

#[test]
fn a_stopped_holder_makes_others_time_out_until_it_goes_on() {
    let place = Place::in_memory();
    let mut holder = started(&place, "");
    let mut waiter = Agent::open("waiter", &place.store(), "timeout=100");
    holder.ok("txn begin");
    holder.ok("txn put key stopped");
    holder.stop();
    let error = waiter.fails("put key mine", "Timeout");
    assert!(error.contains(&format!("process {} ", holder.pid())), "{error}");
    // Readers wait for nobody, and others may come.
    waiter.says("get key", "value");
    let mut late = Agent::open("late", &place.store(), "timeout=100");
    late.says("get key", "value");
    late.fails("txn begin", "Timeout");
    holder.go_on();
    holder.well("txn commit");
    waiter.says("get key", "stopped");
    waiter.ok("put key mine");
}

/// A process that is stopped at any instant keeps others from nothing but writing, and when it goes on it notices
/// nothing.
#[test]
fn a_process_stopped_in_mid_work_disturbs_no_reader() {
    let mut random = Rng::new(seed());
    for _ in 0..rounds(10) {
        let place = Place::in_memory();
        let options = "extent=65536 checkpoint=100000 timeout=50";
        let mut worker = Agent::open("worker", &place.store(), &format!("create {options} eventual"));
        worker.well("endow");
        let mut reader = Agent::open("reader", &place.store(), options);
        worker.send("transfer worker 1 3000");
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        worker.stop();
        let digest = reader.ask("scan");
        reader.is_clean();
        let put = reader.ask("put other x");
        // It may have been stopped with the writer lock, or in the middle of a flush that others wait for.
        assert!(put == "ok" || put.starts_with("error Timeout") || put.starts_with("error InDoubt"), "{put}");
        if put != "ok" {
            reader.says("scan", &digest);
        }
        worker.go_on();
        assert_eq!(worker.answer().as_deref(), Some("done 3000"));
        reader.says("watch worker", "watched 1");
        reader.is_clean();
    }
}

#[test]
fn a_commit_is_acknowledged_though_the_checkpoint_after_it_must_wait() {
    let place = Place::in_memory();
    let mut writer = Agent::open("writer", &place.store(), "create extent=65536 checkpoint=10000 timeout=200 eventual");
    let mut other = Agent::open("other", &place.store(), "");
    writer.ok("put key before");
    // As if somebody were stopped in the middle of a checkpoint.
    let lock = locks::hold(&place.store(), locks::CHECKPOINT, 1);
    let answer = writer.ask("put key ~30000.1");
    drop(lock);
    writer.says("matches key ~30000.1", "true");
    assert_eq!(answer, "ok", "the commit is there");
    other.says("matches key ~30000.1", "true");
}

#[test]
fn a_commit_whose_flush_does_not_come_is_in_doubt_until_it_does() {
    let place = Place::in_memory();
    let mut writer = started(&place, "timeout=100");
    let mut reader = Agent::open("reader", &place.store(), "ro");
    // As if somebody were stopped in the middle of a flush.
    let lock = locks::hold(&place.store(), locks::SYNC, 1);
    let error = writer.fails("put key later", "InDoubt");
    assert!(error.contains("flush"), "{error}");
    // Nobody sees what a power cut could still undo, and what is built on it is in doubt too.
    writer.fails("batch eventual other=x", "InDoubt");
    for agent in [&mut writer, &mut reader] {
        agent.says("get key", "value");
        agent.says("get other", "none");
    }
    // Nor may what was read of it be told, by a transaction that ends without writing.
    for durability in ["immediate", "eventual"] {
        writer.fails(&format!("batch {durability} -absent"), "Timeout");
    }
    drop(lock);
    writer.ok("sync");
    for agent in [&mut writer, &mut reader] {
        agent.says("get key", "later");
        agent.says("get other", "x");
        agent.is_clean();
    }
}

#[test]
fn whoever_cannot_open_or_checkpoint_in_time_says_so() {
    let place = Place::in_memory();
    let mut first = started(&place, "timeout=100");
    let lock = locks::hold(&place.store(), locks::CHECKPOINT, 1);
    let error = first.fails("checkpoint", "Timeout");
    assert!(error.contains("checkpoint lock"), "{error}");
    drop(lock);
    first.ok("checkpoint");

    // As if somebody were stopped while it recovers or closes the store.
    let lock = locks::hold(&place.store(), locks::OPEN, 1);
    let mut second = Agent::new("second");
    let open = format!("open {} timeout=100", place.store().display());
    second.fails(&open, "Timeout");
    second.fails(&format!("{open} ro"), "Timeout");
    first.ok("put key goes_on");
    first.ok("close");
    second.fails(&open, "Timeout");
    drop(lock);
    second.ok(&open);
    second.says("get key", "goes_on");
    second.is_clean();
    second.ok("close");

    let lock = locks::hold(&place.store(), locks::PROCESS, 1024);
    second.fails(&open, "TooManyProcesses");
    second.ok(&format!("{open} ro"));
    second.says("get key", "goes_on");
    second.ok("close");
    drop(lock);
    second.ok(&open);
    second.ok("put key again");
    second.is_clean();
}
