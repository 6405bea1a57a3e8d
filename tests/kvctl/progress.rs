//! Progress of long work: on a terminal, with rate and time left, and nowhere else.

use crate::locks;
use crate::sandbox::{KVCTL, Run, Sandbox, overwrite};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Whether a terminal is to be had: `script` makes one.
fn has_terminals() -> bool {
    let found = Command::new("script").arg("--version").output().is_ok();
    if !found {
        eprintln!("no terminal without `script`");
    }
    found
}

/// Starts a verb; on a terminal, both outputs of which come back as one.
fn start(it: &Sandbox, args: &[&str], terminal: bool) -> Child {
    let mut command = it.command(args);
    if terminal {
        command = Command::new("script");
        let line = format!("stty cols 120; exec '{KVCTL}' {}", args.join(" "));
        command.args(["-qec", &line, "/dev/null"]).current_dir(it.0.path()).stdin(Stdio::null());
        command.env("TERM", "xterm");
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts")
}

/// Runs a verb while something it waits for is held for some seconds. A slow machine gets more of them.
fn shows_a_bar(it: &Sandbox, args: &[&str], hold: &dyn Fn(&mut dyn FnMut())) {
    let run = |terminal: bool, seconds: u64| {
        let mut child = None;
        hold(&mut || {
            child = Some(start(it, args, terminal));
            sleep(Duration::from_secs(seconds));
        });
        let output = child.expect("it was started").wait_with_output().expect("it ends");
        Run::from(output)
    };
    let is_shown = |seconds: &u64| {
        let run = run(true, *seconds);
        let text = String::from_utf8_lossy(&run.out).into_owned();
        assert_eq!(run.code, Some(0), "{run:?}");
        text.contains("/s, ") && text.contains(" s left")
    };
    assert!((2..10).any(|seconds| is_shown(&seconds)), "no bar of {args:?}");
    let piped = run(false, 2);
    assert!(piped.code == Some(0) && piped.err.is_empty(), "{piped:?}");
}

#[test]
fn compact_shows_how_far_it_is() {
    if !has_terminals() {
        return;
    }
    let it = Sandbox::with(&[("a", "1")]);
    let db = it.db();
    shows_a_bar(&it, &["compact", "app.db"], &|work| {
        overwrite(&db);
        let txn = db.begin_write().expect("the lock is free");
        work();
        drop(txn);
    });
}

#[test]
fn check_shows_how_far_it_is() {
    if !has_terminals() {
        return;
    }
    let it = Sandbox::with(&[("a", "1")]);
    shows_a_bar(&it, &["check", "app.db", "--deep"], &|work| {
        let lock = locks::hold(&it.path("app.db"), locks::OPEN, 1);
        work();
        drop(lock);
    });
}
