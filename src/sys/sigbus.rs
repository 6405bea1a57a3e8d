//! SIGBUS: the kernel's answer to a page of a mapped file that it cannot give, because the file was cut short or the
//! disk cannot read it.
//!
//! Where a range is watched, the handler notes the position and then puts an empty page of private memory in the
//! place of the one that is missing, so that the access goes on with zeros. Whoever uses what it has read asks the
//! [`Guard`] first. Nothing but the note tells zeros of the file from zeros of the handler.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use nix::libc;
use rustix::mm::{MapFlags, ProtFlags};

/// Mappings that can be watched at a time.
const SLOTS: usize = 1024;

/// A watched mapping. Its owner changes it while `version` is odd; the handler skips such a slot, which is never the
/// one it looks for, since whoever faults has its mapping alive and watched.
struct Slot {
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: not in use.
    end: AtomicUsize,
    /// Position in the file of the first byte.
    position: AtomicU64,
    writable: AtomicBool,
    /// The guard's note.
    fault: AtomicPtr<AtomicU64>,
}

static RANGES: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        position: AtomicU64::new(0),
        writable: AtomicBool::new(false),
        fault: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];

/// What handled SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Bytes of a page, for the handler.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Notes the first page of one file that could not be read through its mappings.
#[derive(Debug)]
pub struct Guard {
    /// Position of the page + 1; 0: all is well.
    fault: Arc<AtomicU64>,
    file: File,
}

impl Guard {
    /// A guard for the mappings of `file`. The first one installs the handler, for good.
    pub fn new(file: &File) -> io::Result<Guard> {
        install()?;
        Ok(Guard { fault: Arc::default(), file: file.try_clone()? })
    }

    /// Where the first page that could not be read begins.
    #[inline]
    pub fn lost(&self) -> Option<u64> {
        // Acquire fence: the note was written before the zeros could be read, so who has read them finds it.
        fence(Ordering::Acquire);
        self.fault.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Bytes of the file now.
    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Notes a loss that made no signal.
    pub fn note(&self, position: u64) {
        note(&self.fault, position);
    }

    /// Watches `len` bytes of memory at `start`, which show the file from `position` on.
    pub(super) fn watch(&self, start: *mut u8, len: usize, position: u64, writable: bool) -> io::Result<Watch> {
        let (start, end) = (start as usize, start as usize + len);
        let slot = RANGES.iter().find(|slot| slot.claim());
        let slot = slot.ok_or_else(|| io::Error::other("this process has 1024 guarded mappings already"))?;
        slot.start.store(start, Ordering::Relaxed);
        slot.position.store(position, Ordering::Relaxed);
        slot.writable.store(writable, Ordering::Relaxed);
        slot.fault.store(Arc::as_ptr(&self.fault).cast_mut(), Ordering::Relaxed);
        slot.end.store(end, Ordering::Relaxed);
        slot.finish();
        Ok(Watch { slot, _fault: self.fault.clone() })
    }
}

fn note(fault: &AtomicU64, position: u64) {
    // The first one stays. Release: pairs with the fence in `lost`, across the zeros that appear after it.
    let _ = fault.compare_exchange(0, position + 1, Ordering::Release, Ordering::Relaxed);
}

impl Slot {
    /// Makes an unused slot one that is being changed by this thread.
    fn claim(&self) -> bool {
        let version = self.version.load(Ordering::Relaxed);
        let unused = version.is_multiple_of(2) && self.end.load(Ordering::Relaxed) == 0;
        // Acquire: what the last owner did is past.
        let done = || self.version.compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let claimed = unused && done();
        // Release fence: the odd version is seen before any change.
        fence(Ordering::Release);
        claimed
    }

    fn finish(&self) {
        // Release: the change is seen before the even version.
        self.version.fetch_add(1, Ordering::Release);
    }

    fn release(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
        // Release fence: as in `claim`.
        fence(Ordering::Release);
        self.end.store(0, Ordering::Relaxed);
        self.finish();
    }

