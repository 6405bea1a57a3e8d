//! Opening and closing: who is alone recovers, everybody else joins.
//!
//! The open byte orders openers and closers. Whoever gets the attach byte exclusively is alone and sets up the shared
//! words; then all hold it shared. Read-only openers that find nobody replay in private memory instead, and hold the
//! read-only byte.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::control::{Core, LAYOUT, Word};
use crate::engine::checkpoint::CLOSE_LOG;
use crate::engine::create::create;
use crate::engine::lock::{Deadline, wait_for_byte};
use crate::engine::{Engine, Settings};
use crate::error::{Error, Result};
use crate::format::extent::Kind;
use crate::format::header::{BadHeader, HEADER_LEN, Header};
use crate::format::{MAX_EXTENT, MIN_EXTENT};
use crate::geometry::Geometry;
use crate::options::Options;
use crate::readers::{Lanes, bytes};
use crate::space::Claim;
use crate::sys::disk::{Disk, FileDisk, PrivateDisk};
use crate::sys::file::{self, FileSystem, Identity};
use crate::sys::fork;
use crate::sys::lock::{LockFile, Mode};
use crate::sys::sigbus::Guard;

/// What a store that is replayed in private memory may grow by, beyond its own size.
const PRIVATE_SLACK: u64 = 1 << 30;
/// How long a closer waits to find out whether it is the last one.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Links that the system follows, at most.
const MOST_LINKS: usize = 40;

type Registry = HashMap<(Identity, bool, u64), Weak<Handle>>;

/// The stores this process has open: two handles of one file share an engine.
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

/// What all handles of one file in this process share. The last one to go closes the store.
pub struct Handle {
    /// The store.
    pub engine: Arc<Engine>,
    closed: bool,
}

impl Handle {
    /// The handle of a store that has just been opened.
    fn begin(engine: Arc<Engine>) -> Result<Arc<Handle>> {
        let handle = Handle { engine, closed: false };
        if handle.engine.core.writable {
            handle.engine.finish_syncs()?;
        }
        Ok(Arc::new(handle))
    }

    /// Closes the store now, and tells of errors.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        self.engine.shut_down()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.closed
            && let Err(e) = self.engine.shut_down()
        {
            log::error!("close: {e}");
        }
    }
}

/// Opens a store, or shares what this process has open already.
pub fn open(path: &Path, options: &Options) -> Result<Arc<Handle>> {
    if options.create_new {
        create(path, options)?;
    }
    let opened = open_existing(path, options);
    match opened {
        Err(Error::NotFound { .. }) if options.create => {
            match create(&end_of_links(path), options) {
                // Somebody else was faster.
                Err(Error::Exists { .. }) | Ok(()) => {}
                Err(e) => return Err(e),
            }
            open_existing(path, options)
        }
        opened => opened,
    }
}

/// Where a path leads to that does not exist, as `open(2)` would create it: through links that lead to nothing. There
/// are no loops among them, since those are another error.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        // What is joined to may be absolute, and then is all.
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

fn open_existing(path: &Path, options: &Options) -> Result<Arc<Handle>> {
    let identity = file::identity_of_path(path).map_err(|e| open_error(path, e))?;
    let key = (identity, options.read_only, fork::generation());
    let known = || {
        let handle = REGISTRY.lock().get_or_insert_default().get(&key).and_then(Weak::upgrade);
        handle.inspect(|handle| handle.engine.core.set_bound(options))
    };
    if let Some(handle) = known() {
        return Ok(handle);
    }
    // Not under the registry's lock: this may wait for other processes.
    let handle = Handle::begin(attach(path, options)?)?;
    if !handle.engine.core.shared {
        // What was replayed in private memory is of its moment: the next opener wants its own.
        return Ok(handle);
    }
    if let Some(other) = known() {
        // Another thread was faster; two engines of one process would do no harm, but one is enough.
        return Ok(other);
    }
    let mut registry = REGISTRY.lock();
    let registry = registry.get_or_insert_default();
    registry.retain(|_, handle| handle.strong_count() > 0);
    registry.insert(key, Arc::downgrade(&handle));
    Ok(handle)
}

