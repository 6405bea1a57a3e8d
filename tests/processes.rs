//! Several processes on one store: what each sees of the others, and what they share.

#[path = "processes/forks.rs"]
mod forks;
#[path = "processes/reading.rs"]
mod reading;
#[path = "processes/signals.rs"]
mod signals;
mod support;
#[path = "processes/waits.rs"]
mod waits;

use std::fs;
use std::time::Duration;

use support::common::Rng;
use support::model::Model;
use support::{Agent, Place, eventually, rounds, seed};

/// Room for a store, in which one process has put `key`.
fn started(place: &Place, options: &str) -> Agent {
    let mut first = Agent::open("first", &place.store(), &format!("create {options}"));
    first.ok("put key value");
    first
}

#[test]
fn writers_and_readers_work_side_by_side() {
    let seed = seed();
    for round in 0..rounds(2) {
        let place = Place::in_memory();
        let options = "extent=65536 checkpoint=200000";
        let mut one = Agent::open("writer one", &place.store(), &format!("create {options}"));
        one.well("endow");
        let mut two = Agent::open("writer two", &place.store(), options);
        let mut reader = Agent::open("reader", &place.store(), "");
        let mut read_only = Agent::open("read-only", &place.store(), "ro");
        let mut checker = Agent::open("checker", &place.store(), "ro");
        one.send(&format!("transfer one {} 1500", seed + 2 * round));
        two.send(&format!("transfer two {} 1500", seed + 2 * round + 1));
        reader.send("watch one two");
        read_only.send("watch one two");
        // Beside writers a check sees a moving store, and nothing wrong in it.
        for _ in 0..20 {
            checker.is_clean();
        }
        assert_eq!(one.answer().as_deref(), Some("done 1500"));
        assert_eq!(two.answer().as_deref(), Some("done 1500"));
        for reader in [&reader, &read_only] {
            let watched = reader.answer().expect("the reader lives");
            assert!(watched.starts_with("watched "), "{reader:?}: {watched}");
        }
        // Each commit was acknowledged, so each of its keys is there: for those who look on, and after reopening.
        let keys = 16 + 2 * (1 + 1500 + 1);
        for agent in [&mut one, &mut reader, &mut read_only] {
            agent.says("len", &keys.to_string());
            assert!(agent.ask("scan").starts_with(&format!("{keys}:")));
            agent.is_clean();
        }
        let digest = one.ask("scan");
        for agent in [&mut one, &mut two, &mut reader, &mut read_only, &mut checker] {
            agent.ok("close");
        }
        one.reopen(&place.store(), "");
        one.says("scan", &digest);
        for writer in ["one", "two"] {
            one.says(&format!("get last:{writer}"), "1500");
            (1..=1500).for_each(|n| assert_ne!(one.ask(&format!("get log:{writer}:{n}")), "none"));
        }
    }
}

#[test]
fn others_come_and_go_while_one_writes() {
    let place = Place::in_memory();
    let mut writer = started(&place, "extent=65536 checkpoint=100000 eventual");
    let mut visitor = Agent::new("visitor");
    writer.send("fill n 0 5000 100");
    let mut seen = 0;
    for visit in 0..60 {
        visitor.reopen(&place.store(), if visit % 3 == 0 { "ro" } else { "" });
        let keys: u64 = visitor.ask("len").parse().expect("a number");
        assert!(keys >= seen, "{keys} keys after {seen}");
        seen = keys;
        visitor.is_clean();
        let who = visitor.well("processes");
        assert_eq!(who.matches(" alive ").count(), if visit % 3 == 0 { 1 } else { 2 }, "{who}");
        if visit % 3 == 1 {
            visitor.ok("put visitor was_here");
        }
        visitor.ok("close");
    }
    assert_eq!(writer.answer().as_deref(), Some("ok"));
    let mut model = Model::default();
    for order in ["put key value", "put visitor was_here", "fill n 0 5000 100"] {
        model.keep_pace(order);
    }
    model.is_in(&mut writer);
}

