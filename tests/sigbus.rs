//! Truncation under a live mapping: with `guard_sigbus` an error value that says so, and no commit that is silently
//! lost; without it the death of the process by SIGBUS.

#[path = "sigbus/disk.rs"]
mod disk;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::libc;
use slotdb::Options;
use support::common::Rng;
use support::common::raw::VOLATILE;
use support::{Agent, Place, data, eventually, rounds, seed};

const EXTENT: u64 = 65_536;
/// Bytes of a record in front of its key (docs/FORMAT.md).
const RECORD_HEADER: u64 = 28;
const STORE: &str = "extent=65536 eventual";

/// A store of some megabytes, which `agent` keeps open. Its log has just gone on in a new place.
fn filled(path: &Path, options: &str) -> Agent {
    let mut agent = Agent::open("agent", path, &format!("create {STORE} {options}"));
    agent.ok("fill k 0 400 5000");
    agent.ok("checkpoint");
    agent.ok("fill l 0 30 5000");
    agent
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("the store")
}

/// Lengths to cut a file to: nothing, parts of the shared words, the middle, parts of a page. The last one leaves every
/// page.
fn cuts(len: u64) -> [u64; 9] {
    [0, 100, EXTENT, EXTENT + 836, EXTENT + 5000, len / 2 / 4096 * 4096, len / 2 + 1234, len - 5000, len - 100]
}

/// Whether this is an error that tells of the truncation.
fn tells(answer: &str) -> bool {
    answer.starts_with("error") && answer.contains("truncated")
}

