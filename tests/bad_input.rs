//! Whatever a file or the system does, opening and using a store gives an error that says what is wrong, or right data;
//! it never panics or hangs, and a sound store stays sound.
//!
//! `SLOTDB_EXHAUSTIVE=1` tries every flipped bit and every truncation of the sample store instead of a sample of them;
//! `SLOTDB_SEED` varies the sample.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "bad_input/damage.rs"]
mod damage;
#[path = "bad_input/hostile.rs"]
mod hostile;
#[path = "bad_input/system.rs"]
mod system;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use common::fast_dir;
use common::raw::{Image, MOVED};
use slotdb::{Db, Durability, Error, Options};
use tempfile::TempDir;

const EXTENT: u64 = 64 << 10;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store that was closed: what is in its file, and what it holds.
struct Sample {
    dir: TempDir,
    path: PathBuf,
    image: Image,
    /// What it held after each commit from the checkpoint on; the last one is what it holds.
    states: Vec<Pairs>,
}

impl Sample {
    fn new() -> Sample {
        let dir = fast_dir();
        let path = dir.path().join("store");
        let db = small().open(&path).unwrap();
        let mut pairs = Pairs::new();
        let put = |pairs: &mut Pairs, key: &str, value: &[u8]| {
            db.put(key.as_bytes(), value).unwrap();
            pairs.insert(key.into(), value.into());
        };
        for n in 0..60 {
            put(&mut pairs, &format!("key {n}"), &[n; 30]);
        }
        for n in (0..60).step_by(3) {
            db.delete(format!("key {n}").as_bytes()).unwrap();
            pairs.remove(format!("key {n}").as_bytes());
        }
        db.checkpoint().unwrap();
        let mut states = vec![pairs.clone()];
        for (key, len) in [("key 1", 5), ("key 3", 100), ("long", 60_000), ("", 0), ("key 2", 3)] {
            // Zeros, so that not most of what is in the file is one value.
            put(&mut pairs, key, &vec![0; len]);
            states.push(pairs.clone());
        }
        db.close().unwrap();
        let image = Image::read(&path);
        Sample { dir, path, image, states }
    }

    fn holds(&self) -> &Pairs {
        self.states.last().unwrap()
    }

    /// Puts the file as it was when it was closed.
    fn restore(&self) {
        self.write(&self.image);
    }

    fn write(&self, image: &Image) {
        image.write(&self.path).unwrap();
    }

    fn open(&self, read_only: bool) -> slotdb::Result<Db> {
        Options::new().read_only(read_only).open(&self.path)
    }

    /// Opens, reads and writes as before.
    fn is_sound(&self) {
        for read_only in [true, false] {
            let db = self.open(read_only).unwrap();
            assert_eq!(db.check(true).unwrap(), []);
            assert!(all(&db).unwrap() == *self.holds());
        }
        let db = self.open(false).unwrap();
        db.put(b"more", b"").unwrap();
        db.checkpoint().unwrap();
    }
}

fn small() -> Options {
    let mut options = Options::new();
    options.create(true).extent_size(EXTENT).slack(32 * EXTENT).durability(Durability::Eventual);
    options
}

fn all(db: &Db) -> slotdb::Result<Pairs> {
    let snapshot = db.begin_read()?;
    snapshot.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
}

/// The error of an open that must fail, for readers, writers and creators alike.
#[track_caller]
fn refused(path: &Path) -> Error {
    let error = Options::new().open(path).expect_err("must not open");
    let same = |other: Error| assert_eq!(other.to_string(), error.to_string());
    same(Db::open_read_only(path).expect_err("must not open for reading"));
    if !matches!(error, Error::NotFound { .. }) {
        same(small().open(path).expect_err("must not be overwritten"));
        assert!(matches!(small().create_new(true).open(path), Err(Error::Exists { .. })));
    }
    assert!(error.to_string().contains(&*path.to_string_lossy()), "names the file: {error}");
    error
}

