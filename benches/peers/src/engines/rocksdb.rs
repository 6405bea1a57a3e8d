//! RocksDB, through its C interface.

use std::ffi::{CStr, CString, c_char, c_int, c_uchar};
use std::path::Path;
use std::ptr::{null, null_mut};

use crate::data::{Head, KEY, Key, Seen, VALUE, value};
use crate::engine::{Class, Engine, How, Mode, Processes, Result, Session, Store};
use crate::engines::library::library;

/// Each of the library's opaque types; only pointers to them are ever seen.
enum Opaque {}

type Ptr = *mut Opaque;
type Errors = *mut *mut c_char;

library!(Rocks, "librocksdb.so.7.8", {
    fn rocksdb_options_create() -> Ptr;
    fn rocksdb_options_destroy(Ptr);
    fn rocksdb_options_set_create_if_missing(Ptr, c_uchar);
    fn rocksdb_options_increase_parallelism(Ptr, c_int);
    fn rocksdb_options_set_level_compaction_dynamic_level_bytes(Ptr, c_uchar);
    fn rocksdb_options_set_bytes_per_sync(Ptr, u64);
    fn rocksdb_options_set_block_based_table_factory(Ptr, Ptr);
    fn rocksdb_block_based_options_create() -> Ptr;
    fn rocksdb_block_based_options_destroy(Ptr);
    fn rocksdb_block_based_options_set_filter_policy(Ptr, Ptr);
    fn rocksdb_filterpolicy_create_bloom_full(f64) -> Ptr;
    fn rocksdb_block_based_options_set_block_cache(Ptr, Ptr);
    fn rocksdb_cache_create_lru(usize) -> Ptr;
    fn rocksdb_cache_destroy(Ptr);
    fn rocksdb_open_column_families(
        Ptr, *const c_char, c_int, *const *const c_char, *const Ptr, *mut Ptr, Errors,
    ) -> Ptr;
    fn rocksdb_column_family_handle_destroy(Ptr);
    fn rocksdb_close(Ptr);
    fn rocksdb_writeoptions_create() -> Ptr;
    fn rocksdb_writeoptions_set_sync(Ptr, c_uchar);
    fn rocksdb_writeoptions_destroy(Ptr);
    fn rocksdb_readoptions_create() -> Ptr;
    fn rocksdb_readoptions_destroy(Ptr);
    fn rocksdb_put(Ptr, Ptr, *const c_char, usize, *const c_char, usize, Errors);
    fn rocksdb_get_pinned(Ptr, Ptr, *const c_char, usize, Errors) -> Ptr;
    fn rocksdb_pinnableslice_value(Ptr, *mut usize) -> *const c_char;
    fn rocksdb_pinnableslice_destroy(Ptr);
    fn rocksdb_batched_multi_get_cf(
        Ptr, Ptr, Ptr, usize, *const *const c_char, *const usize, *mut Ptr, Errors, bool,
    );
    fn rocksdb_writebatch_create() -> Ptr;
    fn rocksdb_writebatch_put(Ptr, *const c_char, usize, *const c_char, usize);
    fn rocksdb_writebatch_destroy(Ptr);
    fn rocksdb_write(Ptr, Ptr, Ptr, Errors);
    fn rocksdb_create_iterator(Ptr, Ptr) -> Ptr;
    fn rocksdb_iter_seek_to_first(Ptr);
    fn rocksdb_iter_valid(Ptr) -> c_uchar;
    fn rocksdb_iter_next(Ptr);
    fn rocksdb_iter_value(Ptr, *mut usize) -> *const c_char;
    fn rocksdb_iter_destroy(Ptr);
    fn rocksdb_flush_wal(Ptr, c_uchar, Errors);
    fn rocksdb_free(*mut std::ffi::c_void);
});

