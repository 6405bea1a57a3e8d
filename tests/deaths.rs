//! Deaths that once left damage behind: a process dies before a step of what it does, another one that had the store
//! open all along goes on, and nothing is lost, half there, or used twice.
//!
//! Of long orders only some steps are tried; SLOTDB_EXHAUSTIVE=1 tries them all.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use slotdb::{Db, Error, Options};
use support::common::number;
use support::common::raw::Image;
use support::model::Model;
use support::trial::Template;
use support::{Agent, Place};

/// Small extents make rare paths common. No thread of its own may take steps, be it for a checkpoint or to give a
/// lock back.
const OPTIONS: &str = "extent=65536 eventual each checkpoint=1000000000";
const EXTENT: u64 = 65536;
/// More steps than any order takes.
const NEVER: u64 = 1 << 60;
/// Appends go through the map after so many Eventual commits in a row.
const MANY: &str = "fill k 0 100 1";

/// A store to begin from again and again, and what the victim does with it.
struct Scene {
    place: Place,
    template: Template,
    model: Model,
    before: Vec<String>,
    act: String,
}

impl Scene {
    /// A store in which these orders were obeyed before it was closed.
    fn after(orders: &[&str]) -> Scene {
        let place = Place::in_memory();
        let mut maker = Agent::open("maker", &place.store(), &format!("create {OPTIONS}"));
        let mut model = Model::default();
        orders.iter().for_each(|order| model.tell(&mut maker, order));
        maker.ok("checkpoint");
        maker.ok("close");
        let template = Template::of(&place.store());
        Scene { place, template, model, before: Vec::new(), act: String::new() }
    }

    /// What the victim does first.
    fn before(mut self, orders: &[String]) -> Scene {
        self.before = orders.to_vec();
        self
    }

    /// What the victim dies of.
    fn of(mut self, act: &str) -> Scene {
        self.act = act.into();
        self
    }

    /// Lets the victim put `PREFIX0`, `PREFIX1`, ... and die of the first put after which `happened`, which is told
    /// of the bytes of the file and of those that are neither free nor log, before and after.
    fn of_the_put(mut self, prefix: &str, len: u64, happened: fn([u64; 2], [u64; 2]) -> bool) -> Scene {
        let sizes = |agent: &mut Agent| {
            let file = agent.stat("file_bytes");
            [file, file - agent.stat("free_bytes") - agent.stat("log_bytes")]
        };
        let (_survivor, mut victim) = self.open("who looks for the put");
        let mut before = sizes(&mut victim);
        let found = (0..20_000).find(|n| {
            victim.ok(&format!("put {prefix}{n} ~{len}.{n}"));
            let after = sizes(&mut victim);
            happened(std::mem::replace(&mut before, after), after)
        });
        let found = found.expect("it happens some day");
        self.before = vec![format!("fill {prefix} 0 {found} {len}")];
        self.act = format!("put {prefix}{found} ~{len}.{found}");
        self
    }

    /// The store as it was, opened by one who will live and one who will die.
    fn open(&self, name: &str) -> (Agent, Agent) {
        let path = self.place.store();
        self.template.copy_to(&path);
        (Agent::open(&format!("survivor {name}"), &path, OPTIONS), Agent::open("victim", &path, OPTIONS))
    }

    /// One number of `stats`, when the store is open and nobody has acted.
    fn stat(&self, name: &str) -> u64 {
        let (mut survivor, _victim) = self.open("who looks");
        survivor.stat(name)
    }

    /// The victim dies before this step; the survivor, and what it must see. Without a step it lives, and tells how
    /// many there were.
    fn die(&self, step: Option<u64>) -> (Agent, Model, u64) {
        let (mut survivor, mut victim) = self.open(&format!("of {step:?} in {:.60}", self.act));
        let mut model = self.model.clone();
        self.before.iter().for_each(|order| model.tell(&mut victim, order));
        victim.ok(&format!("arm {}", step.unwrap_or(NEVER)));
        let mut steps = 0;
        match victim.attempt(&self.act) {
            Some(answer) => {
                assert!(step.is_none() && !answer.starts_with("error"), "{survivor:?}: {answer}");
                steps = number_in(&victim.ask(&format!("steps {NEVER}")));
                model.keep_pace(&self.act);
            }
            None => {
                victim.was_killed();
                model = self.settle(&mut survivor, model);
            }
        }
        (survivor, model, steps)
    }

    /// The next commit decides: the order of the dead is there as a whole or not at all, and all counts are right.
    #[track_caller]
    fn settle(&self, survivor: &mut Agent, before: Model) -> Model {
        let mut may = before.states_after(&self.act);
        may.push(before);
        survivor.ok("put decided yes");
        may.iter_mut().for_each(|model| model.keep_pace("put decided yes"));
        let seen = survivor.well("scan");
        let model = may.into_iter().find(|model| model.digest() == seen);
        let model = model.unwrap_or_else(|| panic!("{survivor:?} sees a part of what the dead did: {seen}"));
        model.is_in(survivor);
        model
    }

