//! The other processes of the demo. Each is this program again, orders in its arguments: it works
//! until its stdin closes, and tells its parent line by line what it did.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use slotdb::{Db, Durability};

use crate::args::guarded;
use crate::demo_bank::{self, Dice};

/// The first argument of an agent. Not a verb: help, completions and man pages do not know it.
const MARK: &str = "__demo-agent";

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
            _ => {
                let writer = text.strip_prefix("writer-")?.parse().ok()?;
                (writer < demo_bank::WRITERS).then_some(Role::Writer(writer))
            }
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

/// What the parent asked of this process.
pub struct Order {
    role: Role,
    parent: u32,
    store: PathBuf,
}

/// How to start an agent.
pub fn command(role: Role, store: &Path) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command
        .arg(MARK)
        .arg(role.to_argument())
        .arg(std::process::id().to_string())
        .arg(store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command)
}

/// The order, if this process was started as an agent.
pub fn order_of_this_process() -> Option<Order> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [mark, role, parent, store] = &arguments[..] else {
        return None;
    };
    if mark != MARK {
        return None;
    }
    let role = Role::from_argument(role.to_str()?)?;
    Some(Order { role, parent: parent.to_str()?.parse().ok()?, store: store.into() })
}

pub fn obey(order: &Order) -> anyhow::Result<()> {
    die_with(order.parent)?;
    let stopped = stop_when_stdin_closes();
    match order.role {
        Role::Writer(writer) => write(&guarded().open(&order.store)?, writer, &stopped),
        Role::Reader => read(&guarded().open(&order.store)?, &stopped),
        Role::ReadOnlyReader => read(&guarded().read_only(true).open(&order.store)?, &stopped),
    }
}

/// Has the kernel kill this process when its parent dies, however that happens.
fn die_with(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind to the parent")?;
    // It may have died before the kernel knew.
    let current = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if current != Some(parent) {
        bail!("the demo that started this process is gone");
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

fn write(db: &Db, writer: usize, stopped: &AtomicBool) -> anyhow::Result<()> {
    let mut dice = Dice::new();
    let found = demo_bank::latest_transfer(&db.begin_write()?, writer)?;
    let mut heard = say(&format!("resumed {found}"));
    while heard && !stopped.load(Ordering::Relaxed) {
        let mut txn = db.begin_write()?;
        let transfer = demo_bank::transfer(&mut txn, writer, &mut dice)?;
        txn.set_durability(match dice.below(4) {
            0 => Durability::Immediate,
            _ => Durability::Eventual,
        });
        txn.commit()?;
        heard = say(&format!("commit {transfer}"));
    }
    Ok(())
}

const REPORT_EVERY: Duration = Duration::from_millis(100);

fn read(db: &Db, stopped: &AtomicBool) -> anyhow::Result<()> {
    let mut latest = vec![0; demo_bank::WRITERS];
    let mut latest_seq = 0;
    let (mut snapshots, mut gets) = (0, 0);
    let mut reported = Instant::now();
    let mut heard = true;
    while heard && !stopped.load(Ordering::Relaxed) {
        let snapshot = demo_bank::read_snapshot(&db.begin_read()?)?;
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
