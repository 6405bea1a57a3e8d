//! The file format is what `docs/FORMAT.md` says: stores are read, and written, by the second implementation in
//! `common/raw.rs`, and a store from an earlier day must still open.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::raw::{
    BlobPage, Contents, DELETE, Header, Image, LAST, LINK, MOVED, PUT, Record, SESSION, VOLATILE, chain, hash,
};
use common::{Rng, fast_dir};
use slotdb::{Db, Durability, Options};

const EXTENT: u64 = 64 << 10;
const FIXED: u64 = 1 + VOLATILE.div_ceil(EXTENT);

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    let mut options = Options::new();
    options.create(true).extent_size(EXTENT).slack(32 * EXTENT).durability(Durability::Eventual);
    options
}

fn pairs(db: &Db) -> Pairs {
    let snapshot = db.begin_read().unwrap();
    snapshot.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
}

#[test]
fn hashes_and_checksums_are_those_of_the_document() {
    let all: Vec<u8> = (0..=255).collect();
    for (key, seed, expected) in [
        (&b""[..], 0, 0x2d06_8005_38d3_94c2),
        (b"slotdb", 0, 0x9530_8b48_6200_52f3),
        (b"slotdb", 42, 0x6916_2ef0_d64d_a5a5),
        (&all, 0x0123_4567_89ab_cdef, 0x475a_0bae_01c2_895c),
    ] {
        assert_eq!(hash(key, seed), expected);
    }
    assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);

    let put = Record { position: 720_960, kind: PUT, flags: LAST, seq: 1, ..pair(b"key", b"value") };
    assert_eq!(put.crc(), 0xda2a_1b5a);
    assert_eq!(chain(0, &[put.crc()]), 0x0724_c798);
    let put = Record { chain: 0x0724_c798, ..put };
    let delete = Record { position: put.position + put.len(), kind: DELETE, flags: LAST, seq: 2, ..pair(b"key", b"") };
    let delete = Record { prev: put.position, ..delete };
    assert_eq!((delete.position, delete.crc()), (721_000, 0x7b78_8d3b));
    assert_eq!(chain(put.chain, &[delete.crc()]), 0x5bea_3813);
    let mut hex = String::new();
    put.bytes().iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
    assert_eq!(hex, "5a1b2ada050000000300010198c724070100000000000000000000006b657976616c756500000000");
}

#[test]
fn a_new_store_has_these_bytes() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    options().max_size(10 << 20).open(&path).unwrap().close().unwrap();
    let image = Image::read(&path);
    let header = image.header();
    assert_eq!(image.slice(0, 512), image.slice(EXTENT / 2, 512), "the slots are equal");
    assert_eq!((header.extent, header.generation, header.seq), (EXTENT, 1, 0));
    assert_eq!((header.log, header.chain), (FIXED * EXTENT + 64, 0));
    assert_eq!((header.live_keys, header.live_bytes, header.max_size), (0, 0, 10 << 20));
    assert_eq!((header.file_len, header.blob), ((FIXED + 3) * EXTENT, (FIXED + 2) * EXTENT));
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 - header.created;
    assert!(since < 600_000_000_000, "created {since} ns ago");
    let blob = image.blob(&header);
    assert_eq!((blob.generation, blob.seq, blob.depth, blob.pages.len()), (1, 0, 0, 1));
    let runs: Vec<_> = blob.runs.iter().map(|r| (r.first, r.run, r.kind, r.live)).collect();
    assert_eq!(runs, [(FIXED, 1, 1, 0), (FIXED + 1, 1, 2, 0), (FIXED + 2, 1, 3, 0)]);
    assert_eq!(blob.pages[0].position, (FIXED + 1) * EXTENT + 4096, "behind the page map");
    assert!(image.page(&blob.pages[0]).iter().all(Vec::is_empty));
    image.segment(&header, FIXED * EXTENT, EXTENT);
    assert_eq!((image.u64(FIXED * EXTENT + 40), image.u64(FIXED * EXTENT + 48)), (0, 1));
    assert!(image.record(header.log).is_none(), "the log is empty");
}

