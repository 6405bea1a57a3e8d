//! A process dies before each step of what it does; the others judge what it left behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::common::{Rng, number};
use super::model::Model;
use super::{Agent, Place, seed};

/// More steps than any order takes.
const NEVER: u64 = 1 << 60;
/// Steps at which the victim dies in a default run; SLOTDB_EXHAUSTIVE=1 takes them all.
const SAMPLE: u64 = 48;

/// Who else has the store open all along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    Nobody,
    Reader,
    Writer,
}

impl Company {
    pub const ALL: [Company; 3] = [Company::Nobody, Company::Reader, Company::Writer];
}

/// What happens up to the death.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// Options of all who open the store.
    pub options: String,
    /// How the store comes to be, long before; the last one to have it open is killed, or closes it.
    pub prepared: Vec<String>,
    pub unclean: bool,
    /// Another process dies during this order, before that step.
    pub dead: Option<(String, u64)>,
    /// What the victim does first.
    pub before: Vec<String>,
    /// What it dies of; `open` is its opening of the store.
    pub act: String,
    /// Numbers of `stats` that the act raises: that is what the scenario is about.
    pub raises: Vec<&'static str>,
    /// What the bystander, if there is one, does at the same time.
    pub beside: Option<String>,
    /// What those who go on do first, once it has shown what became of the dead.
    pub after: Vec<String>,
}

/// A file as it was, to begin from again and again.
pub struct Template {
    len: u64,
    blocks: Vec<(u64, Vec<u8>)>,
}

impl Template {
    const BLOCK: usize = 4096;

    pub fn of(path: &Path) -> Template {
        let bytes = fs::read(path).expect("the store can be read");
        let blocks = bytes.chunks(Template::BLOCK).enumerate().filter(|(_, block)| block.iter().any(|&b| b != 0));
        let blocks = blocks.map(|(n, block)| ((n * Template::BLOCK) as u64, block.to_vec())).collect();
        Template { len: bytes.len() as u64, blocks }
    }

    pub fn copy_to(&self, path: &Path) {
        let _ = fs::remove_file(path);
        let file = File::create(path).expect("the directory is ours");
        file.set_len(self.len).expect("room for the store");
        for (position, block) in &self.blocks {
            file.write_all_at(block, *position).expect("room for the store");
        }
    }
}

/// How far the two who may die have come, in commits: who died first, then the victim.
type Progress = (u64, u64);

/// The states a store may be in, and what has been seen of it.
struct Judge {
    states: Vec<(Progress, Model)>,
    seen: Progress,
}

impl Judge {
    /// What the agent sees is one of the states, and nothing that was seen before is gone.
    #[track_caller]
    fn look(&mut self, agent: &mut Agent) -> usize {
        let digest = agent.well("scan");
        let Some(n) = self.states.iter().position(|(_, model)| model.digest() == digest) else {
            let may: Vec<_> = self.states.iter().map(|(progress, model)| (progress, model.digest())).collect();
            panic!("{agent:?} sees {digest}; it may be one of {may:?}");
        };
        let now = self.states[n].0;
        assert!(now.0 >= self.seen.0 && now.1 >= self.seen.1, "{agent:?} sees {now:?} after {:?}", self.seen);
        self.seen = now;
        n
    }

    /// What the agent sees is all that there will be of those that died.
    #[track_caller]
    fn settle(&mut self, agent: &mut Agent) {
        let n = self.look(agent);
        self.states = vec![self.states.swap_remove(n)];
        self.is_sound(agent);
    }

    #[track_caller]
    fn tell(&mut self, agent: &mut Agent, order: &str) {
        agent.well(order);
        self.states.iter_mut().for_each(|(_, model)| model.keep_pace(order));
    }

    /// The one state that is left is there, to the last pair.
    #[track_caller]
    fn is_sound(&mut self, agent: &mut Agent) {
        self.states[0].1.is_in(agent);
    }
}

/// A scenario whose store stands ready.
pub struct Stage {
    scenario: Scenario,
    place: Place,
    template: Template,
    model: Model,
}

impl Scenario {
    /// Makes the store.
    pub fn prepare(self) -> Stage {
        self.prepare_with(|_, _| {})
    }

