//! The sabotages, by part of the product.

mod commit;
mod durable;
mod index;
mod kvctl;
mod log;
mod order;
mod room;
mod sharing;
mod space;

/// One guard taken out.
#[derive(Debug)]
pub struct Mutation {
    /// For `SLOTDB_MUTATIONS`.
    pub name: &'static str,
    /// Where, from the root of the repository.
    pub file: &'static str,
    /// What stands there, exactly once.
    pub before: &'static str,
    /// What stands there instead.
    pub after: &'static str,
    /// Arguments of `cargo test` for the test that turns red; words like `RUSTFLAGS=--cfg` in front of them are its
    /// environment.
    pub test: &'static str,
    /// What goes wrong without the guard.
    pub why: &'static str,
}

/// All of them.
pub const LISTS: &[&[Mutation]] =
    &[commit::ALL, log::ALL, order::ALL, durable::ALL, sharing::ALL, space::ALL, index::ALL, room::ALL, kvctl::ALL];
