//! Who locks bytes of a file, as far as /proc tells: the kernel names no process when it is asked about the lock of an
//! open file.

use std::fs;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::file::{Identity, identity_of_path};

/// A process that locks something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number, in the namespace of /proc.
    pub pid: u32,
    /// Its command, if it lives.
    pub command: Option<String>,
    /// What it locks; what several of its open files lock counts for each.
    pub locks: Vec<Range<u64>>,
}

/// The processes that lock bytes of `file` within `range`, but for what `own` locks, a descriptor of this process. It
/// finds those that this process may look at. A child that is being made has its parent's locks, until it has closed
/// its copies. Cost: a look at each descriptor of each process.
pub(super) fn holders(file: Identity, own: RawFd, range: &Range<u64>) -> Vec<Holder> {
    let me = fs::read_link("/proc/self").unwrap_or_default();
    let own = Path::new("/proc").join(me).join("fd").join(own.to_string());
    let mut found = Vec::new();
    for process in names_below(Path::new("/proc")) {
        let Some(pid) = number(&process) else { continue };
        let descriptors = names_below(&process.join("fd")).into_iter().filter(|fd| *fd != own);
        let locks: Vec<_> = descriptors.flat_map(|fd| locks_of(&process, &fd, file, range)).collect();
        if !locks.is_empty() {
            let command = fs::read(process.join("comm")).ok();
            let command = command.map(|name| String::from_utf8_lossy(&name).trim_end_matches('\n').to_string());
            found.push(Holder { pid, command, locks });
        }
    }
    found
}

/// Nothing where one may not look, or that is gone meanwhile.
fn names_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// What a descriptor locks of the range. Only one that locks some of it is looked at any further: a file may be on a
/// file system that does not answer.
fn locks_of(process: &Path, fd: &Path, file: Identity, range: &Range<u64>) -> Vec<Range<u64>> {
    let info = fd.file_name().and_then(|fd| fs::read_to_string(process.join("fdinfo").join(fd)).ok());
    let mut locks: Vec<_> = info.iter().flat_map(|info| info.lines()).filter_map(|line| lock(line, range)).collect();
    if !locks.is_empty() && identity_of_path(fd).ok() != Some(file) {
        locks.clear();
    }
    locks
}

/// What a line of `fdinfo` says that is locked of the range, such as
/// `lock:  1: OFDLCK  ADVISORY  READ -1 fd:01:4711 100 199`.
fn lock(line: &str, range: &Range<u64>) -> Option<Range<u64>> {
    let mut words = line.strip_prefix("lock:")?.split_ascii_whitespace();
    if words.nth(1)? != "OFDLCK" {
        return None;
    }
    let start: u64 = words.nth(4)?.parse().ok()?;
    let last = match words.next()? {
        "EOF" => u64::MAX,
        last => last.parse().ok()?,
    };
    let inside = start.max(range.start)..last.saturating_add(1).min(range.end);
    (!inside.is_empty()).then_some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo_are_understood() {
        let found = |line| lock(line, &(100..200));
        assert_eq!(found("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10011469 150 150"), Some(150..151));
        assert_eq!(found("lock:\t7: OFDLCK  ADVISORY  WRITE -1 00:1a:5 0 EOF"), Some(100..200));
        assert_eq!(found("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1 99 100"), Some(100..101));
        assert_eq!(found("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1 200 300"), None);
        assert_eq!(found("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1 0 99"), None);
        assert_eq!(found("lock:\t1: FLOCK  ADVISORY  WRITE 42 fe:00:1 0 EOF"), None);
        assert_eq!(found("lock:\t1: POSIX  ADVISORY  WRITE 42 fe:00:1 150 150"), None);
        for line in ["", "pos:\t0", "lock:", "lock:\t1: OFDLCK", "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1 x 150"] {
            assert_eq!(found(line), None, "{line}");
        }
    }
}
