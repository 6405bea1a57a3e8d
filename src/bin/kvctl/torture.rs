//! `torture`: the demo's larger sibling. Many processes, killed and paused at random moments, round after round; with
//! `--power-cut` on a file system of their own whose disk is copied in mid-work.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use anyhow::ensure;
use clap::{Args, value_parser};
use indicatif::HumanCount;
use serde::Serialize;
use slotdb::Db;

use crate::agent::{Job, Role};
use crate::bank::{Bank, Dice, Manner, digest};
use crate::console::{self, Console};
use crate::crew::{self, Agent};
use crate::exit::{self, Outcome};
use crate::ledger::Ledger;
use crate::power_cut::{self, Fs};
use crate::progress::{Progress, Unit};

/// Put this disk and kernel to the test: processes are killed and stopped, all is verified
///
/// Rounds of a few seconds: writers move amounts between accounts, in durable and in eventual commits, readers verify
/// every snapshot; all of them are killed with SIGKILL and stopped at random moments, and half of the rounds end with
/// the death of everybody. After each round every acknowledged commit must be there, every sum and every checksum
/// right, and the store the same when it is opened again. The exit status is 1 if anything is not as promised.
///
/// With --power-cut, which takes root, the store is on a file system in an image beside FILE. At random moments the
/// disk under that file system is held, copied, and let go: what the kernel had not written yet is missing in the
/// copy, as after a power cut. Each copy must hold every commit that was acknowledged as durable before it was made.
/// A copy whose store is not as promised stays as FILE. Not simulated: a disk that loses or reorders what it has
/// taken.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl torture torture.db --seconds 3")]
pub struct TortureRequest {
    /// The store, which stays; keys that begin with kvctl-torture/ are written
    file: PathBuf,

    /// How long the processes work
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u64).range(1..=31_536_000))]
    seconds: u64,

    /// So many rounds, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = value_parser!(u64).range(1..))]
    rounds: Option<u64>,

    /// Processes at work at a time; three of four write
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u64).range(2..=256))]
    processes: u64,

    /// What is random begins with this number; the kernel's timing differs all the same
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Cut the power of a file system in an image beside FILE (root only)
    #[arg(long)]
    power_cut: bool,

    /// The file systems to cut the power of [default: all whose mkfs is installed]
    #[arg(long, value_enum, value_delimiter = ',', requires = "power_cut")]
    fs: Vec<Fs>,

    /// Fail if FILE does not exist, instead of creating it
    #[arg(long, conflicts_with = "power_cut")]
    no_create: bool,
}

pub fn torture(request: &TortureRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let seed = request.seed.unwrap_or_else(Dice::any_seed);
    let processes = request.processes as usize;
    let bank = Bank { writers: (processes * 3 / 4).max(1), manner: Manner::Harsh };
    let readers = processes - bank.writers;
    let interrupted = exit::on_interrupt()?;
    let mut storm = Storm { bank, readers, dice: Dice::new(seed), interrupted, counts: Counts::default() };

    let started = Instant::now();
    let faults = storm.rage(request, console)?;
    for fault in &faults {
        console::complain(fault, console.stderr_colour());
    }
    let report = Report {
        verified: faults.is_empty(),
        seconds: started.elapsed().as_secs_f64(),
        seed,
        processes,
        counts: storm.counts,
        faults,
    };
    if console.json {
        console.document(&report)?;
    } else {
        report.print(console)?;
    }
    Ok(if report.verified { Outcome::Yes } else { Outcome::No })
}

/// Processes at work, and what befalls them.
pub struct Storm {
    pub bank: Bank,
    readers: usize,
    pub dice: Dice,
    pub interrupted: Arc<AtomicBool>,
    pub counts: Counts,
}

/// What has been done so far.
#[derive(Default, Serialize)]
pub struct Counts {
    rounds: u64,
    kills: u64,
    pauses: u64,
    pub power_cuts: u64,
    commits_acknowledged: u64,
    commits_in_flight_kept: u64,
    snapshots_verified: u64,
    gets: u64,
}

/// How long a round is, unless the end comes before.
const ROUND: Duration = Duration::from_secs(2);
/// The parent looks around this often, at random.
const LONGEST_GLANCE: u64 = 10_000;
const SMALL_EXTENT: u64 = 64 << 10;
/// So many processes are paused at a time.
const PAUSED: usize = 3;

impl Storm {
    /// Round after round, until something is wrong; what is.
    fn rage(&mut self, request: &TortureRequest, console: &Console) -> anyhow::Result<Vec<String>> {
        let (unit, total) = match request.rounds {
            Some(rounds) => (Unit::Rounds, rounds),
            None => (Unit::Seconds, request.seconds),
        };
        let kinds = if request.power_cut { power_cut::prepare(&request.file, &request.fs)? } else { Vec::new() };
        if !request.power_cut {
            self.bank.options().create(!request.no_create).open(&request.file)?.close()?;
        }
        let mut progress = Progress::new(console.shows_progress(), unit, Some(total));
        let started = Instant::now();
        loop {
            let left = match request.rounds {
                Some(rounds) if self.counts.rounds == rounds => return Ok(Vec::new()),
                Some(_) => ROUND,
                None => Duration::from_secs(request.seconds).saturating_sub(started.elapsed()).min(ROUND),
            };
            if left.is_zero() {
                return Ok(Vec::new());
            }
            let fs = kinds.get(self.counts.rounds as usize % kinds.len().max(1));
            let faults = match fs {
                Some(&fs) => power_cut::round(self, &request.file, fs, left)?,
                None => self.round(&request.file, left)?,
            };
            self.counts.rounds += 1;
            progress.reach(if request.rounds.is_some() { self.counts.rounds } else { started.elapsed().as_secs() });
            if !faults.is_empty() {
                return Ok(faults);
            }
        }
    }

