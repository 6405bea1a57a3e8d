//! GNU dbm.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use crate::data::{Head, Key, Seen, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};
use crate::engines::library::library;

#[repr(C)]
#[derive(Clone, Copy)]
struct Datum {
    bytes: *mut c_char,
    size: c_int,
}

enum File {}

library!(Gdbm, "libgdbm.so.6", {
    fn gdbm_open(*const c_char, c_int, c_int, c_int, *const c_void) -> *mut File;
    fn gdbm_close(*mut File) -> c_int;
    fn gdbm_store(*mut File, Datum, Datum, c_int) -> c_int;
    fn gdbm_fetch(*mut File, Datum) -> Datum;
    fn gdbm_firstkey(*mut File) -> Datum;
    fn gdbm_nextkey(*mut File, Datum) -> Datum;
    fn gdbm_sync(*mut File) -> c_int;
});

const GDBM_READER: c_int = 0;
const GDBM_WRCREAT: c_int = 2;
const GDBM_REPLACE: c_int = 1;

pub fn engine() -> Engine {
    Engine {
        name: "gdbm",
        about: "default block size and bucket cache; gets one by one (no snapshots); batches are single puts",
        eventual: (Class::None, "no transactions; a death may damage the store"),
        immediate: (Class::Flushed, "gdbm_sync after each commit"),
        processes: Processes::Readers,
        threads: false,
        overwrite_batch: 1,
        only: None,
        version: || Gdbm::get().map(|_| "1".into()),
        open,
    }
}

struct Gnu {
    lib: &'static Gdbm,
    file: *mut File,
    sync: bool,
}

// SAFETY: used by one thread only (`threads: false`).
unsafe impl Sync for Gnu {}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let lib = Gdbm::get()?;
    let path = CString::new(dir.join("store.gdbm").to_str().ok_or("a path that is no text")?)?;
    let access = if how.mode == Mode::ReadOnly { GDBM_READER } else { GDBM_WRCREAT };
    // SAFETY: the path ends in 0; no function for fatal errors.
    let file = unsafe { (lib.gdbm_open)(path.as_ptr(), 0, access, 0o644, std::ptr::null()) };
    if file.is_null() {
        return Err(format!("gdbm_open: {}", std::io::Error::last_os_error()).into());
    }
    Ok(Box::new(Gnu { lib, file, sync: how.mode == Mode::Immediate }))
}

fn datum(bytes: &[u8]) -> Datum {
    Datum { bytes: bytes.as_ptr().cast_mut().cast(), size: bytes.len() as c_int }
}

impl Gnu {
    /// Calls `then` with what the library has allocated, and frees it.
    fn taken<R>(found: Datum, then: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if found.bytes.is_null() {
            return None;
        }
        // SAFETY: the library returned these bytes for us to free.
        unsafe {
            let result = then(std::slice::from_raw_parts(found.bytes.cast(), found.size as usize));
            libc::free(found.bytes.cast());
            Some(result)
        }
    }

    fn fetch<R>(&self, key: Datum, then: impl FnOnce(&[u8]) -> R) -> Option<R> {
        // SAFETY: the key lives through the call.
        Gnu::taken(unsafe { (self.lib.gdbm_fetch)(self.file, key) }, then)
    }

    fn store(&self, key: &Key, version: u64) -> Result<()> {
        let value = value(key, version);
        // SAFETY: key and value live through the call, which copies them.
        match unsafe { (self.lib.gdbm_store)(self.file, datum(key), datum(&value), GDBM_REPLACE) } {
            0 => Ok(()),
            code => Err(format!("gdbm_store: {code}").into()),
        }
    }
}

impl Drop for Gnu {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { (self.lib.gdbm_close)(self.file) };
    }
}

impl Store for Gnu {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the store is open.
        match unsafe { (self.lib.gdbm_sync)(self.file) } {
            0 => Ok(()),
            code => Err(format!("gdbm_sync: {code}").into()),
        }
    }
}

struct Thread<'a>(&'a Gnu);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            self.0.fetch(datum(key), |value| seen.add(value));
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        Ok(self.0.fetch(datum(key), Head::of))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        keys.iter().try_for_each(|key| self.0.store(key, version))?;
        if self.0.sync { self.0.sync() } else { Ok(()) }
    }

    fn scan(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        // SAFETY: each key is passed on once, and freed once.
        unsafe {
            let mut key = (self.0.lib.gdbm_firstkey)(self.0.file);
            while !key.bytes.is_null() {
                self.0.fetch(key, |value| seen.add(value));
                let next = (self.0.lib.gdbm_nextkey)(self.0.file, key);
                libc::free(key.bytes.cast());
                key = next;
            }
        }
        Ok(seen)
    }
}
