//! The data verbs: `create`, `put`, `get`, `del`, `count`, `scan`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use slotdb::WriteTxn;

use crate::args::{DurabilityArgs, EncodingArgs, Missing, MissingArgs, StoreArgs, parse_size};
use crate::bytes::Encoding;
use crate::console::Console;
use crate::exit::Outcome;
use crate::json::JsonBytes;

/// Create a new, empty store
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl create new.db --max-size 1G")]
pub struct CreateRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// Unit of space, a power of two from 64K to 64M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    extent_size: Option<u64>,

    /// The file never grows beyond this [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
}

pub fn create(request: &CreateRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let mut options = request.store.options();
    options.create_new(true);
    if let Some(size) = request.extent_size {
        options.extent_size(size);
    }
    if let Some(size) = request.max_size {
        options.max_size(size);
    }
    options.open(&request.store.file)?.close()?;
    if console.json {
        console.document(&Created { created: true })?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct Created {
    created: bool,
}

/// Store a value under a key
///
/// A value left out is read from stdin. An argument that begins with a dash goes behind `--`.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl put app.db greeting 'hello world'")]
pub struct PutRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// Any bytes, up to 65,535 of them
    #[arg(allow_negative_numbers = true)]
    key: OsString,

    /// Any bytes, up to 4 GiB less one
    #[arg(allow_negative_numbers = true)]
    value: Option<OsString>,

    /// Read the value from this file
    #[arg(long, value_name = "PATH", conflicts_with = "value")]
    value_file: Option<PathBuf>,

    /// Only if the key is absent; exit 1 if it is there
    #[arg(long, conflicts_with = "if_equals")]
    if_absent: bool,

    /// Only if the key has this value; exit 1 if it has not
    #[arg(long, value_name = "OLD", allow_negative_numbers = true)]
    if_equals: Option<OsString>,

    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    durability: DurabilityArgs,
    #[command(flatten)]
    missing: MissingArgs,
}

/// When a put takes place.
enum Condition {
    Always,
    IfAbsent,
    IfEquals(Vec<u8>),
}

pub fn put(request: &PutRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    // Everything that may wait for input comes before the store is opened.
    let key = request.encoding.argument("KEY", &request.key)?;
    let condition = match &request.if_equals {
        Some(old) => Condition::IfEquals(request.encoding.argument("OLD", old)?),
        None if request.if_absent => Condition::IfAbsent,
        None => Condition::Always,
    };
    let value = match &request.value {
        Some(value) => request.encoding.argument("VALUE", value)?,
        None => request.encoding.input(request.value_file.as_deref())?,
    };

    let durability = request.durability.durability();
    let db = request.store.open_to_write(durability, request.missing.missing())?;
    let mut txn = db.begin_write()?;
    let refusal = condition.refusal(&txn, &key)?;
    if refusal.is_none() {
        txn.put(&key, &value)?;
    }
    // An answer "no" is a result too: the commit waits until what was read is durable.
    txn.commit()?;
    db.close()?;

    if console.json {
        console.document(&Written { written: refusal.is_none() })?;
    }
    match refusal {
        None => Ok(Outcome::Yes),
        Some(why) => {
            console.note(&format!("not written: {why}"));
            Ok(Outcome::No)
        }
    }
}

impl Condition {
    /// Why the put must not take place, if so.
    fn refusal(&self, txn: &WriteTxn<'_>, key: &[u8]) -> slotdb::Result<Option<&'static str>> {
        Ok(match self {
            Condition::Always => None,
            Condition::IfAbsent => txn.get(key)?.map(|_| "the key is there already"),
            Condition::IfEquals(old) => match txn.get(key)? {
                None => Some("the key is absent"),
                Some(value) if value != old => Some("the key has another value"),
                Some(_) => None,
            },
        })
    }
}

#[derive(Serialize)]
struct Written {
    written: bool,
}

/// Print the values of keys, all of one moment
///
/// The output for one key is exactly its value; a newline is added only on a terminal. The values
/// of several keys are separated by newlines. Absent keys are left out (with --json their value
/// is null), and the exit status is 1.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl get app.db greeting")]
pub struct GetRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// The keys to look up
    #[arg(required = true, value_name = "KEY", allow_negative_numbers = true)]
    keys: Vec<OsString>,

    #[command(flatten)]
    encoding: EncodingArgs,
}

pub fn get(request: &GetRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let keys = decode_keys(&request.encoding, &request.keys)?;
    let db = request.store.open_to_read()?;
    let txn = db.begin_read()?;
    // All values are found before the first is printed: a failure prints nothing.
    let values = keys.iter().map(|key| txn.get(key)).collect::<slotdb::Result<Vec<_>>>()?;

    let mut separator: &[u8] = b"";
    for (key, value) in keys.iter().zip(&values) {
        if console.json {
            console.document(&Pair { key: JsonBytes(key), value: value.map(JsonBytes) })?;
        } else if let Some(value) = value {
            console.write_all(separator)?;
            console.write_all(&request.encoding.encoding.encode(value))?;
            separator = b"\n";
        }
        if value.is_none() {
            let shown = Encoding::Escaped.encode(key);
            console.note(&format!("absent: {}", String::from_utf8_lossy(&shown)));
        }
    }
    // A page that was lost since the values were found left zeros in what was printed: the next call tells.
    txn.get(&keys[0])?;
    if !console.json && !separator.is_empty() && console.stdout_is_terminal() {
        console.write_all(b"\n")?;
    }
    Ok(if values.contains(&None) { Outcome::No } else { Outcome::Yes })
}

fn decode_keys(encoding: &EncodingArgs, keys: &[OsString]) -> anyhow::Result<Vec<Vec<u8>>> {
    let decoded = keys.iter().map(|key| encoding.argument("KEY", key));
    Ok(decoded.collect::<Result<_, _>>()?)
}

#[derive(Serialize)]
struct Pair<'a> {
    key: JsonBytes<'a>,
    value: Option<JsonBytes<'a>>,
}

