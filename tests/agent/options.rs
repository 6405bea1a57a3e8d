//! How an agent opens a store.

use std::str::FromStr;
use std::time::Duration;

use slotdb::{Durability, Options, WriterLock};

/// Options from words such as `create`, `ro`, `eventual`, `extent=65536`.
pub fn parse(words: &[&str]) -> Options {
    let mut options = Options::new();
    for word in words {
        match word.split_once('=') {
            None => flag(&mut options, word),
            Some(("extent", bytes)) => drop(options.extent_size(number(bytes)).slack(32 * number::<u64>(bytes))),
            Some(("checkpoint", bytes)) => drop(options.checkpoint_bytes(number(bytes))),
            Some(("dead", ratio)) => drop(options.max_dead_ratio(number(ratio))),
            Some(("reserve", bytes)) => drop(options.reserve(number(bytes))),
            Some(("max", bytes)) => drop(options.max_size(number(bytes))),
            Some(("timeout", ms)) => drop(options.lock_timeout(Duration::from_millis(number(ms)))),
            Some(_) => panic!("no such option: {word}"),
        }
    }
    options
}

fn flag(options: &mut Options, word: &str) {
    match word {
        "create" => options.create(true),
        "create_new" => options.create_new(true),
        "ro" => options.read_only(true),
        "eventual" => options.durability(Durability::Eventual),
        "guard" => options.guard_sigbus(true),
        "each" => options.writer_lock(WriterLock::EachCommit),
        _ => panic!("no such option: {word}"),
    };
}

/// A number that the test wrote.
pub fn number<T: FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}