    /// Makes the store; `more` may add to what is in it and choose the act.
    pub fn prepare_with(mut self, more: impl FnOnce(&mut Scenario, &mut Maker)) -> Stage {
        let place = Place::in_memory();
        let path = place.store();
        let agent = Agent::open("maker", &path, &format!("create eventual {}", self.options));
        let mut maker = Maker { agent, path, model: Model::default() };
        self.prepared.iter().for_each(|order| maker.tell(order));
        more(&mut self, &mut maker);
        let Maker { mut agent, path, model } = maker;
        if self.unclean {
            agent.kill();
        } else {
            agent.ok("checkpoint");
            agent.ok("close");
        }
        let template = Template::of(&path);
        self.is_as_named(&template, &path.with_extension("tried"));
        Stage { scenario: self, place, template, model }
    }

    /// The act, which nobody dies of here, raises what it should.
    fn is_as_named(&self, template: &Template, path: &Path) {
        if self.raises.is_empty() {
            return;
        }
        template.copy_to(path);
        let mut agent = Agent::open("who tries", path, &self.options);
        self.before.iter().for_each(|order| drop(agent.well(order)));
        let before: Vec<u64> = self.raises.iter().map(|name| agent.stat(name)).collect();
        agent.well(&self.act);
        for (name, before) in self.raises.iter().zip(before) {
            let after = agent.stat(name);
            assert!(after > before, "{:.80}: {name} was {before} and is {after}", self.act);
        }
    }

    /// The victim dies before every step, in every company.
    pub fn play(self) {
        self.prepare().play(&Company::ALL);
    }
}

/// Who makes a store for a scenario.
pub struct Maker {
    pub agent: Agent,
    pub path: PathBuf,
    pub model: Model,
}

impl Maker {
    #[track_caller]
    pub fn tell(&mut self, order: &str) {
        self.model.tell(&mut self.agent, order);
    }

    /// Somebody with a copy of the store as it stands, to try things on.
    pub fn trial(&self) -> Agent {
        let path = self.path.with_extension("tried");
        Template::of(&self.path).copy_to(&path);
        Agent::open("trial", &path, "")
    }

    /// The first `count` keys whose hashes begin with the same `bits` bits, all of them those of `suffix`.
    pub fn colliding(&self, bits: u32, suffix: u64, count: usize) -> Vec<String> {
        // Where the header keeps the seed of the key hash (docs/FORMAT.md).
        let mut hash_seed = [0; 8];
        let file = File::open(&self.path).expect("the store is there");
        file.read_exact_at(&mut hash_seed, 40).expect("it has a header");
        let hash_seed = u64::from_le_bytes(hash_seed);
        let mask = (1 << bits) - 1;
        let collides = |key: &String| xxh3_64_with_seed(key.as_bytes(), hash_seed) & mask == suffix;
        (0..).map(|n| format!("c{n}")).filter(collides).take(count).collect()
    }

    /// Puts these keys one by one until the next one would split an index page; that one and all after it.
    pub fn put_until_split<'k>(&mut self, keys: &'k [String]) -> &'k [String] {
        let pages = self.agent.stat("index_pages");
        for n in 0..keys.len() {
            let mut trial = self.trial();
            trial.ok(&format!("put {} _", keys[n]));
            if trial.stat("index_pages") > pages {
                return &keys[n..];
            }
            self.tell(&format!("put {} _", keys[n]));
        }
        panic!("no page splits");
    }
}

impl Stage {
    /// The victim dies before every step of its act, of many before a sample.
    pub fn play(&self, companies: &[Company]) {
        self.play_some(companies, SAMPLE);
    }

    /// The victim dies before so many steps of its act at most; with SLOTDB_EXHAUSTIVE=1, before each.
    pub fn play_some(&self, companies: &[Company], sample: u64) {
        let mut random = Rng::new(seed());
        let sample = if number("SLOTDB_EXHAUSTIVE", 0) == 0 { sample } else { NEVER };
        for &company in companies {
            let steps = self.run(company, None).expect("nobody dies of no step");
            eprintln!("{}: {steps} steps in the company of {company:?}", self.scenario.act);
            if steps <= sample {
                let survived = (0..).find(|&n| self.run(company, Some(n)).is_some());
                assert_ne!(survived, Some(0), "an order without a step");
                continue;
            }
            let ends = sample / 4;
            let middle = (2 * ends..sample).map(|_| ends + random.below(steps - 2 * ends));
            for n in (0..ends).chain(middle).chain(steps - ends..steps) {
                // Beside a checkpoint in the background the steps are never quite the same: some trials survive.
                self.run(company, Some(n));
            }
        }
    }

