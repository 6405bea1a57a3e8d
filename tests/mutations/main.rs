//! Sabotage: each entry of the list takes one guard out of the product, and names the test that must turn red.
//!
//! `SLOTDB_MUTATIONS=all cargo test --test mutations -- --nocapture` runs them all on a copy of the tree, one build a
//! sabotage; `SLOTDB_MUTATIONS=name,name` runs some. Without it only the list is checked: every entry still applies.

mod list;
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use list::{LISTS, Mutation};

fn all() -> impl Iterator<Item = &'static Mutation> {
    LISTS.iter().copied().flatten()
}

/// The text with the sabotage in it, if the place is there exactly once.
fn sabotaged(mutation: &Mutation, text: &str) -> Result<String, String> {
    match text.matches(mutation.before).count() {
        1 => Ok(text.replacen(mutation.before, mutation.after, 1)),
        n => Err(format!("{}: {:?} is {n} times in {}", mutation.name, mutation.before, mutation.file)),
    }
}

#[test]
fn every_sabotage_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names: BTreeSet<&str> = all().map(|mutation| mutation.name).collect();
    assert_eq!(names.len(), all().count(), "names are unique");
    let stale = |mutation: &Mutation| {
        let text = fs::read_to_string(root.join(mutation.file)).map_err(|e| format!("{}: {e}", mutation.file));
        text.and_then(|text| sabotaged(mutation, &text)).err()
    };
    let complaints: Vec<String> = all().filter_map(stale).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_sabotage_turns_its_test_red() {
    let Ok(wanted) = std::env::var("SLOTDB_MUTATIONS") else { return };
    let is_wanted = |mutation: &&Mutation| wanted == "all" || wanted.split(',').any(|name| name == mutation.name);
    let chosen: Vec<&Mutation> = all().filter(is_wanted).collect();
    assert!(!chosen.is_empty(), "SLOTDB_MUTATIONS={wanted} names no sabotage");
    let survivors = run::run(&chosen);
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
