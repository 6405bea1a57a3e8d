//! The store does its main job: create, put, get, reopen.

use slotdb::{Durability, Error, Options};

#[test]
fn what_was_put_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    for durability in [Durability::Immediate, Durability::Eventual] {
        for extent in [64 << 10, 2 << 20] {
            let _ = std::fs::remove_file(&path);
            let db =
                Options::new().create(true).extent_size(extent).durability(durability).open(&path).expect("create");
            for n in 0..20_000u32 {
                if n % 100 == 0 || durability == Durability::Eventual {
                    db.put(format!("key {n}").as_bytes(), &n.to_le_bytes().repeat(25)).expect("put");
                }
            }
            assert_eq!(db.get(b"key 100").expect("get").expect("there").len(), 100);
            let len = db.len().expect("len");
            assert_eq!(db.check(true).expect("check"), []);
            db.checkpoint().expect("checkpoint");
            assert_eq!(db.check(true).expect("check"), []);
            assert!(db.delete(b"key 100").expect("delete"));
            assert!(!db.delete(b"key 100").expect("delete"));
            db.close().expect("close");
            for read_only in [true, false] {
                let db = Options::new().read_only(read_only).open(&path).expect("open");
                assert_eq!(db.len().expect("len"), len - 1);
                assert_eq!(db.get(b"key 100").expect("get"), None);
                assert_eq!(db.get(b"key 200").expect("get").expect("there"), 200u32.to_le_bytes().repeat(25));
                assert_eq!(db.begin_read().expect("read").iter().count() as u64, len - 1);
                assert_eq!(db.check(true).expect("check"), []);
            }
        }
    }
}

#[test]
fn threads_that_have_read_leave_all_snapshots_to_others() {
    const SNAPSHOTS: usize = 4096;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Options::new().create(true).extent_size(64 << 10).open(dir.path().join("store")).expect("create");
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| db.get(b"key").expect("get"));
        }
    });
    for _ in 0..2 {
        let snapshots: Vec<_> = (0..SNAPSHOTS).map(|_| db.begin_read().expect("a snapshot")).collect();
        assert!(matches!(db.begin_read(), Err(Error::TooManyReaders { .. })));
        drop(snapshots);
    }
    assert_eq!(db.get(b"key").expect("get"), None);
}