    /// One trial; how many steps there were, if the victim lived.
    fn run(&self, company: Company, dies_at: Option<u64>) -> Option<u64> {
        let said = format!("{:?} in the company of {company:?}, step {dies_at:?}", self.scenario.act);
        let trial = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Trial::new(self, company).run(dies_at)));
        trial.unwrap_or_else(|wrong| {
            eprintln!("in {said}, store {}", self.keep_evidence().display());
            std::panic::resume_unwind(wrong)
        })
    }

    /// Copies the store to where it can be looked at.
    fn keep_evidence(&self) -> PathBuf {
        let kept = std::env::temp_dir().join(format!("slotdb-evidence-{}", std::process::id()));
        let _ = fs::copy(self.place.store(), &kept);
        kept
    }
}

/// One death.
struct Trial<'a> {
    stage: &'a Stage,
    path: PathBuf,
    /// Who is there all along.
    company: Option<Agent>,
    kind: Company,
    /// What is there before the act.
    before: Model,
}

impl<'a> Trial<'a> {
    fn new(stage: &'a Stage, kind: Company) -> Trial<'a> {
        let path = stage.place.store();
        stage.template.copy_to(&path);
        Trial { stage, path, company: None, kind, before: stage.model.clone() }
    }

    fn options(&self) -> &'a str {
        &self.stage.scenario.options
    }

    /// An order as the agent takes it.
    fn to_give(&self, order: &str) -> String {
        match order {
            "open" => format!("open {} {}", self.path.display(), self.options()),
            order => order.to_string(),
        }
    }

    fn run(mut self, dies_at: Option<u64>) -> Option<u64> {
        let mut victim = self.gather();
        if let Some(company) = &mut self.company {
            company.well("snapshot begin held");
        }
        let died = self.stage.scenario.dead.as_ref().map(|(order, step)| self.first_death(order, *step));
        let steps = self.death(&mut victim, dies_at.unwrap_or(NEVER));
        // If it lived it has done its part: to the others it is as good as dead.
        drop(victim);
        let mut judge = self.verdicts(died, steps.is_some());
        if let Some((order, bystander)) = self.beside() {
            assert_eq!(bystander.answer().as_deref(), Some("ok"), "{order}");
            judge.states.iter_mut().for_each(|(_, model)| model.keep_pace(order));
        }
        self.aftermath(judge, dies_at.unwrap_or(0));
        steps
    }

    /// The victim, which has done what comes before its act; and its company.
    fn gather(&mut self) -> Agent {
        let scenario = &self.stage.scenario;
        let mut victim = Agent::new("victim");
        // Those who would be alone with the store without the victim need somebody who was there before them.
        let mut opener = None;
        if scenario.act != "open" {
            victim.reopen(&self.path, self.options());
        } else if self.kind != Company::Nobody {
            opener = Some(Agent::open("opener", &self.path, self.options()));
        }
        for order in &scenario.before {
            self.before.tell(&mut victim, order);
        }
        self.company = match self.kind {
            Company::Nobody => None,
            Company::Reader => Some(Agent::open("reader", &self.path, "ro")),
            Company::Writer => Some(Agent::open("bystander", &self.path, self.options())),
        };
        drop(opener);
        victim
    }

    /// The victim acts, and dies before a step of that; if not, how many steps there were.
    fn death(&mut self, victim: &mut Agent, dies_at: u64) -> Option<u64> {
        victim.ok(&format!("arm {dies_at}"));
        if let Some((order, bystander)) = self.beside() {
            bystander.send(order);
        }
        let act = self.to_give(&self.stage.scenario.act);
        let Some(answer) = victim.attempt(&act) else {
            victim.was_killed();
            return None;
        };
        assert!(!answer.starts_with("error") && !answer.starts_with("what?"), "{act}: {answer}");
        // A checkpoint that it left in the background may still come upon the step.
        let steps = victim.attempt(&format!("steps {dies_at}"));
        Some(steps.map_or(dies_at, |steps| steps.parse().expect("a number")))
    }