    /// The victim dies before every `stride`-th step; each time the survivor goes on, and what it leaves is right for
    /// those who come later.
    fn each_death(&self, stride: usize, go_on: impl Fn(&mut Agent, &mut Model)) {
        let stride = if number("SLOTDB_EXHAUSTIVE", 0) == 0 { stride } else { 1 };
        let (_, _, steps) = self.die(None);
        assert!(steps > 0, "an act without a step");
        for step in (0..steps).step_by(stride) {
            let (mut survivor, mut model, _) = self.die(Some(step));
            go_on(&mut survivor, &mut model);
            model.is_in(&mut survivor);
            survivor.ok("close");
            let mut newcomer = Agent::open(&format!("newcomer after {step}"), &self.place.store(), OPTIONS);
            model.is_in(&mut newcomer);
        }
    }
}

fn number_in(answer: &str) -> u64 {
    answer.parse().unwrap_or_else(|_| panic!("no number: {answer}"))
}

/// `count` keys in one commit, with values of `len` bytes.
fn batch(count: u64, len: u64) -> String {
    let writes: Vec<String> = (0..count).map(|n| format!("b{n}=~{len}.{n}")).collect();
    format!("batch {}", writes.join(" "))
}

#[test]
fn an_append_to_space_that_another_process_added() {
    let scene = Scene::after(&["fill k 0 40 100"]);
    let (mut survivor, mut victim) = scene.open("of a growth");
    let mut model = scene.model.clone();
    model.tell(&mut survivor, MANY);
    let known = survivor.stat("file_bytes");
    model.tell(&mut victim, "fill g 0 300 4000");
    assert!(victim.stat("file_bytes") > known, "the file has grown");
    victim.kill();
    // An index page it has had all along, and a log that goes on where it has never been.
    model.tell(&mut survivor, "put k5 new");
    model.tell(&mut survivor, MANY);
    model.is_in(&mut survivor);
}

#[test]
fn a_batch_that_links_into_space_that_the_dead_one_added() {
    let scene = Scene::after(&[MANY]);
    // Not all of it fits into what is free, so it goes on in what the file grows by.
    let len = scene.stat("free_bytes") / 30;
    let scene = scene.of(&batch(40, len));
    scene.each_death(1, |survivor, model| model.tell(survivor, "put b7 again"));
}

#[test]
fn a_death_between_a_slot_and_the_live_bytes() {
    for act in ["put fresh ~100.1", "put k1 ~100.1", "batch fresh=~100.1 -k2 k3=x"] {
        Scene::after(&["fill k 0 70 20"]).of(act).each_death(1, |survivor, model| {
            // All around the keys of the dead is written anew, until its segment would be free if they were not
            // counted.
            for round in 0..4 {
                model.tell(survivor, &format!("fill k 10 70 {}", 1500 + round));
                model.tell(survivor, &format!("put decided {round}"));
                survivor.ok("checkpoint");
            }
        });
    }
}

#[test]
fn an_index_extent_without_its_page_map() {
    let an_extent_that_is_not_log = |before: [u64; 2], after: [u64; 2]| after[1] >= before[1] + EXTENT;
    let scene = Scene::after(&[]).of_the_put("m", 8, an_extent_that_is_not_log);
    scene.each_death(1, |survivor, model| {
        // So many keys that all pages of the new extent are handed out. A page that is handed out twice may be gone
        // again in the end, so there is a look at each stage.
        for from in (0..4000).step_by(200) {
            model.tell(survivor, &format!("fill x {from} {} 8", from + 200));
            survivor.is_clean();
        }
        survivor.ok("checkpoint");
    });
}

/// Orders that take up so many extents and leave nothing to read in them. Until the next checkpoint they cannot be
/// used again.
fn taking_up(extents: u64) -> [String; 2] {
    [format!("put big ^{}", extents * EXTENT), "delete big".into()]
}

/// Extents that puts leave in a file of 4096, and some more.
const RESERVES: u64 = 80;

/// The extent table has room for 4096 extents before it needs its next chunk. A death leaves the word of that chunk
/// behind, and the space it names is handed out for something else.
fn a_lost_chunk(extents: u64, act: &str, more: [&str; 2]) {
    let [put, delete] = taking_up(extents);
    let scene = Scene::after(&[MANY, &put, "checkpoint", &delete]);
    // The file grows when it is opened; the act must not find room in that.
    let free = scene.stat("free_bytes") / EXTENT;
    let scene = scene.before(&taking_up(free - RESERVES)).of(act);
    assert!(scene.stat("file_bytes") < 4096 * EXTENT, "one chunk is enough before");
    let (mut survivor, ..) = scene.die(None);
    assert!(survivor.stat("file_bytes") > 4096 * EXTENT, "two are needed after");
    drop(survivor);
    scene.each_death(120, |survivor, model| {
        more.iter().for_each(|order| model.tell(survivor, order));
        assert!(survivor.stat("file_bytes") > 4096 * EXTENT, "the table is in use");
    });
}

