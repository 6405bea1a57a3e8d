//! What a store takes on the disk while it is used: file size over time, throughput, bytes written.
//!
//! `cargo bench --bench space -- [WORKLOAD...] [--n KEYS]`: five workloads by default, their charts go to
//! `docs/space-*.svg`; and `delete-most`, alone or `-beside` others or `-busy` ones, and `pinned`. 1,000,000 keys;
//! `SLOTDB_DIR` says where, `SLOTDB_EXTENT` how many bytes an extent has.

#[path = "../common/mod.rs"]
mod common;
mod scenes;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use slotdb::{Db, Durability, Options};

use common::{KEY, Rng, VALUE, Zipf, key};
use scenes::Beside;

/// Bytes that this process has had written to disks, as the kernel accounts them: others on the same disk do not count.
fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Bytes that the disk of a directory has written, whoever asked for it; None where there is no such number.
fn device_written(dir: &Path) -> Option<u64> {
    let dev = std::fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// A store of `n` keys.
fn filled(path: &Path, n: u64) -> Db {
    let mut options = Options::new();
    if let Ok(size) = std::env::var("SLOTDB_EXTENT") {
        options.extent_size(size.parse().expect("a number of bytes"));
    }
    let db = options.create_new(true).durability(Durability::Eventual).open(path).expect("a new store");
    let mut txn = db.begin_write().expect("a write transaction");
    for k in 0..n {
        txn.put(&key(k), &[0; VALUE]).expect("a put");
        if k % 1000 == 999 {
            txn.commit().expect("a commit");
            txn = db.begin_write().expect("a write transaction");
        }
    }
    txn.commit().expect("a commit");
    db.checkpoint().expect("a checkpoint");
    db
}

/// One measurement: operations so far, bytes of file, of disk, live keys and values, live size, seconds.
#[derive(Clone, Copy)]
struct Sample {
    done: u64,
    file: u64,
    disk: u64,
    payload: u64,
    live: u64,
    seconds: f64,
}

struct Run {
    db: Db,
    path: std::path::PathBuf,
    start: Instant,
    done: u64,
    every: u64,
    samples: Vec<Sample>,
    worst: f64,
    value: [u8; VALUE],
}

impl Run {
    fn put(&mut self, n: u64) {
        let begin = Instant::now();
        self.value[..8].copy_from_slice(&self.done.to_le_bytes());
        self.db.put(&key(n), &self.value).expect("a put");
        self.step(begin);
    }

    fn delete(&mut self, n: u64) {
        let begin = Instant::now();
        self.db.delete(&key(n)).expect("a delete");
        self.step(begin);
    }

    fn step(&mut self, begin: Instant) {
        self.worst = self.worst.max(begin.elapsed().as_secs_f64());
        self.done += 1;
        if self.done.is_multiple_of(self.every) {
            self.sample();
        }
    }

    fn sample(&mut self) {
        let stats = self.db.stats().expect("the sizes");
        let meta = std::fs::metadata(&self.path).expect("the file");
        // Headers and padding of a record of these sizes, and 25 bytes of index.
        let live = stats.live_bytes + stats.live_keys * (28 + 25);
        let seconds = self.start.elapsed().as_secs_f64();
        let (file, disk) = (meta.len(), meta.blocks() * 512);
        self.samples.push(Sample { done: self.done, file, disk, payload: stats.live_bytes, live, seconds });
    }
}

fn play(name: &str, run: &mut Run, n: u64) {
    let mut rng = Rng(42);
    match name {
        "uniform" => (0..10 * n).for_each(|_| run.put(rng.below(n))),
        "zipfian" => {
            let zipf = Zipf::new(n, 0.99);
            (0..10 * n).for_each(|_| run.put(zipf.pick(&mut rng)));
        }
        "sequential-delete" => (0..n).for_each(|k| run.delete(k)),
        "queue" => (0..5 * n).for_each(|k| {
            run.put(n + k);
            run.delete(k);
        }),
        "grow-and-shrink" => {
            for _ in 0..3 {
                (n..3 * n).for_each(|k| run.put(k));
                (n..3 * n).for_each(|k| run.delete(k));
            }
        }
        other => panic!("no workload {other}"),
    }
}

#[allow(clippy::print_stdout, reason = "a benchmark tells what it found")]
fn measure(name: &str, n: u64, dir: &Path) -> Vec<Sample> {
    let path = dir.join(format!("slotdb-space-{}-{name}", std::process::id()));
    let db = filled(&path, n);
    let mut run = Run {
        db,
        path: path.clone(),
        start: Instant::now(),
        done: 0,
        every: n / 20,
        samples: vec![],
        worst: 0.0,
        value: [0; VALUE],
    };
    run.sample();
    let (before, device) = (bytes_written(), device_written(dir));
    play(name, &mut run, n);
    run.db.sync().expect("a sync");
    let written = bytes_written() - before;
    let device = device_written(dir).zip(device).map(|(after, before)| after - before);
    let end = *run.samples.last().expect("a sample");
    let most = run.samples.iter().map(|s| s.file).max().unwrap_or(0);
    let total = run.done as f64;
    let rate = |from: f64, to: f64| {
        let at = |share: f64| run.samples.iter().min_by_key(|s| (s.done as f64 - share * total).abs() as u64).copied();
        let (a, b) = (at(from).expect("a sample"), at(to).expect("a sample"));
        (b.done - a.done) as f64 / (b.seconds - a.seconds)
    };
    let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
    println!(
        "{name:18} {:>9} ops  file {:.0} MB (most {:.0}), disk {:.0} MB  = {:.2} x live size, {:.2} x keys and values; \
         last tenth {:.2} x second tenth; written {:.2} x bytes put, by the disk {:.2} x; \
         {:.2} us an op, worst {:.1} ms",
        run.done,
        end.file as f64 / 1e6,
        most as f64 / 1e6,
        end.disk as f64 / 1e6,
        ratio(end.file, end.live),
        ratio(end.file, end.payload),
        rate(0.9, 1.0) / rate(0.1, 0.2),
        written as f64 / (total * (KEY + VALUE) as f64),
        device.unwrap_or(0) as f64 / (total * (KEY + VALUE) as f64),
        end.seconds / total * 1e6,
        run.worst * 1e3,
    );
    let stats = run.db.stats().expect("the sizes");
    println!(
        "{:18} log {:.0} MB of it dead {:.0}, index {:.0}, free {:.0}, since checkpoint {:.0}",
        "",
        stats.log_bytes as f64 / 1e6,
        stats.dead_bytes as f64 / 1e6,
        stats.index_bytes as f64 / 1e6,
        stats.free_bytes as f64 / 1e6,
        stats.log_since_checkpoint_bytes as f64 / 1e6,
    );
    let samples = std::mem::take(&mut run.samples);
    run.db.close().expect("a clean close");
    println!("{:18} closed: file {:.0} MB", "", std::fs::metadata(&path).expect("the file").len() as f64 / 1e6);
    std::fs::remove_file(&path).expect("the file goes");
    samples
}

/// A line of a chart: label, colour, value.
type Line = (&'static str, plotters::style::RGBColor, fn(&Sample) -> u64);

/// File size, disk space and live size over operations, as an SVG.
fn chart(name: &str, samples: &[Sample]) -> Result<(), Box<dyn std::error::Error>> {
    use plotters::prelude::*;
    let path = format!("docs/space-{name}.svg");
    let area = SVGBackend::new(&path, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = samples.iter().map(|s| s.file).max().unwrap_or(1) as f64 / 1e6;
    let last = samples.last().map_or(1, |s| s.done) as f64 / 1e6;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{name}: MB over million operations"), ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..last, 0.0..most * 1.1)?;
    chart.configure_mesh().draw()?;
    let lines: [Line; 4] = [
        ("file", BLUE, |s| s.file),
        ("on disk", RED, |s| s.disk),
        ("live size", GREEN, |s| s.live),
        ("keys and values", BLACK, |s| s.payload),
    ];
    for (label, colour, value) in lines {
        let points = samples.iter().map(|s| (s.done as f64 / 1e6, value(s) as f64 / 1e6));
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut n = 1_000_000;
    let dir = std::env::var_os("SLOTDB_DIR").map_or_else(|| "target".into(), std::path::PathBuf::from);
    let mut asked = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--n" => n = args.next().ok_or("--n takes a number of keys")?.parse()?,
            // Cargo passes this.
            "--bench" => {}
            _ => asked.push(arg),
        }
    }
    if asked.is_empty() {
        asked = ["uniform", "zipfian", "sequential-delete", "queue", "grow-and-shrink"].map(String::from).into();
    }
    for name in &asked {
        match name.as_str() {
            "delete-most" => scenes::delete_most(n, &dir, Beside::Nobody),
            "delete-most-beside" => scenes::delete_most(n, &dir, Beside::Writer),
            "delete-most-busy" => scenes::delete_most(n, &dir, Beside::BusyWriter),
            "pinned" => scenes::pinned(n, &dir),
            _ => chart(name, &measure(name, n, &dir))?,
        }
    }
    Ok(())
}
