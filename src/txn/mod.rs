//! What a user holds: snapshots, write transactions, scans.

pub mod read;
pub mod scan;
pub mod write;
