//! Files made to do harm: every checksum is right, what stands behind them is not.

use std::path::Path;

use slotdb::{Db, Error, Options};

use crate::common::raw::{Image, LAST, PUT, Record, SESSION, chain, hash};
use crate::common::{Rng, number};
use crate::{EXTENT, FIELDS, SLOTS, Sample, all, refused, small};

/// Opens and uses the store in every way; only a panic or a signal is wrong.
fn survive(path: &Path) {
    for read_only in [true, false] {
        let Ok(db) = Options::new().read_only(read_only).open(path) else { continue };
        let _ = (all(&db), db.check(true), db.stats(), db.processes(), db.len());
        for key in ["", "key 1", "key 3", "key 59", "long", "absent"] {
            let _ = db.get(key.as_bytes());
        }
        let _ = (db.put(b"key 2", b"new"), db.put(b"long", &[1; 1_000]), db.delete(b"key 1"), db.put(b"key 4", b""));
        let _ = (db.checkpoint(), db.put(b"key 5", b"new"), all(&db), db.sync(), db.close());
    }
}

#[test]
fn headers_do_no_harm() {
    let sample = Sample::new();
    let header = sample.image.header();
    let mut values = vec![0, 1, 7, 8, 64, 4096, EXTENT, header.log, header.blob, header.file_len, header.seq, 1 << 31];
    values.extend([1 << 47, 1 << 48, 1 << 52, 1 << 62, 1 << 63, u64::MAX, u64::MAX - 7, u64::MAX - EXTENT + 1]);
    for (_, offset, size) in FIELDS.into_iter().filter(|field| field.2 < 16) {
        for value in values.iter().flat_map(|&v| [v, v.wrapping_sub(8), v.wrapping_add(EXTENT)]) {
            let mut image = sample.image.clone();
            for slot in SLOTS {
                image.put(slot + offset, &value.to_le_bytes()[..size as usize]);
                image.seal_slot(slot);
            }
            sample.write(&image);
            survive(&sample.path);
        }
    }
}

/// Places behind a checksum, which a forger sets right again: the blob, the index pages, records.
#[test]
fn contents_do_no_harm() {
    let sample = Sample::new();
    let header = sample.image.header();
    let blob = sample.image.blob(&header);
    let mut rng = Rng::new(number("SLOTDB_SEED", 1));
    let records: Vec<Record> = sample.image.contents().batches.into_iter().flat_map(|batch| batch.records).collect();
    let interesting =
        [0, 1, 8, 30, 31, 63, 64, 4096, EXTENT, header.log, header.blob, header.file_len, 1 << 47, u64::MAX];
    for _ in 0..number("SLOTDB_CASES", 600) {
        let mut image = sample.image.clone();
        let value = *rng.pick(&interesting) >> if rng.one_in(4) { 3 } else { 0 };
        let width = *rng.pick(&[1, 2, 4, 8]);
        let bytes = &value.to_le_bytes()[..width];
        match rng.below(4) {
            0 | 1 => image.put(header.blob + rng.below(header.blob_len - 8), bytes),
            2 => {
                let page = rng.pick(&blob.pages).position;
                let at = page + rng.below(4096 / 4 - 2) * 4;
                image.put(at, bytes);
            }
            _ => {
                let mut record = rng.pick(&records).clone();
                let field = rng.below(4);
                match field {
                    0 => record.prev = value % (1 << 47) / 8 * 8,
                    1 => record.kind = SESSION,
                    2 => record.value.truncate(value as usize % 16),
                    _ => record.key = bytes.to_vec(),
                }
                image.put(record.position, &record.bytes());
            }
        }
        let sum = crc32fast::hash(image.slice(header.blob, header.blob_len));
        for slot in SLOTS {
            image.put(slot + 84, &sum.to_le_bytes());
            image.seal_slot(slot);
        }
        sample.write(&image);
        survive(&sample.path);
    }
}

