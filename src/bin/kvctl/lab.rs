//! A disk that can be held still: a file system in an image, which is a file on another file system in an image.
//!
//! The inner file system's disk is a loop device over a file of the outer one. Freezing the outer one holds every write
//! of that device before or after it is done, flushes included; so the file is then the disk at one moment. All mounts
//! are in a mount namespace of this process: whatever becomes of it, they go with it, and the loop devices with them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;

/// A file system whose power can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl fmt::Display for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
        })
    }
}

/// Images are sparse: this is what they could hold.
const INNER: u64 = 512 << 20;
const OUTER: u64 = 2 * INNER;

/// Makes sure that mounts are allowed and seen by this process and its children alone.
pub fn be_root_alone() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "--power-cut mounts file systems, which takes root");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("cannot have mounts of our own")?;
    run("mount", ["--make-rprivate", "/"])
}

/// The file systems that can be made here: those that are wanted, or all.
pub fn installed(wanted: &[Fs]) -> anyhow::Result<Vec<Fs>> {
    let is_installed = |fs: &Fs| tool(&format!("mkfs.{fs}")).arg("-V").output().is_ok();
    if let Some(missing) = wanted.iter().find(|fs| !is_installed(fs)) {
        bail!("mkfs.{missing} is not installed");
    }
    let all = if wanted.is_empty() { Fs::value_variants() } else { wanted };
    let found: Vec<Fs> = all.iter().copied().filter(is_installed).collect();
    ensure!(!found.is_empty(), "neither mkfs.ext4 nor mkfs.xfs nor mkfs.btrfs is installed");
    // The outer file system is always this one.
    ensure!(is_installed(&Fs::Ext4), "mkfs.ext4 is not installed");
    Ok(found)
}

/// An administration tool; the keyboard's interrupt is for us, and what it has begun it ends.
fn tool(name: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(name);
    command.env("PATH", path).stdin(Stdio::null()).process_group(0);
    command
}

/// Runs a tool to its end.
fn run(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<()> {
    let done = tool(name).args(arguments).output().with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{name}: {}", said.trim());
    Ok(())
}

/// A mounted image. Dropping it takes the mount away.
pub struct Mount {
    path: PathBuf,
    mounted: bool,
}

impl Mount {
    fn new(image: &Path, path: &Path, kind: Fs) -> anyhow::Result<Mount> {
        fs::create_dir_all(path)?;
        // A copy has the identity of the disk that it was made of, to which XFS objects.
        let options = if kind == Fs::Xfs { "loop,noatime,nouuid" } else { "loop,noatime" };
        let kind = kind.to_string();
        let words = [OsStr::new("-t"), kind.as_ref(), "-o".as_ref(), options.as_ref(), image.as_ref(), path.as_ref()];
        run("mount", words)?;
        Ok(Mount { path: path.into(), mounted: true })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn unmount(mut self) -> anyhow::Result<()> {
        self.mounted = false;
        run("umount", [&self.path])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Somebody may still be in there: then it goes when they have left.
            let _ = run("umount", ["--lazy".as_ref(), self.path.as_os_str()]);
        }
    }
}

/// Holds the writes to a file system until it is dropped, or until this process is dead: the shell then reads the end
/// of its input. Writes that nobody lets go on would hang their processes until the system starts anew.
struct Frozen(Child);

impl Frozen {
    fn new(path: &Path) -> anyhow::Result<Frozen> {
        let script = "fsfreeze --freeze \"$0\" && echo && cat; fsfreeze --unfreeze \"$0\"";
        let mut shell = tool("sh");
        shell.args(["-c", script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut frozen = Frozen(shell.spawn().context("cannot run sh")?);
        let said =
            frozen.0.stdout.as_mut().context("it has a pipe")?.read(&mut [0]).context("cannot hear of fsfreeze")?;
        ensure!(said == 1, "fsfreeze: {} cannot be frozen", path.display());
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends by itself; nobody asks how.
        let _ = self.0.wait();
    }
}

/// The two file systems, and a directory for copies. Fields are dropped in this order.
pub struct Lab {
    disk: Option<Mount>,
    outer: Mount,
    directory: TempDir,
    kind: Fs,
}

impl Lab {
    /// Makes the images in a new directory beside `file`.
    pub fn new(file: &Path, kind: Fs) -> anyhow::Result<Lab> {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = tempfile::Builder::new().prefix(".kvctl-torture-").tempdir_in(parent);
        let directory = directory.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let at = |name: &str| directory.path().join(name);
        make(&at("outer.img"), OUTER, Fs::Ext4)?;
        let outer = Mount::new(&at("outer.img"), &at("outer"), Fs::Ext4)?;
        let image = outer.path().join("disk.img");
        make(&image, INNER, kind)?;
        let disk = Some(Mount::new(&image, &at("disk"), kind)?);
        Ok(Lab { disk, outer, directory, kind })
    }

    /// Where the tested file system is mounted.
    pub fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Copies the disk as it is at one moment.
    pub fn copy_disk(&self, n: usize) -> anyhow::Result<PathBuf> {
        let copy = self.directory.path().join(format!("copy-{n}.img"));
        let image = File::open(self.outer.path().join("disk.img"))?;
        let frozen = Frozen::new(self.outer.path())?;
        let copied = copy_sparsely(&image, &copy);
        drop(frozen);
        copied.context("cannot copy the disk")?;
        Ok(copy)
    }

    /// Ends the use of the tested file system.
    pub fn take_out_disk(&mut self) -> anyhow::Result<()> {
        self.disk.take().map_or(Ok(()), Mount::unmount)
    }

    /// Mounts a copy. The disk itself must have been taken out: file systems do not like their doubles.
    pub fn mount_copy(&self, copy: &Path) -> anyhow::Result<Mount> {
        Mount::new(copy, &self.directory.path().join("copy"), self.kind)
    }
}

/// Makes an image with an empty file system.
fn make(image: &Path, len: u64, kind: Fs) -> anyhow::Result<()> {
    File::create_new(image)?.set_len(len)?;
    let quiet = if kind == Fs::Ext4 { ["-q", "-F"] } else { ["-q", "-f"] };
    let words: Vec<OsString> = quiet.iter().map(OsString::from).chain([image.into()]).collect();
    run(&format!("mkfs.{kind}"), words)
}

/// Copies what is not a hole.
fn copy_sparsely(from: &File, to: &Path) -> io::Result<()> {
    let to = File::create_new(to)?;
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let part = &mut buffer[..(end - at).min(1 << 20) as usize];
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
}