    /// What the bystander does while the victim dies.
    fn beside(&mut self) -> Option<(&'a str, &mut Agent)> {
        let order = self.stage.scenario.beside.as_deref().filter(|_| self.kind == Company::Writer)?;
        Some((order, self.company.as_mut()?))
    }

    /// The death that the victim finds.
    fn first_death(&self, order: &'a str, step: u64) -> &'a str {
        let mut first = Agent::new("first to die");
        if order != "open" {
            first.reopen(&self.path, self.options());
        }
        first.ok(&format!("arm {step}"));
        assert_eq!(first.attempt(&self.to_give(order)), None, "step {step} of {order}");
        first.was_killed();
        order
    }

    /// What may be there after all deaths.
    fn verdicts(&self, died: Option<&str>, survived: bool) -> Judge {
        let mut begins = vec![self.before.clone()];
        begins.extend(died.into_iter().flat_map(|order| self.before.states_after(order)));
        let mut states = Vec::new();
        for (first, begin) in begins.into_iter().enumerate() {
            let acts = begin.states_after(&self.stage.scenario.act);
            let all = acts.len();
            for (second, model) in std::iter::once(begin).chain(acts).enumerate() {
                if !survived || second == all {
                    states.push(((first as u64, second as u64), model));
                }
            }
        }
        Judge { states, seen: (0, 0) }
    }

    /// The others go on; then everybody goes, and others come.
    fn aftermath(mut self, mut judge: Judge, n: u64) {
        let (path, options) = (self.path.clone(), self.options());
        let newcomer = || Agent::open("newcomer", &path, options);
        // The first one goes on writing; the last one was there all along, unless there was nobody.
        let mut agents = match self.company.take() {
            Some(company) => vec![company],
            None => vec![self.found_by_nobody(&mut judge)],
        };
        judge.look(&mut agents[0]);
        if self.kind == Company::Reader {
            agents.insert(0, newcomer());
        }
        // The next commit decides.
        judge.tell(&mut agents[0], "put decided yes");
        judge.settle(&mut agents[0]);
        let usual = ["fill z 0 6 2500", "checkpoint", "fill z 3 9 3000", "batch eventual -z1 z2=_"];
        // Without a checkpoint of theirs, recovery has to begin where the dead left it.
        let usual = if n.is_multiple_of(3) { &usual[2..] } else { &usual };
        for order in self.stage.scenario.after.iter().map(String::as_str).chain(usual.iter().copied()) {
            judge.tell(&mut agents[0], order);
        }
        agents.iter_mut().for_each(|agent| judge.is_sound(agent));
        if let Some(witness) = agents.last_mut().filter(|_| self.kind != Company::Nobody) {
            witness.says("snapshot scan held", &self.before.digest());
        }
        for mut agent in agents {
            if n.is_multiple_of(2) {
                agent.kill();
            } else {
                agent.ok("close");
            }
        }
        let mut last = newcomer();
        judge.is_sound(&mut last);
        judge.tell(&mut last, "put last yes");
        judge.is_sound(&mut last);
        last.ok("close");
        last.reopen(&self.path, "ro");
        judge.is_sound(&mut last);
    }

    /// Nobody is there: one who only reads finds the same as who recovers after it, and changes nothing.
    fn found_by_nobody(&self, judge: &mut Judge) -> Agent {
        let content = || fs::read(&self.path).expect("the store can be read");
        let small = fs::metadata(&self.path).expect("the store is there").len() < 16 << 20;
        let before = small.then(content);
        let mut reader = Agent::open("reader", &self.path, "ro");
        judge.settle(&mut reader);
        reader.ok("close");
        assert!(before.is_none_or(|before| before == content()), "a reader has changed the file");
        reader.reopen(&self.path, self.options());
        judge.is_sound(&mut reader);
        reader
    }
}