#[test]
fn other_files_are_no_stores() {
    let dir = fast_dir();
    let path = dir.path().join("file");
    let tar: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for content in [&b""[..], b"x", b"slotdb\r\n", b"# A text file\nwith some lines.\n", &tar, &[0; 70_000]] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), Error::NotAStore { .. }));
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [dir.path(), &fifo, &socket, Path::new("/dev/null"), Path::new("/dev/zero")] {
        assert!(matches!(refused(path), Error::NotAStore { .. }), "{}", path.display());
    }
    let nowhere = dir.path().join("nowhere/store");
    assert!(matches!(refused(&nowhere), Error::NotFound { .. }));
    assert!(matches!(small().open(&nowhere), Err(Error::Io { op: "create", .. })));
    assert!(Db::create("").is_err());
    symlink(dir.path().join("gone"), dir.path().join("dangling")).unwrap();
    assert!(matches!(refused(&dir.path().join("dangling")), Error::NotFound { .. }));
    assert!(Db::open(path.join("below a file")).is_err());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let refused = |options: &Options| assert!(matches!(options.open(&path), Err(Error::Invalid { .. })));
    for bytes in [0, 1, 4096, 32 << 10, 65 << 10, 128 << 20, u64::MAX] {
        refused(small().extent_size(bytes));
    }
    for bytes in [0, u64::MAX] {
        refused(small().reserve(bytes));
    }
    refused(small().read_only(true));
    refused(small().max_size(EXTENT));
    assert!(!path.exists());
    assert!(matches!(
        small().max_size(u64::MAX).open(&path).unwrap().put(&vec![0; 65_536], b""),
        Err(Error::KeyTooLong { len: 65_536 })
    ));
}

/// The words in use have a layout of their own, which may change while the file's format does not.
#[test]
fn nobody_joins_processes_of_another_layout() {
    let sample = Sample::new();
    let db = sample.open(false).unwrap();
    let file = File::options().read(true).write(true).open(&sample.path).unwrap();
    let mut layout = [0; 8];
    file.read_exact_at(&mut layout, EXTENT).unwrap();
    for other in [[0; 8], *b"slotvol0"] {
        file.write_all_at(&other, EXTENT).unwrap();
        let error = sample.open(true).expect_err("must not join");
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("another version")), "{error}");
    }
    file.write_all_at(&layout, EXTENT).unwrap();
    assert!(all(&sample.open(true).unwrap()).unwrap() == *sample.holds());
    db.put(b"still", b"works").unwrap();
}

/// The fields of a header slot: name, offset, bytes.
const FIELDS: [(&str, u64, u64); 20] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("crc", 12, 4),
    ("incompatible", 16, 4),
    ("compatible", 20, 4),
    ("uuid", 24, 16),
    ("hash_seed", 40, 8),
    ("extent_size", 48, 8),
    ("generation", 56, 8),
    ("seq", 64, 8),
    ("log_position", 72, 8),
    ("chain", 80, 4),
    ("blob_crc", 84, 4),
    ("blob_position", 88, 8),
    ("blob_len", 96, 8),
    ("live_keys", 104, 8),
    ("live_bytes", 112, 8),
    ("file_len", 120, 8),
    ("max_size", 128, 8),
    ("created", 136, 8),
];
const SLOTS: [u64; 2] = [0, EXTENT / 2];