pub fn engine() -> Engine {
    Engine {
        name: "rocksdb",
        about: "bloom filters of 10 bits, LRU block cache of the size of the data (at least 1 GiB), dynamic level \
                bytes, bytes_per_sync 1 MiB, a background thread a core; pinned gets; batched MultiGet",
        eventual: (Class::Process, "sync=false: the log is written to the page cache with each commit"),
        immediate: (Class::Durable, "sync=true"),
        processes: Processes::One,
        threads: true,
        overwrite_batch: 1,
        only: None,
        version: || Rocks::get().map(|_| "7.8".into()),
        open,
    }
}

struct Lsm {
    lib: &'static Rocks,
    db: Ptr,
    family: Ptr,
    write: Ptr,
    read: Ptr,
}

// SAFETY: a database and its options may be used by several threads.
unsafe impl Sync for Lsm {}

fn options(lib: &Rocks, how: How) -> Ptr {
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get() as c_int);
    // SAFETY: new objects of the types that these functions take; the options share the cache and own the filter.
    unsafe {
        let table = (lib.rocksdb_block_based_options_create)();
        let cache = (lib.rocksdb_cache_create_lru)((how.n as usize * 300).max(1 << 30));
        (lib.rocksdb_block_based_options_set_block_cache)(table, cache);
        (lib.rocksdb_block_based_options_set_filter_policy)(table, (lib.rocksdb_filterpolicy_create_bloom_full)(10.0));
        let options = (lib.rocksdb_options_create)();
        (lib.rocksdb_options_set_create_if_missing)(options, 1);
        (lib.rocksdb_options_increase_parallelism)(options, cores);
        (lib.rocksdb_options_set_level_compaction_dynamic_level_bytes)(options, 1);
        (lib.rocksdb_options_set_bytes_per_sync)(options, 1 << 20);
        (lib.rocksdb_options_set_block_based_table_factory)(options, table);
        (lib.rocksdb_block_based_options_destroy)(table);
        (lib.rocksdb_cache_destroy)(cache);
        options
    }
}

fn open(dir: &Path, how: How) -> Result<Box<dyn Store>> {
    let lib = Rocks::get()?;
    let path = CString::new(dir.join("store.rocksdb").to_str().ok_or("a path that is no text")?)?;
    let options = options(lib, how);
    let (names, mut family) = ([c"default".as_ptr()], null_mut());
    // SAFETY: one column family, its name, its options, room for its handle; all strings end in 0.
    unsafe {
        let db = fallible(lib, |errors| {
            (lib.rocksdb_open_column_families)(options, path.as_ptr(), 1, names.as_ptr(), &options, &mut family, errors)
        });
        (lib.rocksdb_options_destroy)(options);
        let db = db?;
        let write = (lib.rocksdb_writeoptions_create)();
        (lib.rocksdb_writeoptions_set_sync)(write, u8::from(how.mode == Mode::Immediate));
        let read = (lib.rocksdb_readoptions_create)();
        Ok(Box::new(Lsm { lib, db, family, write, read }))
    }
}

fn fallible<R>(lib: &Rocks, call: impl FnOnce(Errors) -> R) -> Result<R> {
    let mut error = null_mut();
    let result = call(&mut error);
    taken(lib, error).map(|()| result)
}

/// The error of a call, if there was one, freed.
fn taken(lib: &Rocks, error: *mut c_char) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the library returned this string for us to free.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        (lib.rocksdb_free)(error.cast());
        Err(text.into())
    }
}

impl Lsm {
    /// Calls `then` with a pinned value, if there is one, and lets it go.
    fn unpin<R>(&self, pinned: Ptr, then: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if pinned.is_null() {
            return None;
        }
        let mut len = 0;
        // SAFETY: the value lives until it is destroyed.
        unsafe {
            let value = (self.lib.rocksdb_pinnableslice_value)(pinned, &mut len);
            let result = (!value.is_null()).then(|| then(std::slice::from_raw_parts(value.cast(), len)));
            (self.lib.rocksdb_pinnableslice_destroy)(pinned);
            result
        }
    }

