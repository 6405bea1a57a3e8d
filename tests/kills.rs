//! Processes are killed before every step of all they do; those who were there go on, and those who come find all
//! that was acknowledged.

mod support;

use std::time::Duration;

use support::common::Rng;
use support::trial::{Company, Maker, Scenario, Stage};
use support::{Agent, Place, rounds, seed};

/// Small extents and many checkpoints, so that rare paths are common.
const SMALL: &str = "extent=65536";

fn orders(orders: &[&str]) -> Vec<String> {
    orders.iter().map(|order| order.to_string()).collect()
}

fn scenario(prepared: &[&str], before: &[&str], act: &str) -> Scenario {
    let (prepared, before) = (orders(prepared), orders(before));
    Scenario { options: SMALL.into(), prepared, before, act: act.into(), ..Scenario::default() }
}

/// Puts over a value, adds, deletes.
const BATCH: &str = "batch immediate k1=new k2=~700.1 -k3 n=1";

#[test]
fn the_first_commit_of_a_lifetime() {
    scenario(&["fill k 0 40 100"], &[], BATCH).play();
}

#[test]
fn an_immediate_commit() {
    scenario(&["fill k 0 40 100"], &["put k1 x"], BATCH).play();
}

#[test]
fn an_eventual_commit() {
    // So many in a row that appends go through the map.
    let act = BATCH.replace("immediate", "eventual");
    let mut scenario = scenario(&["fill k 0 40 100"], &["fill e 0 80 50"], &act);
    scenario.options.push_str(" eventual");
    scenario.play();
}

#[test]
fn an_eventual_commit_after_an_immediate_one() {
    let act = BATCH.replace("immediate", "eventual");
    scenario(&["fill k 0 40 100"], &["batch immediate a=1"], &act).play();
}

#[test]
fn a_checkpoint() {
    let before = ["fill k 100 300 200", "batch -k1 -k2 -k150", "put k4 x"];
    let mut scenario = scenario(&["fill k 0 200 100"], &before, "checkpoint");
    scenario.raises = vec!["checkpoint"];
    scenario.play();
}

#[test]
fn a_batch_that_splits_the_only_page() {
    // A page of depth 0 splits with its 253rd key; that doubles the directory.
    let stage = scenario(&["fill k 0 249 20"], &[], "").prepare_with(|scenario, maker| {
        // One for the lower half, which is there first, then one for the upper half.
        let [lower, upper] = [0, 1].map(|bit| maker.colliding(1, bit, 1).remove(0));
        scenario.act = format!("batch immediate a=1 b=2 k1=3 c=4 -k2 {lower}=5 {upper}=6");
        scenario.raises = vec!["index_pages"];
    });
    stage.play(&[Company::Nobody, Company::Reader]);
    // Who iterates beside it must not notice, at any single step.
    stage.play_some(&[Company::Writer], u64::MAX);
}

/// Keys that collide in their first bits make the directory deep, and a page of others then has many entries in it. The
/// act begins with a key of the first of these entries; what comes after it goes through all of them.
fn with_many_entries(act: impl FnOnce(&mut Scenario, &mut Maker, &[String])) -> Stage {
    scenario(&[], &[], "").prepare_with(|scenario, maker| {
        for key in maker.colliding(9, 0, 306) {
            maker.tell(&format!("put {key} _"));
        }
        let odd = maker.colliding(1, 1, 320);
        act(scenario, maker, &odd);
        let all: Vec<String> = odd[..150].iter().map(|key| format!("{key}=after")).collect();
        scenario.after = vec![format!("batch {}", all.join(" "))];
    })
}

#[test]
fn a_commit_that_copies_a_page_with_many_entries() {
    let stage = with_many_entries(|scenario, maker, odd| {
        let old: Vec<String> = odd[..150].iter().map(|key| format!("{key}=old")).collect();
        maker.tell(&format!("batch {}", old.join(" ")));
        scenario.act = format!("put {} new", maker.colliding(9, 1, 1)[0]);
    });
    stage.play(&Company::ALL);
}