#[test]
fn a_chunk_of_the_extent_table_that_the_next_growth_makes_again() {
    a_lost_chunk(3900, "batch k2=x g=~3000000.1 -k3", ["fill d 0 30 60000", "put e ~3000000.2"]);
}

#[test]
fn a_chunk_of_the_extent_table_that_the_next_growth_does_not_reach() {
    a_lost_chunk(3600, "batch k2=x g=^41000000 -k3", ["put d ~27000000.1", "put e ~4000000.2"]);
}

/// Writes all large values anew, again and again; the bytes of the file then.
fn overwrite(survivor: &mut Agent, model: &mut Model) -> u64 {
    for round in 0..6 {
        model.tell(survivor, &format!("fill o 0 100 {}", 30_000 + round));
        survivor.ok("checkpoint");
    }
    survivor.stat("file_bytes")
}

#[test]
fn a_death_beside_the_count_of_free_extents() {
    let full = || Scene::after(&["fill o 0 100 30000"]);
    let grows = |before: [u64; 2], after: [u64; 2]| after[0] > before[0];
    for scene in [full().of_the_put("p", 30_000, grows), full().of("put big ~600000.1")] {
        let (mut survivor, mut model, _) = scene.die(None);
        let usual = overwrite(&mut survivor, &mut model);
        drop(survivor);
        scene.each_death(3, |survivor, model| {
            let file = overwrite(survivor, model);
            assert!(file <= usual + usual / 3, "{survivor:?}: {file} bytes, {usual} without a death");
        });
    }
}

/// Offsets in a header slot (docs/FORMAT.md).
const GENERATION: u64 = 56;
const SEQ: u64 = 64;
const LOG_POSITION: u64 = 72;
const LIVE_KEYS: u64 = 104;
const LIVE_BYTES: u64 = 112;
const FILE_LEN: u64 = 120;

#[test]
fn header_values_out_of_bounds_are_refused() {
    let place = Place::in_memory();
    let mut maker = Agent::open("maker", &place.store(), &format!("create {OPTIONS}"));
    maker.well(MANY);
    maker.ok("checkpoint");
    maker.ok("close");
    let image = Image::read(&place.store());
    let refuses = |field: u64, value: u64| {
        let mut hostile = image.clone();
        for slot in [0, EXTENT / 2] {
            hostile.put(slot + field, &value.to_le_bytes());
            hostile.seal_slot(slot);
        }
        fs::write(place.store(), &hostile.0).expect("room for the store");
        for read_only in [true, false] {
            let opened = Options::new().read_only(read_only).open(place.store());
            let error = opened.map(drop).expect_err("a hostile header");
            assert!(matches!(error, Error::Corrupt { .. }), "{value:#x} at {field}: {error}");
        }
    };
    // More than the file has room for: their index would be reserved.
    refuses(LIVE_KEYS, 1 << 24);
    refuses(LIVE_BYTES, 1 << 40);
    for field in [GENERATION, SEQ, LIVE_KEYS, LIVE_BYTES, FILE_LEN] {
        // One more would overflow a number, or the bits that a record has for it.
        [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 52) - 1].iter().for_each(|&value| refuses(field, value));
    }
    // The log goes on where nothing more fits into the segment, in the segment's header, or in no segment.
    let header = image.header();
    let segment = header.log / EXTENT * EXTENT;
    [segment + EXTENT - 8, segment, segment + 8, header.blob, 0, u64::MAX - 7]
        .iter()
        .for_each(|&position| refuses(LOG_POSITION, position));
}

#[test]
fn a_dangling_link_leads_to_no_store() {
    let place = Place::in_memory();
    let link = place.path("link");
    // What may create makes a store at the end of the first: see `tests/bad_input`.
    let every = &["create_new", "", "create", "create eventual"][..];
    for (target, refused) in [("gone", &every[..2]), ("nowhere/gone", every)] {
        symlink(place.path(target), &link).expect("the directory is ours");
        let mut agent = Agent::new("creator");
        for options in refused {
            let answer = agent.ask(&format!("open {} {options}", link.display()));
            assert!(answer.starts_with("error"), "{target}, {options:?}: {answer}");
        }
        assert!(matches!(Db::open(&link), Err(Error::NotFound { .. })));
        assert!(!place.path(target).exists(), "nothing was made behind the link");
        fs::remove_file(&link).expect("it is still a link");
    }
    let left = fs::read_dir(place.path("")).expect("the directory is ours").count();
    assert_eq!(left, 0, "no temporary file is left");
}
