//! The process and its machine: names, randomness, clock.

use std::io;

use rustix::rand::GetRandomFlags;
use rustix::time::ClockId;

/// The longest name that [`command`] returns.
const MAX_COMMAND: usize = 32;

/// The number of this process, in its own namespace.
pub fn pid() -> u32 {
    std::process::id()
}

/// The name of this process for messages, at most 32 bytes.
pub fn command() -> Vec<u8> {
    let mut name = std::fs::read("/proc/self/comm").unwrap_or_else(|_| program());
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    name.truncate(MAX_COMMAND);
    name
}

/// The file name of the program, for systems without /proc.
fn program() -> Vec<u8> {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or_default();
    name.as_encoded_bytes().to_vec()
}

/// `N` bytes from the kernel's random numbers.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
    }
    Ok(bytes)
}

/// Nanoseconds since 1970, a few milliseconds late, for a fraction of the price of the exact time.
pub fn coarse_now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.cast_unsigned())
}

/// Bytes of memory that this process may hope to use: the machine's, or fewer if its control group says so.
pub fn memory() -> u64 {
    let system = rustix::system::sysinfo();
    let machine = (system.totalram as u64).saturating_mul(u64::from(system.mem_unit.max(1)));
    let bound = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|max| max.trim().parse().ok());
    machine.min(bound.unwrap_or(u64::MAX))
}

/// Dies as if by `kill -9`, with nothing cleaned up: for tests of what the others do then.
#[cfg(feature = "faults")]
pub fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "faults")]
    use super::super::fork::in_child;
    use super::*;

    #[test]
    fn names_this_process() {
        assert_eq!(u64::from(pid()), u64::from(std::process::id()));
        for name in [command(), program()] {
            assert!(!name.is_empty() && !name.contains(&b'\n') && !name.contains(&b'/'));
        }
        assert!(command().len() <= MAX_COMMAND);
    }

    #[test]
    fn random_bytes_differ() -> io::Result<()> {
        assert_ne!(random::<16>()?, random::<16>()?);
        assert_eq!(random::<0>()?, [0; 0]);
        assert!(random::<1000>()?.iter().any(|&b| b != 0));
        Ok(())
    }

    #[test]
    fn coarse_time_is_near_the_exact_one() {
        let exact = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
        assert!(coarse_now().abs_diff(exact) < 2_000_000_000);
    }

    #[test]
    #[cfg(feature = "faults")]
    fn kill_self_is_a_sigkill() {
        assert_eq!(in_child(|| kill_self()), -nix::libc::SIGKILL);
    }
}
