//! Files that were damaged: cut off somewhere, or with one bit that is another.

use std::fs::{self, File};
use std::ops::Range;

use slotdb::{Db, Error};

use crate::common::raw::{Image, VOLATILE};
use crate::common::{Rng, number};
use crate::{EXTENT, Pairs, Sample, all, refused};

fn is_exhaustive() -> bool {
    number("SLOTDB_EXHAUSTIVE", 0) != 0
}

/// Lines of 64 bytes that are not all zero.
fn is_used(image: &Image, at: usize) -> bool {
    image.0[at / 64 * 64..].iter().take(64).any(|&byte| byte != 0)
}

/// Every length in words, and every one within what is not zero; or a sample of them.
fn lengths(image: &Image) -> Vec<u64> {
    let len = image.0.len();
    let is_tried = |&short: &usize| match is_exhaustive() {
        true => short.is_multiple_of(8) || is_used(image, short),
        false => [1, 8, 100, 511, 512, 513, len - 1].contains(&short) || short % 4096 < 2,
    };
    (0..len).rev().filter(is_tried).map(|short| short as u64).collect()
}

#[test]
fn a_truncated_store_says_so() {
    let sample = Sample::new();
    let expected = sample.image.header().file_len;
    let lengths = lengths(&sample.image);
    sample.restore();
    for &short in lengths.iter().filter(|&&short| short < expected) {
        File::options().write(true).open(&sample.path).unwrap().set_len(short).unwrap();
        match refused(&sample.path) {
            Error::NotAStore { .. } if short < 512 => {}
            Error::Truncated { expected: named, found, .. } if short >= 512 => {
                assert_eq!((named, found), (expected, short));
            }
            other => panic!("{short} bytes: {other}"),
        }
        assert_eq!(fs::metadata(&sample.path).unwrap().len(), short);
    }
    // What was added after the checkpoint: the same file as after a power cut.
    for &short in lengths.iter().filter(|&&short| short >= expected) {
        sample.write(&Image(sample.image.0[..short as usize].to_vec()));
        let found = all(&sample.open(true).unwrap()).unwrap();
        assert!(sample.states.contains(&found), "{short} bytes");
        assert_eq!(fs::metadata(&sample.path).unwrap().len(), short);
        let db = sample.open(false).unwrap();
        assert!(all(&db).unwrap() == found, "{short} bytes: readers and writers differ");
        assert_eq!(db.check(true).unwrap(), []);
        use_again(&db).unwrap();
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

/// Positions of bits: all of the lines that are not all zero, and one of each other line; or a sample of them. Nobody
/// reads what is volatile, which counts as zero.
fn bits(image: &Image) -> Vec<usize> {
    let mut rng = Rng::new(number("SLOTDB_SEED", 1));
    let volatile: Range<usize> = EXTENT as usize..(EXTENT + VOLATILE.next_multiple_of(EXTENT)) as usize;
    let mut bits = Vec::new();
    for line in (0..image.0.len()).step_by(64) {
        if is_used(image, line) && !volatile.contains(&line) {
            let all = (line * 8..(line + 64) * 8).filter(|_| is_exhaustive() || rng.one_in(60));
            bits.extend(all);
        } else if is_exhaustive() || rng.one_in(200) {
            bits.push(line * 8 + rng.below(512) as usize);
        }
    }
    bits
}

#[test]
fn every_flipped_bit_is_harmless_or_noticed() {
    let sample = Sample::new();
    let contents = sample.image.contents();
    // A batch that is not whole is the end of the log; nothing tells one that was damaged from one that was lost.
    let log: Vec<_> =
        contents.batches.iter().flat_map(|b| &b.records).map(|r| r.position..r.position + r.len()).collect();
    let bits = bits(&sample.image);
    let mut refusals = 0;
    for &bit in &bits {
        let at = bit / 8;
        let mut image = sample.image.clone();
        image.0[at] ^= 1 << (bit % 8);
        sample.write(&image);
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
    }
    eprintln!("{} flipped bits, {refusals} errors in twice as many openings", bits.len());
}
