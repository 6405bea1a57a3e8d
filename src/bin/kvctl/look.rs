//! The verbs that look at a store: `stat`, `who`.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use anstyle::Style;
use anyhow::Context;
use clap::Args;
use data_encoding::HEXLOWER;
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;
use slotdb::{PinInfo, ProcessInfo, Seqs, Stats};

use crate::args::StoreArgs;
use crate::console::Console;
use crate::exit::Outcome;

/// Print sizes, counts, sequence numbers, space and memory
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl stat app.db --json")]
pub struct StatRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn stat(request: &StatRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let db = request.store.open_to_read()?;
    let file = fs::metadata(&request.store.file).context("cannot look at the file")?;
    let report = StatReport::new(&db.stats()?, &file);
    if console.json {
        console.document(&report)?;
    } else {
        report.print(console)?;
    }
    Ok(Outcome::Yes)
}

/// The fields of `stat --json`; their names are pinned.
#[derive(Serialize)]
struct StatReport {
    uuid: String,
    format_version: u32,
    file_bytes: u64,
    /// Bytes that the file system has allocated for it: less than its length where it has holes.
    disk_bytes: u64,
    max_size: Option<u64>,
    extent_size: u64,
    live_keys: u64,
    /// Keys and values.
    live_bytes: u64,
    dead_bytes: u64,
    free_bytes: u64,
    hole_bytes: u64,
    retired_bytes: u64,
    held_bytes: u64,
    index_bytes: u64,
    log_bytes: u64,
    segments: u64,
    index_pages: u64,
    /// Part of the slots that are in use.
    index_load: f64,
    processes: u64,
    readers: u64,
    horizon: u64,
    seq: SeqReport,
    log_since_checkpoint_bytes: u64,
    mapped_bytes: u64,
    /// Of the mapped bytes, in this process; `None` where the system does not say.
    resident_bytes: Option<u64>,
    poisoned: bool,
    volatile_fs: bool,
}

#[derive(Serialize)]
pub struct SeqReport {
    applied: u64,
    visible: u64,
    durable: u64,
    checkpoint: u64,
}

impl From<Seqs> for SeqReport {
    fn from(seqs: Seqs) -> SeqReport {
        let Seqs { applied, visible, durable, checkpoint, .. } = seqs;
        SeqReport { applied, visible, durable, checkpoint }
    }
}

/// A page is 63 lines of 5 slots.
const SLOTS_A_PAGE: u64 = 63 * 5;

impl StatReport {
    fn new(stats: &Stats, file: &Metadata) -> StatReport {
        let slots = stats.index_pages.saturating_mul(SLOTS_A_PAGE).max(1);
        StatReport {
            uuid: HEXLOWER.encode(&stats.uuid),
            format_version: stats.format_version,
            file_bytes: stats.file_bytes,
            disk_bytes: disk_bytes(file),
            max_size: stats.max_size,
            extent_size: stats.extent_size,
            live_keys: stats.live_keys,
            live_bytes: stats.live_bytes,
            dead_bytes: stats.dead_bytes,
            free_bytes: stats.free_bytes,
            hole_bytes: stats.hole_bytes,
            retired_bytes: stats.retired_bytes,
            held_bytes: stats.held_bytes,
            index_bytes: stats.index_bytes,
            log_bytes: stats.log_bytes,
            segments: stats.segments,
            index_pages: stats.index_pages,
            index_load: stats.live_keys as f64 / slots as f64,
            processes: stats.processes,
            readers: stats.readers,
            horizon: stats.horizon,
            seq: stats.seq.into(),
            log_since_checkpoint_bytes: stats.log_since_checkpoint_bytes,
            mapped_bytes: stats.mapped_bytes,
            resident_bytes: resident_bytes(file),
            poisoned: stats.poisoned,
            volatile_fs: stats.volatile_fs,
        }
    }

    fn print(&self, console: &mut Console) -> io::Result<()> {
        let bytes = |bytes: u64| match bytes {
            0..1_024 => format!("{bytes} B"),
            _ => format!("{bytes} ({})", BinaryBytes(bytes)),
        };
        let seq = &self.seq;
        for (label, text) in [
            ("file", bytes(self.file_bytes)),
            ("on disk", bytes(self.disk_bytes)),
            ("bound", self.max_size.map_or_else(|| "none".into(), bytes)),
            ("keys", HumanCount(self.live_keys).to_string()),
            ("live", bytes(self.live_bytes)),
            ("dead", bytes(self.dead_bytes)),
            ("free", format!("{}, up to {} in holes", bytes(self.free_bytes), bytes(self.hole_bytes))),
            ("retired", format!("{}, {} held by readers", bytes(self.retired_bytes), bytes(self.held_bytes))),
            ("log", format!("{}, {} segments", bytes(self.log_bytes), self.segments)),
            ("index", format!("{}, {} pages", bytes(self.index_bytes), self.index_pages)),
            ("index load", format!("{:.0} %", self.index_load * 100.0)),
            ("extent", bytes(self.extent_size)),
            ("seq", format!("applied {}, visible {}", seq.applied, seq.visible)),
            ("", format!("durable {}, checkpoint {}", seq.durable, seq.checkpoint)),
            ("to replay", bytes(self.log_since_checkpoint_bytes)),
            ("processes", self.processes.to_string()),
            ("readers", format!("{}, horizon {}", self.readers, self.horizon)),
            ("mapped", bytes(self.mapped_bytes)),
            ("resident", self.resident_bytes.map_or_else(|| "unknown".into(), bytes)),
            ("format", format!("{}, store {}", self.format_version, self.uuid)),
        ] {
            let style = console.style(Style::new().bold());
            writeln!(console, "{style}{label:<12}{style:#}{text}")?;
        }
        if self.poisoned {
            writeln!(console, "poisoned: a sync failed; close all handles to go on")?;
        }
        if self.volatile_fs {
            writeln!(console, "volatile: this file system does not survive a restart")?;
        }
        Ok(())
    }
}