/// The error of a path that cannot be opened.
fn open_error(path: &Path, source: std::io::Error) -> Error {
    let path = path.to_path_buf();
    match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::Permission { path, source },
        ErrorKind::IsADirectory => Error::NotAStore { path, why: "a directory".to_string() },
        _ => Error::Io { path, op: "open", offset: None, source },
    }
}

/// Opens the data file, after a look at what kind of file it is.
fn open_file(path: &Path, write: bool) -> Result<File> {
    let meta = std::fs::metadata(path).map_err(|e| open_error(path, e))?;
    let kind = meta.file_type();
    let why = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        "not a regular file"
    } else {
        ""
    };
    if !why.is_empty() {
        return Err(Error::NotAStore { path: path.to_path_buf(), why: why.to_string() });
    }
    OpenOptions::new().read(true).write(write).custom_flags(libc_nonblock()).open(path).map_err(|e| open_error(path, e))
}

/// A fifo that takes the place of the store must not block.
fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

/// The newest valid header, and the geometry it names.
fn read_header(file: &File, path: &Path) -> Result<Header> {
    let io = |source| Error::Io { path: path.to_path_buf(), op: "read", offset: Some(0), source };
    let len = file.metadata().map_err(io)?.len();
    let slot = |at: u64| {
        let mut bytes = [0; HEADER_LEN];
        if at + HEADER_LEN as u64 > len {
            return Ok(Err(BadHeader::Magic));
        }
        file::read_exact_at(file, at, &mut bytes).map_err(io).map(|()| Header::parse(&bytes))
    };
    let a = slot(0)?;
    // Where B is follows from the extent size, which only a valid A can tell.
    let mut places: Vec<u64> = match &a {
        Ok(header) => vec![header.extent_size.get() / 2],
        Err(_) => (MIN_EXTENT.ilog2()..=MAX_EXTENT.ilog2()).map(|n| 1 << n >> 1).collect(),
    };
    let mut newest = a.ok();
    let mut worst = a.err();
    for place in places.drain(..) {
        match slot(place)? {
            Ok(b) if b.extent_size.get() / 2 == place => {
                if newest.is_none_or(|n| n.generation < b.generation) {
                    newest = Some(b);
                }
                // What lies behind the first one found may be a user's data.
                break;
            }
            Ok(_) => {}
            Err(e @ (BadHeader::Version(_) | BadHeader::Features(_))) => worst = Some(e),
            Err(_) => {}
        }
    }
    let header = newest.ok_or_else(|| bad_header(path, worst.unwrap_or(BadHeader::Magic), len))?;
    if let Some(BadHeader::Version(_) | BadHeader::Features(_)) = worst {
        return Err(bad_header(path, worst.unwrap_or(BadHeader::Magic), len));
    }
    // The file may have grown since the first look at it.
    let len = file.metadata().map_err(io)?.len();
    if len < header.file_len.get() {
        return Err(Error::Truncated { path: path.to_path_buf(), expected: header.file_len.get(), found: len });
    }
    Ok(header)
}

fn bad_header(path: &Path, bad: BadHeader, len: u64) -> Error {
    let path = path.to_path_buf();
    let corrupt = |path, what: &str| Error::Corrupt { path, offset: 0, what: what.to_string() };
    match bad {
        BadHeader::Magic if len == 0 => Error::NotAStore { path, why: "the file is empty".to_string() },
        BadHeader::Magic => Error::NotAStore { path, why: "it does not begin like one".to_string() },
        BadHeader::Checksum => corrupt(path, "checksum of both header slots"),
        BadHeader::Field(field) => corrupt(path, &format!("{field} in both header slots")),
        BadHeader::Version(found) => Error::Version { path, found },
        BadHeader::Features(bits) => Error::Features { path, bits },
    }
}

/// How an opener takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Reads and writes; alone, so it recovers.
    First,
    /// Reads and writes beside others.
    Joins,
    /// Reads beside live processes.
    ReadsShared,
    /// Reads alone, in private memory.
    ReadsAlone,
}