/// Parts that lie over each other or where they cannot be, with every checksum right.
#[test]
fn a_checkpoint_that_contradicts_itself_is_refused() {
    let sample = Sample::new();
    let header = sample.image.header();
    let blob = sample.image.blob(&header);
    let page = header.blob + 64;
    let run = |kind: u32| {
        let n = blob.runs.iter().position(|run| run.kind == kind).unwrap();
        header.blob + 64 + 24 * (blob.pages.len() + n) as u64
    };
    let (index, log) = (blob.pages[0].position, header.log);
    let end_of_segment = log / EXTENT * EXTENT + EXTENT - 8;
    // Where a number of 8 bytes stands, what stands there instead, and what is said of it.
    for (at, value, says) in [
        (page, index / EXTENT * EXTENT, "an index page lies over its page map"),
        (page, log / EXTENT * EXTENT + 4096, "an index page does not lie in an index extent"),
        (run(2), log / EXTENT, "extent run outside the file or over another"),
        (run(1), (log / EXTENT) | (2 << 32), "extent run outside the file or over another"),
        (run(3) + 8, 1 | (1 << 32), "the blob does not lie in its extents"),
        (72, header.blob + 4096, "the log position does not lie in a segment"),
        (72, end_of_segment, "the log leaves no room in its segment"),
        (72, log / EXTENT * EXTENT + 56, "the log leaves no room in its segment"),
    ] {
        let mut image = sample.image.clone();
        image.put(at, &value.to_le_bytes());
        let sum = crc32fast::hash(image.slice(header.blob, header.blob_len)).to_le_bytes();
        for slot in SLOTS {
            image.put(slot + 72, &image.u64(72).to_le_bytes());
            image.put(slot + 84, &sum);
            image.seal_slot(slot);
        }
        sample.write(&image);
        match refused(&sample.path) {
            Error::Corrupt { what, .. } => assert_eq!(what, says, "{value} at {at}"),
            other => panic!("{says}: {other}"),
        }
        assert_eq!(Image::read(&sample.path).0, image.0, "{says}: nothing is written");
    }
}

/// Pages of depth 1, 2, 3 and so on tile the hash space, and a few of them ask for a directory of any size. Hashes are
/// seeded, so no honest store has such pages.
#[test]
fn a_directory_out_of_proportion_is_refused() {
    const DEPTH: u32 = 24;
    let sample = Sample::new();
    let header = sample.image.header();
    let mut image = sample.image.clone();
    // Two extents of index pages and one for the blob, behind what is there.
    let first = image.0.len() as u64 / EXTENT;
    image.0.resize(((first + 3) * EXTENT) as usize, 0);
    let mut pages = Vec::new();
    for n in 0..=DEPTH {
        let (suffix, depth) = if n < DEPTH { ((1u32 << n) - 1, n + 1) } else { ((1 << DEPTH) - 1, DEPTH) };
        let position = first * EXTENT + u64::from(n / 15) * EXTENT + u64::from(1 + n % 15) * 4096;
        image.put(position, b"slotpage");
        image.put(position + 12, &depth.to_le_bytes());
        image.put(position + 16, &suffix.to_le_bytes());
        let crc = crc32fast::hash(image.slice(position, 4096));
        image.put(position + 24, &crc.to_le_bytes());
        pages.push((
            suffix,
            [&position.to_le_bytes()[..], &suffix.to_le_bytes(), &crc.to_le_bytes(), &depth.to_le_bytes()].concat(),
        ));
    }
    pages.sort();
    let runs = [(header.log / EXTENT, 1u32, 1u32), (first, 1, 2), (first + 1, 1, 2), (first + 2, 1, 3)];
    let mut blob = image.slice(header.blob, 64).to_vec();
    blob[24..28].copy_from_slice(&DEPTH.to_le_bytes());
    blob[32..40].copy_from_slice(&(pages.len() as u64).to_le_bytes());
    blob[40..48].copy_from_slice(&(runs.len() as u64).to_le_bytes());
    for (_, page) in pages {
        blob.extend(page);
        blob.extend([0; 4]);
    }
    for (extent, run, kind) in runs {
        blob.extend([&extent.to_le_bytes()[..], &run.to_le_bytes(), &kind.to_le_bytes(), &[0; 8]].concat());
    }
    image.put((first + 2) * EXTENT, &blob);
    for slot in SLOTS {
        image.put(slot + 84, &crc32fast::hash(&blob).to_le_bytes());
        image.put(slot + 88, &((first + 2) * EXTENT).to_le_bytes());
        image.put(slot + 96, &(blob.len() as u64).to_le_bytes());
        image.put(slot + 120, &((first + 3) * EXTENT).to_le_bytes());
        image.seal_slot(slot);
    }
    sample.write(&image);
    let error = refused(&sample.path);
    assert!(matches!(error, Error::Corrupt { offset, .. } if offset == (first + 2) * EXTENT), "{error}");
}

