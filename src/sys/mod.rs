//! The room of the system: memory maps, files, locks, futexes, forks and one signal. All unsafe code is here.
//!
//! Two windows lead out of it: shared cells as atomics ([`map::Map::words`]) and bytes that no longer
//! change ([`map::Map::bytes`]). Everything above sees a store's file through [`disk::Disk`].

pub mod atomic;
pub mod disk;
pub mod file;
pub mod fork;
pub mod futex;
pub mod holders;
pub mod host;
pub mod lock;
pub mod map;
pub mod pane;
pub mod sigbus;
pub mod simd;
mod view;
pub mod window;

#[cfg(not(all(target_os = "linux", target_endian = "little", target_pointer_width = "64")))]
compile_error!("slotdb needs Linux on a little-endian 64-bit machine");
