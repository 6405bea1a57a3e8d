//! A new store: built in a temporary file, made durable, then linked to its name, so that nobody ever sees half of one.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::blob::{BLOB_BLOB, BLOB_INDEX, BLOB_LOG, Blob, BlobExtent, BlobPage};
use crate::format::header::{Header, MAGIC, VERSION};
use crate::format::record::{SEGMENT_HEADER, SEGMENT_MAGIC, SegmentHeader};
use crate::format::slot::PAGE_WORDS;
use crate::geometry::Geometry;
use crate::index::page::Page;
use crate::options::Options;
use crate::sys::atomic::AtomicU64;
use crate::sys::file::{self, FileSystem};
use crate::sys::host;

/// Creates the store, durable with its name. `Exists` if there is a file by then.
pub fn create(path: &Path, options: &Options) -> Result<()> {
    let io = |op| move |source| Error::Io { path: path.to_path_buf(), op, offset: None, source };
    let parent = parent_of(path);
    let mut builder = tempfile::Builder::new();
    // What the umask leaves of this is what any new file would get.
    builder.prefix(".slotdb-").permissions(Permissions::from_mode(0o666));
    let temporary = builder.tempfile_in(&parent).map_err(|e| not_writable(path, e))?;
    let btrfs = file::file_system(temporary.as_file()).map_err(io("statfs"))? == FileSystem::Btrfs;
    if btrfs {
        // Copy-on-write would undo what fallocate reserved.
        file::set_nocow(temporary.as_file());
    }
    write_new(temporary.as_file(), path, options)?;
    temporary.as_file().sync_all().map_err(io("sync"))?;
    temporary.persist_noclobber(path).map_err(|e| match e.error.kind() {
        ErrorKind::AlreadyExists => Error::Exists { path: path.to_path_buf() },
        _ => io("link")(without_path(e.error)),
    })?;
    file::sync_dir(&parent).map_err(io("sync of the directory"))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The error of a directory that takes no file, or that is not there.
fn not_writable(path: &Path, source: std::io::Error) -> Error {
    let source = without_path(source);
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Error::Permission { path: path.to_path_buf(), source }
        }
        _ => Error::Io { path: path.to_path_buf(), op: "create", offset: None, source },
    }
}

/// The system's own error: what `tempfile` makes of it names a file that nobody asked for.
fn without_path(error: std::io::Error) -> std::io::Error {
    let inner = error.get_ref().and_then(|named| named.source()?.downcast_ref::<std::io::Error>()?.raw_os_error());
    inner.map_or(error, std::io::Error::from_raw_os_error)
}

/// Positions of a new store's parts.
struct Parts {
    log: u64,
    index: u64,
    blob: u64,
    end: u64,
}

impl Parts {
    fn of(geometry: &Geometry) -> Parts {
        let first = geometry.fixed_extents();
        let at = |n: u64| (first + n) * geometry.extent;
        Parts { log: at(0), index: at(1), blob: at(2), end: at(3) }
    }
}

fn write_new(file: &File, path: &Path, options: &Options) -> Result<()> {
    let random = || host::random::<16>().map_err(|source| failed(path, "random", None, source));
    let seed = u64::from_le_bytes(*random()?.first_chunk().expect("16 bytes hold 8"));
    let geometry = Geometry::new(options.extent_size, seed, random()?, host::coarse_now());
    let parts = Parts::of(&geometry);
    if let Some(max) = options.max_size.filter(|&max| max < parts.end + 4 * geometry.extent) {
        let least = parts.end + 4 * geometry.extent;
        return Err(Error::Invalid {
            what: format!("max_size of {max} bytes is below the least store of {least} bytes"),
        });
    }
    allocate(file, path, &geometry, &parts)?;
    let (page, page_crc) = empty_page();
    let blob = blob(&geometry, &parts, page_crc).encode();
    let header = header(&geometry, &parts, &blob, options.max_size);
    let segment = SegmentHeader {
        magic: U32::new(SEGMENT_MAGIC),
        crc: U32::ZERO,
        position: U64::new(parts.log),
        len: U64::new(geometry.extent),
        uuid: geometry.uuid,
        previous: U64::ZERO,
        seq: U64::new(1),
        chain: U32::ZERO,
        reserved: U32::ZERO,
    };
    let page_at = parts.index + geometry.map_pages() * PAGE;
    let pieces = [
        (0, header.as_bytes()),
        (geometry.slot_b(), header.as_bytes()),
        (parts.log, segment.sealed().as_bytes()),
        (page_at, &page[..]),
        (parts.blob, &blob[..]),
    ]
    .map(|(position, bytes)| file::write_all_at(file, position, bytes).map_err(|e| failed(path, "write", position, e)));
    pieces.into_iter().collect()
}

/// Reserves what the store is going to write; the rest of extent 0 and of the volatile extents stays a hole.
fn allocate(file: &File, path: &Path, geometry: &Geometry, parts: &Parts) -> Result<()> {
    for (position, len) in geometry.fixed_ranges().into_iter().chain([(parts.log, parts.end - parts.log)]) {
        file::allocate(file, position, len).map_err(|source| Error::no_space(path, position, len, source))?;
    }
    Ok(())
}

fn failed(path: &Path, op: &'static str, offset: impl Into<Option<u64>>, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), op, offset: offset.into(), source }
}

/// An index page without slots, with its checksum noted in it.
fn empty_page() -> (Vec<u8>, u32) {
    let words: [AtomicU64; PAGE_WORDS] = [const { AtomicU64::new(0) }; PAGE_WORDS];
    let page = Page::new(&words);
    page.clear(0, 0);
    page.note(0);
    let crc = page.noted_crc();
    (words.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect(), crc)
}

fn blob(geometry: &Geometry, parts: &Parts, page_crc: u32) -> Blob {
    let run = |position: u64, kind| BlobExtent {
        first: U64::new(position / geometry.extent),
        run: U32::new(1),
        kind: U32::new(kind),
        live: U64::ZERO,
    };
    let mut page = BlobPage::new_zeroed();
    page.position = U64::new(parts.index + geometry.map_pages() * PAGE);
    page.crc = U32::new(page_crc);
    Blob {
        generation: 1,
        seq: 0,
        depth: 0,
        pages: vec![page],
        extents: vec![run(parts.log, BLOB_LOG), run(parts.index, BLOB_INDEX), run(parts.blob, BLOB_BLOB)],
    }
}

fn header(geometry: &Geometry, parts: &Parts, blob: &[u8], max_size: Option<u64>) -> Header {
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = U32::new(VERSION);
    header.uuid = geometry.uuid;
    header.hash_seed = U64::new(geometry.seed);
    header.extent_size = U64::new(geometry.extent);
    header.generation = U64::new(1);
    header.log_position = U64::new(parts.log + SEGMENT_HEADER);
    header.blob_position = U64::new(parts.blob);
    header.blob_len = U64::new(blob.len() as u64);
    header.blob_crc = U32::new(crc32fast::hash(blob));
    header.file_len = U64::new(parts.end);
    header.max_size = U64::new(max_size.unwrap_or(0));
    header.created = U64::new(geometry.created);
    header.sealed()
}