#[test]
fn a_commit_that_splits_a_page_with_many_entries() {
    let stage = with_many_entries(|scenario, maker, odd| {
        let left = maker.put_until_split(odd);
        // The checkpoint at the end has frozen the page, so the victim makes it mutable first.
        scenario.before = vec![format!("put {} again", odd[0])];
        let fresh = maker.colliding(9, 1, 10).into_iter().find(|key| left.contains(key) || !odd.contains(key));
        scenario.act = format!("put {} new", fresh.expect("ten of these are more than were put"));
        scenario.raises = vec!["index_pages"];
    });
    stage.play(&Company::ALL);
}

#[test]
fn a_batch_that_moves_the_directory() {
    // With one more key than this their page splits again and again, until the directory does not fit its extent.
    let stage = scenario(&[], &[], "").prepare_with(|scenario, maker| {
        let keys = maker.colliding(16, 0, 309);
        for key in &keys[..305] {
            maker.tell(&format!("put {key} _"));
        }
        let new: Vec<String> = keys[305..].iter().map(|key| format!("{key}=new")).collect();
        scenario.act = format!("batch immediate {} -{}", new.join(" "), keys[0]);
        scenario.raises = vec!["index_pages", "index_bytes"];
    });
    stage.play(&Company::ALL);
}

#[test]
fn a_batch_that_drops_tombstones() {
    let deleted = ["fill k 0 600 20", "batch -k1 -k2 -k3 -k4 -k5 -k6", "checkpoint", "put a 1", "checkpoint"];
    scenario(&deleted, &[], "batch immediate k2=back k7=x k8=x k9=x k10=x -k11 -k12 k13=x k14=x").play();
}

#[test]
fn a_batch_that_goes_on_in_other_segments() {
    let act = "batch immediate a=~30000.1 k2=x b=~30000.2 c=~30000.3 k3=y -k4";
    let mut scenario = scenario(&["fill k 0 40 100"], &["put k1 x"], act);
    scenario.raises = vec!["segments"];
    scenario.play();
}

#[test]
fn a_batch_with_values_larger_than_extents() {
    let act = "batch immediate k1=x a=~200000.1 -k2 b=~65536.2 k3=y";
    scenario(&["fill k 0 40 100", "put a ~90000.1"], &[], act).play();
    let mut eventual = scenario(&["fill k 0 40 100"], &["fill e 0 80 50"], &act.replace("immediate", "eventual"));
    eventual.options.push_str(" eventual");
    eventual.play();
}

#[test]
fn a_batch_that_makes_the_file_grow() {
    let mut scenario = scenario(&["fill k 0 40 100"], &["put k1 x"], "batch immediate k2=x g=~900000.1 -k3");
    scenario.raises = vec!["file_bytes"];
    // Whether or not it has grown: it must grow once more.
    scenario.after = orders(&["batch h=~900000.2", "put i ~900000.3"]);
    scenario.play();
}

#[test]
fn a_checkpoint_after_splits_and_deletes() {
    let before = ["fill k 100 900 20", "batch -k1 -k2 -k150", "put big ~200000.1", "checkpoint", "fill k 300 700 30"];
    let mut scenario = scenario(&["fill k 0 200 100"], &before, "checkpoint");
    scenario.options.push_str(" eventual");
    scenario.play();
}

#[test]
fn commits_beside_checkpoints() {
    let mut scenario = scenario(&["fill k 0 200 100"], &["put k1 x"], "fill k 0 40 2000");
    scenario.options.push_str(" checkpoint=20000 eventual");
    scenario.raises = vec!["checkpoint"];
    scenario.play();
}

#[test]
fn a_checkpoint_beside_commits_of_another() {
    let mut scenario = scenario(&["fill k 0 300 100"], &["fill k 100 300 200", "batch -k1 -k2 -k150"], "checkpoint");
    scenario.options.push_str(" eventual");
    scenario.raises = vec!["checkpoint"];
    scenario.beside = Some("fill k 50 400 1500".into());
    scenario.prepare().play(&[Company::Writer]);
}

