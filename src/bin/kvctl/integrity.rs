//! The verb that looks for damage: `check`.

use std::io::Write;

use anstyle::AnsiColor;
use clap::Args;
use serde::Serialize;
use slotdb::Error;

use crate::args::StoreArgs;
use crate::console::Console;
use crate::exit::Outcome;
use crate::progress::{Progress, Unit, while_spinning};

/// Examine every header, page, record and pointer
///
/// Prints each fault with its file offset and cause; the exit status is 3 if there is any.
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl check app.db --deep")]
pub struct CheckRequest {
    #[command(flatten)]
    store: StoreArgs,

    /// Also verify the checksum of every record
    #[arg(long)]
    deep: bool,
}

pub fn check(request: &CheckRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let faults = find_faults(request, console.shows_progress())?;
    let report = CheckReport { clean: faults.is_empty(), faults };
    if console.json {
        console.document(&report)?;
    } else if report.clean {
        let style = console.style(AnsiColor::Green.on_default());
        writeln!(console, "{style}clean{style:#}")?;
    } else {
        let style = console.style(AnsiColor::Red.on_default());
        for FaultReport { offset, what } in &report.faults {
            writeln!(console, "{style}offset {offset}{style:#}: {what}")?;
        }
    }
    Ok(if report.clean { Outcome::Yes } else { Outcome::Damaged })
}

#[derive(Serialize)]
struct CheckReport {
    clean: bool,
    faults: Vec<FaultReport>,
}

#[derive(Serialize)]
struct FaultReport {
    offset: u64,
    what: String,
}

/// Damage that keeps the store from opening is what this verb was asked to find, too.
fn find_faults(request: &CheckRequest, shown: bool) -> slotdb::Result<Vec<FaultReport>> {
    let mut progress = Progress::new(shown, Unit::Records, Some(0));
    // A store that was not closed is replayed.
    let opened = while_spinning(shown, "opening", || request.store.open_to_read());
    let found = opened.and_then(|db| {
        db.check_telling(request.deep, |so_far| {
            progress.expect(so_far.all_keys);
            progress.reach(so_far.keys.min(so_far.all_keys));
        })
    });
    progress.clear();
    match found {
        Ok(faults) => {
            Ok(faults.into_iter().map(|fault| FaultReport { offset: fault.offset, what: fault.what }).collect())
        }
        Err(Error::Corrupt { offset, what, .. }) => Ok(vec![FaultReport { offset, what }]),
        Err(Error::Truncated { expected, found, .. }) => {
            let what = format!("the file ends here, {} bytes too early", expected.saturating_sub(found));
            Ok(vec![FaultReport { offset: found, what }])
        }
        Err(error) => Err(error),
    }
}