#[test]
fn a_damaged_header_slot_is_mended_from_the_other() {
    let sample = Sample::new();
    for (field, offset, size) in FIELDS {
        for slot in SLOTS {
            let mut image = sample.image.clone();
            image.0[(slot + offset + size / 2) as usize] ^= 0x10;
            sample.write(&image);
            let db = sample.open(true).unwrap_or_else(|e| panic!("{field} in the slot at {slot}: {e}"));
            assert!(all(&db).unwrap() == *sample.holds());
            drop(db);
            assert_eq!(Image::read(&sample.path).0, image.0, "reading mends nothing");
            let db = sample.open(false).unwrap();
            assert!(all(&db).unwrap() == *sample.holds());
            assert_eq!(db.check(true).unwrap(), [], "{field} in the slot at {slot} is mended");
            drop(db);
            let mended = Image::read(&sample.path);
            assert_eq!(mended.slice(0, 512), sample.image.slice(0, 512));
            assert_eq!(mended.slice(EXTENT / 2, 512), sample.image.slice(0, 512));
        }
        let mut image = sample.image.clone();
        SLOTS.iter().for_each(|slot| image.0[(slot + offset) as usize] ^= 0x10);
        sample.write(&image);
        match refused(&sample.path) {
            Error::NotAStore { .. } if field == "magic" => {}
            Error::Corrupt { offset: 0, what, .. } if what.contains("checksum") => {}
            other => panic!("{field} in both slots: {other}"),
        }
        assert_eq!(Image::read(&sample.path).0, image.0);
    }
    sample.restore();
    sample.is_sound();
}

#[test]
fn later_versions_and_unknown_features_are_refused() {
    let sample = Sample::new();
    for slots in [&SLOTS[..1], &SLOTS[1..], &SLOTS[..]] {
        let changed = |offset, value: u32| {
            let mut image = sample.image.clone();
            for &slot in slots {
                image.put(slot + offset, &value.to_le_bytes());
                image.seal_slot(slot);
            }
            sample.write(&image);
        };
        changed(8, 2);
        assert!(matches!(refused(&sample.path), Error::Version { found: 2, .. }));
        changed(16, 0x8000_0001);
        assert!(matches!(refused(&sample.path), Error::Features { bits: 0x8000_0001, .. }));
        changed(20, 0x8000_0001);
        sample.is_sound();
    }
}

#[test]
fn a_value_that_rotted_is_an_error_where_reads_verify() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let db = small().open(&path).unwrap();
    db.put(b"good", b"as it was").unwrap();
    db.put(b"rotten", b"as it was").unwrap();
    let records: Vec<_> = Image::read(&path).contents().batches.into_iter().flat_map(|batch| batch.records).collect();
    db.checkpoint().unwrap();
    db.close().unwrap();
    let position = records.iter().find(|record| record.key == b"rotten").unwrap().position;
    let mut image = Image::read(&path);
    image.0[position as usize + 28 + 6] ^= 1;
    fs::write(&path, &image.0).unwrap();
    let is_named = |e: Error| matches!(e, Error::Corrupt { offset, .. } if offset == position);
    for verify in [false, true] {
        let db = small().verify_checksums(verify).open(&path).unwrap();
        let snapshot = db.begin_read().unwrap();
        assert_eq!(snapshot.get(b"good").unwrap(), Some(&b"as it was"[..]));
        if !verify {
            assert_ne!(snapshot.get(b"rotten").unwrap(), Some(&b"as it was"[..]));
            continue;
        }
        assert!(is_named(snapshot.get(b"rotten").unwrap_err()));
        assert!(is_named(snapshot.get_many(&[b"good", &b"rotten"[..]]).unwrap_err()));
        assert!(is_named(snapshot.iter().find_map(Result::err).unwrap()));
        assert!(is_named(db.get(b"rotten").unwrap_err()));
        assert!(is_named(db.get_many(&[b"rotten"]).unwrap_err()));
        assert!(is_named(db.begin_write().unwrap().get(b"rotten").unwrap_err()));
    }
}

