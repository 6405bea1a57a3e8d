//! One engine a file.

mod fjall;
mod floor;
mod gdbm;
mod hashmap;
mod kyoto;
mod library;
mod lmdb;
mod mdbx;
mod redb;
mod rocksdb;
mod sled;
mod slotdb;
mod tdb;
mod tkrzw;
mod tree;

pub use floor::{Floor, floors};

use crate::engine::Engine;

/// All engines, ceilings last.
pub fn all() -> Vec<Engine> {
    vec![
        slotdb::engine(),
        lmdb::engine(),
        lmdb::engine_writemap(),
        mdbx::engine(),
        redb::engine(),
        fjall::engine(),
        sled::engine(),
        rocksdb::engine(),
        kyoto::engine(),
        tkrzw::engine(),
        tdb::engine(),
        gdbm::engine(),
        hashmap::engine(),
        hashmap::engine_inline(),
    ]
}
