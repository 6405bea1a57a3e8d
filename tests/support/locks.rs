//! Byte locks of the store's file, as a process that is stopped at a bad moment would hold them.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Held while a handle opens or closes the store. These places are those of src/readers.rs.
pub const OPEN: u64 = 1 << 62;
/// Held while a checkpoint runs.
pub const CHECKPOINT: u64 = OPEN + 3;
/// Held by the one who flushes the log for all.
pub const SYNC: u64 = OPEN + 4;
/// The first byte of a process.
pub const PROCESS: u64 = OPEN + (1 << 20);

/// Takes the locks of some bytes until the file is dropped.
pub fn hold(path: &Path, first: u64, count: i64) -> File {
    let file = File::options().read(true).write(true).open(path).expect("the store is there");
    let lock = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: first.cast_signed(),
        l_len: count,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else holds them");
    file
}
