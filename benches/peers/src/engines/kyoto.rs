//! Kyoto Cabinet's hash database.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;

use crate::data::{Head, Key, Seen, VALUE, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};
use crate::engines::library::library;

enum Db {}

type Visitor =
    unsafe extern "C" fn(*const c_char, usize, *const c_char, usize, *mut usize, *mut c_void) -> *const c_char;

library!(Kyoto, "libkyotocabinet.so.16", {
    fn kcdbnew() -> *mut Db;
    fn kcdbdel(*mut Db);
    fn kcdbopen(*mut Db, *const c_char, u32) -> i32;
    fn kcdbclose(*mut Db) -> i32;
    fn kcdbemsg(*mut Db) -> *const c_char;
    fn kcdbset(*mut Db, *const c_char, usize, *const c_char, usize) -> i32;
    fn kcdbgetbuf(*mut Db, *const c_char, usize, *mut c_char, usize) -> i32;
    fn kcdbsync(*mut Db, i32, *const c_void, *mut c_void) -> i32;
    fn kcdbbegintran(*mut Db, i32) -> i32;
    fn kcdbendtran(*mut Db, i32) -> i32;
    fn kcdbiterate(*mut Db, Visitor, *mut c_void, i32) -> i32;
});

const KCOREADER: u32 = 1;
const KCOWRITER: u32 = 1 << 1;
const KCOCREATE: u32 = 1 << 2;

pub fn engine() -> Engine {
    Engine {
        name: "kyotocabinet",
        about: "HashDB, two buckets a record, opts=linear, the whole file mapped; gets one by one (no snapshots)",
        eventual: (Class::None, "in place in the map: a death may damage the store"),
        immediate: (Class::Durable, "each in a hard transaction"),
        processes: Processes::Readers,
        threads: true,
        overwrite_batch: 1,
        only: None,
        version: || Kyoto::get().map(|_| "1.2".into()),
        open,
    }
}

struct Cabinet {
    lib: &'static Kyoto,
    db: *mut Db,
    transactions: bool,
}

// SAFETY: the library locks for its callers.
unsafe impl Sync for Cabinet {}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let lib = Kyoto::get()?;
    let path = dir.join("store.kch");
    let path = path.to_str().ok_or("a path that is no text")?;
    let path = CString::new(format!("{path}#bnum={}#opts=l#msiz={}", how.n * 2, how.n * 400 + (64 << 20)))?;
    let mode = match how.mode {
        Mode::Eventual | Mode::Immediate => KCOWRITER | KCOCREATE,
        Mode::ReadOnly => KCOREADER,
    };
    // SAFETY: a new object; the path ends in 0.
    let (cabinet, code) = unsafe {
        let cabinet = Cabinet { lib, db: (lib.kcdbnew)(), transactions: how.mode == Mode::Immediate };
        let code = (lib.kcdbopen)(cabinet.db, path.as_ptr(), mode);
        (cabinet, code)
    };
    cabinet.done(code)?;
    Ok(Box::new(cabinet))
}

impl Cabinet {
    fn done(&self, code: i32) -> Result<()> {
        if code != 0 {
            return Ok(());
        }
        // SAFETY: returns a string that lives on.
        Err(unsafe { CStr::from_ptr((self.lib.kcdbemsg)(self.db)) }.to_string_lossy().into())
    }

    fn read(&self, key: &Key) -> Option<Head> {
        let mut buffer = [0u8; VALUE];
        // SAFETY: at most as many bytes as the buffer has.
        let len = unsafe {
            (self.lib.kcdbgetbuf)(self.db, key.as_ptr().cast(), key.len(), buffer.as_mut_ptr().cast(), VALUE)
        };
        usize::try_from(len).ok().map(|len| Head::of(&buffer[..len.min(VALUE)]))
    }

    fn store(&self, key: &Key, version: u64) -> Result<()> {
        let value = value(key, version);
        // SAFETY: key and value live through the call, which copies them.
        self.done(unsafe { (self.lib.kcdbset)(self.db, key.as_ptr().cast(), key.len(), value.as_ptr().cast(), VALUE) })
    }
}

impl Drop for Cabinet {
    fn drop(&mut self) {
        // SAFETY: made once, deleted once, which closes it.
        unsafe { (self.lib.kcdbdel)(self.db) };
    }
}

impl Store for Cabinet {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: no function to call on the file.
        self.done(unsafe { (self.lib.kcdbsync)(self.db, 1, std::ptr::null(), std::ptr::null_mut()) })
    }

    fn close(self: Box<Self>) -> Result<()> {
        // SAFETY: the store is open.
        self.done(unsafe { (self.lib.kcdbclose)(self.db) })
    }
}

struct Thread<'a>(&'a Cabinet);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            if let Some(head) = self.0.read(key) {
                seen.merge(Seen { found: 1, sum: head.check });
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        Ok(self.0.read(key))
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let store = || keys.iter().try_for_each(|key| self.0.store(key, version));
        if !self.0.transactions {
            return store();
        }
        // SAFETY: the store is open, and the transaction is ended either way.
        unsafe {
            self.0.done((self.0.lib.kcdbbegintran)(self.0.db, 1))?;
            let stored = store();
            self.0.done((self.0.lib.kcdbendtran)(self.0.db, i32::from(stored.is_ok())))?;
            stored
        }
    }

    fn scan(&mut self) -> Result<Seen> {
        unsafe extern "C" fn visit(
            _: *const c_char,
            _: usize,
            value: *const c_char,
            size: usize,
            _: *mut usize,
            seen: *mut c_void,
        ) -> *const c_char {
            // SAFETY: `seen` is the one below, and the value lives through this call.
            unsafe { (*seen.cast::<Seen>()).add(std::slice::from_raw_parts(value.cast(), size)) };
            // What it returns is looked at in writable iterations only.
            std::ptr::null()
        }
        let mut seen = Seen::default();
        // SAFETY: `seen` lives through the call.
        self.0.done(unsafe { (self.0.lib.kcdbiterate)(self.0.db, visit, (&raw mut seen).cast(), 0) })?;
        Ok(seen)
    }
}