/// Opens for writing what must be refused, and finds each byte as it was.
#[track_caller]
fn refused_untouched(sample: &Sample, image: &Image) -> String {
    sample.write(image);
    let error = Options::new().open(&sample.path).expect_err("must not open").to_string();
    assert!(Image::read(&sample.path).0 == image.0, "refused, and changed all the same: {error}");
    error
}

#[test]
fn a_refused_opening_changes_no_byte() {
    let sample = Sample::new();
    let header = sample.image.header();
    let segment_end = header.log / EXTENT * EXTENT + EXTENT;
    for log in [segment_end - 40, segment_end - 88, header.log / EXTENT * EXTENT, header.blob, EXTENT] {
        let mut image = sample.image.clone();
        // What could pass for a later record; and one slot only, so that the other one has to be mended.
        if log != header.blob {
            image.put(log + 16, &[0xff; 8]);
        }
        image.put(EXTENT / 2 + 72, &log.to_le_bytes());
        image.put(EXTENT / 2 + 56, &(header.generation + 1).to_le_bytes());
        image.put(header.blob + 8, &(header.generation + 1).to_le_bytes());
        let blob_crc = crc32fast::hash(image.slice(header.blob, header.blob_len));
        image.put(EXTENT / 2 + 84, &blob_crc.to_le_bytes());
        image.seal_slot(EXTENT / 2);
        let error = refused_untouched(&sample, &image);
        assert!(error.contains("log"), "{error}");
    }
}

/// Batches that run over the end of their segment would be continued in the extent behind it.
#[test]
fn a_log_that_leaves_its_segment_is_refused() {
    let sample = Sample::new();
    let header = sample.image.header();
    let mut image = sample.image.clone();
    let at = header.log / EXTENT * EXTENT + EXTENT - 200;
    let record = Record { position: at, kind: PUT, flags: LAST, seq: header.seq + 1, ..Record::default() };
    for value in [vec![], vec![0; 100], vec![0; 1_000]] {
        let mut record = Record { key: b"key".to_vec(), value, ..record.clone() };
        record.chain = chain(header.chain, &[record.crc()]);
        image.put(at, &record.bytes());
        for slot in SLOTS {
            image.put(slot + 72, &at.to_le_bytes());
            image.seal_slot(slot);
        }
        if record.value.is_empty() {
            sample.write(&image);
            assert_eq!(sample.open(true).unwrap().get(b"key").unwrap(), Some(vec![]));
        } else {
            let error = refused_untouched(&sample, &image);
            assert!(error.contains("room in its segment"), "{error}");
        }
    }
}

/// What lies in front of the first segment changes while it is read: no pointer leads there.
#[test]
fn a_pointer_in_front_of_the_log_is_refused() {
    let sample = Sample::new();
    let page = sample.image.blob(&sample.image.header()).pages[0].clone();
    let slots = sample.image.page(&page).into_iter().flatten();
    let mut records = slots.map(|slot| (slot.pointer, sample.image.record(slot.position()).unwrap()));
    let (pointer, record) = records.find(|(_, record)| record.key == b"key 4").unwrap();
    let is_slot = |at: &u64| sample.image.u64(*at) == pointer;
    let slot = (page.position + 64..page.position + 4096).step_by(8).find(is_slot).unwrap();
    for position in [EXTENT / 2, EXTENT] {
        let mut image = sample.image.clone();
        image.put(position, &Record { position, ..record.clone() }.bytes());
        image.put(slot, &(pointer - record.position / 8 + position / 8).to_le_bytes());
        sample.write(&image);
        for read_only in [true, false] {
            let found = sample.open(read_only).unwrap().get(b"key 4");
            assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
        }
    }
}