fn attach(path: &Path, options: &Options) -> Result<Arc<Engine>> {
    attach_with(path, options, |role, file, geometry| {
        let guard = options.guard_sigbus.then(|| Guard::new(&file)).transpose()?;
        Ok(match role {
            Role::ReadsAlone => {
                let slack = PRIVATE_SLACK + file.metadata()?.len() / 4;
                Box::new(PrivateDisk::new(file, slack, guard)?)
            }
            _ => Box::new(FileDisk::new(file, !options.read_only, geometry.extent, options.reserve, guard)?),
        })
    })
}

/// Opens the store at `path` on a disk of the caller's, which has the same file, past the registry.
#[cfg(feature = "faults")]
pub fn open_on(path: &Path, options: &Options, disk: Box<dyn Disk>) -> Result<Arc<Handle>> {
    Handle::begin(attach_with(path, options, |_, _, _| Ok(disk))?)
}

fn attach_with(
    path: &Path,
    options: &Options,
    disk: impl FnOnce(Role, File, &Geometry) -> std::io::Result<Box<dyn Disk>>,
) -> Result<Arc<Engine>> {
    let write = !options.read_only;
    let file = open_file(path, write)?;
    let volatile_fs = is_volatile(&file, path)?;
    let locks = LockFile::open(path, write).map_err(|e| open_error(path, e))?;
    let deadline = Deadline::new(options.lock_timeout);
    let role = take_part(path, &locks, write, &deadline)?;
    same_file(path, &file, &locks)?;
    let header = read_header(&file, path)?;
    let geometry = Geometry::of(&header);
    let failed = |source| Error::Io { path: path.to_path_buf(), op: "map", offset: None, source };
    let disk = disk(role, file, &geometry).map_err(failed)?;
    let map = disk.map().clone();
    let too_short = || Error::Corrupt {
        path: path.to_path_buf(),
        offset: geometry.extent,
        what: "the file ends in front of the shared words".to_string(),
    };
    let core = Core {
        path: path.to_path_buf(),
        disk,
        pane: geometry.pane(&map).ok_or_else(too_short)?,
        map,
        locks,
        geometry,
        lanes: Lanes::default(),
        shared: role != Role::ReadsAlone,
        writable: write,
        volatile_fs,
        verify: options.verify_checksums,
    };
    let ready = core.set_up(role, &header, options);
    core.settled(ready)?;
    let settings = Settings {
        checkpoint_bytes: options.checkpoint_bytes,
        lock_timeout: options.lock_timeout,
        writer_lock: options.writer_lock,
        max_dead_ratio: options.max_dead_ratio,
        slack: options.slack,
    };
    Ok(Engine::new(core, settings))
}

/// Whether the file system loses all with the power; those that cannot share a store are refused.
fn is_volatile(file: &File, path: &Path) -> Result<bool> {
    let io = |source| Error::Io { path: path.to_path_buf(), op: "statfs", offset: None, source };
    match file::file_system(file).map_err(io)? {
        FileSystem::Refused(name) => {
            let what = format!("{name} does not share memory maps and locks between all who open the file");
            Err(Error::Unsupported { path: path.to_path_buf(), what })
        }
        kind => Ok(kind == FileSystem::Volatile),
    }
}

/// The descriptors and the path are one file: it was not replaced meanwhile.
fn same_file(path: &Path, file: &File, locks: &LockFile) -> Result<()> {
    let io = |source| Error::Io { path: path.to_path_buf(), op: "stat", offset: None, source };
    let opened = file::identity(file).map_err(io)?;
    let now = file::identity_of_path(path).map_err(|e| open_error(path, e))?;
    if opened != locks.identity().map_err(io)? || opened != now {
        return Err(Error::Replaced { path: path.to_path_buf() });
    }
    Ok(())
}

