//! Plays a history on a simulated disk, and keeps account of what has been promised.

use std::cell::Cell;
use std::io::ErrorKind;

use slotdb::fault::mortal;
use slotdb::sim::{Call, Moment, SimDisk};
use slotdb::{Db, Durability, Error, Options, Result, WriterLock};

use super::base::{Base, EXTENT, contents, key};
use super::judge::{Cuts, judge};
use super::{Promise, State};
use crate::common::Rng;

/// Keys and their new values; none: delete.
pub type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// One step of a history.
#[derive(Clone, Debug)]
pub enum Step {
    Commit(Durability, Writes),
    Checkpoint,
    /// A checkpoint whose n-th write fails.
    FailingCheckpoint(u64),
    Sync,
    Compact,
    /// All processes end; the next one finds memory as it was.
    Reopen,
    /// Another process opens the store before this one closes it.
    Relay,
    /// Another process opens the store beside this one, does something, closes it, and dies on the way.
    Dying(Box<Step>, Death),
}

/// When a process dies.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// Before the n-th step that others can see.
    Before(u64),
    /// After the n-th call of a kind, which has failed, before it can tell.
    In(Call, u64),
}

impl Step {
    pub fn random_commit(rng: &mut Rng, durability: Durability) -> Step {
        let count = if rng.one_in(4) { 1 + rng.below(30) } else { 1 };
        let write = |rng: &mut Rng| {
            let key = key(rng.below(300) as usize);
            let longest = *rng.pick(&[8, 40, 600, 20_000]);
            let len = rng.below(longest) as usize;
            (key, (!rng.one_in(4)).then(|| rng.bytes(len)))
        };
        Step::Commit(durability, (0..count).map(|_| write(rng)).collect())
    }
}

pub fn options() -> Options {
    let mut options = Options::new();
    // A kept lock has a thread, and the histories of two are not the same each time.
    options.extent_size(EXTENT).slack(32 * EXTENT).max_dead_ratio(0.1).writer_lock(WriterLock::EachCommit);
    options
}

/// Applies a commit in one transaction.
pub fn commit(db: &Db, durability: Durability, writes: &Writes) -> Result<u64> {
    let mut txn = db.begin_write()?;
    txn.set_durability(durability);
    for (key, value) in writes {
        match value {
            Some(value) => txn.put(key, value)?,
            None => drop(txn.delete(key)?),
        }
    }
    txn.commit()
}

/// The state after a commit.
pub fn after(state: &State, writes: &Writes) -> State {
    let mut after = (**state).clone();
    for (key, value) in writes {
        match value {
            Some(value) => drop(after.insert(key.clone(), value.clone())),
            None => drop(after.remove(key)),
        }
    }
    State::new(after)
}

/// A history that is being played.
pub struct Run {
    base: Base,
    disk: SimDisk,
    db: Option<Db>,
    /// Another process that has the store open, and does nothing.
    bystander: Option<Db>,
    /// What the live store may hold: more than one state while a commit is in doubt.
    live: Vec<State>,
    /// A process has died or a write has failed, and none that writes has looked yet at what was left.
    unsettled: bool,
    /// The disk may be full.
    small: bool,
    /// The store was opened anew after the failure.
    mended: bool,
    /// All promises so far; the last one holds now. The disk notes their indexes.
    promises: Vec<Promise>,
}

impl Run {
    /// Opens the base on a disk that keeps one in `keep` moments.
    pub fn start(base: &Base, keep: u64, noise: u64) -> Run {
        let mut run = Run::closed(base);
        run.disk.keep_one_in(keep, noise);
        run.open();
        run
    }

    /// As `start`, but the n-th call of a kind fails; opening may be what makes it. Another process is there.
    pub fn failing(base: &Base, call: Call, n: u64, error: ErrorKind, noise: u64) -> Run {
        let mut run = Run::closed(base);
        run.disk.keep_one_in(16, noise);
        run.disk.fail(call, n, error);
        run.open();
        run.accompany();
        run
    }

    fn closed(base: &Base) -> Run {
        let disk = base.disk();
        let promises = vec![Promise::new(vec![base.state.clone()])];
        Run {
            base: base.clone(),
            disk,
            db: None,
            bystander: None,
            live: vec![base.state.clone()],
            unsettled: false,
            small: false,
            mended: false,
            promises,
        }
    }

