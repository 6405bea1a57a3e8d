//! libmdbx, through its C interface.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use signet_mdbx_sys as mdb;

use crate::data::Key;
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Store};
use crate::engines::tree::{Environment, Tree};

pub fn engine() -> Engine {
    Engine {
        name: "libmdbx",
        about: "upper size of 1 GiB and 400 bytes a record, MDBX_LIFORECLAIM; read transactions are reset and renewed, \
                gets in one",
        eventual: (
            Class::Process,
            "MDBX_UTTERLY_NOSYNC, its MDB_NOSYNC: a power cut may damage the store (MDBX_SAFE_NOSYNC \
                   would not, but syncs before it uses pages again)",
        ),
        immediate: (Class::Durable, "MDBX_SYNC_DURABLE"),
        processes: Processes::Many,
        threads: true,
        overwrite_batch: 100,
        only: None,
        version: || Ok("0.13".into()),
        open,
    }
}

fn done(code: c_int) -> Result<()> {
    if code == 0 || code == mdb::MDBX_RESULT_TRUE {
        return Ok(());
    }
    // SAFETY: returns a string that lives on.
    Err(unsafe { CStr::from_ptr(mdb::mdbx_strerror(code)) }.to_string_lossy().into())
}

struct Env {
    env: *mut mdb::MDBX_env,
    dbi: mdb::MDBX_dbi,
}

// SAFETY: an environment may be used by several threads; its transactions stay in theirs.
unsafe impl Sync for Env {}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let path = CString::new(dir.join("store.mdbx").to_str().ok_or("a path that is no text")?)?;
    let (mode, txn_mode) = match how.mode {
        Mode::Eventual => (mdb::MDBX_UTTERLY_NOSYNC | mdb::MDBX_LIFORECLAIM, 0),
        Mode::Immediate => (mdb::MDBX_SYNC_DURABLE | mdb::MDBX_LIFORECLAIM, 0),
        Mode::ReadOnly => (mdb::MDBX_RDONLY, mdb::MDBX_TXN_RDONLY),
    };
    let upper = how.n as isize * 400 + (1 << 30);
    let mut made = Env { env: null_mut(), dbi: 0 };
    let mut txn = null_mut();
    // SAFETY: the calls of a new environment in the order that its documentation asks for; the path ends in 0.
    unsafe {
        done(mdb::mdbx_env_create(&mut made.env))?;
        done(mdb::mdbx_env_set_geometry(made.env, -1, -1, upper, -1, -1, -1))?;
        done(mdb::mdbx_env_open(made.env, path.as_ptr(), mode | mdb::MDBX_NOSUBDIR, 0o644))?;
        done(mdb::mdbx_txn_begin_ex(made.env, null_mut(), txn_mode, &mut txn, null_mut()))?;
        done(mdb::mdbx_dbi_open(txn, null(), 0, &mut made.dbi))?;
        done(mdb::mdbx_txn_commit_ex(txn, null_mut()))?;
    }
    Ok(Box::new(Tree(made)))
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: sessions borrow this, so no transaction is left.
        unsafe { mdb::mdbx_env_close_ex(self.env, false) };
    }
}

fn bytes(data: &[u8]) -> mdb::MDBX_val {
    mdb::MDBX_val { iov_len: data.len(), iov_base: data.as_ptr().cast_mut().cast::<c_void>() }
}

/// # Safety
/// A value that a live transaction has returned.
unsafe fn borrowed<'t>(value: &mdb::MDBX_val) -> &'t [u8] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(value.iov_base.cast::<u8>(), value.iov_len) }
}

/// A transaction that has begun and not ended.
struct Txn(*mut mdb::MDBX_txn);

impl Environment for Env {
    type Txn = Txn;

    fn begin(&self, read_only: bool) -> Result<Txn> {
        let flags = if read_only { mdb::MDBX_TXN_RDONLY } else { 0 };
        let mut txn = Txn(null_mut());
        // SAFETY: the environment is open.
        done(unsafe { mdb::mdbx_txn_begin_ex(self.env, null_mut(), flags, &mut txn.0, null_mut()) })?;
        Ok(txn)
    }

    fn reset(&self, reader: &mut Txn) {
        // SAFETY: a read transaction of this thread.
        unsafe { mdb::mdbx_txn_reset(reader.0) };
    }

    fn renew(&self, reader: &mut Txn) -> Result<()> {
        // SAFETY: a read transaction of this thread, which was reset.
        done(unsafe { mdb::mdbx_txn_renew(reader.0) })
    }

    fn abort(&self, txn: Txn) {
        // SAFETY: a transaction of this thread, used no more.
        unsafe { mdb::mdbx_txn_abort(txn.0) };
    }

    fn commit(&self, txn: Txn) -> Result<()> {
        // SAFETY: a transaction of this thread, used no more.
        done(unsafe { mdb::mdbx_txn_commit_ex(txn.0, null_mut()) })
    }

    fn get<R>(&self, txn: &Txn, key: &Key, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let (key, mut data) = (bytes(key), bytes(&[]));
        // SAFETY: both values live through the call, and what comes back for as long as the transaction.
        match unsafe { mdb::mdbx_get(txn.0, self.dbi, &key, &mut data) } {
            // SAFETY: as above.
            0 => Ok(Some(then(unsafe { borrowed(&data) }))),
            mdb::MDBX_NOTFOUND => Ok(None),
            code => Err(done(code).expect_err("an error")),
        }
    }

    fn put(&self, txn: &mut Txn, key: &Key, value: &[u8]) -> Result<()> {
        let (key, mut data) = (bytes(key), bytes(value));
        // SAFETY: both values live through the call, which copies them.
        done(unsafe { mdb::mdbx_put(txn.0, self.dbi, &key, &mut data, 0) })
    }

    fn each(&self, txn: &Txn, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut cursor = null_mut();
        let (mut key, mut data) = (bytes(&[]), bytes(&[]));
        // SAFETY: the cursor is closed before its transaction ends; what it returns lives as long as that.
        unsafe {
            done(mdb::mdbx_cursor_open(txn.0, self.dbi, &mut cursor))?;
            let end = loop {
                match mdb::mdbx_cursor_get(cursor, &mut key, &mut data, mdb::MDBX_NEXT) {
                    0 => each(borrowed(&data)),
                    code => break code,
                }
            };
            mdb::mdbx_cursor_close(cursor);
            if end == mdb::MDBX_NOTFOUND { Ok(()) } else { done(end) }
        }
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the environment is open.
        done(unsafe { mdb::mdbx_env_sync_ex(self.env, true, false) })
    }
}
