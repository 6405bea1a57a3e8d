//! Power cuts: a round of the storm on a disk that is copied in mid-work, and the examination of the copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::bank::{Bank, digest};
use crate::lab::{self, Lab};
use crate::ledger::{Ledger, Promised};
use crate::torture::Storm;

pub use crate::lab::Fs;

/// Cuts in a round.
const CUTS: u32 = 3;
const STORE: &str = "torture.slotdb";

/// What cuts of the power need; the file systems to try in turn.
pub fn prepare(file: &Path, wanted: &[Fs]) -> anyhow::Result<Vec<Fs>> {
    ensure!(!file.exists(), "{} exists already, and a bad copy of the disk would go there", file.display());
    lab::be_root_alone()?;
    lab::installed(wanted)
}

/// A disk as it was at one moment, and what had been acknowledged before.
struct Cut {
    image: PathBuf,
    promised: Promised,
}

/// One round on a new file system; what is wrong.
pub fn round(storm: &mut Storm, file: &Path, kind: Fs, length: Duration) -> anyhow::Result<Vec<String>> {
    let mut lab = Lab::new(file, kind)?;
    let store = lab.disk().join(STORE);
    let mut ledger = storm.open_ledger(&store)?;
    let mut moments: Vec<Duration> =
        (0..CUTS).map(|_| Duration::from_micros(storm.dice.below(length.as_micros() as u64))).collect();
    moments.sort();
    let mut cuts: Vec<Cut> = Vec::new();
    let started = Instant::now();
    storm.blow(&mut ledger, &store, length, &mut |ledger, agents| {
        if moments.get(cuts.len()).is_some_and(|&moment| started.elapsed() >= moment) {
            // What is acknowledged before the disk is held must be on it.
            let promised = ledger.promised(agents);
            cuts.push(Cut { image: lab.copy_disk(cuts.len())?, promised });
        }
        Ok(())
    })?;
    storm.verify(&mut ledger, &store);
    lab.take_out_disk()?;
    for cut in cuts {
        storm.counts.power_cuts += 1;
        if let Err(error) = examine(storm.bank, &lab, &ledger, &cut) {
            let kept = fs::rename(&cut.image, file).is_ok();
            let kept = if kept { format!(" (the disk is {})", file.display()) } else { String::new() };
            ledger.faults.push(format!("{kind}, after power cut {}: {error:#}{kept}", storm.counts.power_cuts));
            break;
        }
        fs::remove_file(&cut.image).context("cannot remove a copy of the disk")?;
    }
    Ok(ledger.faults)
}

/// The store on a copy of the disk: all that was promised is there, it can be written to, and reopening changes
/// nothing.
fn examine(bank: Bank, lab: &Lab, ledger: &Ledger, cut: &Cut) -> anyhow::Result<()> {
    let disk = lab.mount_copy(&cut.image)?;
    let store = disk.path().join(STORE);
    let db = bank.options().open(&store)?;
    ledger.verify_cut(&cut.promised, &bank.examine(&db)?)?;
    db.put(b"kvctl-torture/after", b"the power cut")?;
    let before = digest(&db)?;
    db.close()?;
    let db = bank.options().open(&store)?;
    bank.examine(&db)?;
    ensure!(digest(&db)? == before, "reopening changed what is there");
    db.close()?;
    disk.unmount()
}
