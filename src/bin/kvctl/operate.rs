//! The verbs that bring a store's disk up to date: `checkpoint`, `sync`.

use clap::Args;
use serde::Serialize;
use slotdb::{Db, Durability};

use crate::args::{Missing, StoreArgs};
use crate::console::Console;
use crate::exit::Outcome;
use crate::look::SeqReport;
use crate::progress::while_spinning;

/// Image the index, so that opening after a crash has nothing to replay
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl checkpoint app.db")]
pub struct CheckpointRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn checkpoint(request: &CheckpointRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    work_on(&request.store, console, "checkpoint", Db::checkpoint)
}

/// Make every commit so far durable
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl sync app.db")]
pub struct SyncRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn sync(request: &SyncRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    work_on(&request.store, console, "sync", Db::sync)
}

fn work_on(
    store: &StoreArgs,
    console: &mut Console,
    what: &'static str,
    work: fn(&Db) -> slotdb::Result<()>,
) -> anyhow::Result<Outcome> {
    let db = store.open_to_write(Durability::Immediate, Missing::Refuse)?;
    while_spinning(console.shows_progress(), what, || work(&db))?;
    let seq = db.stats()?.seq;
    db.close()?;
    if console.json {
        console.document(&Reached { seq: seq.into() })?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct Reached {
    seq: SeqReport,
}
