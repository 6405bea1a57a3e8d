//! Opens and uses a file that may be anything. Errors are fine; a panic, a hang or a broken rule is not.
//!
//! The rules: reading changes no byte. Who opens for reading and who opens for writing agree on whether the file is a
//! store. An opening that is refused before the log is replayed changes no byte. A value that was put is there, also
//! after a checkpoint; and a store that a checkpoint and a closing found in order opens again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use slotdb::{Db, Durability, Error, Options, WriterLock};

use crate::common::fast_dir;
use crate::common::raw::Image;

/// Bytes that are looked at together.
const PIECE: usize = 64 << 10;
/// Header slots of the golden store.
const SLOTS: [u64; 2] = [0, 32 << 10];
/// Keys of the golden store, and one that is not in it.
const KEYS: [&[u8]; 8] = [b"", b"7", b"60", b"200", b"201", b"long", b"empty value", b"absent"];

/// The newest commit that an opener finds, if the file can be opened.
pub fn endure(image: &Image) -> Option<u64> {
    let dir = fast_dir();
    let path = dir.path().join("store");
    image.write(&path).unwrap();
    let unchanged = || is_equal(&path, image).unwrap();
    let reader = open(&path, true);
    let seq = reader.as_ref().ok().map(|db| db.begin_read().unwrap().seq());
    if let Ok(db) = &reader {
        look(db);
        assert!(matches!(db.put(b"k", b"v"), Err(Error::ReadOnly { .. })));
    }
    let refused = reader.map(drop).err();
    assert!(unchanged(), "reading changes nothing");
    match (open(&path, false), refused) {
        (Ok(db), None) => use_it(&path, db),
        (Err(Error::Full { .. } | Error::MaxSize { .. } | Error::Io { .. }), None) => {}
        (Err(writer), Some(reader)) => {
            assert_eq!(writer.to_string(), reader.to_string(), "readers and writers agree");
            assert!(unchanged() || log_goes_on(image), "a refused opening changes nothing: {writer}");
        }
        (writer, reader) => panic!("writing: {:?}, reading: {reader:?}", writer.map(drop)),
    }
    seq
}

fn is_equal(path: &Path, image: &Image) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let mut found = [0; PIECE];
    for (n, piece) in image.0.chunks(PIECE).enumerate() {
        let found = &mut found[..piece.len()];
        file.read_exact_at(found, (n * PIECE) as u64)?;
        if found != piece {
            return Ok(false);
        }
    }
    Ok(file.metadata()?.len() == image.0.len() as u64)
}

fn open(path: &Path, read_only: bool) -> slotdb::Result<Db> {
    let mut options = Options::new();
    // Threads that wait for idleness take longer than all the rest.
    options.reserve(1 << 28).durability(Durability::Eventual).writer_lock(WriterLock::EachCommit);
    options.read_only(read_only).open(path)
}

/// Whether a record of the next commit stands where the log goes on: then a replay may meet what it refuses.
fn log_goes_on(image: &Image) -> bool {
    let at = |slot: u64| image.record(image.u64(slot + 72)).is_some_and(|r| r.seq == image.u64(slot + 64) + 1);
    image.0.len() as u64 > SLOTS[1] + 512 && SLOTS.into_iter().any(at)
}

/// Every way to read.
fn look(db: &Db) {
    let snapshot = db.begin_read().unwrap();
    let pairs = snapshot.iter().map_while(Result::ok).count();
    let _ = (pairs, db.check(true), db.stats(), db.processes(), db.len());
    for key in KEYS {
        let _ = (db.get_with(key, <[u8]>::len), snapshot.get(key));
    }
}

/// Every way to write, then once more after closing it.
fn use_it(path: &Path, db: Db) {
    look(&db);
    let snapshot = db.begin_read().unwrap();
    let mut well = put_and_get(&db, b"7", b"new");
    well &= put_and_get(&db, b"long", &[1; 70_000]);
    well &= db.delete(b"60").is_ok();
    well &= put_and_get(&db, b"absent", b"");
    well &= many(&db).is_ok();
    let _ = snapshot.iter().map_while(Result::ok).count();
    drop(snapshot);
    well &= db.checkpoint().is_ok();
    well &= put_and_get(&db, b"7", b"newer");
    look(&db);
    well &= db.sync().is_ok();
    // A slot that leads to a place which becomes free is an error from then on.
    well &= db.check(true).is_ok_and(|faults| faults.is_empty());
    well &= db.close().is_ok();
    if well {
        for read_only in [true, false] {
            let db = open(path, read_only).unwrap();
            assert_eq!(db.get(b"7").unwrap().as_deref(), Some(&b"newer"[..]));
            look(&db);
        }
    }
}

/// Enough keys to split pages.
fn many(db: &Db) -> slotdb::Result<()> {
    let mut txn = db.begin_write()?;
    for n in 0..300u32 {
        txn.put(&n.to_le_bytes(), b"")?;
    }
    txn.commit().map(drop)
}

fn put_and_get(db: &Db, key: &[u8], value: &[u8]) -> bool {
    let done = db.put(key, value).is_ok();
    if done {
        assert!(db.get(key).unwrap().as_deref() == Some(value), "what was put is there");
    }
    done
}
