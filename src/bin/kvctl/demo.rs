//! `demo`: processes write and read one store, writers are killed at random moments, and then
//! everything that was acknowledged must be there.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use anyhow::{Context, ensure};
use clap::{Args, value_parser};
use indicatif::HumanCount;
use serde::Serialize;

use crate::agent::{Job, Role};
use crate::args::guarded;
use crate::bank::{Bank, Dice, Manner};
use crate::console::{self, Console};
use crate::crew::{self, Agent};
use crate::exit::{self, Outcome};
use crate::ledger::Ledger;
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

const WRITERS: usize = 2;

pub fn demo(request: &DemoRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    // An interrupt must not leave the temporary store behind.
    let interrupted = exit::on_interrupt()?;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let store = request.file.clone().unwrap_or_else(|| directory.path().join("demo.slotdb"));

    let bank = Bank { writers: WRITERS, manner: Manner::Usual };
    let db = bank.options().create(!request.no_create).open(&store)?;
    let volatile = db.stats()?.volatile_fs;
    let ledger = Ledger::new(bank, bank.open_accounts(&db)?);
    let mut show = Show { ledger, elapsed: Duration::ZERO, kills: 0 };
    show.run(&Job { bank, store: store.clone() }, Duration::from_secs(request.seconds), &interrupted, console)?;
    show.ledger.verify(&db, "before reopening");
    db.close()?;
    let db = guarded().open(&store)?;
    show.ledger.verify(&db, "after reopening");
    db.close()?;

    for fault in &show.ledger.faults {
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
struct Show {
    ledger: Ledger,
    elapsed: Duration,
    kills: u64,
}

/// The parent looks around this often, at random, so that kills hit any phase of the work.
const LONGEST_GLANCE: u64 = 20_000;

impl Show {
    /// Starts everybody, kills writers now and then, and stops everybody.
    fn run(&mut self, job: &Job, length: Duration, interrupted: &AtomicBool, console: &Console) -> anyhow::Result<()> {
        let mut dice = Dice::new(Dice::any_seed());
        let roles = (0..WRITERS).map(Role::Writer).chain([Role::Reader, Role::ReadOnlyReader]);
        let mut crew = roles.map(|role| Agent::start(role, job, dice.seed())).collect::<anyhow::Result<Vec<_>>>()?;
        let mut progress = Progress::new(console.shows_progress(), Unit::Seconds, Some(length.as_secs()));
        let mut kill_after = pause(&mut dice, length);
        let started = Instant::now();
        while started.elapsed() < length {
            thread::sleep(Duration::from_micros(dice.below(LONGEST_GLANCE)));
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            progress.reach(started.elapsed().as_secs());
            if crew::has_lost_one(&mut crew)? {
                break;
            }
            if started.elapsed() >= kill_after {
                let victim = &mut crew[dice.below(WRITERS as u64) as usize];
                self.ledger.take_in(victim.role, victim.kill(), true);
                self.kills += 1;
                *victim = Agent::start(victim.role, job, dice.seed())?;
                kill_after = started.elapsed() + pause(&mut dice, length);
            }
        }
        self.elapsed = started.elapsed();
        for agent in crew {
            agent.stop_for(&mut self.ledger);
        }
        Ok(())
    }

    fn report(&self, volatile_fs: bool) -> Report {
        let ledger = &self.ledger;
        let seconds = self.elapsed.as_secs_f64();
        let rate = |count: u64| (count as f64 / seconds).round() as u64;
        Report {
            verified: ledger.faults.is_empty(),
            seconds,
            writers: WRITERS,
            readers: 2,
            kills: self.kills,
            commits_acknowledged: ledger.commits,
            commits_per_second: rate(ledger.commits),
            commits_in_flight_kept: ledger.in_flight_kept,
            snapshots_verified: ledger.snapshots,
            gets: ledger.gets,
            gets_per_second: rate(ledger.gets),
            volatile_fs,
        }
    }
}

/// About a dozen kills in a short demo, two a second at most in a long one.
fn pause(dice: &mut Dice, length: Duration) -> Duration {
    let typical = (length.as_micros() as u64 / 12).min(1_000_000);
    Duration::from_micros(typical / 2 + dice.below(typical))
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