/// Bytes of a file that the file system has allocated.
pub fn disk_bytes(file: &Metadata) -> u64 {
    const BLOCK: u64 = 512;
    file.blocks() * BLOCK
}

/// How much of the store's mapping in this process is in memory.
fn resident_bytes(store: &Metadata) -> Option<u64> {
    let inode = store.ino().to_string();
    // A path in another mapping need not be UTF-8.
    let maps = fs::read("/proc/self/smaps").ok()?;
    let mut inside = false;
    let mut kilobytes = 0;
    for line in String::from_utf8_lossy(&maps).lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") if inside => kilobytes += words.next()?.parse::<u64>().ok()?,
            Some(name) if name.ends_with(':') => {}
            // A new mapping: range, permissions, offset, device, inode, path.
            _ => inside = words.nth(3) == Some(&inode),
        }
    }
    Some(kilobytes * 1024)
}

/// Print the attached processes, what they read, and who holds the writer lock
///
/// Whether a process lives is proven by its lock, not by its process id. Read-only openers, such
/// as this one, leave no trace in a store but a lock for each commit that they have a snapshot of.
/// They are listed while they have one, without number and times, and with their process id where
/// the system tells whose the lock is.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl who app.db")]
pub struct WhoRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn who(request: &WhoRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let processes = request.store.open_to_read()?.processes()?;
    let now = SystemTime::now();
    if console.json {
        let processes = processes.iter().map(|each| ProcessReport::new(each, now)).collect();
        console.document(&WhoReport { processes })?;
    } else {
        print_processes(console, &processes, now)?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct WhoReport<'a> {
    processes: Vec<ProcessReport<'a>>,
}

#[derive(Serialize)]
struct ProcessReport<'a> {
    /// `None`: opened to read only.
    number: Option<u32>,
    pid: Option<u32>,
    command: Option<&'a str>,
    alive: bool,
    attached_at: Option<String>,
    /// `None`: does not hold the writer lock.
    writer_since: Option<String>,
    writer: bool,
    pins: Vec<PinReport>,
}

#[derive(Serialize)]
struct PinReport {
    seq: u64,
    since: Option<String>,
    age_seconds: Option<f64>,
    holds_bytes: u64,
}

impl<'a> ProcessReport<'a> {
    fn new(process: &'a ProcessInfo, now: SystemTime) -> ProcessReport<'a> {
        ProcessReport {
            number: process.number,
            pid: process.pid,
            command: process.command.as_deref(),
            alive: process.alive,
            attached_at: process.attached_at.and_then(timestamp),
            writer_since: process.writer_since.and_then(timestamp),
            writer: process.writer_since.is_some(),
            pins: process.pins.iter().map(|pin| PinReport::new(pin, now)).collect(),
        }
    }
}

impl PinReport {
    fn new(pin: &PinInfo, now: SystemTime) -> PinReport {
        PinReport {
            seq: pin.seq,
            since: pin.since.and_then(timestamp),
            age_seconds: pin.since.map(|since| age(since, now).as_millis() as f64 / 1_000.0),
            holds_bytes: pin.holds_bytes,
        }
    }
}

/// Times come out of shared memory: one beyond the calendar is shown as unknown.
fn timestamp(time: SystemTime) -> Option<String> {
    const YEAR_10_000: Duration = Duration::from_secs(253_402_300_800);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since < YEAR_10_000).then(|| humantime::format_rfc3339_millis(time).to_string())
}

/// A clock that was set back makes nobody younger than new.
fn age(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

fn seconds(since: SystemTime, now: SystemTime) -> String {
    format!("{:.1} s", age(since, now).as_secs_f64())
}

const HEADINGS: [&str; 6] = ["PID", "STATE", "ATTACHED", "WRITER", "PINS", "COMMAND"];

fn print_processes(console: &mut Console, processes: &[ProcessInfo], now: SystemTime) -> io::Result<()> {
    let rows: Vec<[String; 6]> = processes.iter().map(|each| process_row(each, now)).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let bold = console.style(Style::new().bold());
    write!(console, "{bold}")?;
    print_row(console, &HEADINGS.map(String::from), &widths)?;
    write!(console, "{bold:#}")?;
    for row in &rows {
        print_row(console, row, &widths)?;
    }
    Ok(())
}

fn print_row(console: &mut Console, row: &[String; 6], widths: &[usize; 6]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        // A format's width ends at 65,535.
        let padding = width + 2 - cell.chars().count();
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', padding));
    }
    writeln!(console, "{}", line.trim_end())
}

fn process_row(process: &ProcessInfo, now: SystemTime) -> [String; 6] {
    let pins: Vec<String> = process.pins.iter().map(|pin| pin_text(pin, now)).collect();
    let since = |time: Option<SystemTime>| or_dash(time.map(|since| seconds(since, now)));
    [
        or_dash(process.pid.map(|pid| pid.to_string())),
        if process.alive { "alive" } else { "dead" }.into(),
        since(process.attached_at),
        since(process.writer_since),
        or_dash((!pins.is_empty()).then(|| pins.join(", "))),
        or_dash(process.command.as_deref().map(printable)),
    ]
}

/// What is not known, or not there.
fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

fn pin_text(pin: &PinInfo, now: SystemTime) -> String {
    let age = or_dash(pin.since.map(|since| seconds(since, now)));
    format!("{} ({age}, holds {})", pin.seq, BinaryBytes(pin.holds_bytes))
}

/// A command is whatever another process wrote: it must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