/// Who is alone recovers; nobody is alone twice, and nobody sees what is half set up.
#[test]
fn many_open_and_close_at_once() {
    let place = Place::in_memory();
    let mut agents: Vec<Agent> = (0..8).map(|n| Agent::new(&format!("agent {n}"))).collect();
    let mut model = Model::default();
    for round in 0..rounds(10) {
        for (n, agent) in agents.iter_mut().enumerate() {
            let read_only = if round > 0 && n % 4 == 3 { "ro" } else { "create extent=65536" };
            agent.send(&format!("open {} {read_only}", place.store().display()));
        }
        for agent in &agents {
            assert_eq!(agent.answer().as_deref(), Some("ok"), "{agent:?} in round {round}");
        }
        for (n, agent) in agents.iter_mut().enumerate().filter(|(n, _)| n % 4 != 3) {
            model.tell(agent, &format!("batch key{n}={round} of{round}_{n}=_"));
        }
        // One that read alone, before the first writer came, stays with what was there.
        agents.iter_mut().step_by(4).for_each(|agent| model.is_in(agent));
        if round % 2 == 0 {
            agents.iter_mut().for_each(|agent| agent.send("close"));
            for agent in &agents {
                assert_eq!(agent.answer().as_deref(), Some("ok"), "{agent:?} in round {round}");
            }
        } else {
            agents.iter_mut().for_each(Agent::kill);
            agents = (0..8).map(|n| Agent::new(&format!("agent {n}"))).collect();
        }
    }
}

#[test]
fn snapshots_are_many_but_bounded() {
    let place = Place::in_memory();
    let mut holder = started(&place, "");
    let mut other = Agent::open("other", &place.store(), "");
    let mut held = 0;
    let refused = loop {
        let answer = holder.ask(&format!("snapshot begin s{held}"));
        if answer.starts_with("error") {
            break answer;
        }
        held += 1;
    };
    assert!(refused.starts_with("error TooManyReaders"), "{refused}");
    assert!((4090..=4096).contains(&held), "{held} snapshots");
    other.fails("snapshot begin mine", "TooManyReaders");
    other.ok("put key later");
    holder.says("snapshot get s0 key", "value");
    holder.kill();
    // The cells of the dead are there for the living.
    other.well("snapshot begin mine");
    other.says("snapshot get mine key", "later");
    other.is_clean();
}

#[test]
fn a_removed_or_replaced_file_stays_with_those_who_have_it_open() {
    let place = Place::in_memory();
    let mut old = started(&place, "");
    let mut old_reader = Agent::open("old reader", &place.store(), "ro");
    fs::remove_file(place.store()).expect("the file is there");
    let mut new = Agent::new("new");
    let open = format!("open {}", place.store().display());
    new.fails(&open, "NotFound");
    new.fails(&format!("{open} ro"), "NotFound");
    old.ok("put key old");
    old_reader.says("get key", "old");

    new.ok(&format!("{open} create"));
    new.says("get key", "none");
    new.ok("put key new");
    old.ok("put key older");
    old_reader.says("get key", "older");
    new.says("get key", "new");
    // The lock of one file is not the lock of the other.
    old.ok("txn begin");
    new.ok("put key newer");
    old.well("txn commit");
    for agent in [&mut old, &mut old_reader, &mut new] {
        agent.is_clean();
        agent.ok("close");
    }

    // Renamed over by another store: those who come later find that one.
    old.reopen(&place.store(), "");
    old.says("get key", "newer");
    new.ok(&format!("open {} create", place.path("other").display()));
    new.ok("put key other");
    fs::rename(place.path("other"), place.store()).expect("both are there");
    let mut late = Agent::open("late", &place.store(), "");
    late.says("get key", "other");
    late.ok("put key late");
    new.says("get key", "late");
    old.says("get key", "newer");
    // The very handle that reopens the path gets the file of that name, not the one it had.
    old.ok("close");
    old.reopen(&place.store(), "");
    old.says("get key", "late");
}

#[test]
fn commits_of_all_threads_and_processes_share_flushes_and_last() {
    let place = Place::on_disk();
    let mut agents: Vec<Agent> =
        (0..3).map(|n| Agent::open(&format!("committer {n}"), &place.store(), "create extent=65536")).collect();
    for (n, agent) in agents.iter_mut().enumerate() {
        agent.send(&format!("group {n} 8 20"));
    }
    for agent in &agents {
        assert_eq!(agent.answer().as_deref(), Some("committed 160"), "{agent:?}");
    }
    agents.iter_mut().for_each(Agent::kill);
    let mut reader = Agent::open("reader", &place.store(), "ro");
    reader.says("len", "480");
    reader.ok("close");
    reader.reopen(&place.store(), "");
    for (process, thread, n) in (0..480).map(|i| (i / 160, i / 20 % 8, i % 20)) {
        reader.says(&format!("get {process}:{thread}:{n}"), "x");
    }
    reader.is_clean();
}