#[test]
fn what_the_store_writes_is_what_the_document_says() {
    let mut moved = 0;
    for (keys, most) in [(5u64, 200), (40, 100_000), (6_000, 24), (1_500, 1_000)] {
        let dir = fast_dir();
        let path = dir.path().join("store");
        let mut rng = Rng::new(keys);
        let mut model = Pairs::new();
        for _ in 0..3 {
            let db = options().max_dead_ratio(0.1).open(&path).unwrap();
            work(&db, &mut model, &mut rng, keys, most);
            if rng.one_in(2) {
                db.checkpoint().unwrap();
            }
            work(&db, &mut model, &mut rng, keys, most / 4);
            assert_eq!(pairs(&db), model);
            // As a killed process leaves it: the last one to close would make a checkpoint.
            let image = Image::read(&path);
            let contents = image.contents();
            assert!(contents.pairs == model, "the second reader reads the same");
            look_closely(&image, &contents);
            moved += contents.batches.iter().flat_map(|b| &b.records).filter(|r| r.flags & MOVED != 0).count();
            drop(db);
        }
        assert_eq!(Db::open(&path).unwrap().check(true).unwrap(), []);
    }
    assert!(moved > 0, "the cleaner has written too");
}

/// Transactions of many puts and some deletes.
fn work(db: &Db, model: &mut Pairs, rng: &mut Rng, keys: u64, most: u64) {
    for _ in 0..12 {
        let mut txn = db.begin_write().unwrap();
        for _ in 0..1 + keys / 8 {
            let key = format!("key {}", rng.below(keys)).into_bytes();
            if rng.one_in(4) {
                txn.delete(&key).unwrap();
                model.remove(&key);
            } else {
                let len = rng.below(most);
                let value = rng.bytes(len as usize);
                txn.put(&key, &value).unwrap();
                model.insert(key, value);
            }
        }
        txn.commit().unwrap();
    }
}

/// What a reader need not look at, but a writer promises.
fn look_closely(image: &Image, contents: &Contents) {
    let header = image.header();
    let blob = image.blob(&header);
    assert_eq!((blob.generation, blob.seq), (header.generation, header.seq));
    contents.batches.iter().for_each(|batch| image.look_at_links(&header, batch));
    let segments: Vec<_> = blob.runs.iter().filter(|run| run.kind == 1).collect();
    let mut live: HashMap<u64, u64> = HashMap::new();
    let (mut keys, mut bytes, mut newest) = (0, 0, HashMap::new());
    for page in &blob.pages {
        assert!(blob.runs.iter().any(|run| run.kind == 2 && run.first == page.position / EXTENT));
        for (position, record) in slots(image, &header, page) {
            let extent = position / EXTENT;
            let run = segments.iter().find(|run| (run.first..run.first + u64::from(run.run)).contains(&extent));
            *live.entry(run.expect("a slot points into a segment").first).or_default() += record.len();
            if record.kind == PUT {
                keys += 1;
                bytes += (record.key.len() + record.value.len()) as u64;
            }
            newest.insert(record.key, position);
        }
    }
    assert_eq!((keys, bytes), (header.live_keys, header.live_bytes));
    for run in segments {
        assert_eq!(live.get(&run.first).copied().unwrap_or(0), run.live, "live bytes of segment {}", run.first);
        image.segment(&header, run.first * EXTENT, u64::from(run.run) * EXTENT);
    }
    let mut suffixes: Vec<u32> = blob.pages.iter().map(|page| page.suffix).collect();
    suffixes.dedup();
    assert!(suffixes.is_sorted() && suffixes.len() == blob.pages.len());
    let covered: u64 = blob.pages.iter().map(|page| 1 << (blob.depth - page.depth)).sum();
    assert_eq!(covered, 1 << blob.depth);
    for record in contents.batches.iter().flat_map(|batch| &batch.records) {
        let padding = 28 + record.key.len() as u64 + record.value.len() as u64;
        assert!(image.slice(record.position, record.len())[padding as usize..].iter().all(|&b| b == 0));
        assert!(record.flags & MOVED == 0 || record.prev != 0, "what is moved was somewhere before");
        match record.kind {
            // A slot of a delete may have been left out before the next put, never one of a put.
            PUT | DELETE => {
                let before = newest.insert(record.key.clone(), record.position).unwrap_or(0);
                let gone = before != 0 && image.record(before).is_some_and(|old| old.kind == DELETE);
                assert!(record.prev == before || record.prev == 0 && gone, "prev of {}", record.position);
            }
            SESSION => assert_eq!((record.key.len(), record.value.len(), record.prev), (0, 16, 0)),
            kind => assert_eq!(kind, LINK),
        }
    }
    if header.seq == 0 {
        assert_eq!(contents.batches[0].records[0].kind, SESSION, "a lifetime begins with a session record");
    }
}