/// Takes the open byte, and finds out who else is there.
fn take_part(path: &Path, locks: &LockFile, write: bool, deadline: &Deadline) -> Result<Role> {
    let io = |source| Error::Io { path: path.to_path_buf(), op: "lock", offset: None, source };
    let mode = if write { Mode::Exclusive } else { Mode::Shared };
    let mut nap = Duration::from_micros(50);
    while !locks.try_byte(bytes::OPEN, mode).map_err(io)? {
        if deadline.is_past() {
            return Err(Error::Timeout {
                path: path.to_path_buf(),
                what: "lock of openers",
                waited: deadline.elapsed(),
                holder: None,
            });
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(5));
    }
    if write {
        let alone = locks.try_byte(bytes::ATTACH, Mode::Exclusive).map_err(io)?;
        if !alone {
            locks.try_byte(bytes::ATTACH, Mode::Shared).map_err(io)?;
        }
        return Ok(if alone { Role::First } else { Role::Joins });
    }
    locks.try_byte(bytes::READ_ONLY, Mode::Shared).map_err(io)?;
    if locks.conflict(bytes::ATTACH, 1).map_err(io)?.is_none() {
        return Ok(Role::ReadsAlone);
    }
    // It counts as a user of the shared words, so that nobody sets them up anew under it.
    locks.try_byte(bytes::ATTACH, Mode::Shared).map_err(io)?;
    Ok(Role::ReadsShared)
}

impl Core {
    /// Recovers or joins, and lets the next opener in.
    fn set_up(&self, role: Role, header: &Header, options: &Options) -> Result<()> {
        let io = |e| self.io("lock", None, e);
        match role {
            Role::First => {
                // Alone: the file has what it had a moment ago.
                self.map.set_len(self.map.len()).map_err(io)?;
                let older = self.locks.conflict(bytes::GENERATION, header.generation.get()).map_err(io)?;
                self.recover(header, older.is_some())?;
                if let Err(e) = self.ensure_free(Kind::Log, 0, Claim::Move) {
                    log::warn!("no room for the standing reserve: {e}");
                }
                self.try_blob_room();
                self.locks.try_byte(bytes::ATTACH, Mode::Shared).map_err(io)?;
            }
            Role::ReadsAlone => {
                self.recover(header, false)?;
                for byte in [bytes::PIN + self.get(Word::Visible), bytes::GENERATION + header.generation.get()] {
                    self.locks.try_byte(byte, Mode::Shared).map_err(io)?;
                }
            }
            Role::Joins | Role::ReadsShared => self.join()?,
        }
        if self.writable {
            self.enter_process()?;
        }
        self.set_bound(options);
        self.locks.unlock_byte(bytes::OPEN).map_err(io)
    }

    /// The bound is of the store: who opens it with another one changes it for all.
    fn set_bound(&self, options: &Options) {
        if let Some(max) = options.max_size.filter(|_| self.writable) {
            self.set(Word::MaxSize, max);
        }
    }

    /// The shared words are there, and of a layout this code knows.
    fn join(&self) -> Result<()> {
        if self.get(Word::Layout) != LAYOUT {
            let what = "open in processes of another version of slotdb".to_string();
            return Err(Error::Unsupported { path: self.path.clone(), what });
        }
        // From here on the file has these extents; it may be longer while somebody adds to it.
        let len = self.position_of(self.extents()).min(self.map.len());
        self.map.set_len(len).map_err(|e| self.io("map", None, e))?;
        self.check_poison()
    }
}

impl Engine {
    /// Ends the use of the store by this process: the last one to leave makes a checkpoint if a replay would take long.
    pub fn shut_down(&self) -> Result<()> {
        let core = &self.core;
        if self.is_forked() {
            // The threads, and whoever held a mutex at the fork, are the parent's.
            return Ok(());
        }
        self.join_background();
        self.stop_keeper();
        if !core.writable {
            return Ok(());
        }
        let deadline = Deadline::new(CLOSE_WAIT);
        let mut cut = Ok(None);
        if wait_for_byte(core, bytes::OPEN, Mode::Exclusive, &deadline)? {
            let last = core.locks.try_byte(bytes::ATTACH, Mode::Exclusive).map_err(|e| core.io("lock", None, e))?;
            if last && core.check_poison().is_ok() {
                let due = self.log_since_checkpoint() > CLOSE_LOG;
                cut = if due { self.checkpoint() } else { Ok(()) }.and_then(|()| self.cut());
            }
        }
        core.leave_process();
        match core.proven(cut)? {
            // The last thing: the map is longer than the file now.
            Some(len) => core.disk.truncate(len).map_err(|e| core.io("truncate", len, e)),
            None => Ok(()),
        }
    }
}