#[test]
fn a_commit_beside_commits_of_another() {
    let mut scenario = scenario(&["fill k 0 40 100"], &["put k1 x"], "batch immediate a=~30000.1 b=x c=~40000.2");
    scenario.options.push_str(" checkpoint=50000");
    scenario.beside = Some("fill k 5 60 1500".into());
    scenario.prepare().play(&[Company::Writer]);
}

#[test]
fn a_sync() {
    let mut scenario = scenario(&["fill k 0 40 100"], &["fill k 10 60 3000"], "sync");
    scenario.options.push_str(" eventual");
    scenario.raises = vec!["durable"];
    scenario.play();
}

#[test]
fn a_close() {
    // Enough log that the last one to close makes a checkpoint.
    let mut scenario = scenario(&["fill k 0 40 100"], &["fill k 10 30 70000"], "close");
    scenario.options.push_str(" eventual");
    scenario.play();
}

/// Deletes nearly all of what was filled.
fn delete_most(keys: std::ops::Range<u64>, left: u64) -> String {
    let deleted: Vec<String> = keys.filter(|n| n % left != 0).map(|n| format!("-k{n}")).collect();
    format!("batch {}", deleted.join(" "))
}

#[test]
fn a_compaction() {
    let deletes = delete_most(0..60, 7);
    let mut scenario = scenario(&["fill k 0 60 20000"], &[&deletes, "put a 1"], "compact");
    scenario.options.push_str(" eventual");
    scenario.raises = vec!["checkpoint"];
    scenario.play();
}

#[test]
fn a_compaction_of_an_index() {
    let deletes = delete_most(0..3000, 40);
    let mut scenario = scenario(&["fill k 0 3000 20", "checkpoint"], &[&deletes, "checkpoint"], "compact");
    scenario.options.push_str(" eventual");
    scenario.play();
}

#[test]
fn a_compaction_beside_commits_of_another() {
    let deletes = delete_most(0..60, 7);
    let mut scenario = scenario(&["fill k 0 60 20000"], &[&deletes], "compact");
    scenario.options.push_str(" eventual");
    scenario.beside = Some("fill k 5 200 1500".into());
    scenario.prepare().play(&[Company::Writer]);
}

/// At its greatest size: what is dead becomes room, in commits and checkpoints of its own, before the put.
#[test]
fn a_put_that_makes_room() {
    let before = ["fill k 0 130 3000", "fill k 0 100 3000", "fill k 0 100 3000"];
    let mut scenario = scenario(&["fill k 0 130 3000", "checkpoint"], &before, "put big ~60000.1");
    scenario.options.push_str(" eventual max=2097152");
    scenario.raises = vec!["checkpoint"];
    scenario.play();
}

#[test]
fn a_checkpoint_that_gives_space_back() {
    let deletes = delete_most(0..60, 7);
    let before = [&deletes, "put a 1", "checkpoint", "put b 1"];
    scenario(&["fill k 0 60 20000"], &before, "checkpoint").play();
}

#[test]
fn a_checkpoint_that_merges_index_pages() {
    let deletes = delete_most(0..3000, 40);
    let mut scenario = scenario(&["fill k 0 3000 20", "checkpoint"], &[&deletes], "checkpoint");
    scenario.options.push_str(" eventual");
    scenario.play();
}

#[test]
fn a_close_that_cuts_the_file() {
    let deletes = delete_most(0..60, 7);
    let before = [&deletes, "compact", "put c 1"];
    let mut scenario = scenario(&["fill k 0 60 20000"], &before, "close");
    scenario.options.push_str(" eventual");
    scenario.prepare().play(&[Company::Nobody, Company::Reader]);
}

#[test]
fn a_close_that_moves_index_pages() {
    let mut scenario = scenario(&["fill k 0 12000 20", "checkpoint"], &["fill k 0 130 20"], "close");
    scenario.options.push_str(" eventual");
    scenario.prepare().play(&[Company::Nobody]);
}

