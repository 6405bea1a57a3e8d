//! What the block device was told, and what files take on it.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

use crate::engine::Result;

/// Flush requests and KiB written of the device that holds a file, since boot; none where the kernel does not tell.
#[derive(Clone, Copy)]
pub struct Device {
    pub flushes: u64,
    pub kib: u64,
}

pub fn device(path: &Path) -> Option<Device> {
    let dev = std::fs::metadata(path).ok()?.st_dev();
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Some(Device { flushes: *fields.get(15)?, kib: *fields.get(6)? / 2 })
}

/// MiB of blocks of all files below a directory.
pub fn mebibytes(dir: &Path) -> Result<f64> {
    let mut blocks = 0;
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else {
                blocks += meta.st_blocks();
            }
        }
    }
    Ok(blocks as f64 * 512.0 / f64::from(1 << 20))
}

/// Whether a directory is on a file system that is RAM.
pub fn is_ram(dir: &Path) -> bool {
    let Some(path) = dir.to_str().and_then(|path| std::ffi::CString::new(path).ok()) else { return false };
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path ends in 0, and there is room for what the call fills in.
    let code = unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) };
    // SAFETY: zeros are a value of it, and the call may have filled it in.
    code == 0 && unsafe { found.assume_init() }.f_type == libc::TMPFS_MAGIC
}