/// A leader that is killed or stopped in mid-flush costs its followers no commit.
#[test]
fn followers_outlive_their_leader() {
    let mut random = Rng::new(seed());
    for round in 0..rounds(6) {
        let place = Place::on_disk();
        let mut agents: Vec<Agent> =
            (0..3).map(|n| Agent::open(&format!("committer {n}"), &place.store(), "create extent=65536")).collect();
        for (n, agent) in agents.iter_mut().enumerate() {
            agent.send(&format!("group {n} 4 30"));
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        if round % 2 == 0 {
            agents[0].kill();
        } else {
            agents[0].stop();
            std::thread::sleep(Duration::from_millis(20));
            agents[0].go_on();
            assert_eq!(agents[0].answer().as_deref(), Some("committed 120"));
        }
        for agent in &agents[1..] {
            assert_eq!(agent.answer().as_deref(), Some("committed 120"), "{agent:?}");
        }
        agents.iter_mut().for_each(Agent::kill);
        let mut reader = Agent::open("reader", &place.store(), "");
        for (process, thread, n) in (120..360).map(|i| (i / 120, i / 30 % 4, i % 30)) {
            reader.says(&format!("get {process}:{thread}:{n}"), "x");
        }
        reader.is_clean();
    }
}

#[test]
fn the_process_table_tells_who_lives_and_what_they_pin() {
    let place = Place::in_memory();
    let mut one = started(&place, "");
    let mut two = Agent::open("two", &place.store(), "");
    let seq = two.well("snapshot begin old");
    one.ok("put key later");
    let table = one.ask("processes");
    assert!(table.contains(&format!(" {}(slotdb-agent) alive pins=[]", one.pid())), "{table}");
    assert!(table.contains(&format!(" {}(slotdb-agent) alive pins=[{seq}]", two.pid())), "{table}");
    two.kill();
    let table = one.ask("processes");
    assert!(table.contains(&format!(" {}(slotdb-agent) dead pins=[{seq}]", two.pid())), "{table}");
    // The dead one's place is taken, and its pin goes.
    let mut three = Agent::open("three", &place.store(), "");
    let table = one.ask("processes");
    assert!(!table.contains("dead") && !table.contains(&two.pid().to_string()), "{table}");
    three.ok("close");
    eventually("the closed one leaves the table", || !one.ask("processes").contains(&three.pid().to_string()));
    // One who only reads is no part of the table; its snapshot has a lock, which dies with it.
    let mut reader = Agent::open("reader", &place.store(), "ro");
    let seq = reader.well("snapshot begin held");
    one.ok("put key latest");
    let table = one.ask("processes");
    assert!(table.contains(&format!(" {}(slotdb-agent) alive pins=[{seq}]", reader.pid())), "{table}");
    assert_eq!(one.stat("horizon").to_string(), seq);
    reader.kill();
    eventually("the dead reader is forgotten", || !one.ask("processes").contains(&reader.pid().to_string()));
    assert_eq!(one.stat("horizon"), one.stat("visible"));
}

/// In a PID namespace of its own everybody is process 1: neither liveness nor locks may depend on what a pid means.
#[test]
fn processes_of_other_pid_namespaces_are_as_any_others() {
    let place = Place::in_memory();
    let mut first = started(&place, "timeout=2000");
    let (Some(mut one), Some(mut two)) = (Agent::in_own_namespace("one"), Agent::in_own_namespace("two")) else {
        eprintln!("skipped processes_of_other_pid_namespaces_are_as_any_others: unshare --pid is not permitted here");
        return;
    };
    for agent in [&mut one, &mut two] {
        agent.reopen(&place.store(), "timeout=2000");
    }
    one.ok("put key of_one");
    let seq = two.well("snapshot begin old");
    let table = first.ask("processes");
    assert!(table.contains(" 1(slotdb-agent) alive pins=[]"), "{table}");
    assert!(table.contains(&format!(" 1(slotdb-agent) alive pins=[{seq}]")), "{table}");
    // The writer lock of one that lives is respected, that of one that died is not.
    one.ok("txn begin");
    one.ok("txn put key lost");
    let error = two.fails("put key in_vain", "Timeout");
    assert!(error.contains("process 1 (slotdb-agent)"), "{error}");
    one.kill();
    two.says("get key", "of_one");
    two.ok("put key of_two");
    two.says("snapshot get old key", "of_one");
    two.kill();
    let table = first.ask("processes");
    assert!(table.contains(&format!(" 1(slotdb-agent) dead pins=[{seq}]")), "{table}");
    first.says("get key", "of_two");
    first.ok("put key again");
    first.is_clean();
}