    fn open(&mut self) {
        match self.disk.open(&options()) {
            Ok(db) => self.db = Some(db),
            Err(e) => assert!(self.disk.has_failed(), "cannot open: {e}"),
        }
    }

    /// Another process opens the store and stays.
    fn accompany(&mut self) {
        if self.db.is_some() {
            self.bystander = self.disk.open(&options()).ok();
            assert!(self.bystander.is_some() || self.disk.has_failed());
        }
    }

    /// Some of what a failed sync has left clean leaves memory.
    pub fn evict(&self, noise: u64) {
        self.disk.evict(noise).expect("memory can be written");
    }

    /// Who had the store open when a sync failed is told so at his next one.
    pub fn tell_all(&self) {
        self.disk.tell_all();
    }

    /// The one who goes on learns of a failed sync at the latest by his own.
    pub fn is_told(&mut self, name: &str) {
        let Some(db) = self.db.clone() else { return };
        let writes = vec![(b"later".to_vec(), Some(b"1".to_vec()))];
        let before = self.promises.last().expect("there is one from the start").clone();
        let afterwards = before.iter().map(|state| after(state, &writes));
        self.promise(before.iter().cloned().chain(afterwards).collect());
        let snapshot = db.begin_read();
        let committed = commit(&db, Durability::Immediate, &writes);
        assert!(committed.is_err(), "{name}: a commit was acknowledged");
        if let Ok(snapshot) = snapshot {
            // What it reads may be old bytes that stand again where new ones were lost.
            let is_refused = |found: Result<(), Error>| matches!(found, Err(Error::Poisoned { .. }));
            assert!(is_refused(snapshot.get(b"k1").map(drop)), "{name}: a get after {committed:?}");
            assert!(is_refused(snapshot.get_many(&[b"k1"]).map(drop)), "{name}: a get of many after {committed:?}");
            assert!(snapshot.iter().any(|pair| is_refused(pair.map(drop))), "{name}: a scan after {committed:?}");
        }
        let refused = db.begin_read().map(drop);
        assert!(matches!(refused, Err(Error::Poisoned { .. })), "{name}: a snapshot after {committed:?}: {refused:?}");
    }

    /// Somebody whom the system tells nothing of a failed sync goes on: nothing is acknowledged on top of what is lost.
    /// A newcomer reads nothing of it either. Whether he has found out.
    pub fn finds_out(&mut self, newcomer: bool, name: &str) -> bool {
        let opened = if newcomer { self.disk.open(&options()) } else { Ok(self.db.clone().expect("it is open")) };
        let work = |db: Db| -> Result<()> {
            if newcomer {
                db.begin_read()?;
                let found = contents(&db);
                assert!(self.live.contains(&found), "{name}: a newcomer reads something else");
                self.live = vec![found.clone()];
                self.promise(vec![found]);
            }
            let writes: Writes = [1, 7, 13].map(|n| (key(n), Some(b"later".to_vec()))).into();
            let before = self.promises.last().expect("there is one from the start").clone();
            let afterwards: Vec<State> = self.live.iter().map(|state| after(state, &writes)).collect();
            self.promise(before.iter().chain(&afterwards).cloned().collect());
            commit(&db, Durability::Immediate, &writes)?;
            self.promise(afterwards);
            db.checkpoint()?;
            assert_eq!(db.check(true)?, [], "{name}");
            Ok(())
        };
        let done = opened.and_then(work);
        let refused = self.db.as_ref().expect("it is open").begin_read().map(drop);
        let poisoned = matches!(refused, Err(Error::Poisoned { .. }));
        assert!(poisoned == done.is_err() || !newcomer, "{name}: {done:?}, {refused:?}");
        done.is_err()
    }

    /// The disk has space for so many extents.
    pub fn limit(&mut self, extents: u64) {
        self.disk.limit(extents);
        self.small = true;
    }

    /// What the store holds.
    pub fn state(&self) -> &State {
        assert_eq!(self.live.len(), 1);
        &self.live[0]
    }

    /// Keeps one in `n` moments from now on.
    pub fn keep_one_in(&self, n: u64, noise: u64) {
        self.disk.keep_one_in(n, noise);
    }

    pub fn has_failed(&self) -> bool {
        self.disk.has_failed()
    }

