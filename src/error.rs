//! The one error type: each variant is something a caller can act on.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::format::header::VERSION;

/// What every fallible call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Unless a variant says otherwise the store is unchanged and the handle stays usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such file; `Options::create` makes one.
    #[error("{}: no such store", path.display())]
    NotFound {
        /// The store.
        path: PathBuf,
    },
    /// `Options::create_new` found a file.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The store.
        path: PathBuf,
    },
    /// The file is something else than a store.
    #[error("{}: not a slotdb store: {why}", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// The store was written by a later version of the format: it takes a later version of this crate.
    #[error("{}: format version {found} is newer than this program reads ({})", path.display(), VERSION)]
    Version {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The store uses features that this version does not know.
    #[error("{}: unknown incompatible features {bits:#x}", path.display())]
    Features {
        /// The store.
        path: PathBuf,
        /// The unknown bits.
        bits: u32,
    },
    /// Bytes of the store are damaged. `kvctl check` lists all faults.
    #[error("{}: damaged at offset {offset}: {what}", path.display())]
    Corrupt {
        /// The store.
        path: PathBuf,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file is shorter than its header says; or, with `Options::guard_sigbus`, than it was when it was opened. Copy
    /// or restore it anew.
    #[error("{}: truncated: {found} bytes, expected {expected}", path.display())]
    Truncated {
        /// The store.
        path: PathBuf,
        /// Bytes the header names.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A system call failed; or the file has grown, and the system gives no address space for the rest of it (`map`);
    /// or, with `Options::guard_sigbus`, a page of the map could not be read.
    #[error("{}: {op} failed{}: {source}", path.display(), At(*offset))]
    Io {
        /// The store.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Where in the file, if anywhere.
        offset: Option<u64>,
        /// The system's answer.
        source: io::Error,
    },
    /// The file may not be opened this way.
    #[error("{}: {source}", path.display())]
    Permission {
        /// The store.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk, the user's quota or the limit of file sizes is used up. Reading, deleting, checkpointing and
    /// compacting still work, and once there is space again, writing: no handle has to be opened anew. Where a snapshot
    /// keeps what is dead, `held` says so, and the space comes back when it ends.
    #[error("{}: no space for {needed} more bytes: {source}{}", path.display(), KeptBy(held))]
    Full {
        /// The store.
        path: PathBuf,
        /// Bytes that were asked for.
        needed: u64,
        /// The system's answer.
        source: io::Error,
        /// The oldest snapshot, if it is older than the last checkpoint: without it there would be more to be had.
        held: Option<Held>,
    },
    /// The store has reached its `max_size`. Reading, deleting and checkpointing still work. Where a snapshot keeps
    /// what is dead, `held` says so.
    #[error("{}: at its maximal size of {max} bytes, {needed} more are needed{}", path.display(), KeptBy(held))]
    MaxSize {
        /// The store.
        path: PathBuf,
        /// Bytes beside those that it has.
        needed: u64,
        /// The bound in bytes.
        max: u64,
        /// As in `Full`.
        held: Option<Held>,
    },
    /// Keys have at most 65,535 bytes.
    #[error("key of {len} bytes is too long: at most {} are allowed", crate::MAX_KEY)]
    KeyTooLong {
        /// Bytes of the key.
        len: usize,
    },
    /// Values have at most 4 GiB - 1 bytes.
    #[error("value of {len} bytes is too long: at most {} are allowed", crate::MAX_VALUE)]
    ValueTooLong {
        /// Bytes of the value.
        len: u64,
    },
    /// A lock was not to be had in time. Nothing was done, and another try may do.
    #[error("{}: waited {waited:.1?} for the {what}{}", path.display(), HeldBy(holder))]
    Timeout {
        /// The store.
        path: PathBuf,
        /// Which lock.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// Who has it, where that is known.
        holder: Option<Holder>,
    },
    /// The commit's outcome is unknown: it is there whole or not at all, and the next writer decides. Read to find out.
    #[error("{}: outcome of commit {seq} is unknown: {source}", path.display())]
    InDoubt {
        /// The store.
        path: PathBuf,
        /// The commit's seq, if it is there.
        seq: u64,
        /// What failed.
        source: Box<Error>,
    },
    /// A sync failed: what is on the disk is unknown. No commits and no reads until all processes have closed the
    /// store.
    #[error("{}: a sync failed; close the store in all processes and open it again", path.display())]
    Poisoned {
        /// The store.
        path: PathBuf,
    },
    /// This handle only reads.
    #[error("{}: opened read-only", path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// The handle was opened before a fork; the child must open its own.
    #[error("{}: opened before a fork: open it again in the child", path.display())]
    Forked {
        /// The store.
        path: PathBuf,
    },
    /// The path no longer leads to the file that was opened. Open it again.
    #[error("{}: replaced by another file while it was being opened", path.display())]
    Replaced {
        /// The store.
        path: PathBuf,
    },
    /// 4,096 snapshots are open already, or kept ready by processes that had as many open. End some, or close the store
    /// where nobody reads.
    #[error("{}: all 4096 snapshots are in use", path.display())]
    TooManyReaders {
        /// The store.
        path: PathBuf,
    },
    /// 1,024 processes have the store open already; another try does when one has closed it.
    #[error("{}: all 1024 process entries are in use", path.display())]
    TooManyProcesses {
        /// The store.
        path: PathBuf,
    },
    /// Something this store cannot do here: a network file system, an index past its depth.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The store.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// An option makes no sense.
    #[error("invalid option: {what}")]
    Invalid {
        /// Which, and why.
        what: String,
    },
}

impl Error {
    /// The error of a refused request for space: `Full` only if the disk, a quota or a limit of file sizes refused it.
    pub(crate) fn no_space(path: &Path, offset: u64, needed: u64, source: io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Error::Full { path, needed, source, held: None }
            }
            _ => Error::Io { path, op: "allocate", offset: Some(offset), source },
        }
    }
}

/// Who holds a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// Process id, as that process sees it.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// Since when.
    pub since: SystemTime,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.since.elapsed().unwrap_or_default();
        write!(f, "process {} ({}) for {:.1} s", self.pid, self.command, held.as_secs_f64())
    }
}

struct HeldBy<'a>(&'a Option<Holder>);

impl fmt::Display for HeldBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => write!(f, ", held by {holder}"),
            None => Ok(()),
        }
    }
}

/// A snapshot that keeps space from being used again. `Db::processes` and `kvctl who` list it, with its process; that
/// of a read-only handle only where the system tells whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The commit that it reads.
    pub seq: u64,
    /// Bytes that were put out of use since. What is dead in segments that are partly alive comes to it: nothing is
    /// moved out of these beside an old snapshot.
    pub bytes: u64,
}

struct KeptBy<'a>(&'a Option<Held>);

impl fmt::Display for KeptBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Held { seq, bytes }) => {
                write!(f, "; a snapshot of commit {seq} keeps what died since, {bytes} bytes so far: see `kvctl who`")
            }
            None => Ok(()),
        }
    }
}

struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at offset {offset}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn only_want_of_space_is_full() {
        let of = |errno: Errno| Error::no_space(Path::new("store"), 4096, 8, errno.into());
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(matches!(of(errno), Error::Full { needed: 8, .. }), "{errno}");
        }
        for errno in [Errno::IO, Errno::PERM, Errno::ROFS] {
            assert!(matches!(of(errno), Error::Io { op: "allocate", offset: Some(4096), .. }), "{errno}");
        }
    }
}
