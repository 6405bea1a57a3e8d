//! The contract of the command line, pinned with the built binary: bytes on stdout, exit codes,
//! what is said on stderr.

mod compact;
mod console;
mod data;
mod exits;
mod look;
mod sandbox;
mod torture;
