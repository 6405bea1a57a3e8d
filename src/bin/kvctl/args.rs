//! Arguments that several verbs share, and how they open the store.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use slotdb::{Db, Durability, Options};

use crate::bytes::Encoding;
use crate::exit::Usage;

/// The store a verb works on.
#[derive(Args)]
pub struct StoreArgs {
    /// The store
    pub file: PathBuf,

    /// Give up waiting for a lock after this long, for example 5s or 10m [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// How every verb opens a store: a file that is cut short under it is an error and not a death.
pub fn guarded() -> Options {
    let mut options = Options::new();
    options.guard_sigbus(true);
    options
}

/// Whether a writing verb may make the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    Create,
}

impl StoreArgs {
    pub fn options(&self) -> Options {
        let mut options = guarded();
        if let Some(timeout) = self.timeout {
            options.lock_timeout(timeout);
        }
        options
    }

    pub fn open_to_read(&self) -> slotdb::Result<Db> {
        self.options().read_only(true).open(&self.file)
    }

    pub fn open_to_write(&self, durability: Durability, missing: Missing) -> slotdb::Result<Db> {
        self.options().durability(durability).create(missing == Missing::Create).open(&self.file)
    }
}

/// How soon a writing verb's changes are safe from a power cut.
#[derive(Args)]
pub struct DurabilityArgs {
    /// Return before the change is on stable storage: faster, and a power cut may lose it
    #[arg(long)]
    eventual: bool,
}

impl DurabilityArgs {
    pub fn durability(&self) -> Durability {
        if self.eventual { Durability::Eventual } else { Durability::Immediate }
    }
}

/// For verbs that make the store when it is missing.
#[derive(Args)]
pub struct MissingArgs {
    /// Fail if the store does not exist, instead of creating it
    #[arg(long)]
    no_create: bool,
}

impl MissingArgs {
    pub fn missing(&self) -> Missing {
        if self.no_create { Missing::Refuse } else { Missing::Create }
    }
}

/// How keys and values are written.
#[derive(Args)]
pub struct EncodingArgs {
    /// How keys and values are written, in arguments, on stdin, in files and on stdout
    #[arg(long, value_enum, default_value_t)]
    pub encoding: Encoding,
}

impl EncodingArgs {
    /// The bytes that an argument stands for; an argument that does not decode is wrong usage.
    pub fn argument(&self, name: &str, text: &OsStr) -> Result<Vec<u8>, Usage> {
        self.encoding.decode(text.as_bytes()).map_err(|malformed| Usage(format!("{name} {malformed}")))
    }

    /// The bytes of a value that stands in a file, or on stdin if there is no path.
    pub fn input(&self, path: Option<&Path>) -> anyhow::Result<Vec<u8>> {
        let (name, text) = match path {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path).with_context(|| name.clone())?;
                (name, read_value(file))
            }
            None => ("stdin".into(), read_value(io::stdin().lock())),
        };
        let text = text.with_context(|| format!("cannot read {name}"))?;
        let text = match self.encoding {
            Encoding::Raw => return Ok(text),
            // Text tools end their last line; no encoding but the raw one has newlines.
            _ => text.strip_suffix(b"\n").unwrap_or(&text),
        };
        self.encoding.decode(text).map_err(|malformed| anyhow::anyhow!("{name} {malformed}"))
    }
}

/// The longest encoding, `\xHH`, takes four bytes for one.
const LONGEST_TEXT: u64 = slotdb::MAX_VALUE * 4;

/// Reads a value; of an endless input, just enough for the store to refuse it as too long.
fn read_value(input: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    input.take(LONGEST_TEXT + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// A size in bytes: a number, alone or with K, M, G or T (also KiB, MiB, ...: powers of 1,024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "a size looks like 65536, 64K or 2MiB")?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(format!("no unit {unit:?}: use K, M, G or T, powers of 1,024"));
        }
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("64K", 65_536),
            ("64KiB", 65_536),
            ("2m", 2 << 20),
            ("1GiB", 1 << 30),
            ("3T", 3 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in ["", "K", "-1", "1.5M", "1MB", "1 M", "99999999999999999999", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
