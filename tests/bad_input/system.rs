//! A system that refuses: no permission, no space. An error says so, and the store stays sound.
//!
//! What needs another user or other limits runs this program again, as `child`. Root is needed to become another user
//! and to mount a small disk; without it the limits do for both.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use slotdb::{Db, Durability, Error, Options};
use tempfile::TempDir;

use crate::common::disk::Disk;
use crate::common::fast_dir;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

const ROLE: &str = "SLOTDB_TEST_ROLE";
const STORE: &str = "SLOTDB_TEST_STORE";
const NOBODY: u32 = 65_534;
const MIB: u64 = 1 << 20;

/// The part of a test that runs in a process of its own.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let store = PathBuf::from(env::var_os(STORE).unwrap());
    match &*role {
        "no permission" => without_permission(&store),
        "read-only" => with_read_permission(&store),
        "limited" => fill(&store, &small(), |e| matches!(e, Error::Full { .. })),
        "sparse" => use_sparse_copy(&store),
        "beside holes" => overwrite_beside_holes(&store),
        other => panic!("no role {other:?}"),
    }
}

/// A place that others may enter, with this program in it: where it was built others may not come.
fn open_place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    (dir, program)
}

/// What it said.
fn run(mut command: Command, role: &str, store: &Path) -> String {
    command.env(ROLE, role).env(STORE, store);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{role}: {}\n{said}", output.status);
    said
}

/// Runs a role as a user who owns nothing.
fn as_nobody(program: &Path, role: &str, store: &Path) {
    let mut command = Command::new(program);
    command.args(["--exact", "system::child"]);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    run(command, role, store);
}

fn small() -> Options {
    let mut options = Options::new();
    options.create(true).extent_size(64 << 10).slack(2 << 20).durability(Durability::Eventual);
    options
}

fn all(db: &Db) -> Pairs {
    let snapshot = db.begin_read().unwrap();
    snapshot.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
}

fn without_permission(store: &Path) {
    assert!(matches!(Db::open(store), Err(Error::Permission { .. })));
    assert!(matches!(Db::create(store), Err(Error::Permission { .. })));
    assert!(matches!(Db::open_read_only(store), Err(Error::Permission { .. })));
    assert!(matches!(Db::create(store.with_file_name("another")), Err(Error::Permission { .. })));
}

fn with_read_permission(store: &Path) {
    assert!(matches!(Db::open(store), Err(Error::Permission { .. })));
    let db = Db::open_read_only(store).unwrap();
    assert_eq!(db.get(b"key").unwrap().unwrap(), b"value");
    assert_eq!(all(&db).len(), 1);
    assert_eq!(db.check(true).unwrap(), []);
    assert!(matches!(db.put(b"key", b""), Err(Error::ReadOnly { .. })));
}

#[test]
fn without_permission_nothing_happens() {
    let (dir, program) = open_place();
    let place = dir.path().join("place");
    fs::create_dir(&place).unwrap();
    let store = place.join("store");
    let db = small().open(&store).unwrap();
    db.put(b"key", b"value").unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    // Beside a writer, after a kill, and closed.
    mode(&place, 0o555);
    mode(&store, 0o444);
    as_nobody(&program, "read-only", &store);
    let killed = fs::read(&store).unwrap();
    drop(db);
    let closed = fs::read(&store).unwrap();
    for image in [killed, closed] {
        mode(&store, 0o644);
        fs::write(&store, &image).unwrap();
        for (bits, role) in [(0o444, "read-only"), (0o000, "no permission")] {
            mode(&store, bits);
            as_nobody(&program, role, &store);
        }
        mode(&store, 0o644);
        assert!(fs::read(&store).unwrap() == image, "not a byte has changed");
    }
    let names: Vec<_> = fs::read_dir(&place).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing was left behind: {names:?}");
    mode(&place, 0o755);
}