/// The length that the header names (docs/FORMAT.md).
fn named_len(path: &Path) -> u64 {
    let header = std::fs::read(path).expect("the store");
    header.get(120..128).and_then(|len| len.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
}

/// Cuts the file of a fresh store at each place, and gives an order then.
fn after_each_cut(prepare: &[&str], order: &str, needs_a_page: bool) {
    let place = Place::in_memory();
    for n in 0..cuts(1 << 20).len() {
        let path = place.path(&format!("store{n}"));
        let mut agent = filled(&path, "guard");
        prepare.iter().for_each(|order| drop(agent.well(order)));
        let len = std::fs::metadata(&path).expect("the store").len();
        let cut = cuts(len)[n];
        open(&path).set_len(cut).expect("our own file");
        let answer = agent.ask(order);
        let unseen = needs_a_page && cut == len - 100;
        assert!(unseen || tells(&answer), "{order} after a cut from {len} to {cut}: {answer}");
        if order == "close" {
            continue;
        }
        for later in ["put later x", "batch immediate later=x", "checkpoint", "sync", "get k1", "scan", "check"] {
            let answer = agent.ask(later);
            let dropped_transaction = answer.starts_with("error Timeout");
            assert!(tells(&answer) || dropped_transaction, "{later} after {order}, cut to {cut}: {answer}");
        }
        assert!(tells(&agent.ask("close")), "the last commits may be gone");
        // What no checkpoint names yet may be missing.
        let refused = agent.ask(&format!("open {}", path.display())).starts_with("error");
        assert!(refused || cut >= named_len(&path), "{order}: opened after a cut to {cut}");
    }
}

macro_rules! cut_then {
    ($($name:ident: [$($prepare:literal),*] $order:literal, $needs_a_page:literal;)*) => {
        $(#[test]
        fn $name() {
            after_each_cut(&[$($prepare),*], $order, $needs_a_page);
        })*
    };
}

cut_then! {
    a_get_tells: [] "get k77", true;
    a_get_of_an_absent_key_tells: [] "get nothing", true;
    a_scan_tells: [] "scan", true;
    a_snapshot_tells: ["snapshot begin s"] "snapshot get s k300", true;
    a_scan_of_a_snapshot_tells: ["snapshot begin s"] "snapshot scan s", true;
    a_new_snapshot_tells: [] "snapshot begin s", true;
    counting_tells: [] "len", true;
    stats_tell: [] "stats", true;
    the_process_list_tells: [] "processes", true;
    a_check_tells: [] "check", true;
    an_eventual_commit_tells: [] "put k1 new", false;
    an_immediate_commit_tells: [] "batch immediate k1=new fresh=new", false;
    a_delete_tells: [] "delete k1", false;
    a_large_commit_tells: [] "fill m 0 100 5000", false;
    a_checkpoint_tells: [] "checkpoint", false;
    a_sync_tells: [] "sync", false;
    closing_tells: [] "close", false;
}

#[test]
fn a_transaction_that_was_open_tells_when_it_commits() {
    let place = Place::in_memory();
    for n in 0..cuts(1 << 20).len() {
        let path = place.path(&format!("store{n}"));
        let mut agent = filled(&path, "guard");
        agent.ok("txn begin");
        agent.ok("txn put k1 new");
        let len = std::fs::metadata(&path).expect("the store").len();
        open(&path).set_len(cuts(len)[n]).expect("our own file");
        let answer = agent.ask("txn commit");
        assert!(tells(&answer), "cut to {}: {answer}", cuts(len)[n]);
    }
}

#[test]
fn read_only_handles_tell_alone_and_beside_a_writer() {
    let place = Place::in_memory();
    for n in 0..cuts(1 << 20).len() - 1 {
        for alone in [true, false] {
            let path = place.path(&format!("store{n}{alone}"));
            let mut writer = filled(&path, "");
            if alone {
                // What stands behind the checkpoint is replayed in private memory.
                writer.kill();
            }
            let mut reader = Agent::open("reader", &path, "ro guard");
            assert_ne!(reader.well("get k7"), "none");
            let len = std::fs::metadata(&path).expect("the store").len();
            open(&path).set_len(cuts(len)[n]).expect("our own file");
            for order in ["get k7", "get l3", "scan", "check", "stats"] {
                let answer = reader.ask(order);
                assert!(tells(&answer), "{order}, alone: {alone}, cut to {}: {answer}", cuts(len)[n]);
            }
        }
    }
}

/// Cuts the file to half while an order goes on.
fn cut_under(place: &Place, options: &str, order: &str) -> Option<String> {
    let path = place.store();
    let mut agent = Agent::open("agent", &path, &format!("create extent=65536 {options}"));
    agent.ok("fill k 0 100 5000");
    let before = std::fs::metadata(&path).expect("the store").len();
    agent.send(order);
    let len = || std::fs::metadata(&path).expect("the store").len();
    eventually("the file grows", || len() > before);
    open(&path).set_len(before / 2).expect("our own file");
    let answer = agent.answer();
    if answer.is_none() {
        agent.died_of(libc::SIGBUS);
    }
    answer
}

#[test]
fn commits_that_are_under_way_end_with_an_error() {
    for options in ["guard", "guard eventual", "guard checkpoint=100000", "guard eventual checkpoint=100000"] {
        for place in [Place::in_memory(), Place::on_disk()] {
            let answer = cut_under(&place, options, "fill m 0 1000000 3000");
            let answer = answer.unwrap_or_else(|| panic!("{options}: it died"));
            assert!(answer.starts_with("error"), "{options}: {answer}");
        }
    }
}

#[test]
fn without_the_guard_a_cut_is_death() {
    let place = Place::in_memory();
    let path = place.path("idle");
    let mut agent = filled(&path, "");
    open(&path).set_len(EXTENT).expect("our own file");
    assert_eq!(agent.attempt("get k77"), None);
    agent.died_of(libc::SIGBUS);
    // Growth at that very moment makes the file longer again: then what is missing reads as zeros.
    let answer = cut_under(&place, "eventual", "fill m 0 1000000 3000");
    assert!(answer.as_ref().is_none_or(|answer| answer.starts_with("error")), "{answer:?}");
}

/// Brings back a file as it was, as a disk does that could not read a page for a while.
fn restore(path: &Path, image: &[u8]) {
    open(path).write_all_at(image, 0).expect("our own file");
}

#[test]
fn what_one_process_lost_does_not_reach_the_others() {
    // What the victim loses with the pages, and meets first.
    for order in ["get k3", "put k3 new", "batch immediate k3=new fresh=new", "fill m 0 50 5000", "checkpoint", "sync"]
    {
        let place = Place::in_memory();
        let path = place.store();
        let mut victim = filled(&path, "guard each");
        let mut other = Agent::open("other", &path, STORE);
        let digest = other.well("scan");
        let image = std::fs::read(&path).expect("the store");
        for cut in cuts(image.len() as u64) {
            open(&path).set_len(cut).expect("our own file");
            // The first cut is met; then the victim has lost a page of a file that is whole.
            victim.ask("get k3");
            restore(&path, &image);
            assert!(tells_of_loss(&victim.ask(order)), "{order}");
            other.says("scan", &digest);
        }
        other.is_clean();
        other.ok("put k3 newer");
        other.ok("checkpoint");
        let mut third = Agent::open("third", &path, STORE);
        third.says("get k3", "newer");
        third.is_clean();
    }
}

/// The file is whole again, so the error names the page.
fn tells_of_loss(answer: &str) -> bool {
    answer.starts_with("error Io: ") && answer.contains("read through the map failed at offset")
}

/// Orders of a process that has lost a page somewhere, until it meets it.
const ORDERS: [&str; 7] = ["put", "put", "new", "delete", "immediate", "checkpoint", "snapshot"];

/// What the store must hold, and the keys of commits whose outcome nobody knows.
#[derive(Default)]
struct Known {
    pairs: BTreeMap<String, String>,
    doubtful: BTreeSet<String>,
}

impl Known {
    /// Gives one order; false when it met the lost page.
    fn order(&mut self, victim: &mut Agent, n: u64, rng: &mut Rng) -> bool {
        let key = format!("k{}", rng.below(120));
        let value = format!("~{}.{n}", 8 + rng.below(600));
        let order = match *rng.pick(&ORDERS) {
            "delete" => format!("delete {key}"),
            "immediate" => format!("batch immediate {key}={value}"),
            "new" => format!("put new{n} {value}"),
            "put" => format!("put {key} {value}"),
            "snapshot" => "scan".to_string(),
            other => other.to_string(),
        };
        let answer = victim.ask(&order);
        let words: Vec<&str> = order.split([' ', '=']).collect();
        let written = match words[..] {
            ["delete", key] => Some((key, None)),
            ["put", key, value] | ["batch", "immediate", key, value] => Some((key, Some(value.to_string()))),
            _ => None,
        };
        let failed = answer.starts_with("error");
        if let Some((key, value)) = written {
            match value {
                _ if answer.starts_with("error InDoubt") => drop(self.doubtful.insert(key.to_string())),
                _ if failed => {}
                Some(value) => drop(self.pairs.insert(key.to_string(), value)),
                None => drop(self.pairs.remove(key)),
            }
        }
        let tells = answer.contains("read through the map failed at offset");
        assert!(tells || !failed, "{order}: {answer}");
        !tells
    }

    /// Another process, which can read all pages, sees this and nothing else.
    fn is_held_by(&self, agent: &mut Agent, page: u64) {
        for n in 0..120 {
            let key = format!("k{n}");
            if self.doubtful.contains(&key) {
                continue;
            }
            match self.pairs.get(&key) {
                Some(pattern) => agent.says(&format!("matches {key} {pattern}"), "true"),
                None => agent.says(&format!("get {key}"), "none"),
            }
        }
        assert_eq!(agent.ask("check"), "clean", "page {page}");
        let len: u64 = agent.well("len").parse().expect("a number");
        let certain = self.pairs.keys().filter(|key| !self.doubtful.contains(*key)).count() as u64;
        assert!((certain..=certain + self.doubtful.len() as u64).contains(&len), "page {page}: {len} keys");
    }
}

#[test]
fn a_page_lost_in_the_middle_of_anything_does_not_reach_the_others() {
    let seed = seed();
    let mut met = 0;
    for round in 0..rounds(60) {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let place = Place::in_memory();
        let path = place.store();
        let mut victim = Agent::open("victim", &path, &format!("create guard each {STORE} checkpoint=40000"));
        let mut known = Known::default();
        let mut n = 0;
        while n < 150 {
            known.order(&mut victim, n, &mut rng);
            n += 1;
        }
        let mut other = Agent::open("other", &path, "extent=65536 eventual");
        known.is_held_by(&mut other, 0);
        let image = std::fs::read(&path).expect("the store");
        let is_used = |n: &u64| image[*n as usize * 4096..][..4096].iter().any(|&byte| byte != 0);
        let used: Vec<u64> = (0..image.len() as u64 / 4096).filter(is_used).collect();
        let page = rng.pick(&used) * 4096;
        victim.ok(&format!("lose {page}"));
        let end = n + 60;
        while n < end && known.order(&mut victim, n, &mut rng) {
            n += 1;
        }
        met += u64::from(n < end);
        known.is_held_by(&mut other, page);
        other.ok("put k0 ~9.1");
        known.pairs.insert("k0".into(), "~9.1".into());
        known.doubtful.remove("k0");
        other.ok("checkpoint");
        victim.kill();
        known.is_held_by(&mut other, page);
        other.ok("close");
        other.reopen(&path, STORE);
        known.is_held_by(&mut other, page);
    }
    assert!(met > 0, "no page was ever missed");
    eprintln!("{met} lost pages were met");
}

/// Where the table of extents begins (src/control.rs): 4,096 entries of 32 bytes at the end of the shared words.
const TABLE: u64 = EXTENT + VOLATILE - 4096 * 32;

/// Where these bytes stand in an image, which has them once.
fn place_of(image: &[u8], bytes: &[u8]) -> u64 {
    let mut places = (0..image.len()).filter(|&n| image[n..].starts_with(bytes));
    let place = places.next().expect("they stand somewhere") as u64;
    assert_eq!(places.next(), None, "only once");
    place
}

#[test]
fn a_page_lost_in_a_takeover_does_not_reach_the_others() {
    for part in ["the record that is replaced", "the batch", "the table of extents", "the index"] {
        let (mut met, mut steps) = (0, 0..);
        let lived = |step: &u64| {
            let place = Place::in_memory();
            let path = place.store();
            let mut writer = Agent::open("writer", &path, &format!("create each {STORE}"));
            writer.ok("put target old-value");
            // The batch that is taken over stands on another page.
            writer.ok("fill k 0 20 5000");
            let mut other = Agent::open("other", &path, STORE);
            let mut victim = Agent::open("victim", &path, &format!("guard each {STORE}"));
            let image = std::fs::read(&path).expect("the store");
            let record = place_of(&image, b"targetold-value") - RECORD_HEADER;
            let last = place_of(&image, &[b"k19", &data::bytes("~5000.19")[..100]].concat());
            let is_index = |at: &u64| image[*at as usize..].starts_with(b"slotpage");
            let index: Vec<u64> = (0..image.len() as u64).step_by(4096).filter(is_index).collect();
            let lost = match part {
                "the record that is replaced" => vec![record],
                "the batch" => vec![(last + 3 + 5000).next_multiple_of(8)],
                "the table of extents" => vec![TABLE],
                _ => index,
            };
            lost.iter().for_each(|at| victim.ok(&format!("lose {at}")));
            writer.ok(&format!("arm {step}"));
            if writer.attempt("put target new-value").is_some() {
                return true;
            }
            writer.was_killed();
            let answer = victim.ask("put later x");
            // Its own batch may meet the page too, and be in doubt.
            let in_doubt = answer.starts_with("error InDoubt: ") && answer.contains("read through the map failed");
            let tells = tells_of_loss(&answer) || in_doubt;
            assert!(tells || answer == "ok", "{part}, step {step}: {answer}");
            met += u64::from(tells);
            other.ok("put last x");
            let may = match (in_doubt, tells) {
                (true, _) => &["22", "23"][..],
                (false, true) => &["22"],
                (false, false) => &["23"],
            };
            let len = other.well("len");
            assert!(may.contains(&&*len), "{part}, step {step}: {answer}, then {len} keys");
            other.is_clean();
            false
        };
        assert!(steps.find(lived) > Some(8), "a commit takes more steps");
        assert!(met > 0, "{part} was never missed");
    }
}

#[test]
fn a_page_lost_before_the_first_byte_leaves_nothing_in_doubt() {
    let place = Place::in_memory();
    let path = place.store();
    let mut other = Agent::open("other", &path, &format!("create each {STORE} dead=0.9"));
    other.ok("fill k 0 120 5000");
    (0..120).filter(|n| n % 3 != 0).for_each(|n| other.ok(&format!("put k{n} ~5000.1")));
    for order in ["put fresh x", "compact"] {
        // The cleaner reads one of the segments in front of the tail; a new key reads none of them.
        let image = std::fs::read(&path).expect("the store");
        let is_segment = |at: &usize| image[*at..].starts_with(b"sSEG");
        let mut segments: Vec<usize> = (0..image.len()).step_by(EXTENT as usize).filter(is_segment).collect();
        segments.sort_by_key(|at| image[at + 48..].first_chunk().map(|seq| u64::from_le_bytes(*seq)));
        let mut victim = Agent::open("victim", &path, &format!("guard each {STORE} dead=0.1"));
        segments.split_last().expect("a tail").1.iter().for_each(|at| victim.ok(&format!("lose {at}")));
        let answer = victim.ask(order);
        assert!(tells_of_loss(&answer), "{order}: {answer}");
    }
    other.says("get fresh", "none");
    other.ok("put fresh y");
    other.is_clean();
}

/// A value is borrowed, and zeros once its page is lost: what was decided by it must not count.
#[test]
fn a_value_lost_under_a_transaction_shows_when_it_commits() {
    let place = Place::in_memory();
    let path = place.store();
    let mut other = Agent::open("other", &path, &format!("create {STORE}"));
    other.ok("put target ~20000.1");
    let digest = other.well("get target");
    let value = place_of(&std::fs::read(&path).expect("the store"), &data::bytes("~20000.1")[..100]);
    for write in [None, Some("txn put fresh x")] {
        let mut victim = Agent::open("victim", &path, &format!("guard {STORE}"));
        victim.ok("txn begin");
        victim.ok(&format!("lose {}", (value + 10_000) / 4096 * 4096));
        assert_ne!(victim.well("txn get target"), digest);
        write.iter().for_each(|order| victim.ok(order));
        let answer = victim.ask("txn commit");
        assert!(tells_of_loss(&answer), "{write:?}: {answer}");
    }
    other.says("len", "1");
}

#[test]
fn a_store_that_gives_space_back_on_closing_is_not_cut_short() -> slotdb::Result<()> {
    let place = Place::in_memory();
    let path = place.path("store");
    let open = || Options::new().create(true).extent_size(65_536).guard_sigbus(true).open(&path);
    let len = || std::fs::metadata(&path).expect("the store").len();
    let db = open()?;
    db.put(b"big", &vec![1; 9_000_000])?;
    db.delete(b"big")?;
    assert!(db.compact(|_| true)?);
    let before = len();
    db.close()?;
    assert!(len() < before);
    let db = open()?;
    db.put(b"k", b"x")?;
    db.close()
}