/// Remove keys, all or none, and print how many were there
///
/// The exit status is 1 if none was there.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl del app.db greeting")]
pub struct DelRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// The keys to remove
    #[arg(required = true, value_name = "KEY", allow_negative_numbers = true)]
    keys: Vec<OsString>,

    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    durability: DurabilityArgs,
}

pub fn del(request: &DelRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let keys = decode_keys(&request.encoding, &request.keys)?;
    let db = request.store.open_to_write(request.durability.durability(), Missing::Refuse)?;
    let mut txn = db.begin_write()?;
    let mut removed = 0;
    for key in &keys {
        removed += u64::from(txn.delete(key)?);
    }
    // Also if nothing was removed: the answer is durable then.
    txn.commit()?;
    db.close()?;

    if console.json {
        console.document(&Removed { removed })?;
    } else {
        writeln!(console, "{removed}")?;
    }
    Ok(if removed == 0 { Outcome::No } else { Outcome::Yes })
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
}

/// Print the number of keys, without looking at them
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl count app.db")]
pub struct CountRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn count(request: &CountRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let count = request.store.open_to_read()?.len()?;
    print_count(console, count)
}

fn print_count(console: &mut Console, count: u64) -> anyhow::Result<Outcome> {
    if console.json {
        console.document(&Counted { count })?;
    } else {
        writeln!(console, "{count}")?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct Counted {
    count: u64,
}

/// Print all pairs of one moment, in no order
///
/// A line is a key, a tab and a value. Raw keys and values may themselves hold tabs and newlines:
/// use --json or an --encoding where that matters.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl scan app.db --prefix user: --encoding escaped")]
pub struct ScanRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// Only keys that begin with P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    prefix: Option<OsString>,

    /// At most N pairs
    #[arg(long, value_name = "N")]
    limit: Option<u64>,

    /// Print keys without values
    #[arg(long, conflicts_with = "count")]
    keys_only: bool,

    /// Print only how many there are
    #[arg(long)]
    count: bool,

    #[command(flatten)]
    encoding: EncodingArgs,
}

pub fn scan(request: &ScanRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let prefix = match &request.prefix {
        Some(prefix) => request.encoding.argument("P", prefix)?,
        None => Vec::new(),
    };
    let db = request.store.open_to_read()?;
    let txn = db.begin_read()?;
    let mut left = request.limit.unwrap_or(u64::MAX);
    let mut found = 0;
    for pair in txn.iter() {
        let (key, value) = pair?;
        if left == 0 {
            break;
        }
        if !key.starts_with(&prefix) {
            continue;
        }
        left -= 1;
        found += 1;
        if !request.count {
            print_pair(request, console, key, value)?;
        }
    }
    if request.count {
        return print_count(console, found);
    }
    Ok(Outcome::Yes)
}

fn print_pair(request: &ScanRequest, console: &mut Console, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
    let encoding = request.encoding.encoding;
    match (console.json, request.keys_only) {
        (true, true) => console.document(&Key { key: JsonBytes(key) })?,
        (true, false) => {
            console.document(&Pair { key: JsonBytes(key), value: Some(JsonBytes(value)) })?;
        }
        (false, keys_only) => {
            console.write_all(&encoding.encode(key))?;
            if !keys_only {
                console.write_all(b"\t")?;
                console.write_all(&encoding.encode(value))?;
            }
            console.write_all(b"\n")?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Key<'a> {
    key: JsonBytes<'a>,
}