/// As `open(2)` does it: what a link leads to is created there, and the link stays. Who asks for a new store gets none.
#[test]
fn a_link_to_nothing_is_created_where_it_leads() {
    let dir = fast_dir();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("inner")).unwrap();
    std::os::unix::fs::symlink("inner/second", at("first")).unwrap();
    std::os::unix::fs::symlink(at("store"), at("inner/second")).unwrap();
    std::os::unix::fs::symlink("nowhere/store", at("lost")).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    assert!(matches!(Db::open(at("first")), Err(Error::NotFound { .. })));
    assert!(matches!(Options::new().create_new(true).open(at("first")), Err(Error::Exists { .. })));
    Db::create(at("first")).unwrap().put(b"key", b"value").unwrap();
    assert!(fs::symlink_metadata(at("store")).unwrap().is_file());
    assert!(fs::symlink_metadata(at("first")).unwrap().is_symlink());
    assert_eq!(Db::open(at("store")).unwrap().get(b"key").unwrap().unwrap(), b"value");
    for (link, named) in [("lost", "nowhere/store"), ("loop", "loop")] {
        let error = Db::create(at(link)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(named), "{error}");
    }
}

#[test]
fn at_its_greatest_size_a_store_stays_usable() {
    let dir = fast_dir();
    let store = dir.path().join("store");
    fill(&store, small().max_size(4 * MIB), |e| matches!(e, Error::MaxSize { max, .. } if *max == 4 * MIB));
}

#[test]
fn a_refused_transaction_gives_its_space_back() {
    let dir = fast_dir();
    let db = small().max_size(4 * MIB).open(dir.path().join("store")).unwrap();
    let refuse = || {
        let mut txn = db.begin_write().unwrap();
        // There is room for the records, and none for the index pages that they may need.
        (0..62_000).for_each(|n| txn.put(&key(n), b"").unwrap());
        let error = txn.commit().unwrap_err();
        assert!(matches!(error, Error::MaxSize { .. }), "{error}");
        db.stats().unwrap().log_bytes
    };
    let before = db.stats().unwrap().log_bytes;
    (0..3).for_each(|_| assert_eq!(refuse(), before));
    assert_eq!(db.check(true).unwrap(), []);
}

#[test]
fn on_a_full_disk_a_store_stays_usable() {
    let Some(disk) = Disk::tmpfs() else {
        eprintln!("no small disk without root; `at_the_limit_of_file_sizes` does the same");
        return;
    };
    let store = disk.path().join("store");
    fill(&store, &small(), |e| matches!(e, Error::Full { .. }));
    // Creation where there is no space leaves nothing behind.
    let ballast = disk.path().join("ballast");
    assert!(fs::write(&ballast, vec![1; 5 << 20]).is_err());
    let error = small().open(disk.path().join("another")).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "the ballast");
}

/// A full ext4 ends a transaction of its journal before it refuses space, which takes a flush of the disk.
#[test]
fn refused_puts_leave_a_full_disk_alone_until_it_has_space() {
    const PUTS: u32 = 50;
    let Some(disk) = Disk::ext4(64) else {
        eprintln!("no small disk without root and mkfs.ext4");
        return;
    };
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 2 * MIB as usize]).unwrap();
    let db = small().open(disk.path().join("store")).unwrap();
    let put = |n: u32| db.put(&key(n), &[8; 1_000]);
    let mut keys = 0;
    for round in 0..2 {
        keys = (keys..).find(|&n| put(n).is_err()).unwrap();
        let before = disk.transactions();
        for _ in 0..PUTS {
            let refused = put(keys);
            assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        }
        let made = disk.transactions() - before;
        assert!(made < u64::from(PUTS) / 2, "round {round}: {made} transactions");
        match round {
            0 => fs::remove_file(&ballast).unwrap(),
            _ => (0..keys / 2).for_each(|n| assert!(db.delete(&key(n)).unwrap())),
        }
        put(keys).unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    assert_eq!(db.check(true).unwrap(), []);
}

/// A store through the map to a folio that holds a hole asks for the space of all of it, and on a full disk that is
/// SIGBUS.
#[test]
fn overwriting_beside_holes_on_a_full_disk_kills_nobody() {
    let Some(disk) = Disk::ext4(96) else {
        eprintln!("no small disk without root and mkfs.ext4");
        return;
    };
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "system::child", "--nocapture"]);
    run(child, "beside holes", &disk.path().join("store"));
}

