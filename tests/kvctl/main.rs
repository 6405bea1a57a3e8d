//! The contract of the command line, pinned with the built binary: bytes on stdout, exit codes,
//! what is said on stderr.

mod compact;
mod console;
mod data;
mod exits;
#[path = "../support/locks.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod locks;
mod look;
mod progress;
mod sandbox;
mod torture;
