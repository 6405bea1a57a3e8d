//! Small file systems, for root.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::fast_dir;

/// A mounted file system, until it goes out of scope.
pub struct Disk {
    at: TempDir,
    /// What an ext4 lies in.
    image: Option<File>,
}

impl Disk {
    /// 4 MiB in memory.
    pub fn tmpfs() -> Option<Disk> {
        let at = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(at.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Disk { at, image: None })
    }

    /// An ext4 of so many MiB, whose image lies in memory. There, other than in tmpfs, reading a hole needs no space.
    pub fn ext4(mib: u64) -> Option<Disk> {
        let (at, place) = (tempfile::tempdir().expect("a temporary directory"), fast_dir());
        let path = place.path().join("image");
        let image = File::create_new(&path).expect("room for an image");
        image.set_len(mib << 20).expect("room for an image");
        let mut shell = Command::new("sh");
        shell.args(["-c", "mkfs.ext4 -q -m 0 -b 4096 $0 && mount -o loop $0 $1"]).arg(path).arg(at.path());
        // The mount keeps the image when its name is gone.
        shell.output().is_ok_and(|output| output.status.success()).then_some(Disk { at, image: Some(image) })
    }

    pub fn path(&self) -> &Path {
        self.at.path()
    }

    /// Transactions that the journal of an ext4 has ended.
    pub fn transactions(&self) -> u64 {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("the kernel lists mounts");
        let at = self.path().to_str().expect("a plain path");
        let device = mounts.lines().find_map(|line| line.strip_suffix(line.split_once(&format!(" {at} "))?.1));
        let device = device.and_then(|text| text.split(' ').next()?.strip_prefix("/dev/")).expect("it is mounted");
        let journal = std::fs::read_to_string(format!("/proc/fs/jbd2/{device}-8/info")).expect("an ext4");
        journal.split(' ').next().and_then(|count| count.parse().ok()).expect("a count comes first")
    }

    /// From now on an ext4 cannot read what lies behind its first so many MiB, unless it is in memory.
    pub fn cut(&self, mib: u64) {
        self.image.as_ref().expect("an ext4").set_len(mib << 20).expect("our own file");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