/// Position and record of each slot; each is where a search for its key comes by, and its key has the right hash.
fn slots(image: &Image, header: &Header, page: &BlobPage) -> Vec<(u64, Record)> {
    let mut found = Vec::new();
    for (n, slot) in
        image.page(page).into_iter().enumerate().flat_map(|(n, line)| line.into_iter().map(move |s| (n, s)))
    {
        let record = image.record(slot.position()).unwrap();
        let hash = hash(&record.key, header.seed);
        assert_eq!((slot.tag, slot.pointer >> 48), (hash as u32, hash >> 48));
        assert_eq!(hash & ((1 << page.depth) - 1), u64::from(page.suffix));
        assert_eq!(slot.is_tombstone(), record.kind == DELETE);
        assert_eq!(slot.pointer >> 45 & 7, 0, "flags without a meaning");
        let mut line = ((hash >> 58) * 63) >> 6;
        while line != n as u64 {
            assert!(image.overflowed(page, line), "the search for a key ends before its slot");
            line = (line + 1) % 63;
        }
        found.push((slot.position(), record));
    }
    found
}

fn pair(key: &[u8], value: &[u8]) -> Record {
    Record { kind: PUT, key: key.to_vec(), value: value.to_vec(), ..Record::default() }
}

/// A store with one pair, and what its log is to be continued with.
fn one_pair(path: &Path) -> (Header, Contents) {
    let db = options().open(path).unwrap();
    db.put(b"old", b"pair").unwrap();
    db.close().unwrap();
    let image = Image::read(path);
    (image.header(), image.contents())
}

/// Writes records behind the log as the batch of `seq`, the last one with the chain after `before`.
fn append(path: &Path, contents: &Contents, seq: u64, before: u32, records: &mut [Record]) {
    let mut image = Image::read(path);
    let (mut at, last) = (contents.tail, records.len() - 1);
    for (n, record) in records.iter_mut().enumerate() {
        (record.position, record.seq) = (at, seq);
        record.flags |= if n == last { LAST } else { 0 };
        at += record.len();
    }
    let crcs: Vec<u32> = records.iter().map(Record::crc).collect();
    records[last].chain = chain(before, &crcs);
    records.iter().for_each(|record| image.put(record.position, &record.bytes()));
    std::fs::write(path, image.0).unwrap();
}

#[test]
fn a_batch_written_by_hand_is_read() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let (_, contents) = one_pair(&path);
    let old = contents.batches[0].records[1].position;
    let mut records = [
        Record { kind: SESSION, value: vec![5; 16], ..Record::default() },
        pair(b"new", b"value"),
        Record { kind: DELETE, prev: old, ..pair(b"old", b"") },
        pair(b"", &[1; 3_000]),
        Record { kind: common::raw::COMMIT, ..Record::default() },
    ];
    append(&path, &contents, 2, contents.chain, &mut records);
    let expected: Pairs = [(b"new".to_vec(), b"value".to_vec()), (vec![], vec![1; 3_000])].into();
    for db in [Db::open_read_only(&path).unwrap(), Db::open(&path).unwrap()] {
        assert_eq!(pairs(&db), expected);
        assert_eq!((db.len().unwrap(), db.stats().unwrap().live_bytes), (2, 3_008));
        assert_eq!(db.check(true).unwrap(), []);
    }
}