#[test]
fn the_opening_of_a_clean_store() {
    scenario(&["fill k 0 600 20"], &[], "open").play();
}

/// What recovery has to replay: splits, segments, large values, deletes.
const REPLAYED: [&str; 5] = [
    "fill k 0 400 20",
    "checkpoint",
    "fill k 300 900 30",
    "batch a=~200000.1 -k1 -k2 b=~30000.1 c=~50000.1",
    "batch k1=again -a",
];

#[test]
fn the_opening_of_an_unclean_store() {
    let mut scenario = scenario(&REPLAYED, &[], "open");
    scenario.unclean = true;
    scenario.play();
}

#[test]
fn an_opening_after_deaths_in_another_opening() {
    for step in [0, 2, 5, 20, 100] {
        let mut scenario = scenario(&REPLAYED, &[], "open");
        (scenario.unclean, scenario.dead) = (true, Some(("open".into(), step)));
        scenario.prepare().play(&[Company::Nobody]);
    }
}

#[test]
fn an_opening_after_a_death_between_two_header_slots() {
    let slot = |path: &std::path::Path, position| {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 512];
        let file = std::fs::File::open(path).expect("the store is there");
        file.read_exact_at(&mut bytes, position).expect("it has a header");
        bytes
    };
    let mut unequal = 0;
    for step in 0.. {
        let mut scenario = scenario(&REPLAYED, &[], "open");
        scenario.unclean = true;
        let (mut died, mut differ) = (false, false);
        let stage = scenario.prepare_with(|_, maker| {
            maker.agent.ok(&format!("arm {step}"));
            died = maker.agent.attempt("checkpoint").is_none();
            differ = slot(&maker.path, 0) != slot(&maker.path, 32768);
        });
        if differ {
            unequal += 1;
            stage.play(&[Company::Nobody]);
        }
        if !died {
            break;
        }
    }
    assert!(unequal > 0, "no death left unequal header slots");
}

/// The batch of one that died is taken over by one that dies of it.
fn take_over(prepared: &[&str], batch: &str, steps: &[u64]) {
    for &step in steps {
        let mut scenario = scenario(prepared, &[], "put t 1");
        scenario.dead = Some((batch.into(), step));
        scenario.play();
    }
}

#[test]
fn a_takeover() {
    take_over(&["fill k 0 40 100"], BATCH, &[8, 12, 16, 20, 24]);
}

#[test]
fn a_takeover_of_a_split() {
    take_over(&["fill k 0 250 20"], "batch immediate a=1 b=2 k1=3 c=4 -k2", &[20, 30, 40, 50]);
}

#[test]
fn a_takeover_of_a_large_batch() {
    let batch = "batch immediate k1=x a=~200000.1 -k2 b=~65536.2 k3=y";
    take_over(&["fill k 0 40 100", "put a ~90000.1"], batch, &[20, 30, 40, 50, 60]);
}

#[test]
fn an_opening_after_a_death_in_a_large_batch() {
    for step in [30, 50, 60] {
        let mut scenario = scenario(&["fill k 0 40 100", "put a ~90000.1"], &[], "open");
        scenario.dead = Some(("batch immediate k1=x a=~200000.1 -k2 b=~65536.2 k3=y".into(), step));
        scenario.play();
    }
}