/// A check reads each record that the index names, so a few long ones would make it read the file many times over.
#[test]
fn a_record_longer_than_its_segment_is_not_read_by_a_check() {
    let sample = Sample::new();
    let page = sample.image.blob(&sample.image.header()).pages[0].clone();
    let slots = sample.image.page(&page).into_iter().flatten();
    let mut records = slots.map(|slot| sample.image.record(slot.position()).unwrap());
    let record = records.find(|record| record.key == b"key 4").unwrap();
    let (at, from) = (record.position, record.position + 28 + record.key.len() as u64);
    let end = at / EXTENT * EXTENT + EXTENT;
    for (len, is_right) in [(end - from, true), (end - from + 1, true), (end - from + 1, false)] {
        let mut image = sample.image.clone();
        let long = Record { value: image.slice(from, len).to_vec(), ..record.clone() };
        let head = long.bytes()[..28].to_vec();
        image.put(at, &head);
        image.put(at, &long.crc().wrapping_add(u32::from(!is_right)).to_le_bytes());
        sample.write(&image);
        for read_only in [true, false] {
            let faults = sample.open(read_only).unwrap().check(true).unwrap();
            let found: Vec<&str> = faults.iter().filter(|f| f.offset == at).map(|f| &*f.what).collect();
            let expected: &[&str] = if end < from + len { &["a record runs over the end of its segment"] } else { &[] };
            assert_eq!(found, expected, "{len} bytes, read only: {read_only}");
        }
    }
}

/// Many slots that name one long record, or long ones that lie over each other, with live bytes to match.
#[test]
fn a_check_reads_a_segment_no_more_than_twice() {
    let sample = Sample::new();
    let header = sample.image.header();
    let blob = sample.image.blob(&header);
    let page = blob.pages[0].clone();
    let slots = sample.image.page(&page).into_iter().flatten();
    let mut records = slots.map(|slot| (slot.clone(), sample.image.record(slot.position()).unwrap()));
    let (slot, record) = records.find(|(_, record)| record.key == b"key 4").unwrap();
    let (at, end) = (record.position, record.position / EXTENT * EXTENT + EXTENT);
    let run = blob.runs.iter().position(|run| run.first == at / EXTENT).unwrap() + blob.pages.len();
    for step in [0, 64] {
        let mut image = sample.image.clone();
        let mut place = at;
        for n in 0..63 * 5 {
            let len = end - place - 28 - record.key.len() as u64;
            let long = Record { position: place, value: vec![0; len as usize], ..record.clone() };
            image.put(place, &long.bytes()[..28 + record.key.len()]);
            image.put(place, &(!long.crc()).to_le_bytes());
            let line = page.position + 64 + 64 * (n / 5);
            image.put(line + 4 * (n % 5), &slot.tag.to_le_bytes());
            image.put(line + 24 + 8 * (n % 5), &(slot.pointer - at / 8 + place / 8).to_le_bytes());
            // In front of the log since the checkpoint.
            place = if place + 2 * step < header.log { place + step } else { at };
        }
        image.put(header.blob + 64 + 24 * run as u64 + 16, &(EXTENT << 20).to_le_bytes());
        let sum = crc32fast::hash(image.slice(header.blob, header.blob_len)).to_le_bytes();
        for slot in SLOTS {
            image.put(slot + 84, &sum);
            image.seal_slot(slot);
        }
        sample.write(&image);
        for read_only in [true, false] {
            let faults = sample.open(read_only).unwrap().check(true).unwrap();
            let is_read = |fault: &&slotdb::Fault| fault.what == "checksum of a record";
            let read: u64 = faults.iter().filter(is_read).map(|fault| end - fault.offset).sum();
            assert!((1..=2 * EXTENT).contains(&read), "{read} bytes, step {step}, read only: {read_only}");
            assert!(faults.iter().any(|fault| fault.what.contains("live bytes in a segment")), "{faults:?}");
        }
    }
}

/// Values are as long as the file may be, and the cleaner copies what it moves.
#[test]
fn a_record_longer_than_its_segment_is_not_moved() {
    let sample = Sample::new();
    let mut options = small();
    options.max_dead_ratio(0.1).slack(EXTENT);
    let overwrite = |db: &Db, rounds: u8| {
        for (round, n) in (0..rounds).flat_map(|round| (0..100).map(move |n| (round, n))) {
            db.put(&[n], &[round; 1_000]).unwrap();
            if n == 99 {
                // What was retired may be used again.
                db.checkpoint().unwrap();
            }
        }
    };
    let db = small().open(&sample.path).unwrap();
    // Most of what lives in that segment.
    db.delete(b"long").unwrap();
    overwrite(&db, 1);
    let image = Image::read(&sample.path);
    db.close().unwrap();
    let position = |image: &Image| {
        let pages = image.blob(&image.header()).pages;
        let mut slots = pages.iter().flat_map(|page| image.page(page)).flatten();
        let is_it = |at: &u64| image.unproved(*at).is_some_and(|record| record.key == b"key 4");
        slots.by_ref().map(|slot| slot.position()).find(is_it).unwrap()
    };
    let at = position(&image);
    for is_long in [false, true] {
        let mut image = image.clone();
        if is_long {
            // One byte of the next extent, which stays the same.
            let len = EXTENT - at % EXTENT - 32;
            let long = Record { value: image.slice(at + 33, len).to_vec(), ..image.record(at).unwrap() };
            let head = long.bytes()[..28].to_vec();
            image.put(at, &head);
        }
        sample.write(&image);
        let db = options.open(&sample.path).unwrap();
        overwrite(&db, 40);
        assert_eq!(position(&Image::read(&sample.path)) == at, is_long);
    }
}

