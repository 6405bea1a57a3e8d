//! Samba's TDB.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};
use crate::engines::library::library;

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    bytes: *const u8,
    size: usize,
}

enum Context {}

type Parser = unsafe extern "C" fn(Data, Data, *mut c_void) -> c_int;
type Visitor = unsafe extern "C" fn(*mut Context, Data, Data, *mut c_void) -> c_int;

library!(Tdb, "libtdb.so.1", {
    fn tdb_open(*const c_char, c_int, c_int, c_int, c_uint) -> *mut Context;
    fn tdb_close(*mut Context) -> c_int;
    fn tdb_errorstr(*mut Context) -> *const c_char;
    fn tdb_parse_record(*mut Context, Data, Parser, *mut c_void) -> c_int;
    fn tdb_store(*mut Context, Data, Data, c_int) -> c_int;
    fn tdb_traverse_read(*mut Context, Visitor, *mut c_void) -> c_int;
    fn tdb_transaction_start(*mut Context) -> c_int;
    fn tdb_transaction_commit(*mut Context) -> c_int;
    fn tdb_transaction_cancel(*mut Context) -> c_int;
    fn tdb_error(*mut Context) -> c_int;
});

const TDB_NOSYNC: c_int = 64;
const TDB_INCOMPATIBLE_HASH: c_int = 2048;
const TDB_ERR_NOEXIST: c_int = 8;

pub fn engine() -> Engine {
    Engine {
        name: "tdb",
        about: "a hash chain for two records, Jenkins' hash; each write in a transaction; gets one by one \
                (no snapshots)",
        eventual: (Class::Process, "transactions with TDB_NOSYNC: a power cut may damage the store"),
        immediate: (Class::Durable, "transactions: fsync and msync, twice each"),
        processes: Processes::Many,
        threads: false,
        overwrite_batch: 100,
        only: None,
        version: || Tdb::get().map(|_| "1".into()),
        open,
    }
}

struct File {
    lib: &'static Tdb,
    tdb: *mut Context,
}

// SAFETY: used by one thread only (`threads: false`).
unsafe impl Sync for File {}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let lib = Tdb::get()?;
    let path = CString::new(dir.join("store.tdb").to_str().ok_or("a path that is no text")?)?;
    let nosync = if how.mode == Mode::Eventual { TDB_NOSYNC } else { 0 };
    let access = if how.mode == Mode::ReadOnly { libc::O_RDONLY } else { libc::O_RDWR | libc::O_CREAT };
    let chains = (how.n / 2 + 1) as c_int;
    // SAFETY: the path ends in 0.
    let tdb = unsafe { (lib.tdb_open)(path.as_ptr(), chains, nosync | TDB_INCOMPATIBLE_HASH, access, 0o644) };
    if tdb.is_null() {
        return Err(format!("tdb_open: {}", std::io::Error::last_os_error()).into());
    }
    Ok(Box::new(File { lib, tdb }))
}

impl File {
    fn done(&self, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: returns a static string.
        Err(unsafe { CStr::from_ptr((self.lib.tdb_errorstr)(self.tdb)) }.to_string_lossy().into())
    }

    fn read(&self, key: &Key) -> Result<Option<Head>> {
        unsafe extern "C" fn parse(_: Data, value: Data, head: *mut c_void) -> c_int {
            // SAFETY: `head` is the one below, and the value lives through this call.
            unsafe { *head.cast::<Head>() = Head::of(std::slice::from_raw_parts(value.bytes, value.size)) };
            0
        }
        let mut head = Head { check: 0, version: 0 };
        // SAFETY: key and head live through the call.
        unsafe {
            let code = (self.lib.tdb_parse_record)(self.tdb, data(key), parse, (&raw mut head).cast());
            if code != 0 && (self.lib.tdb_error)(self.tdb) == TDB_ERR_NOEXIST {
                return Ok(None);
            }
            self.done(code).map(|()| Some(head))
        }
    }

    fn store(&self, key: &Key, version: u64) -> Result<()> {
        // SAFETY: key and value live through the call, which copies them.
        self.done(unsafe { (self.lib.tdb_store)(self.tdb, data(key), data(&value(key, version)), 0) })
    }

    fn write(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: the store is open, and the transaction is ended either way.
        unsafe {
            self.done((self.lib.tdb_transaction_start)(self.tdb))?;
            let worked = work();
            if worked.is_err() {
                (self.lib.tdb_transaction_cancel)(self.tdb);
                return worked;
            }
            self.done((self.lib.tdb_transaction_commit)(self.tdb))
        }
    }
}

fn data(bytes: &[u8]) -> Data {
    Data { bytes: bytes.as_ptr(), size: bytes.len() }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { (self.lib.tdb_close)(self.tdb) };
    }
}

impl Store for File {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

struct Thread<'a>(&'a File);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            if let Some(head) = self.0.read(key)? {
                seen.merge(Seen { found: 1, sum: head.check });
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        self.0.read(key)
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        self.0.write(|| keys.iter().try_for_each(|key| self.0.store(key, version)))
    }

    fn update(&mut self, key: &Key) -> Result<()> {
        self.0.write(|| {
            let head = self.0.read(key)?.ok_or("a key is missing")?;
            self.0.store(key, head.version.wrapping_add(1))
        })
    }

    fn scan(&mut self) -> Result<Seen> {
        unsafe extern "C" fn visit(_: *mut Context, _: Data, value: Data, seen: *mut c_void) -> c_int {
            // SAFETY: `seen` is the one below, and the value lives through this call.
            unsafe { (*seen.cast::<Seen>()).add(std::slice::from_raw_parts(value.bytes, value.size)) };
            0
        }
        let mut seen = Seen::default();
        // SAFETY: `seen` lives through the call.
        if unsafe { (self.0.lib.tdb_traverse_read)(self.0.tdb, visit, (&raw mut seen).cast()) } < 0 {
            self.0.done(-1)?;
        }
        Ok(seen)
    }
}
