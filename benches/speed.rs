//! The promises of speed, side by side in one run: `cargo bench --bench speed [-- KEYS]`.
//!
//! Gets from a closed and reopened store against a `HashMap` with the same data, in interleaved rounds; bytes of
//! index a key; device flushes and bytes written per Immediate commit, from the block device's statistics. Times are
//! medians.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use slotdb::{Db, Durability, Options};

const ROUNDS: usize = 7;
const COMMITS: u64 = 500;

fn key(n: u64) -> [u8; 16] {
    // SplitMix64 (Steele and others, 2014), twice.
    let mix = |seed: u64| {
        let z = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    };
    let low = mix(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut key = [0; 16];
    key[..8].copy_from_slice(&low.to_le_bytes());
    key[8..].copy_from_slice(&mix(low).to_le_bytes());
    key
}

/// Nanoseconds a call of `get` takes over `n` random keys of `n`.
fn time(n: u64, mut get: impl FnMut(&[u8]) -> usize) -> f64 {
    let (mut random, mut bytes) = (1u64, 0);
    let start = Instant::now();
    for _ in 0..n {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes += get(&key((random >> 33) % n));
    }
    assert_eq!(black_box(bytes) as u64, n * 107, "every key is there");
    start.elapsed().as_nanos() as f64 / n as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Sectors written and flushes of the device that holds a file, where the kernel tells.
fn device(path: &Path) -> Option<(u64, u64)> {
    let dev = std::fs::metadata(path).ok()?.st_dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Some((*fields.get(6)?, *fields.get(15)?))
}

fn gets(db: &Db, n: u64, out: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let map: HashMap<Vec<u8>, Vec<u8>> = (0..n).map(|n| (key(n).to_vec(), vec![7; 100])).collect();
    let used = |value: &[u8]| usize::from(value[0]) + value.len();
    let mut times = [const { Vec::new() }; 4];
    for round in 0..=ROUNDS {
        let snapshot = db.begin_read()?;
        let round_times = [
            time(n, |key| map.get(key).map_or(0, |value| used(value))),
            time(n, |key| snapshot.get(key).ok().flatten().map_or(0, used)),
            time(n, |key| db.get_with(key, used).ok().flatten().unwrap_or(0)),
            time(n, |key| db.get(key).ok().flatten().map_or(0, |value| used(&value))),
        ];
        // The first round warms up.
        if round > 0 {
            times.iter_mut().zip(round_times).for_each(|(all, time)| all.push(time));
        }
    }
    let [map, snapshot, with, copy] = times.map(median);
    for (name, ns) in
        [("HashMap::get", map), ("ReadTxn::get", snapshot), ("Db::get_with", with), ("Db::get (copies)", copy)]
    {
        writeln!(out, "{name:24} {ns:7.0} ns   {:5.2} x the HashMap", ns / map)?;
    }
    Ok(())
}

fn commits(db: &Db, path: &Path, out: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    db.put(b"warm", b"up")?;
    let before = device(path);
    let start = Instant::now();
    for n in 0..COMMITS {
        db.put(&key(n), &[8; 100])?;
    }
    let us = start.elapsed().as_micros() as f64 / COMMITS as f64;
    writeln!(out, "{:24} {us:7.1} us", "Immediate put")?;
    match before.zip(device(path)) {
        Some((a, b)) => {
            let (sectors, flushes) = ((b.0 - a.0) as f64, (b.1 - a.1) as f64);
            let commits = COMMITS as f64;
            writeln!(
                out,
                "{:24} {:7.2} KiB, {:.2} flushes",
                "  device, a commit",
                sectors / 2.0 / commits,
                flushes / commits
            )?;
        }
        None => writeln!(out, "  no statistics of the block device here")?,
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let dir = tempfile::Builder::new().prefix("slotdb-bench-").tempdir_in(".")?;
    let path = dir.path().join("store");
    let mut out = String::new();

    let db = Options::new().create(true).durability(Durability::Eventual).open(&path)?;
    let start = Instant::now();
    for n in 0..n {
        db.put(&key(n), &[7; 100])?;
    }
    writeln!(out, "{:24} {:7.0} ns", "Eventual put", start.elapsed().as_nanos() as f64 / n as f64)?;
    db.close()?;

    let db = Db::open(&path)?;
    let stats = db.stats()?;
    writeln!(out, "{:24} {:7.2} bytes", "index, a key", stats.index_bytes as f64 / n as f64)?;
    gets(&db, n, &mut out)?;
    commits(&db, &path, &mut out)?;
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
    Ok(())
}
