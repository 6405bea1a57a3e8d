//! Files that were damaged: cut off somewhere, or with one bit that is another.

use std::fs::File;
use std::os::unix::fs::FileExt;

use slotdb::{Db, Error};

use crate::common::raw::{Image, VOLATILE};
use crate::common::{Rng, number};
use crate::{EXTENT, Pairs, Sample, all, refused};

fn is_exhaustive() -> bool {
    number("SLOTDB_EXHAUSTIVE", 0) != 0
}

/// Every length, or a sample of them.
fn lengths(image: &Image) -> Vec<u64> {
    let len = image.0.len() as u64;
    let is_tried =
        |short: &u64| is_exhaustive() || [1, 8, 100, 511, 512, 513, len - 1].contains(short) || short % 4096 < 2;
    (0..len).rev().filter(is_tried).collect()
}

#[test]
fn a_truncated_store_says_so() {
    let sample = Sample::new();
    let expected = sample.image.header().file_len;
    let lengths = lengths(&sample.image);
    let mut victim = Victim::new(&sample);
    // What was added after the checkpoint: the same file as after a power cut.
    for &short in lengths.iter().filter(|&&short| short >= expected) {
        victim.file.set_len(short).unwrap();
        let found = all(&sample.open(true).unwrap()).unwrap();
        assert!(sample.states.contains(&found), "{short} bytes");
        assert_eq!(victim.len(), short);
        let db = sample.open(false).unwrap();
        assert!(all(&db).unwrap() == found, "{short} bytes: readers and writers differ");
        assert_eq!(db.check(true).unwrap(), []);
        use_again(&db).unwrap();
        drop(db);
        victim.mend(&sample.image);
    }
    for &short in lengths.iter().filter(|&&short| short < expected) {
        victim.file.set_len(short).unwrap();
        match refused(&sample.path) {
            Error::NotAStore { .. } if short < 512 => {}
            Error::Truncated { expected: named, found, .. } if short >= 512 => {
                assert_eq!((named, found), (expected, short));
            }
            other => panic!("{short} bytes: {other}"),
        }
        assert_eq!(victim.len(), short);
    }
    eprintln!("{} truncations", lengths.len());
    sample.restore();
    sample.is_sound();
}

/// Writes in every way. A value that was put is there.
fn use_again(db: &Db) -> slotdb::Result<()> {
    db.put(b"key 2", b"new")?;
    assert_eq!(db.get(b"key 2").unwrap().unwrap(), b"new");
    db.delete(b"key 1")?;
    db.put(b"long", &[1; 1_000])?;
    db.checkpoint()?;
    db.put(b"key 5", b"newer")?;
    assert_eq!(db.get(b"key 5").unwrap().unwrap(), b"newer");
    all(db).map(drop)
}

/// What one opener found.
struct Found {
    pairs: Pairs,
    faults: usize,
}

/// All pairs by iteration and by key, and what `check` says; then, if it may, the opener writes.
fn examine(sample: &Sample, read_only: bool) -> slotdb::Result<Found> {
    let db = sample.open(read_only)?;
    let faults = db.check(true)?.len();
    let mut pairs = all(&db)?;
    for key in sample.holds().keys() {
        let value = db.get(key)?;
        if value.as_ref() != pairs.get(key) {
            pairs.insert(b"get and iteration differ".to_vec(), key.clone());
        }
    }
    if !read_only {
        // Errors are right, and so is a damage that is overwritten.
        let _ = use_again(&db);
        let _ = (db.check(true), db.close());
    }
    Ok(Found { pairs, faults })
}

/// The sample's file, damaged and put back again in place, which is cheaper than a new one.
struct Victim {
    file: File,
    found: Vec<u8>,
}

impl Victim {
    fn new(sample: &Sample) -> Victim {
        sample.restore();
        let file = File::options().read(true).write(true).open(&sample.path).unwrap();
        Victim { file, found: vec![0; EXTENT as usize] }
    }

    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn flip(&self, bit: usize) {
        let (at, mut byte) = (bit as u64 / 8, [0]);
        self.file.read_exact_at(&mut byte, at).unwrap();
        self.file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], at).unwrap();
    }

    /// Puts back everything but what is volatile: that is anything, as after a crash.
    fn mend(&mut self, image: &Image) {
        self.file.set_len(image.0.len() as u64).unwrap();
        let volatile = EXTENT..EXTENT + VOLATILE.next_multiple_of(EXTENT);
        for (good, start) in image.0.chunks(EXTENT as usize).zip((0..).step_by(EXTENT as usize)) {
            if volatile.contains(&start) {
                continue;
            }
            self.file.read_exact_at(&mut self.found, start).unwrap();
            for ((good, found), at) in good.chunks(4096).zip(self.found.chunks(4096)).zip((start..).step_by(4096)) {
                if good != found {
                    self.file.write_all_at(good, at).unwrap();
                }
            }
        }
    }
}