#[test]
fn a_batch_that_breaks_one_rule_is_the_end_of_the_log() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let (header, contents) = one_pair(&path);
    let good = std::fs::read(&path).unwrap();
    let link = |position: u64, len: u64| {
        let value = [position.to_le_bytes(), len.to_le_bytes()].concat();
        Record { kind: LINK, value, ..Record::default() }
    };
    let end = header.file_len;
    let cases: [(&str, u64, u32, Record); 9] = [
        ("kind", 2, 0, Record { kind: 6, ..pair(b"k", b"v") }),
        ("kind 0", 2, 0, Record { kind: 0, ..pair(b"k", b"v") }),
        ("reserved flag", 2, 0, Record { flags: 4, ..pair(b"k", b"v") }),
        ("seq after next", 3, 0, pair(b"k", b"v")),
        ("seq again", 1, 0, pair(b"k", b"v")),
        ("chain", 2, 1, pair(b"k", b"v")),
        ("link into the volatile extents", 2, 0, link(EXTENT, EXTENT)),
        ("link beyond the end", 2, 0, link(end, EXTENT)),
        ("link of a part of an extent", 2, 0, link(end - EXTENT, EXTENT / 2)),
    ];
    for (what, seq, change, record) in cases {
        std::fs::write(&path, &good).unwrap();
        append(&path, &contents, seq, contents.chain ^ change, &mut [record, pair(b"another", b"one")]);
        is_the_end(&path, what);
    }
    // The crc: each bit of a whole batch but those of the zeros behind the value.
    let mut whole = [pair(b"k", b"12345")];
    std::fs::write(&path, &good).unwrap();
    append(&path, &contents, 2, contents.chain, &mut whole);
    let appended = Image::read(&path);
    for bit in 0..8 * (28 + 6) {
        let mut image = appended.clone();
        image.0[contents.tail as usize + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, image.0).unwrap();
        is_the_end(&path, &format!("bit {bit}"));
    }
}

/// The pair from before is there, nothing else; and the store goes on from there.
fn is_the_end(path: &Path, what: &str) {
    let old: Pairs = [(b"old".to_vec(), b"pair".to_vec())].into();
    assert_eq!(pairs(&Db::open_read_only(path).unwrap()), old, "{what}");
    let db = Db::open(path).unwrap();
    assert_eq!(pairs(&db), old, "{what}");
    db.put(b"next", b"").unwrap();
    drop(db);
    let contents = Image::read(path).contents();
    assert_eq!((contents.pairs.len(), contents.batches.len()), (2, 2), "{what}");
}

/// What `Image::from_text` reads.
fn to_text(image: &Image) -> String {
    let mut text =
        format!("# A store of format version 1: see `golden_store` in tests/format.rs.\n{}\n", image.0.len());
    for (n, bytes) in image.0.chunks(64).enumerate().filter(|(_, bytes)| bytes.iter().any(|&b| b != 0)) {
        write!(text, "{:x} ", n * 64).unwrap();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

fn golden_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/version-1.txt")
}

/// What the golden store went through, in order; the value of a delete is none. A checkpoint comes after the 300th.
fn golden_history() -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut history: Vec<_> =
        (0..250u32).map(|n| (n.to_string().into_bytes(), Some(vec![n as u8; n as usize % 5]))).collect();
    history.extend((0..50u32).map(|n| (n.to_string().into_bytes(), None)));
    history.push((Vec::new(), Some(b"the empty key".to_vec())));
    history.push((b"long".to_vec(), Some(vec![0; 150_000])));
    history.push((b"empty value".to_vec(), Some(Vec::new())));
    history.push((b"long".to_vec(), Some(vec![0; 70_000])));
    history.push((b"200".to_vec(), Some(b"again".to_vec())));
    history.push((b"201".to_vec(), None));
    history.push((b"7".to_vec(), Some(b"back".to_vec())));
    history.push((vec![b'k'; 1_000], Some(b"long key".to_vec())));
    history
}