#[test]
fn a_blob_with_a_flipped_bit_is_refused() {
    let sample = Sample::new();
    let header = sample.image.header();
    for at in header.blob..header.blob + header.blob_len {
        let mut image = sample.image.clone();
        image.0[at as usize] ^= 1 << (at % 8);
        let error = refused_untouched(&sample, &image);
        assert!(error.contains("checksum of the checkpoint blob"), "{error}");
    }
}

#[test]
fn a_blob_of_another_checkpoint_is_refused() {
    let sample = Sample::new();
    let header = sample.image.header();
    for (field, value) in [(8, header.generation - 1), (8, header.generation + 1), (16, header.seq + 1)] {
        let mut image = sample.image.clone();
        image.put(header.blob + field, &value.to_le_bytes());
        for slot in SLOTS {
            image.put(slot + 84, &crc32fast::hash(image.slice(header.blob, header.blob_len)).to_le_bytes());
            image.seal_slot(slot);
        }
        let error = refused_untouched(&sample, &image);
        assert!(error.contains("another checkpoint"), "{error}");
    }
}

/// The key of 8 bytes whose XXH3-64 is this: for such keys it is a bijection, undone here step by step.
fn key_with_hash(wanted: u64, seed: u64) -> [u8; 8] {
    const PRIME: u64 = 0x9fb2_1c65_1e98_df25;
    // Newton's iteration doubles the bits that are right.
    let inverse = (0..6).fold(PRIME, |x, _| x.wrapping_mul(2u64.wrapping_sub(PRIME.wrapping_mul(x))));
    let undo = |hash: u64| {
        let x = (hash ^ hash >> 28 ^ hash >> 56).wrapping_mul(inverse);
        let x = (x ^ ((x >> 35) + 8)).wrapping_mul(inverse);
        // To the 64th power this sum of rotations is the identity.
        (0..63).fold(x, |x, _| x ^ x.rotate_left(49) ^ x.rotate_left(24))
    };
    let input = undo(wanted) ^ undo(hash(&[0; 8], seed));
    input.rotate_left(32).to_le_bytes()
}

/// Who knows the seed can choose keys that share as many hash bits as he likes. The index would become deeper than it
/// may be; so the commit is refused before anything is written, and the store goes on.
#[test]
fn keys_chosen_to_collide_are_refused_in_time() {
    let sample = Sample::new();
    let seed = sample.image.header().seed;
    let db = sample.open(false).unwrap();
    let mut rng = Rng::new(number("SLOTDB_SEED", 1));
    let mut keys: Vec<[u8; 8]> = Vec::new();
    let error = loop {
        let wanted = rng.next() << 32 | 7;
        let key = key_with_hash(wanted, seed);
        assert_eq!(hash(&key, seed), wanted);
        match db.put(&key, b"value") {
            Ok(()) => keys.push(key),
            Err(error) => break error,
        }
        assert!(keys.len() < 400, "no page holds so many");
    };
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let mut txn = db.begin_write().unwrap();
    (0..400u64).for_each(|n| txn.put(&key_with_hash(n << 32 | 7, seed), b"").unwrap());
    assert!(matches!(txn.commit(), Err(Error::Unsupported { .. })), "many at once");
    db.put(&keys[0], b"other").unwrap();
    db.put(b"more", b"").unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    let db = sample.open(false).unwrap();
    assert_eq!(db.check(true).unwrap(), []);
    assert_eq!(all(&db).unwrap().len(), sample.holds().len() + keys.len() + 1);
}
