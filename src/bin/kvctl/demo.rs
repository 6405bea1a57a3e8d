//! `demo`: processes write and read one store, writers are killed at random moments, and then
//! everything that was acknowledged must be there.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use anyhow::{Context, bail, ensure};
use clap::{Args, value_parser};
use indicatif::HumanCount;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use slotdb::Db;

use crate::args::guarded;
use crate::console::{self, Console};
use crate::demo_agent::Role;
use crate::demo_bank::{self, Dice, WRITERS};
use crate::demo_crew::{Agent, Said};
use crate::exit::Outcome;
use crate::progress::{Progress, Unit};

/// Show the main job: processes write and read one store, some are killed, all is verified
///
/// Writers move amounts between accounts, in durable and in eventual commits, and are killed at
/// random moments; readers verify that every snapshot has the right sum. In the end every commit
/// that was acknowledged must be in the store, before and after it is opened again. Without FILE
/// the store is a temporary one. The exit status is 1 if anything is not as promised.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl demo --seconds 3")]
pub struct DemoRequest {
    /// Use this store and leave it there; the demo's keys begin with kvctl-demo/
    file: Option<PathBuf>,

    /// How long the processes work
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(1..=3_600))]
    seconds: u64,

    /// Fail if FILE does not exist, instead of creating it
    #[arg(long, requires = "file")]
    no_create: bool,
}

pub fn demo(request: &DemoRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    // An interrupt must not leave the temporary store behind.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let store = request.file.clone().unwrap_or_else(|| directory.path().join("demo.slotdb"));

    let db = guarded().create(!request.no_create).open(&store)?;
    let volatile = db.stats()?.volatile_fs;
    demo_bank::open_accounts(&db)?;
    let mut show = Show::default();
    show.run(&store, Duration::from_secs(request.seconds), &interrupted, console)?;
    show.verify(&db, "before reopening");
    db.close()?;
    let db = guarded().open(&store)?;
    show.verify(&db, "after reopening");
    db.close()?;

    for fault in &show.faults {
        console::complain(fault, console.stderr_colour());
    }
    let report = show.report(volatile);
    if console.json {
        console.document(&report)?;
    } else {
        report.print(console)?;
    }
    Ok(if report.verified { Outcome::Yes } else { Outcome::No })
}

/// What came out of the demo so far.
#[derive(Default)]
struct Show {
    /// Each writer's, however many processes it took.
    ledgers: [Ledger; WRITERS],
    elapsed: Duration,
    kills: u64,
    commits: u64,
    in_flight_kept: u64,
    snapshots: u64,
    gets: u64,
    faults: Vec<String>,
}

#[derive(Default)]
struct Ledger {
    /// The latest transfer that is known to be committed.
    latest: u64,
    /// Kills since a process last told what it found: each may have had one commit in flight.
    open_kills: u64,
}

/// The parent looks around this often, at random, so that kills hit any phase of the work.
const LONGEST_GLANCE: u64 = 20_000;

impl Show {
    /// Starts everybody, kills writers now and then, and stops everybody.
    fn run(
        &mut self,
        store: &Path,
        length: Duration,
        interrupted: &AtomicBool,
        console: &Console,
    ) -> anyhow::Result<()> {
        let mut crew = Vec::new();
        for writer in 0..WRITERS {
            crew.push(Agent::start(Role::Writer(writer), store)?);
        }
        for reader in [Role::Reader, Role::ReadOnlyReader] {
            crew.push(Agent::start(reader, store)?);
        }
        let mut progress = Progress::new(console.shows_progress(), Unit::Seconds, Some(length.as_secs()));
        let mut dice = Dice::new();
        let mut kill_after = pause(&mut dice, length);
        let started = Instant::now();
        while started.elapsed() < length {
            thread::sleep(Duration::from_micros(dice.below(LONGEST_GLANCE)));
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            progress.reach(started.elapsed().as_secs());
            if has_lost_one(&mut crew)? {
                break;
            }
            if started.elapsed() >= kill_after {
                let writer = dice.below(WRITERS as u64) as usize;
                self.replace(&mut crew[writer], writer, store)?;
                kill_after = started.elapsed() + pause(&mut dice, length);
            }
        }
        self.elapsed = started.elapsed();
        for (number, agent) in crew.into_iter().enumerate() {
            let (said, wrong) = agent.stop();
            self.faults.extend(wrong);
            self.take_in(number, said);
        }
        Ok(())
    }

    /// Kills a writer in the midst of its work and starts its successor.
    fn replace(&mut self, agent: &mut Agent, writer: usize, store: &Path) -> anyhow::Result<()> {
        let victim = agent.kill();
        self.kills += 1;
        self.take_in(writer, victim);
        self.ledgers[writer].open_kills += 1;
        *agent = Agent::start(Role::Writer(writer), store)?;
        Ok(())
    }