    /// Position, note and kind of the page at `address`, if that is watched here.
    fn find(&self, address: usize) -> Option<(u64, *const AtomicU64, bool)> {
        // Acquire: pairs with the Release of `finish`.
        let version = self.version.load(Ordering::Acquire);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let position = self.position.load(Ordering::Relaxed);
        let (fault, writable) = (self.fault.load(Ordering::Relaxed), self.writable.load(Ordering::Relaxed));
        // Acquire fence: all loads come before the second look at the version.
        fence(Ordering::Acquire);
        let steady = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let here = steady && (start..end).contains(&address);
        here.then(|| (position + (address - start) as u64, fault.cast_const(), writable))
    }
}

/// A mapping that is watched; drop it before the memory goes away.
#[derive(Debug)]
pub(super) struct Watch {
    slot: &'static Slot,
    /// The slot points to it.
    _fault: Arc<AtomicU64>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("start", &self.start).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Watch {
    /// The mapping has grown in place.
    pub(super) fn grow(&self, len: usize) {
        self.slot.end.store(self.slot.start.load(Ordering::Relaxed) + len, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.slot.release();
    }
}

fn install() -> io::Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    let code = *RESULT.get_or_init(|| {
        PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: an all-zero sigaction is a valid one, and the calls get whole structures and a function that lives as
        // long as the program. What handled SIGBUS before is known before ours can run.
        let done = unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) != 0 {
                -1
            } else {
                let mut own = *PREVIOUS.get_or_init(|| previous);
                own.sa_sigaction = on_sigbus as *const () as usize;
                own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | previous.sa_flags & libc::SA_RESTART;
                libc::sigaction(libc::SIGBUS, &raw const own, std::ptr::null_mut())
            }
        };
        if done == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) }
    });
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Loads and stores of atomics and system calls: all that a signal handler may do.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a whole siginfo to an SA_SIGINFO handler. Positive codes are the kernel's own, and for
    // those the address is set.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    if !address.is_some_and(replace) {
        // SAFETY: the arguments are those of this very call.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Puts an empty page under `address` if that is watched, after a note of the loss.
fn replace(address: usize) -> bool {
    let size = PAGE.load(Ordering::Relaxed);
    let page = address - address % size;
    let Some((position, fault, writable)) = RANGES.iter().find_map(|slot| slot.find(address)) else { return false };
    // SAFETY: the slot was steady and covers the address, so its mapping was just used and is alive, and with it the
    // watch that keeps the note alive.
    note(unsafe { &*fault }, position - (address - page) as u64);
    let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the page is part of a mapping of ours, which is unmapped as a whole later; there was nothing to read in
    // it. If it cannot be replaced the signal goes on to whoever had it before.
    unsafe { rustix::mm::mmap_anonymous(page as *mut c_void, size, access, flags) }.is_ok()
}