/// By line of 64 bytes: whether the format says that something is there, or something is.
fn used_lines(image: &Image) -> Vec<bool> {
    let (header, contents) = (image.header(), image.contents());
    let blob = image.blob(&header);
    let mut parts = vec![(0, 512), (EXTENT / 2, 512), (header.blob, header.blob_len), (contents.tail, 28)];
    parts.extend(blob.pages.iter().map(|page| (page.position, 4096)));
    parts.extend(contents.batches.iter().flat_map(|batch| &batch.records).map(|r| (r.position, r.len())));
    let mut used: Vec<bool> = image.0.chunks(64).map(|line| line.iter().any(|&byte| byte != 0)).collect();
    for (at, len) in parts {
        used[at as usize / 64..(at + len).div_ceil(64) as usize].fill(true);
    }
    let lines = |position: u64| position as usize / 64;
    used[lines(EXTENT)..lines(EXTENT + VOLATILE)].fill(false);
    used
}

/// Positions of bits: all of lines that are used and one of each other line, or a sample of them.
fn bits(image: &Image) -> Vec<usize> {
    let mut rng = Rng::new(number("SLOTDB_SEED", 1));
    let (used, is_exhaustive) = (used_lines(image), is_exhaustive());
    let mut bits = Vec::new();
    for (line, is_used) in used.into_iter().enumerate() {
        if is_used {
            bits.extend((line * 512..(line + 1) * 512).filter(|_| is_exhaustive || rng.one_in(400)));
        } else if is_exhaustive || rng.one_in(200) {
            bits.push(line * 512 + rng.below(512) as usize);
        }
    }
    bits
}

/// What nobody reads may be anything, all of it at once.
#[test]
fn noise_where_nothing_is_changes_nothing() {
    let sample = Sample::new();
    let used = used_lines(&sample.image);
    for seed in 0..if is_exhaustive() { 200 } else { 5 } {
        let mut rng = Rng::new(seed);
        let mut image = sample.image.clone();
        for (line, _) in image.0.chunks_mut(64).zip(&used).filter(|(_, used)| !**used) {
            line.copy_from_slice(&rng.bytes(64));
        }
        sample.write(&image);
        for read_only in [true, false] {
            let found = examine(&sample, read_only).unwrap();
            assert!(found.pairs == *sample.holds(), "seed {seed}, read-only: {read_only}: wrong data");
            assert_eq!(found.faults, 0, "seed {seed}, read-only: {read_only}");
        }
        let after = sample.open(true).unwrap();
        assert_eq!(after.check(true).unwrap(), [], "seed {seed}: after new work");
        assert_eq!(after.get(b"key 5").unwrap().unwrap(), b"newer", "seed {seed}");
    }
}

/// A slot with wrong hash bits is no slot of its key: not for a put, which makes another, and so not for a get either.
#[test]
fn a_get_finds_what_was_put_beside_a_damaged_slot() {
    let sample = Sample::new();
    let page = sample.image.blob(&sample.image.header()).pages[0].clone();
    let slots = sample.image.page(&page).into_iter().flatten();
    let mut pointers = slots.filter(|slot| sample.image.record(slot.position()).unwrap().key == b"key 5");
    let pointer = pointers.next().unwrap().pointer;
    let at = (page.position..page.position + 4096).step_by(8).find(|&at| sample.image.u64(at) == pointer).unwrap();
    // The others say in which line a search begins.
    for bit in 48..58 {
        let mut image = sample.image.clone();
        image.put(at, &(pointer ^ 1 << bit).to_le_bytes());
        sample.write(&image);
        let db = sample.open(false).unwrap();
        assert_ne!(db.check(true).unwrap(), []);
        db.put(b"key 5", b"new").unwrap();
        assert_eq!(db.get(b"key 5").unwrap().unwrap(), b"new", "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_is_harmless_or_noticed() {
    let sample = Sample::new();
    let contents = sample.image.contents();
    // A batch that is not whole is the end of the log; nothing tells one that was damaged from one that was lost.
    let log: Vec<_> =
        contents.batches.iter().flat_map(|b| &b.records).map(|r| r.position..r.position + r.len()).collect();
    let bits = bits(&sample.image);
    let mut victim = Victim::new(&sample);
    let mut refusals = 0;
    for &bit in &bits {
        let at = bit / 8;
        victim.flip(bit);
        for read_only in [true, false] {
            let Ok(found) = examine(&sample, read_only) else {
                refusals += 1;
                continue;
            };
            let lost = log.iter().any(|record| record.contains(&(at as u64))) && sample.states.contains(&found.pairs);
            let right = found.pairs == *sample.holds() || lost || found.faults > 0;
            let place = (at, at as u64 % EXTENT, bit % 8);
            assert!(right, "wrong data and no fault: {place:?}, read-only: {read_only}, {} pairs", found.pairs.len());
        }
        victim.mend(&sample.image);
    }
    eprintln!("{} flipped bits, {refusals} errors in twice as many openings", bits.len());
}