/// Makes a file that takes all the space there is.
fn fill_disk(path: &Path) {
    let file = fs::File::create(path).unwrap();
    let (mut len, mut piece) = (0, MIB);
    while piece >= 4_096 {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, piece) {
            Ok(()) => len += piece,
            Err(_) => piece /= 2,
        }
    }
}

/// Overwrites what is left of a large store, when others have taken the space that it gave back and what was in memory
/// has come back in huge folios.
fn overwrite_beside_holes(store: &Path) {
    let open = || Options::new().create(true).durability(Durability::Eventual).open(store).unwrap();
    let is_kept = |n: &u32| n.wrapping_mul(2_654_435_761) >> 16 & 7 == 0;
    let mut db = open();
    let keys = (0..).find(|&n| db.put(&key(n), &[7; 100]).is_err()).unwrap();
    (0..keys).filter(|n| !is_kept(n)).for_each(|n| assert!(db.delete(&key(n)).unwrap()));
    for round in 0..4 {
        (0..8).for_each(|_| drop(db.put(b"a", b"b").and_then(|()| db.checkpoint())));
        if round % 2 == 1 {
            assert!(matches!(db.compact(|_| true), Ok(true) | Err(Error::Full { .. })));
        }
        db.close().unwrap();
        let _ = fs::write("/proc/sys/vm/drop_caches", "1");
        db = open();
        fill_disk(&store.with_file_name(format!("ballast {round}")));
        (0..keys).filter(is_kept).for_each(|n| assert_eq!(db.get(&key(n)).unwrap().as_deref(), Some(&[7; 100][..])));
        for n in (0..keys).filter(is_kept).step_by(50) {
            let refused = db.put(&key(n), &[7; 100]);
            assert!(matches!(refused, Ok(()) | Err(Error::Full { .. })), "round {round}: {refused:?}");
        }
    }
    assert_eq!(db.check(true).unwrap(), []);
}

/// Copies a file and leaves holes where it has pages of zeros.
fn copy_sparse(from: &Path, to: &Path) {
    let bytes = fs::read(from).unwrap();
    let copy = fs::File::create(to).unwrap();
    copy.set_len(bytes.len() as u64).unwrap();
    for (n, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
        copy.write_all_at(page, n as u64 * 4096).unwrap();
    }
}

/// Opens a copy with holes: it is refused, or it is a store like any other.
fn use_sparse_copy(store: &Path) {
    let full = |e: &Error| matches!(e, Error::Full { .. });
    let expected = all(&Db::open_read_only(store).unwrap());
    let db = match small().open(store) {
        Ok(db) => db,
        Err(e) => return assert!(full(&e), "{e}"),
    };
    assert!(all(&db) == expected);
    // After so many in a row records are stored through the map.
    let mut model = expected;
    for n in 0..200 {
        match db.put(&key(n), &[7; 2_000]) {
            Ok(()) => drop(model.insert(key(n), vec![7; 2_000])),
            Err(e) => assert!(full(&e), "{e}"),
        }
        if n % 50 == 49 {
            db.checkpoint().unwrap_or_else(|e| assert!(full(&e), "{e}"));
        }
    }
    is_sound(&db, &model);
    db.close().unwrap();
    eprintln!("{USABLE}");
}

const USABLE: &str = "the sparse copy is usable";

#[test]
fn a_copy_with_holes_on_a_full_disk_is_refused_or_usable() {
    let Some(disk) = Disk::ext4(8) else {
        eprintln!("no small disk without root and mkfs.ext4");
        return;
    };
    let place = fast_dir();
    let original = place.path().join("original");
    let db = small().open(&original).unwrap();
    // Segments of zeros, which become holes and then are dead; an index of some pages; log to replay.
    (0..12).for_each(|n| db.put(&key(n), &[0; 30_000]).unwrap());
    (0..600).for_each(|n| db.put(&key(1_000 + n), b"short").unwrap());
    db.checkpoint().unwrap();
    (0..600).for_each(|n| db.put(&key(1_300 + n), b"other").unwrap());
    let killed = place.path().join("killed");
    fs::copy(&original, &killed).unwrap();
    let (store, ballast) = (disk.path().join("store"), disk.path().join("ballast"));
    let mut usable = 0;
    for room in (0..).step_by(12) {
        let ballast = fs::File::create(&ballast).unwrap();
        copy_sparse(&killed, &store);
        // So many pages are left.
        let left = rustix::fs::statvfs(disk.path()).unwrap().f_bavail;
        let Some(size) = left.checked_sub(room) else { break };
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, (size * 4096).max(1)).unwrap();
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "system::child", "--nocapture"]);
        usable += u32::from(run(child, "sparse", &store).contains(USABLE));
    }
    assert!(usable > 0, "with room enough it is usable");
}

