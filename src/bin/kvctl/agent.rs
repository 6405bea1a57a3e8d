//! The other processes of `demo` and `torture`. Each is this program again, orders in its arguments: it works
//! until its stdin closes, and tells its parent line by line what it did.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use slotdb::{Db, Durability};

use crate::bank::{Bank, Dice, Manner};

/// The first argument of an agent. Not a verb: help, completions and man pages do not know it.
const MARK: &str = "__agent";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Writer(usize),
    /// Has the store open for writing too, and only reads.
    Reader,
    ReadOnlyReader,
}

impl Role {
    fn from_argument(text: &str) -> Option<Role> {
        match text {
            "reader" => Some(Role::Reader),
            "read-only-reader" => Some(Role::ReadOnlyReader),
            _ => text.strip_prefix("writer-")?.parse().ok().map(Role::Writer),
        }
    }

    fn to_argument(self) -> String {
        match self {
            Role::Writer(writer) => format!("writer-{writer}"),
            Role::Reader => "reader".into(),
            Role::ReadOnlyReader => "read-only-reader".into(),
        }
    }
}

/// What a crew works on.
#[derive(Clone, Debug)]
pub struct Job {
    pub bank: Bank,
    pub store: PathBuf,
}

/// What the parent asked of this process.
pub struct Order {
    role: Role,
    parent: u32,
    seed: u64,
    job: Job,
}

/// How to start an agent.
pub fn command(role: Role, job: &Job, seed: u64) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    let manner = match job.bank.manner {
        Manner::Usual => "usual",
        Manner::Harsh => "harsh",
    };
    let words = [std::process::id().to_string(), seed.to_string(), job.bank.writers.to_string(), manner.into()];
    command.arg(MARK).arg(role.to_argument()).args(words).arg(&job.store).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}

/// The order, if this process was started as an agent.
pub fn order_of_this_process() -> Option<Order> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [mark, role, parent, seed, writers, manner, store] = &arguments[..] else {
        return None;
    };
    if mark != MARK {
        return None;
    }
    let manner = match manner.to_str()? {
        "usual" => Manner::Usual,
        "harsh" => Manner::Harsh,
        _ => return None,
    };
    let bank = Bank { writers: writers.to_str()?.parse().ok()?, manner };
    Some(Order {
        role: Role::from_argument(role.to_str()?)?,
        parent: parent.to_str()?.parse().ok()?,
        seed: seed.to_str()?.parse().ok()?,
        job: Job { bank, store: store.into() },
    })
}

pub fn obey(order: &Order) -> anyhow::Result<()> {
    die_with(order.parent)?;
    let stopped = stop_when_stdin_closes();
    let Job { bank, ref store } = order.job;
    let mut options = bank.options();
    match order.role {
        Role::Writer(writer) => write(&options.open(store)?, bank, writer, Dice::new(order.seed), &stopped),
        Role::Reader => read(&options.open(store)?, bank, &stopped),
        Role::ReadOnlyReader => read(&options.read_only(true).open(store)?, bank, &stopped),
    }
}

/// Has the kernel kill this process when its parent dies, however that happens.
fn die_with(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind to the parent")?;
    // It may have died before the kernel knew.
    let current = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if current != Some(parent) {
        bail!("the one that started this process is gone");
    }
    Ok(())
}

fn stop_when_stdin_closes() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    thread::spawn(move || {
        // Whatever comes, bytes, end or error: it means stop.
        let _ = io::stdin().read(&mut [0]);
        flag.store(true, Ordering::Relaxed);
    });
    stopped
}

/// Says a line at once, since this process may be killed at any moment. False: nobody listens.
fn say(line: &str) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

fn write(db: &Db, bank: Bank, writer: usize, mut dice: Dice, stopped: &AtomicBool) -> anyhow::Result<()> {
    let found = bank.latest_transfer(&db.begin_write()?, writer)?;
    let mut heard = say(&format!("resumed {found}"));
    while heard && !stopped.load(Ordering::Relaxed) {
        let mut txn = db.begin_write()?;
        let transfer = bank.transfer(&mut txn, writer, &mut dice)?;
        let durable = dice.below(4) == 0;
        txn.set_durability(if durable { Durability::Immediate } else { Durability::Eventual });
        let seq = txn.commit()?;
        heard = say(&format!("{} {transfer} {seq}", if durable { "durable" } else { "commit" }));
    }
    Ok(())
}

const REPORT_EVERY: Duration = Duration::from_millis(100);

fn read(db: &Db, bank: Bank, stopped: &AtomicBool) -> anyhow::Result<()> {
    let mut latest = vec![0; bank.writers];
    let mut latest_seq = 0;
    let (mut snapshots, mut gets) = (0, 0);
    let mut reported = Instant::now();
    let mut heard = true;
    while heard && !stopped.load(Ordering::Relaxed) {
        let snapshot = bank.read_snapshot(&db.begin_read()?)?;
        if snapshot.seq < latest_seq {
            bail!("snapshot {} came after {latest_seq}", snapshot.seq);
        }
        for (now, before) in snapshot.counters.iter().zip(&latest) {
            if now < before {
                bail!("snapshot {}: a counter went back from {before} to {now}", snapshot.seq);
            }
        }
        latest_seq = snapshot.seq;
        latest = snapshot.counters;
        snapshots += 1;
        gets += snapshot.gets;
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            heard = say(&format!("read {snapshots} {gets}"));
        }
    }
    say(&format!("read {snapshots} {gets}"));
    Ok(())
}