    fn read<R>(&self, key: &Key, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        // SAFETY: the key lives through the call.
        let pinned = fallible(self.lib, |errors| unsafe {
            (self.lib.rocksdb_get_pinned)(self.db, self.read, key.as_ptr().cast(), KEY, errors)
        })?;
        Ok(self.unpin(pinned, then))
    }
}

impl Drop for Lsm {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; sessions borrow this.
        unsafe {
            (self.lib.rocksdb_column_family_handle_destroy)(self.family);
            (self.lib.rocksdb_close)(self.db);
            (self.lib.rocksdb_writeoptions_destroy)(self.write);
            (self.lib.rocksdb_readoptions_destroy)(self.read);
        }
    }
}

impl Store for Lsm {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread(self)))
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the database is open.
        fallible(self.lib, |errors| unsafe { (self.lib.rocksdb_flush_wal)(self.db, 1, errors) })
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Thread<'a>(&'a Lsm);

impl Session for Thread<'_> {
    fn gets(&mut self, keys: &[Key]) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in keys {
            self.0.read(key, |value| seen.add(value))?;
        }
        Ok(seen)
    }

    fn get_many16(&mut self, keys: &[Key]) -> Result<Seen> {
        let Lsm { lib, db, family, read, .. } = *self.0;
        let mut seen = Seen::default();
        for keys in keys.chunks(16) {
            let (mut names, mut values, mut errors) = ([null(); 16], [null_mut(); 16], [null_mut(); 16]);
            names.iter_mut().zip(keys).for_each(|(name, key)| *name = key.as_ptr().cast::<c_char>());
            // SAFETY: arrays of as many as the call is told, which live through it.
            unsafe {
                (lib.rocksdb_batched_multi_get_cf)(
                    db,
                    read,
                    family,
                    keys.len(),
                    names.as_ptr(),
                    [KEY; 16].as_ptr(),
                    values.as_mut_ptr(),
                    errors.as_mut_ptr(),
                    false,
                );
            }
            for (value, error) in values.into_iter().zip(errors) {
                self.0.unpin(value, |value| seen.add(value));
                taken(lib, error)?;
            }
        }
        Ok(seen)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Head>> {
        self.0.read(key, Head::of)
    }

    fn put(&mut self, key: &Key, version: u64) -> Result<()> {
        let Lsm { lib, db, write, .. } = *self.0;
        let value = value(key, version);
        // SAFETY: key and value live through the call, which copies them.
        fallible(lib, |errors| unsafe {
            (lib.rocksdb_put)(db, write, key.as_ptr().cast(), KEY, value.as_ptr().cast(), VALUE, errors);
        })
    }

    fn put_batch(&mut self, keys: &[Key], version: u64) -> Result<()> {
        let Lsm { lib, db, write, .. } = *self.0;
        // SAFETY: the batch copies keys and values, and is destroyed after it was written.
        unsafe {
            let batch = (lib.rocksdb_writebatch_create)();
            for key in keys {
                let value = value(key, version);
                (lib.rocksdb_writebatch_put)(batch, key.as_ptr().cast(), KEY, value.as_ptr().cast(), VALUE);
            }
            let written = fallible(lib, |errors| (lib.rocksdb_write)(db, write, batch, errors));
            (lib.rocksdb_writebatch_destroy)(batch);
            written
        }
    }

    fn scan(&mut self) -> Result<Seen> {
        let Lsm { lib, db, read, .. } = *self.0;
        let mut seen = Seen::default();
        // SAFETY: a value lives until the iterator moves; the iterator is destroyed before the database is closed.
        unsafe {
            let iterator = (lib.rocksdb_create_iterator)(db, read);
            (lib.rocksdb_iter_seek_to_first)(iterator);
            while (lib.rocksdb_iter_valid)(iterator) != 0 {
                let mut len = 0;
                let value = (lib.rocksdb_iter_value)(iterator, &mut len);
                seen.add(std::slice::from_raw_parts(value.cast(), len));
                (lib.rocksdb_iter_next)(iterator);
            }
            (lib.rocksdb_iter_destroy)(iterator);
        }
        Ok(seen)
    }
}
