//! Rounds of workloads over all engines in turn.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use crate::args::Args;
use crate::child;
use crate::data::{Key, Rng, Sequence, check, key};
use crate::device::{device, mebibytes};
use crate::engine::{Engine, How, Mode, Processes, Result, Store};
use crate::engines::Floor;
use crate::measure::{Run, Task, Timed, warm};
use crate::results::Results;
use crate::workload::{GROUPS, Kind, LAST, Workload};

/// Above so many records a store is loaded once, not in each round.
const LOAD_EACH_ROUND: u64 = 2_000_000;
/// Keys in the order of access that are prepared at most.
const SEQUENCE: u64 = 2_000_000;
/// Records of a commit while loading.
const COMMIT: usize = 1000;

pub struct Runner<'a> {
    pub args: &'a Args,
    pub engines: &'a [Engine],
    pub floors: &'a [Floor],
    pub results: Results,
    sequence: Sequence,
    misses: Sequence,
    round: usize,
}

impl<'a> Runner<'a> {
    pub fn new(args: &'a Args, engines: &'a [Engine], floors: &'a [Floor], results: Results) -> Runner<'a> {
        let sequence = Sequence::uniform(args.n, SEQUENCE, 1);
        let misses = Sequence::misses(args.n, args.n.min(SEQUENCE), 2);
        Runner { args, engines, floors, results, sequence, misses, round: 0 }
    }

    pub fn run(&mut self) -> Result<()> {
        // What lived in the RAM of another run is gone.
        for dir in self.engines.iter().map(|engine| self.dir(engine)).filter(|dir| dir.join("in-ram").exists()) {
            std::fs::remove_dir_all(dir)?;
        }
        for round in 0..self.args.rounds {
            self.round = round;
            for group in GROUPS {
                self.group(group)?;
            }
        }
        if self.args.wants(LAST.name) {
            for engine in self.engines {
                self.attempt(engine, &[LAST])?;
            }
        }
        Ok(())
    }

    /// A group of workloads, all engines and bounds in turn; another one begins in each round.
    fn group(&mut self, group: &'static [Workload]) -> Result<()> {
        let group: Vec<Workload> = group.iter().copied().filter(|w| self.args.wants(w.name)).collect();
        if group.is_empty() {
            return Ok(());
        }
        let count = self.engines.len() + self.floors.len();
        for turn in 0..count {
            let turn = (turn + self.round * 5) % count;
            match self.engines.get(turn) {
                Some(engine) => self.attempt(engine, &group)?,
                None => {
                    let floor = &self.floors[turn - self.engines.len()];
                    if let Some(workload) = group.iter().find(|w| w.name == floor.workload) {
                        self.floor(floor, workload)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// An engine's turn. What goes wrong is noted, and the others go on.
    fn attempt(&mut self, engine: &Engine, group: &[Workload]) -> Result<()> {
        let mut asked = Vec::new();
        for workload in group {
            match excuse(engine, workload) {
                Some(why) => self.results.leave_out(workload.name, engine.name, why),
                None => asked.push(*workload),
            }
        }
        let start = Instant::now();
        if let Err(error) = self.turn(engine, &asked) {
            let names: Vec<&str> = asked.iter().map(|w| w.name).collect();
            eprintln!("{}: {}: {error}", engine.name, names.join(", "));
            for workload in asked {
                if self.results.cell(workload.name, engine.name).is_some() {
                    continue;
                }
                self.results.note(&["left_out", workload.name, engine.name], json!(error.to_string()));
            }
            // What is left of the store is not trusted.
            let _ = std::fs::remove_dir_all(self.dir(engine));
        }
        let names = group.iter().map(|w| w.name).next().unwrap_or_default();
        eprintln!("round {} {names}.. {}: {:.1} s", self.round + 1, engine.name, start.elapsed().as_secs_f64());
        self.results.write_if(self.args)
    }

    fn turn(&mut self, engine: &Engine, group: &[Workload]) -> Result<()> {
        let Some(first) = group.first() else { return Ok(()) };
        match first.kind {
            Kind::Load | Kind::SizeAfterLoad => return self.load(engine, group),
            Kind::SizeAfterOverwrites => return self.overwrite(engine),
            _ => self.ensure_loaded(engine)?,
        }
        match first.kind {
            Kind::OpenClean | Kind::OpenAfterKill => self.openings(engine, group),
            Kind::Processes(..) => group.iter().try_for_each(|workload| self.processes(engine, workload)),
            _ => self.in_one_opening(engine, group),
        }
    }

    fn dir(&self, engine: &Engine) -> PathBuf {
        self.args.dir.join(format!("{}-{}", engine.name, self.args.n))
    }

    fn open(&self, engine: &Engine, mode: Mode) -> Result<Box<dyn Store>> {
        (engine.open)(&self.dir(engine), How { mode, n: self.args.n, shared: false })
    }

    /// A store of all records in an empty directory; the rate of loading.
    fn load_anew(&self, engine: &Engine) -> Result<f64> {
        let dir = self.dir(engine);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let store = self.open(engine, Mode::Eventual)?;
        let start = Instant::now();
        {
            let mut session = store.session()?;
            let mut keys: Vec<Key> = Vec::with_capacity(COMMIT);
            for from in (0..self.args.n).step_by(COMMIT) {
                keys.clear();
                keys.extend((from..self.args.n.min(from + COMMIT as u64)).map(key));
                session.put_batch(&keys, 0)?;
            }
        }
        store.sync()?;
        let rate = self.args.n as f64 / start.elapsed().as_secs_f64();
        store.close()?;
        std::fs::write(dir.join("loaded"), "")?;
        Ok(rate)
    }

    fn ensure_loaded(&self, engine: &Engine) -> Result<()> {
        if !self.dir(engine).join("loaded").exists() {
            self.load_anew(engine)?;
        }
        Ok(())
    }

    fn load(&mut self, engine: &Engine, group: &[Workload]) -> Result<()> {
        if self.round > 0 && self.args.n > LOAD_EACH_ROUND {
            return Ok(());
        }
        let rate = self.load_anew(engine)?;
        let size = mebibytes(&self.dir(engine))?;
        for workload in group {
            let value = if matches!(workload.kind, Kind::Load) { rate } else { size };
            self.results.add(workload.name, engine.name, value);
        }
        Ok(())
    }

    /// Workloads of one thread or more of this process.
    fn in_one_opening(&mut self, engine: &Engine, group: &[Workload]) -> Result<()> {
        let store = self.open(engine, group[0].mode)?;
        warm(&mut *store.session()?, self.args.n)?;
        for workload in group {
            let before = device(&self.args.dir);
            let timed = match workload.kind {
                Kind::Alone(task) => self.run_of(workload, task).time(&mut *store.session()?)?,
                Kind::Threads(task, count) => self.run_of(workload, task).time_threads(&*store, count)?,
                _ => return Err("not of this group".into()),
            };
            self.keep(workload, engine.name, timed, before);
        }
        store.close()
    }

    fn run_of(&self, workload: &Workload, task: Task) -> Run<'_> {
        let present = workload.name != "get_miss";
        Run {
            task,
            sequence: if present { &self.sequence } else { &self.misses },
            from: self.round * 123_456,
            seconds: self.args.seconds,
            present,
            durable: workload.mode == Mode::Immediate,
            alone: true,
        }
    }

    fn floor(&mut self, floor: &Floor, workload: &Workload) -> Result<()> {
        let before = device(&self.args.dir);
        let timed = (floor.run)(&self.args.dir, self.args.n, &self.sequence, self.args.seconds)?;
        self.keep(workload, floor.name, timed, before);
        self.results.write_if(self.args)
    }

    fn processes(&mut self, engine: &Engine, workload: &Workload) -> Result<()> {
        let Kind::Processes(_, count, _) = workload.kind else { return Err("not of this group".into()) };
        let before = device(&self.args.dir);
        let timed = child::run(engine, &self.dir(engine), workload.name, self.args.n, self.args.seconds, count)?;
        self.keep(workload, engine.name, timed, before);
        Ok(())
    }

    /// Keeps a result, and what the device was told for it.
    fn keep(&mut self, workload: &Workload, name: &str, timed: Timed, before: Option<crate::device::Device>) {
        let value = if workload.more_is_better() { timed.rate() } else { timed.nanos() };
        self.results.add(workload.name, name, value);
        let durable = workload.mode == Mode::Immediate;
        if let Some((a, b)) = before.zip(device(&self.args.dir)).filter(|_| durable) {
            let commits = timed.ops as f64 / if workload.name.starts_with("batch1000") { 1000.0 } else { 1.0 };
            let round = |value: f64| (value * 1000.0).round() / 1000.0;
            let (flushes, kib) = ((b.flushes - a.flushes) as f64 / commits, (b.kib - a.kib) as f64 / commits);
            let told = json!({"flushes": round(flushes), "kib": round(kib)});
            self.results.note(&["device", workload.name, name], told);
        }
    }

    fn openings(&mut self, engine: &Engine, group: &[Workload]) -> Result<()> {
        // So that the file is in the page cache, whatever ran before.
        let store = self.open(engine, Mode::Eventual)?;
        warm(&mut *store.session()?, self.args.n)?;
        store.close()?;
        for workload in group {
            let killed = matches!(workload.kind, Kind::OpenAfterKill);
            if killed {
                std::fs::remove_file(self.dir(engine).join("loaded"))?;
                child::kill_a_writer(engine, &self.dir(engine), self.args.n)?;
            }
            let first = self.sequence.keys[self.round];
            let start = Instant::now();
            let store = self.open(engine, Mode::Eventual)?;
            let head = store.session()?.get(&first)?;
            let ms = start.elapsed().as_secs_f64() * 1e3;
            if head.is_none_or(|head| head.check != check(&first)) {
                return Err("damaged: a key is missing, or its value is wrong".into());
            }
            warm(&mut *store.session()?, self.args.n).map_err(|error| format!("damaged: {error}"))?;
            store.close()?;
            std::fs::write(self.dir(engine).join("loaded"), "")?;
            self.results.add(workload.name, engine.name, ms);
        }
        Ok(())
    }

    fn overwrite(&mut self, engine: &Engine) -> Result<()> {
        if self.args.n > LOAD_EACH_ROUND {
            self.ensure_loaded(engine)?;
        } else {
            self.load_anew(engine)?;
        }
        let store = self.open(engine, Mode::Eventual)?;
        let (start, mut rng) = (Instant::now(), Rng(3));
        {
            let mut session = store.session()?;
            let mut keys = Vec::with_capacity(engine.overwrite_batch);
            for n in 1..=3 * self.args.n / engine.overwrite_batch as u64 {
                keys.clear();
                keys.extend((0..engine.overwrite_batch).map(|_| key(rng.below(self.args.n))));
                match &keys[..] {
                    [key] => session.put(key, n)?,
                    keys => session.put_batch(keys, n)?,
                }
                if n % 64 == 0 && start.elapsed().as_secs_f64() > self.args.overwrite_limit {
                    return Err(format!("not done after {} s", self.args.overwrite_limit).into());
                }
            }
        }
        store.sync()?;
        store.close()?;
        self.results.add(LAST.name, engine.name, mebibytes(&self.dir(engine))?);
        Ok(())
    }
}

/// Why an engine does not take part in a workload.
fn excuse(engine: &Engine, workload: &Workload) -> Option<&'static str> {
    if engine.only.is_some_and(|names| !names.contains(&workload.name)) {
        return Some("not asked");
    }
    match workload.kind {
        Kind::Threads(..) if !engine.threads => Some("one thread only"),
        Kind::Processes(_, 2.., _) if engine.processes == Processes::One => Some("one process only"),
        Kind::Processes(task, 2.., _) if task.writes() && engine.processes == Processes::Readers => {
            Some("one process only when it is written")
        }
        Kind::Processes(task, 2.., _)
            if task.writes() && engine.processes == Processes::ManyDurable && workload.mode == Mode::Eventual =>
        {
            Some("one process only while commits are eventual")
        }
        _ => None,
    }
}
