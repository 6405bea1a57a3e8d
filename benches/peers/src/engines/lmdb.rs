//! LMDB, as the crate heed builds it, through its C interface: heed has no call to reset and renew a read transaction,
//! which LMDB's documentation advises.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use lmdb_master_sys as mdb;

use crate::data::Key;
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Store};
use crate::engines::tree::{Environment, Tree};

const ABOUT: &str = "map of 1 GiB and 400 bytes a record; read transactions are reset and renewed, gets in one";

pub fn engine() -> Engine {
    Engine {
        name: "lmdb",
        about: ABOUT,
        eventual: (Class::Process, "MDB_NOSYNC: a power cut may damage the store"),
        immediate: (Class::Durable, "default flags: fdatasync, then the meta page through O_DSYNC"),
        processes: Processes::Many,
        threads: true,
        overwrite_batch: 100,
        only: None,
        version: || Ok(version()),
        open: |dir, how| open(dir, how, if how.mode == Mode::Eventual { mdb::MDB_NOSYNC } else { 0 }),
    }
}

/// The faster of its two ways not to sync.
pub fn engine_writemap() -> Engine {
    Engine {
        name: "lmdb-writemap",
        about: "as lmdb, with MDB_WRITEMAP",
        eventual: (Class::Process, "MDB_NOSYNC and MDB_WRITEMAP: a power cut may damage the store"),
        only: Some(&["load", "put_eventual", "mixed95_2processes"]),
        open: |dir, how| {
            open(dir, how, mdb::MDB_WRITEMAP | if how.mode == Mode::Eventual { mdb::MDB_NOSYNC } else { 0 })
        },
        ..engine()
    }
}

fn version() -> String {
    // SAFETY: returns a static string, and takes null pointers.
    let text = unsafe { CStr::from_ptr(mdb::mdb_version(null_mut(), null_mut(), null_mut())) };
    text.to_string_lossy().into_owned()
}

fn done(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: returns a string that lives on.
    Err(unsafe { CStr::from_ptr(mdb::mdb_strerror(code)) }.to_string_lossy().into())
}

struct Env {
    env: *mut mdb::MDB_env,
    dbi: mdb::MDB_dbi,
}

// SAFETY: an environment may be used by several threads; its transactions stay in theirs.
unsafe impl Sync for Env {}

fn open(dir: &Path, how: How, flags: u32) -> Result<Box<dyn Store>> {
    let path = CString::new(dir.join("store.mdb").to_str().ok_or("a path that is no text")?)?;
    let read_only = if how.mode == Mode::ReadOnly { mdb::MDB_RDONLY } else { 0 };
    let mut made = Env { env: null_mut(), dbi: 0 };
    let mut txn = null_mut();
    // SAFETY: the calls of a new environment in the order that its documentation asks for; the path ends in 0.
    unsafe {
        done(mdb::mdb_env_create(&mut made.env))?;
        done(mdb::mdb_env_set_mapsize(made.env, how.n as usize * 400 + (1 << 30)))?;
        done(mdb::mdb_env_open(made.env, path.as_ptr(), flags | mdb::MDB_NOSUBDIR | read_only, 0o644))?;
        done(mdb::mdb_txn_begin(made.env, null_mut(), read_only, &mut txn))?;
        done(mdb::mdb_dbi_open(txn, null(), 0, &mut made.dbi))?;
        done(mdb::mdb_txn_commit(txn))?;
    }
    Ok(Box::new(Tree(made)))
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: sessions borrow this, so no transaction is left.
        unsafe { mdb::mdb_env_close(self.env) }
    }
}

fn bytes(data: &[u8]) -> mdb::MDB_val {
    mdb::MDB_val { mv_size: data.len(), mv_data: data.as_ptr().cast_mut().cast::<c_void>() }
}

/// # Safety
/// A value that a live transaction has returned.
unsafe fn borrowed<'t>(value: &mdb::MDB_val) -> &'t [u8] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(value.mv_data.cast::<u8>(), value.mv_size) }
}

/// A transaction that has begun and not ended.
struct Txn(*mut mdb::MDB_txn);

impl Environment for Env {
    type Txn = Txn;

    fn begin(&self, read_only: bool) -> Result<Txn> {
        let flags = if read_only { mdb::MDB_RDONLY } else { 0 };
        let mut txn = Txn(null_mut());
        // SAFETY: the environment is open.
        done(unsafe { mdb::mdb_txn_begin(self.env, null_mut(), flags, &mut txn.0) })?;
        Ok(txn)
    }

    fn reset(&self, reader: &mut Txn) {
        // SAFETY: a read transaction of this thread.
        unsafe { mdb::mdb_txn_reset(reader.0) }
    }

    fn renew(&self, reader: &mut Txn) -> Result<()> {
        // SAFETY: a read transaction of this thread, which was reset.
        done(unsafe { mdb::mdb_txn_renew(reader.0) })
    }

    fn abort(&self, txn: Txn) {
        // SAFETY: a transaction of this thread, used no more.
        unsafe { mdb::mdb_txn_abort(txn.0) }
    }

    fn commit(&self, txn: Txn) -> Result<()> {
        // SAFETY: a transaction of this thread, used no more.
        done(unsafe { mdb::mdb_txn_commit(txn.0) })
    }

    fn get<R>(&self, txn: &Txn, key: &Key, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let (mut key, mut data) = (bytes(key), bytes(&[]));
        // SAFETY: both values live through the call, and what comes back for as long as the transaction.
        match unsafe { mdb::mdb_get(txn.0, self.dbi, &mut key, &mut data) } {
            // SAFETY: as above.
            0 => Ok(Some(then(unsafe { borrowed(&data) }))),
            mdb::MDB_NOTFOUND => Ok(None),
            code => Err(done(code).expect_err("an error")),
        }
    }

    fn put(&self, txn: &mut Txn, key: &Key, value: &[u8]) -> Result<()> {
        let (mut key, mut data) = (bytes(key), bytes(value));
        // SAFETY: both values live through the call, which copies them.
        done(unsafe { mdb::mdb_put(txn.0, self.dbi, &mut key, &mut data, 0) })
    }

    fn each(&self, txn: &Txn, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut cursor = null_mut();
        let (mut key, mut data) = (bytes(&[]), bytes(&[]));
        // SAFETY: the cursor is closed before its transaction ends; what it returns lives as long as that.
        unsafe {
            done(mdb::mdb_cursor_open(txn.0, self.dbi, &mut cursor))?;
            let end = loop {
                match mdb::mdb_cursor_get(cursor, &mut key, &mut data, mdb::MDB_NEXT) {
                    0 => each(borrowed(&data)),
                    code => break code,
                }
            };
            mdb::mdb_cursor_close(cursor);
            if end == mdb::MDB_NOTFOUND { Ok(()) } else { done(end) }
        }
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the environment is open.
        done(unsafe { mdb::mdb_env_sync(self.env, 1) })
    }
}
