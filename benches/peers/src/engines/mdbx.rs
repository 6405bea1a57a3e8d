//! libmdbx, through its C interface.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use signet_mdbx_sys as mdb;

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};

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
    Ok(Box::new(made))
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: sessions borrow this, so no transaction is left.
        unsafe { mdb::mdbx_env_close_ex(self.env, false) };
    }
}

impl Store for Env {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { env: self, reader: null_mut() }))
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the environment is open.
        done(unsafe { mdb::mdbx_env_sync_ex(self.env, true, false) })
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Thread<'a> {
    env: &'a Env,
    /// A read transaction that is reset, after the first read.
    reader: *mut mdb::MDBX_txn,
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        if !self.reader.is_null() {
            // SAFETY: a transaction of this thread, used no more.
            unsafe { mdb::mdbx_txn_abort(self.reader) };
        }
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

impl Thread<'_> {
    fn read<R>(&mut self, work: impl FnOnce(*mut mdb::MDBX_txn) -> Result<R>) -> Result<R> {
        // SAFETY: the transaction stays in this thread, and is reset before the next renewal.
        unsafe {
            if self.reader.is_null() {
                done(mdb::mdbx_txn_begin_ex(
                    self.env.env,
                    null_mut(),
                    mdb::MDBX_TXN_RDONLY,
                    &mut self.reader,
                    null_mut(),
                ))?;
            } else {
                done(mdb::mdbx_txn_renew(self.reader))?;
            }
        }
        let result = work(self.reader);
        // SAFETY: as above.
        unsafe { mdb::mdbx_txn_reset(self.reader) };
        result
    }

    fn write(&mut self, work: impl FnOnce(*mut mdb::MDBX_txn) -> Result<()>) -> Result<()> {
        let mut txn = null_mut();
        // SAFETY: a write transaction of this thread, ended below either way.
        done(unsafe { mdb::mdbx_txn_begin_ex(self.env.env, null_mut(), 0, &mut txn, null_mut()) })?;
        match work(txn) {
            // SAFETY: as above.
            Ok(()) => done(unsafe { mdb::mdbx_txn_commit_ex(txn, null_mut()) }),
            Err(error) => {
                // SAFETY: as above.
                unsafe { mdb::mdbx_txn_abort(txn) };
                Err(error)
            }
        }
    }
}

impl Env {
    fn get<R>(&self, txn: *mut mdb::MDBX_txn, key: &Key, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let (key, mut data) = (bytes(key), bytes(&[]));
        // SAFETY: both values live through the call, and what comes back for as long as the transaction.
        match unsafe { mdb::mdbx_get(txn, self.dbi, &key, &mut data) } {
            // SAFETY: as above.
            0 => Ok(Some(then(unsafe { borrowed(&data) }))),
            mdb::MDBX_NOTFOUND => Ok(None),
            code => Err(done(code).expect_err("an error")),
        }
    }

    fn put(&self, txn: *mut mdb::MDBX_txn, key: &Key, version: u64) -> Result<()> {
        let value = value(key, version);
        let (key, mut data) = (bytes(key), bytes(&value));
        // SAFETY: both values live through the call, which copies them.
        done(unsafe { mdb::mdbx_put(txn, self.dbi, &key, &mut data, 0) })
    }
}

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let env = self.env;
        let mut seen = Seen::default();
        self.read(|txn| {
            for key in keys {
                env.get(txn, key, |value| seen.add(value))?;
            }
            Ok(seen)
        })
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        let env = self.env;
        self.read(|txn| env.get(txn, key, Head::of))
    }

    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        let env = self.env;
        self.write(|txn| env.put(txn, key, version))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let env = self.env;
        self.write(|txn| keys.iter().try_for_each(|key| env.put(txn, key, version)))
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        let env = self.env;
        self.write(|txn| {
            let head = env.get(txn, key, Head::of)?.ok_or("a key is missing")?;
            env.put(txn, key, head.version.wrapping_add(1))
        })
    }

    fn scan(&mut self) -> Result<Seen> {
        let env = self.env;
        let mut seen = Seen::default();
        self.read(|txn| {
            let mut cursor = null_mut();
            let (mut key, mut data) = (bytes(&[]), bytes(&[]));
            // SAFETY: the cursor is closed before its transaction ends; what it returns lives as long as that.
            unsafe {
                done(mdb::mdbx_cursor_open(txn, env.dbi, &mut cursor))?;
                let end = loop {
                    match mdb::mdbx_cursor_get(cursor, &mut key, &mut data, mdb::MDBX_NEXT) {
                        0 => seen.add(borrowed(&data)),
                        code => break code,
                    }
                };
                mdb::mdbx_cursor_close(cursor);
                if end == mdb::MDBX_NOTFOUND { Ok(seen) } else { done(end).map(|()| seen) }
            }
        })
    }
}
