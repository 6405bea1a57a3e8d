//! A page that one process cannot read from some step of an order on, with `guard_sigbus`: it errs, and nothing of it
//! reaches the others.

mod support;

use std::fs;

use support::common::Rng;
use support::common::raw::VOLATILE;
use support::model::Model;
use support::{Agent, Place, rounds, seed};

const EXTENT: u64 = 65_536;
/// No checkpoint begins beside the writes: one that had covered the last of them would leave nothing to the order
/// `checkpoint`, and the steps of one beside a put are not the put's.
const STORE: &str = "extent=65536 eventual dead=0.1 checkpoint=1000000000";
/// Where the table of extents begins (src/control.rs): 4,096 entries of 32 bytes at the end of the shared words.
const TABLE: u64 = EXTENT + VOLATILE - 4096 * 32;

/// A store, and what is lost in it.
struct Stage {
    place: Place,
    model: Model,
    /// Pages in use.
    used: Vec<u64>,
    /// Those of the index.
    index: Vec<u64>,
}

impl Stage {
    /// Dead segments to clean and to give back, a page of the index that is nearly full, and in the last extents of the
    /// file a value that is too long to be moved.
    fn new() -> Stage {
        let place = Place::in_memory();
        let mut agent = Agent::open("maker", &place.path("made"), &format!("create {STORE}"));
        let mut model = Model::default();
        for order in ["fill k 0 130 5000", "fill n 0 50 8", "fill gone 0 20 60000", "checkpoint"] {
            model.tell(&mut agent, order);
        }
        (0..20).for_each(|n| model.tell(&mut agent, &format!("delete gone{n}")));
        for n in (0..130).filter(|n| n % 3 != 0) {
            model.tell(&mut agent, &format!("put k{n} ~600.{n}"));
        }
        model.tell(&mut agent, "put long ~500000.1");
        agent.kill();
        let image = fs::read(place.path("made")).expect("the store");
        let is_used = |n: &u64| image[*n as usize * 4096..][..4096].iter().any(|&byte| byte != 0);
        let used: Vec<u64> = (0..image.len() as u64 / 4096).filter(is_used).map(|n| n * 4096).collect();
        let index = used.iter().copied().filter(|&page| image[page as usize..].starts_with(b"slotpage")).collect();
        Stage { place, model, used, index }
    }

    /// One page is lost before one step of the order: steps of it, and whether that was noticed.
    fn try_one(&self, order: &str, page: u64, step: u64) -> (u64, bool) {
        let name = format!("page {page} lost before step {step} of {order}");
        let path = self.place.store();
        fs::copy(self.place.path("made"), &path).expect("room for a copy");
        let mut other = Agent::open("other", &path, STORE);
        // A compaction beside a snapshot would leave more behind the long value.
        let is_held = order != "compact";
        if is_held {
            other.well("snapshot begin held");
        }
        let mut victim = Agent::open("victim", &path, &format!("guard each {STORE}"));
        victim.ok(&format!("lose {page} before {step}"));
        let answer = victim.ask(order);
        let lasts: u64 = victim.ask(&format!("steps {step}")).parse().expect("a number");
        let tells = answer.contains("read through the map failed at offset");
        assert!(tells || !answer.starts_with("error"), "{name}: {answer}");
        let mut before = self.model.clone();
        let mut after = self.model.clone();
        after.keep_pace(order);
        other.ok("put last x");
        before.keep_pace("put last x");
        after.keep_pace("put last x");
        let found = other.well("scan");
        let may = match (tells, answer.contains("InDoubt")) {
            // Of a page of the index nobody asks again before the whole batch is written.
            (true, true) if self.index.contains(&page) => vec![&after],
            (true, true) => vec![&before, &after],
            (true, false) => vec![&before],
            (false, _) => vec![&after],
        };
        let model = may.iter().find(|model| model.digest() == found);
        let model = model.unwrap_or_else(|| panic!("{name}: {answer}, then another state"));
        assert_eq!(other.ask("check"), "clean", "{name}: {answer}");
        victim.kill();
        if is_held {
            assert_eq!(other.ask("snapshot scan held"), self.model.digest(), "{name}: a snapshot from before");
        }
        other.ok("checkpoint");
        model.is_in(&mut other);
        other.kill();
        other = Agent::open("newcomer", &path, STORE);
        model.is_in(&mut other);
        (lasts, tells)
    }
}

/// Trials of an order, at most, each with another step.
const SAMPLE: u64 = 40;

fn lost_in(order: &str) {
    let stage = Stage::new();
    let mut rng = Rng::new(seed());
    let steps = stage.try_one(order, TABLE, u64::MAX >> 1).0;
    let mut met = 0;
    for n in 0..rounds(1) * SAMPLE.min(steps) {
        // Space goes back at the end, and the table says which.
        let at_the_end = n % 2 == 1 && steps > SAMPLE;
        let page = if at_the_end || rng.one_in(2) { TABLE } else { *rng.pick(&stage.used) };
        let step = match steps {
            ..=SAMPLE => n % steps,
            _ if at_the_end => steps - 1 - n / 2 % steps,
            _ => rng.below(steps),
        };
        met += u64::from(stage.try_one(order, page, step).1);
    }
    assert!(met > 0, "no lost page was met in {steps} steps");
    eprintln!("{order}: {steps} steps, {met} lost pages were met");
}

/// A put that opens a segment: an error before the first byte of its batch leaves nothing in doubt.
#[test]
fn an_index_page() {
    let stage = Stage::new();
    let order = "put fresh ~30000.1";
    let steps = stage.try_one(order, TABLE, u64::MAX >> 1).0;
    let trials = stage.index.iter().flat_map(|&page| (0..steps).map(move |step| (page, step)));
    let met = trials.filter(|&(page, step)| stage.try_one(order, page, step).1).count();
    assert!(met > 0, "no lost page was met");
    eprintln!("{order}: {steps} steps, {met} lost pages were met");
}

#[test]
fn a_put() {
    lost_in("put k1 new");
}

#[test]
fn a_batch() {
    lost_in("batch immediate k1=new k3=~9000.1 -k4 m1=~30000.1 m2=~30000.2 m3=~50000.3");
}

#[test]
fn a_checkpoint() {
    lost_in("checkpoint");
}

#[test]
fn a_compaction() {
    lost_in("compact");
}