/// Bytes of records as they stood before the cleaner came by: those of a cold key, and those of a dead record before
/// it.
#[test]
fn the_cleaner_neither_hides_nor_spreads_damage() {
    const KEYS: u32 = 1_200;
    let value = |n: u32, round: u8| [&n.to_le_bytes()[..], &[round; 500]].concat();
    let is_cold = |n: u32| n.is_multiple_of(10);
    let dir = fast_dir();
    let path = dir.path().join("store");
    let mut options = small();
    // The only checkpoints are those of this test, so that the log shows what was moved.
    let db = options.max_dead_ratio(0.1).checkpoint_bytes(1 << 30).open(&path).unwrap();
    (0..KEYS).for_each(|n| db.put(&n.to_le_bytes(), &value(n, 0)).unwrap());
    let records: Vec<_> = Image::read(&path).contents().batches.into_iter().flat_map(|batch| batch.records).collect();
    let position = |n: u32| records.iter().find(|record| record.key == n.to_le_bytes()).unwrap().position;
    db.checkpoint().unwrap();
    let warm = |db: &Db, rounds: std::ops::Range<u8>| {
        for (round, n) in rounds.flat_map(|round| (0..KEYS).map(move |n| (round, n))).filter(|&(_, n)| !is_cold(n)) {
            db.put(&n.to_le_bytes(), &value(n, round)).unwrap();
            if n == 1 {
                // What was retired may be used again.
                db.checkpoint().unwrap();
            }
        }
    };
    warm(&db, 1..2);
    db.checkpoint().unwrap();
    // Closing may move what is looked for.
    let good = Image::read(&path);
    db.close().unwrap();
    for (victim, at, bit) in [
        (1_100, 0, 0),
        (1_100, 100, 1),
        (1_100, 0, 1),
        (1_100, 17, 1),
        (1_101, 4, 0x10),
        (1_101, 5, 1),
        (1_101, 8, 8),
        (1_101, 10, 2),
        (1_101, 10, 8),
        (1_101, 16, 1),
        (1_101, 18, 0x80),
    ] {
        let mut image = good.clone();
        image.0[(position(victim) + at) as usize] ^= bit;
        fs::write(&path, &image.0).unwrap();
        let db = options.open(&path).unwrap();
        warm(&db, 2..12);
        if bit == 0 {
            let log = Image::read(&path).contents().batches;
            assert!(log.iter().flat_map(|batch| &batch.records).any(|record| record.flags & MOVED != 0), "it came by");
        }
        let right = |n: u32| {
            let expected = value(n, if is_cold(n) { 0 } else { 11 });
            db.get(&n.to_le_bytes()).is_ok_and(|found| found == Some(expected))
        };
        let wrong: Vec<u32> = (0..KEYS).filter(|&n| !right(n)).collect();
        assert!(wrong.iter().all(|&n| n == victim), "byte {at} of record {victim}: damage spread to {wrong:?}");
        let noticed = !db.check(true).unwrap().is_empty() || db.get(&victim.to_le_bytes()).is_err();
        assert!(wrong.is_empty() || noticed, "byte {at} of record {victim}: wrong data and no fault");
    }
}

/// Of the records of a segment two live, and one of them says that it is longer than both.
#[test]
fn a_damaged_length_does_not_empty_a_segment() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let overwrite = |db: &Db, rounds: u8| {
        for (round, n) in (0..rounds).flat_map(|round| (0..100).map(move |n| (round, n))) {
            db.put(&[n], &[round; 1_000]).unwrap();
            if n == 99 {
                // What was retired may be used again.
                db.checkpoint().unwrap();
            }
        }
    };
    let db = small().open(&path).unwrap();
    [b"damaged", b"healthy"].iter().for_each(|key| db.put(*key, &[1; 100]).unwrap());
    overwrite(&db, 3);
    let mut image = Image::read(&path);
    db.close().unwrap();
    let pages = image.blob(&image.header()).pages;
    let slots: Vec<_> = pages.iter().flat_map(|page| image.page(page)).flatten().collect();
    let is_key = |at: u64, key: &[u8]| image.record(at).is_some_and(|record| record.key == key);
    let position = |key: &[u8]| slots.iter().map(|slot| slot.position()).find(|&at| is_key(at, key)).unwrap();
    let damaged = position(b"damaged");
    assert_eq!(damaged / EXTENT, position(b"healthy") / EXTENT);
    image.put(damaged + 4, &5_000u32.to_le_bytes());
    image.write(&path).unwrap();
    let db = small().open(&path).unwrap();
    db.put(b"damaged", b"").unwrap();
    overwrite(&db, 40);
    assert_eq!(db.get(b"healthy").unwrap(), Some(vec![1; 100]));
}

