//! `torture`, with and without power cuts.

use crate::console::{children, is_running, wait_for};
use crate::sandbox::{Run, Sandbox};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn torture_verifies_and_counts() {
    let it = Sandbox::with(&[("mine", "stays")]);
    let run = it.run(&["torture", "app.db", "--rounds", "1", "--processes", "6", "--seed", "7", "--json"]);
    assert_eq!((run.code, &*run.err), (Some(0), ""), "{run:?}");
    let report = run.json();
    assert_eq!(report["verified"], true);
    assert_eq!((&report["rounds"], &report["processes"], &report["seed"]), (&1.into(), &6.into(), &7.into()));
    for count in ["kills", "pauses", "commits_acknowledged", "gets", "snapshots_verified"] {
        assert_ne!(report[count], 0, "{count} in {report}");
    }
    assert_eq!((&report["power_cuts"], report["faults"].as_array()), (&0.into(), Some(&vec![])));
    it.run(&["get", "app.db", "mine"]).prints("stays");
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");

    let run = it.run(&["torture", "new.db", "--seconds", "1"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.lines().iter().any(|line| line.starts_with("verified")), "{run:?}");
}

/// Somebody else takes away what was acknowledged: that must show.
#[test]
fn torture_sees_a_loss() {
    for lost in ["account/07", "counter/0"] {
        let it = Sandbox::with(&[]);
        let mut command = it.command(&["torture", "app.db", "--rounds", "1", "--processes", "2", "--json"]);
        let torture = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvctl starts");
        let key = format!("kvctl-torture/{lost}");
        wait_for(|| (it.run(&["del", "app.db", &key]).code == Some(0)).then_some(()));
        let run = Run::from(torture.wait_with_output().expect("it ends"));
        assert_eq!(run.code, Some(1), "{lost}: {run:?}");
        assert!(run.err.contains(lost.split('/').next().expect("a word")), "{run:?}");
        assert_eq!(run.json()["verified"], false);
    }
}

/// Whether images can be mounted here; says what is skipped if not.
fn may_mount(it: &Sandbox, what: &str) -> bool {
    let disk = it.path("probe.img");
    fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("the sandbox is writable");
    let script = "mkfs.ext4 -q probe.img && mkdir at && mount -o loop probe.img at && umount at";
    let may = Command::new("unshare").args(["-m", "sh", "-c", script]).current_dir(&it.0).output();
    let may = rustix::process::geteuid().is_root() && may.is_ok_and(|done| done.status.success());
    if !may {
        eprintln!("skipped {what}: images cannot be mounted here");
    }
    let _ = (fs::remove_file(disk), fs::remove_dir(it.path("at")));
    may
}

#[test]
fn torture_cuts_the_power() {
    let it = Sandbox::new();
    if !rustix::process::geteuid().is_root() {
        it.run(&["torture", "a.db", "--power-cut"]).fails(5, "root");
    }
    if !may_mount(&it, "torture_cuts_the_power") {
        return;
    }
    let run = it.run(&["torture", "a.db", "--power-cut", "--fs", "ext4", "--rounds", "1", "--json"]);
    assert_eq!((run.code, &*run.err), (Some(0), ""), "{run:?}");
    let report = run.json();
    assert_eq!(report["verified"], true);
    for count in ["power_cuts", "kills", "commits_acknowledged"] {
        assert_ne!(report[count], 0, "{count} in {report}");
    }
    assert_eq!(fs::read_dir(&it.0).expect("a directory").count(), 0, "nothing is left");
}

/// Whether a copy is being made, with all writes to the disk held: a shell waits for its end.
fn is_frozen(torture: u32) -> bool {
    let is =
        |child: &str, name: &str| fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|of| of.trim() == name);
    let waits = |shell: &String| children(shell.parse().expect("a number")).iter().any(|child| is(child, "cat"));
    children(torture).iter().any(|child| is(child, "sh") && waits(child))
}

#[test]
fn nothing_outlives_a_power_cut() {
    let it = Sandbox::new();
    if !may_mount(&it, "nothing_outlives_a_power_cut") {
        return;
    }
    let loops = |it: &Path| {
        let list = Command::new("losetup").args(["-l", "-n", "-O", "BACK-FILE"]).output().expect("losetup runs");
        String::from_utf8_lossy(&list.stdout).contains(it.to_str().expect("a plain name"))
    };
    for signal in ["-KILL", "-INT"] {
        let mut command = it.command(&["torture", "a.db", "--power-cut", "--fs", "ext4", "--seconds", "600"]);
        let mut torture = command.stderr(Stdio::piped()).spawn().expect("kvctl starts");
        let agents = wait_for(|| Some(children(torture.id())).filter(|agents| agents.len() >= 8));
        assert!(loops(it.0.path()));
        if signal == "-KILL" {
            wait_for(|| is_frozen(torture.id()).then_some(()));
        }
        let kill = Command::new("kill").args([signal, &torture.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        let status = torture.wait().expect("it was killed");
        wait_for(|| agents.iter().all(|agent| !is_running(agent)).then_some(()));
        wait_for(|| (!loops(it.0.path())).then_some(()));
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
        assert!(!mounts.contains(it.0.path().to_str().expect("a plain name")), "{mounts}");
        if signal == "-INT" {
            assert_eq!(status.code(), Some(5), "an interrupt is a failure");
            assert_eq!(fs::read_dir(&it.0).expect("a directory").count(), 0, "the images are removed");
        } else {
            // What the killed one could not remove.
            let left = fs::read_dir(&it.0).expect("a directory").flatten();
            left.for_each(|entry| fs::remove_dir_all(entry.path()).expect("nothing is mounted in it"));
        }
    }
}