    fn round(&mut self, store: &Path, length: Duration) -> anyhow::Result<Vec<String>> {
        let mut ledger = self.open_ledger(store)?;
        self.blow(&mut ledger, store, length, &mut |_, _| Ok(()))?;
        self.verify(&mut ledger, store);
        Ok(ledger.faults)
    }

    /// Begins anew: the accounts of this round.
    pub fn open_ledger(&mut self, store: &Path) -> anyhow::Result<Ledger> {
        let mut options = self.bank.options();
        if self.dice.below(2) == 0 {
            // Where the store is new; small ones make rare paths common.
            options.extent_size(SMALL_EXTENT).slack(32 * SMALL_EXTENT);
        }
        let db = options.create(true).open(store)?;
        let ledger = Ledger::new(self.bank, self.bank.open_accounts(&db)?);
        db.close()?;
        Ok(ledger)
    }

    /// Starts everybody, kills and pauses them now and then, and ends with a stop of everybody or the death of
    /// everybody. `look` is called all the time.
    pub fn blow(
        &mut self,
        ledger: &mut Ledger,
        store: &Path,
        length: Duration,
        look: &mut dyn FnMut(&Ledger, &[Agent]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let job = Job { bank: self.bank, store: store.to_path_buf() };
        let readers = [Role::Reader, Role::ReadOnlyReader].into_iter().cycle().take(self.readers);
        let roles = (0..self.bank.writers).map(Role::Writer).chain(readers);
        let agents = roles.map(|role| Agent::start(role, &job, self.dice.seed()));
        let mut agents = agents.collect::<anyhow::Result<Vec<_>>>()?;
        let started = Instant::now();
        while started.elapsed() < length {
            thread::sleep(Duration::from_micros(self.dice.below(LONGEST_GLANCE)));
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            if crew::has_lost_one(&mut agents)? {
                break;
            }
            self.strike(&mut agents, ledger, &job)?;
            look(ledger, &agents)?;
        }
        let everybody_dies = self.dice.below(2) == 0;
        for agent in &mut agents {
            // Who is paused could not stop. One that was found to have ended cannot be told to go on.
            if agent.paused && !everybody_dies && !agent.has_ended()? {
                agent.go_on()?;
            }
        }
        for mut agent in agents {
            if everybody_dies && !agent.has_ended()? {
                ledger.take_in(agent.role, agent.kill(), true);
                self.counts.kills += 1;
            } else {
                agent.stop_for(ledger);
            }
        }
        self.counts.commits_acknowledged += ledger.commits;
        self.counts.snapshots_verified += ledger.snapshots;
        self.counts.gets += ledger.gets;
        Ok(())
    }

    /// Something befalls somebody, or nothing.
    fn strike(&mut self, agents: &mut [Agent], ledger: &mut Ledger, job: &Job) -> anyhow::Result<()> {
        let paused = agents.iter().filter(|agent| agent.paused).count();
        let agent = &mut agents[self.dice.below(agents.len() as u64) as usize];
        match self.dice.below(8) {
            0 => {
                ledger.take_in(agent.role, agent.kill(), true);
                self.counts.kills += 1;
                *agent = Agent::start(agent.role, job, self.dice.seed())?;
            }
            1 | 2 if paused < PAUSED && !agent.paused => {
                agent.pause()?;
                self.counts.pauses += 1;
            }
            3.. if agent.paused => agent.go_on()?,
            _ => {}
        }
        Ok(())
    }

    /// With everybody gone, what was acknowledged is there, and the same when the store is opened again.
    pub fn verify(&mut self, ledger: &mut Ledger, store: &Path) {
        let look = |ledger: &mut Ledger, when| -> slotdb::Result<(u64, u64)> {
            let db = Db::open(store)?;
            ledger.verify(&db, when);
            let digest = digest(&db)?;
            db.close().map(|()| digest)
        };
        let seen = look(ledger, "after the storm").and_then(|seen| Ok((seen, look(ledger, "after reopening")?)));
        match seen {
            Ok((before, after)) if before != after => ledger.faults.push("reopening changed what is there".into()),
            Ok(_) => {}
            Err(error) => ledger.faults.push(format!("after the storm: {error}")),
        }
        self.counts.commits_in_flight_kept += ledger.in_flight_kept;
    }
}

#[derive(Serialize)]
struct Report {
    verified: bool,
    seconds: f64,
    seed: u64,
    processes: usize,
    #[serde(flatten)]
    counts: Counts,
    faults: Vec<String>,
}

impl Report {
    fn print(&self, console: &mut Console) -> io::Result<()> {
        let Counts { rounds, kills, pauses, power_cuts, .. } = self.counts;
        writeln!(console, "{} processes, {rounds} rounds, {:.1} s, seed {}", self.processes, self.seconds, self.seed)?;
        writeln!(console, "commits    {} acknowledged", HumanCount(self.counts.commits_acknowledged))?;
        writeln!(console, "snapshots  {} read, sums right", HumanCount(self.counts.snapshots_verified))?;
        writeln!(console, "kills      {}", HumanCount(kills))?;
        writeln!(console, "pauses     {}", HumanCount(pauses))?;
        if power_cuts > 0 {
            writeln!(console, "power cuts {}", HumanCount(power_cuts))?;
        }
        let (colour, verdict) = match self.verified {
            true => (AnsiColor::Green, "verified: all that was acknowledged was there each time"),
            false => (AnsiColor::Red, "not verified"),
        };
        let style = console.style(colour.on_default().bold());
        writeln!(console, "{style}{verdict}{style:#}")
    }
}