/// Does what would have been done without us.
///
/// # Safety
/// The arguments are those of a handler that is running.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    // SAFETY: the previous handler was installed with this signature, which SA_SIGINFO tells; the default action is
    // restored by a whole structure, and takes effect when the access is tried again, or by the signal raised here.
    unsafe {
        let raised = (*info).si_code <= 0;
        match previous.sa_sigaction {
            libc::SIG_IGN if raised => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if raised {
                    libc::raise(signal);
                }
            }
            handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
            }
            handler => std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fork::in_child;
    use super::super::map::Map;
    use super::*;

    const PAGE: u64 = 65_536;
    fn small() -> u64 {
        rustix::param::page_size() as u64
    }

    fn guarded(file: &File) -> io::Result<Map> {
        let map = Map::shared(file, true, PAGE, 0, Some(Guard::new(file)?))?;
        map.set_len(map.len())?;
        Ok(map)
    }

    fn file(pages: u64) -> io::Result<File> {
        let file = tempfile::tempfile()?;
        file.set_len(pages * PAGE)?;
        Ok(file)
    }

    /// A fault in memory that is nobody's: the first byte of an empty file.
    fn foreign_fault() -> io::Result<u8> {
        let file = tempfile::tempfile()?;
        let map = memmap2::MmapOptions::new().len(4096).map_raw_read_only(&file)?;
        // SAFETY: mapped memory; there is no file behind it, which is what the test is about.
        Ok(unsafe { map.as_ptr().read_volatile() })
    }

    #[test]
    fn a_cut_file_reads_as_zeros_and_is_noted() -> io::Result<()> {
        let file = file(4)?;
        let map = guarded(&file)?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"log", 2 * PAGE)?;
        assert_eq!((map.bytes(2 * PAGE, 3), map.lost()), (Some(&b"log"[..]), None));
        let [cell] = map.words(2 * PAGE + 8).expect("in the file");
        file.set_len(PAGE)?;
        assert_eq!(map.bytes(2 * PAGE, 3), Some(&[0; 3][..]));
        assert_eq!(map.lost(), Some(2 * PAGE));
        cell.store(7, Ordering::Relaxed);
        assert_eq!((cell.load(Ordering::Relaxed), map.lost()), (7, Some(2 * PAGE)), "the first one stays");
        assert_eq!(map.bytes(0, 3), Some(&[0; 3][..]), "what is left can be read");
        Ok(())
    }

    #[test]
    fn a_cut_is_seen_without_a_fault_of_its_own() -> io::Result<()> {
        let cut_in_a_page = file(4)?;
        let map = guarded(&cut_in_a_page)?;
        cut_in_a_page.set_len(PAGE + 100)?;
        assert_eq!(map.bytes(PAGE + 200, 1), Some(&[0][..]), "no signal here");
        assert_eq!(map.lost(), Some(4 * PAGE - small()), "but the last page of the file is missing");
        let cut_in_the_last_page = file(4)?;
        let map = guarded(&cut_in_the_last_page)?;
        cut_in_the_last_page.set_len(4 * PAGE - 100)?;
        assert_eq!((map.lost(), map.measure()), (None, Some(4 * PAGE - 100)));
        assert_eq!(map.lost(), Some(4 * PAGE - 100));
        Ok(())
    }

    #[test]
    fn growth_is_watched_too() -> io::Result<()> {
        let file = file(2)?;
        let map = guarded(&file)?;
        file.set_len(1 << 26)?;
        map.set_len(1 << 26)?;
        assert_eq!(map.lost(), None);
        file.set_len(2 * PAGE)?;
        assert_eq!(map.lost(), Some((1 << 26) - small()));
        let [cell] = map.words(1 << 25).expect("in the file");
        cell.store(1, Ordering::Relaxed);
        Ok(())
    }

    #[test]
    fn growth_beside_a_look_at_the_length_is_no_loss() -> io::Result<()> {
        let file = file(2)?;
        let map = guarded(&file)?;
        std::thread::scope(|scope| {
            let grower = scope.spawn(|| -> io::Result<()> {
                (3..10_000).try_for_each(|pages| file.set_len(pages * PAGE).and_then(|()| map.set_len(pages * PAGE)))
            });
            while !grower.is_finished() {
                assert_eq!(map.measure(), None);
            }
            grower.join().expect("it does not panic")
        })
    }

    #[test]
    fn a_private_copy_is_watched_too() -> io::Result<()> {
        let file = file(4)?;
        let map = Map::private(&file, PAGE, Some(Guard::new(&file)?))?;
        assert!(map.store(PAGE, b"own") && map.lost().is_none());
        file.set_len(0)?;
        assert_eq!(map.bytes(PAGE, 3), Some(&[0; 3][..]));
        assert_eq!(map.lost(), Some(PAGE));
        Ok(())
    }

    #[test]
    fn slots_are_reused_and_bounded() -> io::Result<()> {
        let file = file(2)?;
        let code = in_child(|| {
            let Ok(guard) = Guard::new(&file) else { return 1 };
            let watch = |n: usize| guard.watch((n << 20) as *mut u8, 1 << 20, 0, false);
            let mut all: Vec<_> = (1..).map_while(|n| watch(n).ok()).collect();
            let full = all.len() <= SLOTS && watch(1 << 20).is_err();
            all.truncate(1);
            i32::from(!(full && watch(7).is_ok()))
        });
        assert_eq!(code, 0);
        Ok(())
    }

    #[test]
    fn faults_elsewhere_are_not_ours() -> io::Result<()> {
        let file = file(2)?;
        let code = in_child(|| {
            let Ok(_map) = guarded(&file) else { return 1 };
            foreign_fault().map_or(2, |_| 3)
        });
        assert_eq!(code, -libc::SIGBUS);
        Ok(())
    }

    #[test]
    fn an_earlier_handler_gets_what_is_not_ours() -> io::Result<()> {
        extern "C" fn leave(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(77) };
        }
        let file = file(2)?;
        let code = in_child(|| {
            // SAFETY: as in `install`; another test of this process may have installed ours already, so this child puts
            // its own in place of what was there before.
            let ready = unsafe {
                let mut earlier: libc::sigaction = std::mem::zeroed();
                earlier.sa_sigaction = leave as *const () as usize;
                earlier.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(libc::SIGBUS, &raw const earlier, std::ptr::null_mut()) == 0
            };
            let Ok(map) = guarded(&file) else { return 1 };
            let cut = file.set_len(0).is_ok() && map.bytes(0, 1) == Some(&[0]) && map.lost() == Some(0);
            if !(ready && cut) {
                return 2;
            }
            foreign_fault().map_or(3, |_| 4)
        });
        assert_eq!(code, 77);
        Ok(())
    }
}