    fn promise(&mut self, states: Vec<State>) {
        self.disk.note(self.promises.len() as u64);
        self.promises.push(Promise::new(states));
    }

    /// Everything so far is on the medium.
    fn all_is_durable(&mut self) {
        self.resolve();
        self.promise(self.live.clone());
    }

    /// A look at the store tells what has become of a commit in doubt.
    fn resolve(&mut self) {
        let Some(db) = self.db.as_ref().filter(|_| !self.unsettled) else { return };
        let found = contents(db);
        assert!(self.live.contains(&found), "the live store holds something else");
        self.live = vec![found];
    }

    pub fn play(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            self.disk.mark().expect("memory can be read");
        }
    }

    fn step(&mut self, step: &Step) {
        let Some(db) = self.db.clone() else { return };
        match step {
            Step::Commit(durability, writes) => self.commit(&db, *durability, writes),
            Step::Checkpoint | Step::Sync => {
                let done = if matches!(step, Step::Sync) { db.sync() } else { db.checkpoint() };
                match done {
                    Ok(()) => {
                        self.unsettled &= matches!(step, Step::Sync);
                        self.all_is_durable();
                    }
                    Err(e) => assert!(self.disk.has_failed(), "{step:?}: {e}"),
                }
            }
            Step::Compact => match db.compact(|_| true) {
                Ok(ended) => {
                    assert!(ended);
                    self.all_is_durable();
                }
                Err(Error::Full { .. }) if self.small => {}
                Err(e) => assert!(self.disk.has_failed(), "{step:?}: {e}"),
            },
            Step::FailingCheckpoint(n) => {
                if !self.disk.has_failed() {
                    self.disk.fail(Call::Write, *n, ErrorKind::Other);
                    if db.checkpoint().is_ok() {
                        self.all_is_durable();
                    }
                    self.disk.fail(Call::Write, u64::MAX / 2, ErrorKind::Other);
                }
            }
            Step::Reopen => {
                drop(db);
                self.reopen();
            }
            Step::Relay => self.open(),
            Step::Dying(step, death) => drop(self.dies(step, *death)),
        }
    }

    /// Another process does this and dies; whether it has.
    pub fn dies(&mut self, step: &Step, death: Death) -> bool {
        let afterwards: Vec<State> = match step {
            Step::Commit(_, writes) => self.live.iter().map(|state| after(state, writes)).collect(),
            _ => self.live.clone(),
        };
        let before = self.promises.last().expect("there is one from the start").clone();
        self.promise(before.iter().chain(&afterwards).cloned().collect());
        let steps = match death {
            Death::Before(steps) => steps,
            Death::In(call, n) => {
                self.disk.fail_and_die(call, n);
                u64::MAX
            }
        };
        let (disk, durable, acknowledged) = (&self.disk, self.promises.len() as u64, Cell::new(false));
        let is_flush = !matches!(step, Step::Commit(Durability::Eventual, _));
        let lived = mortal(steps, || {
            let db = disk.open(&options())?;
            match step {
                Step::Commit(durability, writes) => commit(&db, *durability, writes).map(drop)?,
                Step::Sync => db.sync()?,
                _ => db.checkpoint()?,
            }
            acknowledged.set(true);
            if is_flush {
                disk.note(durable);
            }
            db.close()
        });
        self.disk.fail(Call::Write, u64::MAX / 2, ErrorKind::Other);
        if !acknowledged.get() {
            self.unsettled = true;
            self.live.extend(afterwards);
        } else {
            self.live = afterwards;
            if is_flush {
                self.promises.push(Promise::new(self.live.clone()));
            }
        }
        !matches!(lived, Some(Ok(())))
    }

    fn reopen(&mut self) {
        let accompanied = self.bystander.take().is_some();
        self.db = None;
        self.unsettled = false;
        self.mended = self.disk.has_failed();
        self.open();
        if self.db.is_some() {
            self.resolve();
            self.promise(self.live.clone());
            if accompanied {
                self.accompany();
            }
        }
    }

    fn commit(&mut self, db: &Db, durability: Durability, writes: &Writes) {
        let afterwards: Vec<State> = self.live.iter().map(|state| after(state, writes)).collect();
        let before = self.promises.last().expect("there is one from the start").clone();
        self.promise(before.iter().chain(&afterwards).cloned().collect());
        match commit(db, durability, writes) {
            Ok(_) => {
                (self.live, self.unsettled) = (afterwards, false);
                if durability == Durability::Immediate {
                    self.all_is_durable();
                }
            }
            // It says so before the first byte.
            Err(Error::Full { .. }) if self.small => {}
            Err(e) => {
                assert!(self.disk.has_failed(), "commit: {e}");
                self.live.extend(afterwards);
                // What a failed write has left may be a whole batch, which the next writer finishes.
                self.unsettled |= matches!(e, Error::InDoubt { .. });
            }
        }
    }

    /// The moments that were kept, with what was promised then.
    pub fn moments(&mut self) -> Vec<(Moment, Promise)> {
        let mut moments = self.disk.take_kept();
        moments.push(self.disk.now().expect("memory can be read"));
        moments.into_iter().map(|moment| (self.promises[moment.note as usize].clone(), moment)).map(swap).collect()
    }

    pub fn base(&self) -> &Base {
        &self.base
    }

    /// After a failed sync nobody commits or begins to read; after any other failure life goes on.
    pub fn goes_on(&mut self, call: Call, name: &str, rng: &mut Rng) {
        let Some(db) = self.db.clone() else { return };
        let writes = vec![(b"later".to_vec(), Some(b"1".to_vec()))];
        let poisoned = call == Call::Sync && !self.mended;
        if poisoned && rng.one_in(2) {
            self.evict(rng.next());
        }
        for durability in [Durability::Eventual, Durability::Immediate] {
            if poisoned {
                for db in [Some(&db), self.bystander.as_ref()].into_iter().flatten() {
                    let refused = commit(db, durability, &writes);
                    assert!(matches!(refused, Err(Error::Poisoned { .. })), "{name}: a commit after it: {refused:?}");
                    assert!(db.begin_read().is_err(), "{name}: a snapshot after it");
                    assert!(db.checkpoint().is_err(), "{name}: a checkpoint after it");
                }
            } else {
                let afterwards: Vec<State> = self.live.iter().map(|state| after(state, &writes)).collect();
                let before = self.promises.last().expect("there is one from the start").clone();
                self.promise(before.iter().chain(&afterwards).cloned().collect());
                commit(&db, durability, &writes).unwrap_or_else(|e| panic!("{name}: a commit after it: {e}"));
                (self.live, self.unsettled) = (afterwards, false);
                self.resolve();
            }
        }
        if !poisoned {
            self.all_is_durable();
            let seen = self.bystander.as_ref().map(contents);
            assert!(seen.is_none_or(|seen| self.live == [seen]), "{name}: another process sees something else");
            // A write that has failed half-way leaves one slot of the header torn until the next checkpoint.
            let faults = db.check(true).expect("a check");
            let torn = faults.iter().filter(|fault| fault.what.starts_with("header slot")).count();
            assert!(torn == faults.len() && torn <= usize::from(call == Call::Write), "{name}: {faults:?}");
            db.checkpoint().unwrap_or_else(|e| panic!("{name}: a checkpoint after it: {e}"));
            let faults = db.check(true).expect("a check");
            assert!(faults.is_empty(), "{name}, and a checkpoint after it: {faults:?}");
        }
    }

    /// Power cuts now, and an opening without one that makes a promise of what it finds.
    pub fn survives(&mut self, name: &str, rng: &mut Rng) {
        let mut cuts = Cuts::new(rng.next(), 1, false);
        cuts.every_moment(name, self);
        (self.bystander, self.db) = (None, None);
        if rng.one_in(2) {
            self.evict(rng.next());
        }
        let db = self.disk.open(&options()).unwrap_or_else(|e| panic!("{name}: opened again: {e}"));
        let found = contents(&db);
        let promise = self.promises.last().expect("there is one from the start");
        assert!(promise.contains(&found), "{name}: opened again, it is no committed prefix");
        db.sync().unwrap_or_else(|e| panic!("{name}: opened again: {e}"));
        for _ in 0..2 {
            let image = self.disk.now().expect("memory can be read").cut_anyhow(rng.next());
            judge(&self.base, image, &Promise::new(vec![found.clone()]), &format!("{name}, opened again"), rng);
        }
    }
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}