/// What a reader that died has pinned can be reused, without anybody opening the store anew.
#[test]
fn the_space_that_a_killed_reader_held() {
    for options in ["", "ro"] {
        let place = Place::in_memory();
        let mut writer = Agent::open("writer", &place.store(), "create extent=65536 eventual");
        let mut overwrite = |rounds: u64| {
            for round in 0..rounds {
                writer.well(&format!("fill k 0 200 {}", 1000 + round));
                writer.ok("checkpoint");
            }
            writer.stat("file_bytes")
        };
        overwrite(20);
        let settled = overwrite(10);
        assert_eq!(overwrite(20), settled, "without readers the file does not grow");

        let mut reader = Agent::open("reader", &place.store(), options);
        reader.well("snapshot begin held");
        let then = reader.well("scan");
        let grown = overwrite(40);
        assert!(grown > 2 * settled, "{settled} bytes, and {grown} while a snapshot is held");
        reader.says("snapshot scan held", &then);
        reader.kill();
        overwrite(3);
        let after = overwrite(1);
        assert_eq!(overwrite(60), after, "the space of the dead reader is used again");
        writer.is_clean();
    }
}

/// Not at steps, but at any instruction.
#[test]
fn writers_killed_at_any_instant() {
    let mut random = Rng::new(seed());
    for round in 0..rounds(25) {
        let place = Place::in_memory();
        let options = "extent=65536 checkpoint=100000";
        let mut names: Vec<String> = vec!["survivor".into()];
        let mut survivor = Agent::open("survivor", &place.store(), &format!("create {options}"));
        survivor.well("endow");
        let mut watcher = Agent::open("watcher", &place.store(), if round % 2 == 0 { "ro" } else { "" });
        survivor.send(&format!("transfer survivor {} 1500", random.next()));
        watcher.send("watch survivor");
        for n in 0..4 {
            let name = format!("victim{n}");
            let mut victim = Agent::open(&name, &place.store(), options);
            victim.send(&format!("transfer {name} {} 100000", random.next()));
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            victim.kill();
            names.push(name);
        }
        assert_eq!(survivor.answer().as_deref(), Some("done 1500"));
        let watched = watcher.answer().expect("the watcher lives");
        assert!(watched.starts_with("watched"), "{watched}");
        // The dead write no more, so they are done as far as they came.
        for name in &names[1..] {
            survivor.ok(&format!("put done:{name} _"));
        }
        let all = format!("watch {}", names.join(" "));
        watcher.says(&all, "watched 1");
        survivor.is_clean();
        let digest = survivor.well("scan");
        survivor.kill();
        watcher.kill();
        let mut next = Agent::open("next", &place.store(), options);
        next.says("scan", &digest);
        next.says(&all, "watched 1");
        next.is_clean();
    }
}

/// Whoever finds the name finds a whole store.
#[test]
fn a_creation_killed_at_any_instant() {
    let mut random = Rng::new(seed());
    for _ in 0..rounds(40) {
        let place = Place::in_memory();
        let mut creator = Agent::new("creator");
        creator.send(&format!("open {} create extent=65536", place.store().display()));
        std::thread::sleep(Duration::from_micros(random.below(4000)));
        creator.kill();
        let mut next = Agent::open("next", &place.store(), "create extent=65536");
        next.says("len", "0");
        next.ok("put key value");
        next.is_clean();
    }
}

/// All processes at once, as when a container is killed.
#[test]
fn everybody_killed_at_any_instant() {
    let mut random = Rng::new(seed());
    let place = Place::in_memory();
    let options = "extent=65536 checkpoint=100000";
    let mut names = Vec::new();
    Agent::open("founder", &place.store(), &format!("create {options}")).well("endow");
    for round in 0..rounds(25) {
        let mut agents = Vec::new();
        for n in 0..3 {
            let name = format!("w{round}_{n}");
            let mut agent = Agent::open(&name, &place.store(), options);
            agent.send(&format!("transfer {name} {} 100000", random.next()));
            names.push(name);
            agents.push(agent);
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        agents.iter_mut().for_each(Agent::kill);
        let mut reader = Agent::open("reader", &place.store(), "ro");
        let digest = reader.well("scan");
        reader.ok("close");
        let mut judge = Agent::open("judge", &place.store(), options);
        judge.says("scan", &digest);
        for name in &names[3 * round as usize..] {
            judge.ok(&format!("put done:{name} _"));
        }
        judge.says(&format!("watch {}", names.join(" ")), "watched 1");
        judge.is_clean();
    }
}
