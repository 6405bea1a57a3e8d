//! Tkrzw's hash database.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use crate::data::{Head, KEY, Key, Seen, VALUE, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};
use crate::engines::library::library;

enum Dbm {}

type Processor = unsafe extern "C" fn(*mut c_void, *const c_char, i32, *const c_char, i32, *mut i32) -> *const c_char;

library!(Tkrzw, "libtkrzw.so.1", {
    fn tkrzw_dbm_open(*const c_char, bool, *const c_char) -> *mut Dbm;
    fn tkrzw_dbm_close(*mut Dbm) -> bool;
    fn tkrzw_dbm_process(*mut Dbm, *const c_char, i32, Processor, *mut c_void, bool) -> bool;
    fn tkrzw_dbm_process_each(*mut Dbm, Processor, *mut c_void, bool) -> bool;
    fn tkrzw_dbm_set(*mut Dbm, *const c_char, i32, *const c_char, i32, bool) -> bool;
    fn tkrzw_dbm_synchronize(*mut Dbm, bool, *const c_void, *mut c_void, *const c_char) -> bool;
    static TKRZW_REC_PROC_NOOP: *const c_char;
});

pub fn engine() -> Engine {
    Engine {
        name: "tkrzw",
        about: "HashDBM, two buckets a record, mapped file, updates in place; gets one by one (no snapshots); \
                batches are single puts",
        eventual: (Class::None, "in place in the map: a death may damage the store"),
        immediate: (Class::Flushed, "Synchronize(hard) after each commit"),
        processes: Processes::Readers,
        threads: true,
        overwrite_batch: 1,
        only: None,
        version: || Tkrzw::get().map(|_| "1".into()),
        open,
    }
}

struct Hash {
    lib: &'static Tkrzw,
    dbm: *mut Dbm,
    sync: bool,
}

// SAFETY: the library locks for its callers.
unsafe impl Sync for Hash {}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let lib = Tkrzw::get()?;
    let path = CString::new(dir.join("store.tkh").to_str().ok_or("a path that is no text")?)?;
    let params = CString::new(format!("num_buckets={},file=MemoryMapParallelFile", how.n * 2))?;
    // SAFETY: both strings end in 0.
    let dbm = unsafe { (lib.tkrzw_dbm_open)(path.as_ptr(), how.mode != Mode::ReadOnly, params.as_ptr()) };
    if dbm.is_null() {
        return Err("tkrzw_dbm_open failed".into());
    }
    Ok(Box::new(Hash { lib, dbm, sync: how.mode == Mode::Immediate }))
}

fn done(well: bool, what: &str) -> Result<()> {
    if well { Ok(()) } else { Err(format!("{what} failed").into()) }
}

/// The pointer that says that a record stays as it is.
fn nothing() -> *const c_char {
    Tkrzw::get().map_or(std::ptr::null(), |lib| lib.TKRZW_REC_PROC_NOOP)
}

/// Adds a value, where there is one, to what was seen.
unsafe extern "C" fn see(
    seen: *mut c_void,
    _: *const c_char,
    _: i32,
    value: *const c_char,
    size: i32,
    _: *mut i32,
) -> *const c_char {
    if !value.is_null() {
        // SAFETY: `seen` lives where the call began, and the value through this call.
        unsafe { (*seen.cast::<Seen>()).add(std::slice::from_raw_parts(value.cast(), size as usize)) };
    }
    nothing()
}

unsafe extern "C" fn take_head(
    head: *mut c_void,
    _: *const c_char,
    _: i32,
    value: *const c_char,
    size: i32,
    _: *mut i32,
) -> *const c_char {
    if !value.is_null() {
        // SAFETY: as in `see`.
        unsafe { *head.cast() = Some(Head::of(std::slice::from_raw_parts(value.cast(), size as usize))) };
    }
    nothing()
}

impl Hash {
    fn store(&self, key: &Key, version: u64) -> Result<()> {
        let value = value(key, version);
        // SAFETY: key and value live through the call, which copies them.
        let well = unsafe {
            (self.lib.tkrzw_dbm_set)(
                self.dbm,
                key.as_ptr().cast(),
                KEY as i32,
                value.as_ptr().cast(),
                VALUE as i32,
                true,
            )
        };
        done(well, "tkrzw_dbm_set")
    }
}

impl Drop for Hash {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { (self.lib.tkrzw_dbm_close)(self.dbm) };
    }
}

impl Store for Hash {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: no function to call on the file, no parameters.
        let well = unsafe {
            (self.lib.tkrzw_dbm_synchronize)(self.dbm, true, std::ptr::null(), std::ptr::null_mut(), c"".as_ptr())
        };
        done(well, "tkrzw_dbm_synchronize")
    }
}

struct Thread<'a>(&'a Hash);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            // SAFETY: key and `seen` live through the call.
            let well = unsafe {
                let seen = (&raw mut seen).cast();
                (self.0.lib.tkrzw_dbm_process)(self.0.dbm, key.as_ptr().cast(), KEY as i32, see, seen, false)
            };
            done(well, "tkrzw_dbm_process")?;
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        let mut head: Option<Head> = None;
        // SAFETY: key and head live through the call.
        let well = unsafe {
            let head = (&raw mut head).cast();
            (self.0.lib.tkrzw_dbm_process)(self.0.dbm, key.as_ptr().cast(), KEY as i32, take_head, head, false)
        };
        done(well, "tkrzw_dbm_process")?;
        Ok(head)
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        keys.iter().try_for_each(|key| self.0.store(key, version))?;
        if self.0.sync { self.0.sync() } else { Ok(()) }
    }

    fn scan(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        // SAFETY: `seen` lives through the call.
        let well = unsafe { (self.0.lib.tkrzw_dbm_process_each)(self.0.dbm, see, (&raw mut seen).cast(), false) };
        done(well, "tkrzw_dbm_process_each")?;
        Ok(seen)
    }
}