fn golden_pairs() -> Pairs {
    let mut pairs = Pairs::new();
    for (key, value) in golden_history() {
        match value {
            Some(value) => drop(pairs.insert(key, value)),
            None => drop(pairs.remove(&key)),
        }
    }
    pairs
}

#[test]
#[ignore = "writes the golden store: only for a new version of the format"]
fn golden_store() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let db = options().open(&path).unwrap();
    for (n, (key, value)) in golden_history().into_iter().enumerate() {
        match value {
            Some(value) => db.put(&key, &value).unwrap(),
            None => drop(db.delete(&key).unwrap()),
        }
        if n == 299 {
            db.checkpoint().unwrap();
        }
    }
    drop(db);
    let mut image = Image::read(&path);
    // Nobody reads these bytes.
    image.put(EXTENT, &vec![0; ((FIXED - 1) * EXTENT) as usize]);
    std::fs::write(golden_path(), to_text(&image)).unwrap();
}

/// Keys that agree in all hash bits of a slot, under the golden store's seed: only their own bytes tell them apart.
const COLLIDING: [(&str, &str); 3] = [("0012bfc6", "007e3a11"), ("00d9a241", "019fc529"), ("003ac4c1", "01711c40")];

#[test]
fn keys_whose_hash_bits_agree_are_two_keys() {
    let image = Image::from_text(&std::fs::read_to_string(golden_path()).unwrap());
    let dir = fast_dir();
    let path = dir.path().join("store");
    std::fs::write(&path, &image.0).unwrap();
    let db = options().open(&path).unwrap();
    for (one, other) in COLLIDING {
        db.put(one.as_bytes(), b"one").unwrap();
        assert_eq!(db.get(other.as_bytes()).unwrap(), None);
        db.put(other.as_bytes(), b"other").unwrap();
        assert_eq!(db.get(one.as_bytes()).unwrap().as_deref(), Some(&b"one"[..]));
        assert!(db.delete(one.as_bytes()).unwrap());
        assert_eq!(db.get(other.as_bytes()).unwrap().as_deref(), Some(&b"other"[..]));
    }
    db.checkpoint().unwrap();
    db.close().unwrap();
    let contents = Image::read(&path).contents();
    assert_eq!(contents.pairs.len(), golden_pairs().len() + COLLIDING.len());
    let bits = |key: &str| hash(key.as_bytes(), image.header().seed) & 0xffff_0000_ffff_ffff;
    assert!(COLLIDING.iter().all(|(one, other)| bits(one) == bits(other)), "the seed of the golden store has changed");
}

#[test]
fn the_golden_store_is_readable() {
    let image = Image::from_text(&std::fs::read_to_string(golden_path()).unwrap());
    let contents = image.contents();
    assert_eq!(contents.pairs, golden_pairs());
    assert_eq!(contents.batches.len(), golden_history().len() - 300);
    look_closely(&image, &contents);
    let dir = fast_dir();
    let path = dir.path().join("store");
    std::fs::write(&path, &image.0).unwrap();
    let reader = Db::open_read_only(&path).unwrap();
    assert_eq!(pairs(&reader), golden_pairs());
    assert_eq!(std::fs::read(&path).unwrap(), image.0);
    let db = options().open(&path).unwrap();
    assert_eq!(pairs(&db), golden_pairs());
    assert_eq!(db.stats().unwrap().live_keys, golden_pairs().len() as u64);
    assert_eq!(db.check(true).unwrap(), []);
    db.put(b"one", b"more").unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    let contents = Image::read(&path).contents();
    assert_eq!(contents.pairs.len(), golden_pairs().len() + 1);
}