#[test]
fn links_lead_to_the_one_store() {
    let sample = Sample::new();
    let path = |name: &str| sample.dir.path().join(name);
    symlink(&sample.path, path("symbolic")).unwrap();
    fs::hard_link(&sample.path, path("hard")).unwrap();
    let db = sample.open(false).unwrap();
    let others = ["symbolic", "hard"].map(|name| Db::open(path(name)).unwrap());
    let reader = Db::open_read_only(path("hard")).unwrap();
    others[0].put(b"by", b"symbolic link").unwrap();
    others[1].put(b"by", b"hard link").unwrap();
    for handle in [&db, &others[0], &others[1], &reader] {
        assert_eq!(handle.get(b"by").unwrap().unwrap(), b"hard link");
        assert_eq!(handle.stats().unwrap().processes, 1);
    }
    fs::remove_file(&sample.path).unwrap();
    db.put(b"by", b"a name that is gone").unwrap();
    drop((db, others, reader));
    let db = Db::open(path("hard")).unwrap();
    assert_eq!(db.get(b"by").unwrap().unwrap(), b"a name that is gone");
    assert!(matches!(refused(&path("symbolic")), Error::NotFound { .. }));
}

#[test]
fn a_handle_stays_with_its_file() {
    let sample = Sample::new();
    let old = sample.open(false).unwrap();
    let aside = sample.dir.path().join("new");
    let new = small().open(&aside).unwrap();
    new.put(b"who", b"new").unwrap();
    fs::rename(&aside, &sample.path).unwrap();
    old.put(b"who", b"old").unwrap();
    old.checkpoint().unwrap();
    let opened = sample.open(false).unwrap();
    assert_eq!(opened.get(b"who").unwrap().unwrap(), b"new");
    opened.put(b"who", b"newer").unwrap();
    assert_eq!(old.get(b"who").unwrap().unwrap(), b"old");
    assert_eq!(new.get(b"who").unwrap().unwrap(), b"newer");
    fs::remove_file(&sample.path).unwrap();
    let created = small().open(&sample.path).unwrap();
    assert!(created.is_empty().unwrap());
    new.put(b"who", b"nameless").unwrap();
    assert_eq!(created.get(b"who").unwrap(), None);
    for db in [old, new, opened, created] {
        assert_eq!(db.check(true).unwrap(), []);
    }
}

#[test]
fn reading_leaves_every_byte_as_it_was() {
    let sample = Sample::new();
    // As a killed process leaves it, with words of that time in the volatile extents.
    let db = sample.open(false).unwrap();
    db.put(b"killed", b"after this").unwrap();
    let killed = Image::read(&sample.path);
    drop(db);
    for image in [&sample.image, &killed] {
        sample.write(image);
        let before = fs::metadata(&sample.path).unwrap().modified().unwrap();
        let db = sample.open(true).unwrap();
        assert_eq!(db.check(true).unwrap(), []);
        assert!(sample.holds().iter().all(|(k, v)| db.get(k).unwrap().as_ref() == Some(v)));
        assert!(matches!(db.put(b"k", b"v"), Err(Error::ReadOnly { .. })));
        assert!(matches!(db.delete(b"k"), Err(Error::ReadOnly { .. })));
        assert!(matches!(db.sync(), Err(Error::ReadOnly { .. })));
        db.close().unwrap();
        assert_eq!(fs::read(&sample.path).unwrap(), image.0);
        assert_eq!(fs::metadata(&sample.path).unwrap().modified().unwrap(), before);
    }
}