    /// Adds up what an agent said; the first agents are the writers.
    fn take_in(&mut self, number: usize, said: Said) {
        self.snapshots += said.snapshots;
        self.gets += said.gets;
        self.commits += said.commits;
        if let Some(line) = said.garbled {
            self.faults.push(format!("agent {number} said {line:?} out of order"));
        }
        let (Some(ledger), Some(found)) = (self.ledgers.get_mut(number), said.resumed) else {
            return;
        };
        let most = ledger.latest + ledger.open_kills;
        if (ledger.latest..=most).contains(&found) {
            self.in_flight_kept += found - ledger.latest;
        } else {
            let expected = ledger.latest;
            self.faults
                .push(format!("writer {number} found transfer {found} after a kill, {expected} was acknowledged"));
        }
        *ledger = Ledger { latest: said.latest, open_kills: 0 };
    }

    fn verify(&mut self, db: &Db, when: &str) {
        if let Err(error) = self.find_fault(db) {
            self.faults.push(format!("{when}: {error:#}"));
        }
    }

    /// With all agents stopped, nothing is in flight: the store holds what was acknowledged.
    fn find_fault(&self, db: &Db) -> anyhow::Result<()> {
        let txn = db.begin_read()?;
        let snapshot = demo_bank::read_snapshot(&txn)?;
        for (writer, (ledger, &stored)) in self.ledgers.iter().zip(&snapshot.counters).enumerate() {
            let acknowledged = ledger.latest;
            if stored != acknowledged {
                bail!("writer {writer} got to {acknowledged} transfers, the store holds {stored}");
            }
            demo_bank::verify_receipts(&txn, writer, stored)?;
        }
        drop(txn);
        match db.check(true)?.first() {
            None => Ok(()),
            Some(fault) => bail!("offset {}: {}", fault.offset, fault.what),
        }
    }

    fn report(&self, volatile_fs: bool) -> Report {
        let seconds = self.elapsed.as_secs_f64();
        let rate = |count: u64| (count as f64 / seconds).round() as u64;
        Report {
            verified: self.faults.is_empty(),
            seconds,
            writers: WRITERS,
            readers: 2,
            kills: self.kills,
            commits_acknowledged: self.commits,
            commits_per_second: rate(self.commits),
            commits_in_flight_kept: self.in_flight_kept,
            snapshots_verified: self.snapshots,
            gets: self.gets,
            gets_per_second: rate(self.gets),
            volatile_fs,
        }
    }
}

/// About a dozen kills in a short demo, two a second at most in a long one.
fn pause(dice: &mut Dice, length: Duration) -> Duration {
    let typical = (length.as_micros() as u64 / 12).min(1_000_000);
    Duration::from_micros(typical / 2 + dice.below(typical))
}

/// Whether an agent ended although nobody asked it to; stopping it tells how.
fn has_lost_one(crew: &mut [Agent]) -> io::Result<bool> {
    for agent in crew {
        if agent.has_ended()? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[derive(Serialize)]
struct Report {
    verified: bool,
    seconds: f64,
    writers: usize,
    readers: usize,
    kills: u64,
    commits_acknowledged: u64,
    commits_per_second: u64,
    commits_in_flight_kept: u64,
    snapshots_verified: u64,
    gets: u64,
    gets_per_second: u64,
    volatile_fs: bool,
}

impl Report {
    fn print(&self, console: &mut Console) -> io::Result<()> {
        let (writers, readers, seconds) = (self.writers, self.readers, self.seconds);
        let commits = HumanCount(self.commits_acknowledged);
        let gets = HumanCount(self.gets);
        writeln!(console, "{writers} writers and {readers} readers shared a store, {seconds:.1} s")?;
        writeln!(console, "commits    {commits} acknowledged, {}/s", HumanCount(self.commits_per_second))?;
        writeln!(console, "gets       {gets}, {}/s", HumanCount(self.gets_per_second))?;
        writeln!(console, "snapshots  {} read, sums right", HumanCount(self.snapshots_verified))?;
        writeln!(console, "kills      {} of writers at work", self.kills)?;
        if self.commits_in_flight_kept > 0 {
            let kept = self.commits_in_flight_kept;
            writeln!(console, "           {kept} commits were done and not yet acknowledged")?;
        }
        if self.volatile_fs {
            writeln!(console, "volatile file system: a durable commit costs no flush here")?;
        }
        let (colour, verdict) = match self.verified {
            true => (AnsiColor::Green, "verified: all that was acknowledged is there, also after reopening"),
            false => (AnsiColor::Red, "not verified"),
        };
        let style = console.style(colour.on_default().bold());
        writeln!(console, "{style}{verdict}{style:#}")
    }
}