#[test]
fn at_the_limit_of_file_sizes_a_store_stays_usable() {
    let (_place, program) = open_place();
    let dir = fast_dir();
    let mut shell = Command::new("sh");
    // In units of 512 bytes. Ignored, the signal becomes the error that it stands for.
    shell.args(["-c", "ulimit -f 8192; trap '' XFSZ; exec \"$0\" --exact system::child"]).arg(program);
    run(shell, "limited", &dir.path().join("store"));
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

/// Fills a store until it is full, and does all that must still be possible then: with long values, and with so short
/// ones that the index is a large part of it.
fn fill(path: &Path, options: &Options, is_full: fn(&Error) -> bool) {
    for (value, least) in [(&[8; 1_000][..], 1_000), (b"short", 10_000)] {
        let mut db = options.open(path).unwrap();
        let mut model = Pairs::new();
        for round in 0..3 {
            let before = model.len();
            put_until_full(&db, &mut model, value, is_full);
            assert!(model.len() > before + least, "round {round}: room for {} pairs", model.len());
            // A transaction that does not fit changes nothing.
            let mut txn = db.begin_write().unwrap();
            (0..8_000).for_each(|n| txn.put(&key(n), &[9; 1_000]).unwrap());
            assert!(is_full(&txn.commit().unwrap_err()));
            is_sound(&db, &model);
            assert!(fs::metadata(path).unwrap().len() <= 4 * MIB + (64 << 10));
            overwrite(&db, &mut model, value);
            is_sound(&db, &model);
            if round == 1 {
                // Opening needs no more space than there was.
                drop(db);
                db = options.open(path).unwrap();
                is_sound(&db, &model);
            }
            db.checkpoint().unwrap();
            delete_most(&db, &mut model, round == 2);
            db.checkpoint().unwrap();
            is_sound(&db, &model);
        }
        db.close().unwrap();
        is_sound(&options.open(path).unwrap(), &model);
        fs::remove_file(path).unwrap();
    }
}

fn is_sound(db: &Db, model: &Pairs) {
    assert!(all(db) == *model);
    assert_eq!(db.check(true).unwrap(), []);
}

fn put_until_full(db: &Db, model: &mut Pairs, value: &[u8], is_full: fn(&Error) -> bool) {
    for n in 0.. {
        match db.put(&key(n), value) {
            Ok(()) => drop(model.insert(key(n), value.to_vec())),
            Err(e) if is_full(&e) => return,
            Err(e) => panic!("put {n}: {e}"),
        }
    }
}

/// With a third of the pairs gone, the others can be overwritten for ever, in transactions too: what dies makes room.
fn overwrite(db: &Db, model: &mut Pairs, value: &[u8]) {
    let (gone, kept): (Vec<_>, Vec<_>) = model.keys().cloned().partition(|key| key.last() < Some(&b'3'));
    for key in gone {
        assert!(db.delete(&key).unwrap());
        model.remove(&key);
    }
    for i in 0..(3 * kept.len()).min(10_000) {
        let mut txn = db.begin_write().unwrap();
        txn.put(&kept[i * 7_919 % kept.len()], value).unwrap();
        txn.commit().unwrap_or_else(|e| panic!("overwrite {i} of {} keys: {e}", kept.len()));
    }
}

/// Deletes all but ten, from the oldest on or all over the place.
fn delete_most(db: &Db, model: &mut Pairs, scattered: bool) {
    let mut order: Vec<u32> = (0..).filter(|&n| model.contains_key(&key(n))).take(model.len() - 10).collect();
    if scattered {
        order.sort_by_cached_key(|&n| key(n));
    }
    for n in order {
        assert!(db.delete(&key(n)).unwrap());
        model.remove(&key(n));
    }
}
