//! Help, completions, terminals, the demo.

use crate::sandbox::{Run, Sandbox};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const VERBS: [&str; 18] = [
    "create",
    "put",
    "get",
    "del",
    "count",
    "scan",
    "stat",
    "who",
    "check",
    "checkpoint",
    "sync",
    "compact",
    "dump",
    "load",
    "demo",
    "torture",
    "completions",
    "man",
];

#[test]
fn help_lists_every_verb() {
    let it = Sandbox::new();
    let help = it.run(&["--help"]);
    let text = String::from_utf8_lossy(&help.out);
    let commands = text.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let listed: Vec<&str> = commands
        .expect("a list of commands")
        .lines()
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, VERBS);
}

#[test]
fn the_examples_in_help_work() {
    for verb in VERBS {
        let it = Sandbox::with(&[("greeting", "hello"), ("user:1", "Ada")]);
        let help = it.run(&[verb, "--help"]);
        let text = String::from_utf8_lossy(&help.out);
        let example = text.split("Example:\n").nth(1).expect(verb).trim();
        assert!(example.starts_with(&format!("kvctl {verb}")) || verb == "load", "{example}");
        assert!(!example.contains('\n'), "one example: {example}");
        let run = it.shell(example);
        assert_eq!(run.code, Some(0), "{example}: {run:?}");
        assert_eq!(run.err, "", "{example}");
    }
}

#[test]
fn completions_and_man_pages() {
    let it = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = it.run(&["completions", shell]);
        let script = String::from_utf8_lossy(&run.out);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(VERBS.iter().all(|verb| script.contains(verb)), "{shell}");
        assert!(!script.contains("agent"), "{shell}");
    }
    it.run(&["man", "some/man1"]).prints("");
    let mut pages: Vec<String> = fs::read_dir(it.path("some/man1"))
        .expect("the directory was made")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    pages.sort();
    let mut expected: Vec<String> = VERBS.iter().map(|verb| format!("kvctl-{verb}.1")).collect();
    expected.push("kvctl.1".into());
    expected.sort();
    assert_eq!(pages, expected);
    it.write("file", "");
    it.run(&["man", "file"]).fails(5, "file");
}

/// Runs with stdout and stderr on one terminal, and gives what appeared there.
fn on_a_terminal(mut command: Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
    let name = ptsname(&master, Vec::new()).expect("its name");
    let slave = || File::options().write(true).open(OsStr::from_bytes(name.to_bytes()));
    command.stdout(slave().expect("it opens")).stderr(slave().expect("it opens"));
    command.env("TERM", "xterm");
    let mut child = command.spawn().expect("kvctl starts");
    // The last copies of the other end must go, or reading never ends.
    drop(command);
    let mut shown = Vec::new();
    // Ends with an error when the last process on the terminal is gone.
    let _ = File::from(master).read_to_end(&mut shown);
    child.wait().expect("kvctl ends");
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn a_terminal_gets_newlines_and_colours() {
    let it = Sandbox::with(&[("a", "1"), ("b", "2")]);
    assert_eq!(on_a_terminal(it.command(&["get", "app.db", "a"])), "1\r\n");
    assert_eq!(on_a_terminal(it.command(&["get", "app.db", "a", "b"])), "1\r\n2\r\n");
    let check = ["check", "app.db"];
    assert_eq!(on_a_terminal(it.command(&check)), "\u{1b}[32mclean\u{1b}[0m\r\n");
    assert_eq!(on_a_terminal(it.command(&["check", "app.db", "--color=never"])), "clean\r\n");
    let mut plain = it.command(&check);
    plain.env("NO_COLOR", "1");
    assert_eq!(on_a_terminal(plain), "clean\r\n");
    let error = on_a_terminal(it.command(&["get", "none.db", "a"]));
    assert!(error.starts_with("\u{1b}[1m\u{1b}[31mkvctl:\u{1b}[0m "), "{error:?}");

    it.run(&["check", "app.db"]).prints("clean\n");
    it.run(&["check", "app.db", "--color", "always"]).prints("\u{1b}[32mclean\u{1b}[0m\n");
    let mut plain = it.command(&["check", "app.db", "--color", "always"]);
    plain.env("NO_COLOR", "1");
    Run::of(plain).prints("clean\n");
}

#[test]
fn the_demo_verifies() {
    let it = Sandbox::with(&[("mine", "stays")]);
    let run = it.run(&["demo", "app.db", "--seconds", "1", "--json"]);
    assert_eq!((run.code, &*run.err), (Some(0), ""), "{run:?}");
    let report = run.json();
    assert_eq!(report["verified"], true);
    for count in ["kills", "commits_acknowledged", "gets", "snapshots_verified"] {
        assert_ne!(report[count], 0, "{count} in {report}");
    }
    assert!(report["writers"].as_u64() >= Some(2) && report["readers"].as_u64() >= Some(2));
    it.run(&["get", "app.db", "mine"]).prints("stays");
    it.run(&["check", "app.db", "--deep"]).prints("clean\n");

    let run = it.run(&["demo", "app.db", "--seconds", "1"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.lines().iter().any(|line| line.starts_with("verified")), "{run:?}");
}

#[test]
fn nothing_outlives_the_demo() {
    let it = Sandbox::new();
    let temporary = it.path("tmp");
    fs::create_dir(&temporary).expect("the sandbox is writable");
    for signal in ["-KILL", "-TERM"] {
        let mut command = it.command(&["demo", "--seconds", "600"]);
        command.env("TMPDIR", &temporary).stderr(Stdio::piped());
        let mut demo = command.spawn().expect("kvctl starts");
        let agents = wait_for(|| {
            let agents = children(demo.id());
            (agents.len() >= 4).then_some(agents)
        });
        let kill = Command::new("kill").args([signal, &demo.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        let status = demo.wait().expect("it was killed");
        wait_for(|| agents.iter().all(|agent| !is_running(agent)).then_some(()));
        if signal == "-TERM" {
            assert_eq!(status.code(), Some(5), "an interrupt is a failure");
            let left = fs::read_dir(&temporary).expect("it is a directory").count();
            assert_eq!(left, 0, "the temporary store is removed");
        }
        // What the killed one could not remove.
        fs::remove_dir_all(&temporary).expect("the sandbox is writable");
        fs::create_dir(&temporary).expect("the sandbox is writable");
    }
}

/// Looks again and again, for a minute at most.
pub fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain");
}

/// State and parent of a process: the third and fourth field, behind the command in brackets.
fn state_and_parent(process: &str) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.into(), fields.next()?.parse().ok()?))
}

pub fn children(parent: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let names = processes.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| state_and_parent(name).is_some_and(|(_, of)| of == parent)).collect()
}

pub fn is_running(process: &str) -> bool {
    state_and_parent(process).is_some_and(|(state, _)| state != "Z")
}
