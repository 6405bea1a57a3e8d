//! The verb that gives space back: `compact`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use slotdb::Durability;

use crate::args::{Missing, StoreArgs};
use crate::console::Console;
use crate::exit::{self, Outcome};
use crate::look::disk_bytes;
use crate::progress::{Progress, Unit};

/// Rewrite dead space away and give it back to the file system
///
/// Others may stay attached: each step holds the writer lock for a moment. An interrupt ends it
/// after a step; what was done stands. The file becomes shorter when the last process closes it.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl compact app.db")]
pub struct CompactRequest {
    #[command(flatten)]
    store: StoreArgs,
}

pub fn compact(request: &CompactRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let interrupted = exit::on_interrupt()?;
    let file = &request.store.file;
    // Opening may take space.
    let before = Size::of(file);
    let db = request.store.open_to_write(Durability::Immediate, Missing::Refuse)?;
    let before = before?;
    let mut progress = Progress::new(console.shows_progress(), Unit::Bytes, Some(0));
    // An interrupt during the last step changes nothing: then all is done.
    let finished = db.compact(|so_far| {
        progress.expect(so_far.walked_bytes + so_far.left_bytes);
        progress.reach(so_far.walked_bytes);
        !interrupted.load(Ordering::Relaxed)
    })?;
    progress.clear();
    let stats = db.stats()?;
    db.close()?;
    let report = CompactReport {
        before,
        after: Size::of(file)?,
        live_bytes: stats.live_bytes,
        index_bytes: stats.index_bytes,
        held_bytes: stats.held_bytes,
    };
    if !finished {
        bail!("{}: interrupted; what was done stands: {}", file.display(), report.text());
    }
    if console.json {
        console.document(&report)?;
    } else {
        writeln!(console, "{}", report.text())?;
    }
    Ok(Outcome::Yes)
}

#[derive(Serialize)]
struct CompactReport {
    before: Size,
    after: Size,
    /// Keys and values.
    live_bytes: u64,
    index_bytes: u64,
    held_bytes: u64,
}

/// What a file takes.
#[derive(Serialize)]
struct Size {
    file_bytes: u64,
    disk_bytes: u64,
}

impl Size {
    fn of(file: &Path) -> anyhow::Result<Size> {
        let metadata = fs::metadata(file).with_context(|| file.display().to_string())?;
        Ok(Size { file_bytes: metadata.len(), disk_bytes: disk_bytes(&metadata) })
    }
}

impl CompactReport {
    fn text(&self) -> String {
        let Size { file_bytes, disk_bytes } = self.before;
        format!(
            "file {} -> {}, on disk {} -> {}, live {}, index {}, held by readers {}",
            BinaryBytes(file_bytes),
            BinaryBytes(self.after.file_bytes),
            BinaryBytes(disk_bytes),
            BinaryBytes(self.after.disk_bytes),
            BinaryBytes(self.live_bytes),
            BinaryBytes(self.index_bytes),
            BinaryBytes(self.held_bytes),
        )
    }
}
