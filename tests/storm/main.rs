//! Storms: many processes work on one store and are killed and stopped at any instruction. What they said is checked
//! key by key with a published checker for linearizability (stateright); what belongs together is checked by sums.
//!
//! SLOTDB_ROUNDS=n takes n rounds of each storm.

mod history;
#[path = "../support/mod.rs"]
mod support;
mod weather;

use support::Agent;
use weather::{Kind, Storm};

#[test]
fn a_storm_over_writers_and_readers() {
    Storm::over(Kind { processes: 8, readers: 2, anchor: true, own_namespaces: false, cleaning: false }).rage(4);
}

/// Nobody stays throughout: when all are dead, the next one recovers.
#[test]
fn a_storm_that_nobody_survives() {
    Storm::over(Kind { processes: 8, readers: 0, anchor: false, own_namespaces: false, cleaning: false }).rage(4);
}

/// Everybody is process 1: nothing may depend on what a pid means.
#[test]
fn a_storm_over_processes_of_several_pid_namespaces() {
    if Agent::in_own_namespace("probe").is_none() {
        eprintln!("skipped a_storm_over_processes_of_several_pid_namespaces: unshare --pid is not permitted here");
        return;
    }
    Storm::over(Kind { processes: 8, readers: 2, anchor: true, own_namespaces: true, cleaning: false }).rage(4);
}

/// Each commit moves records, and processes that compact move the rest; they die of it too.
#[test]
fn a_storm_over_a_busy_cleaner() {
    Storm::over(Kind { processes: 8, readers: 2, anchor: true, own_namespaces: false, cleaning: true }).rage(2);
}
