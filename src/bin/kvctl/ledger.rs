//! What a crew was told is done, and whether the store agrees.

use anyhow::ensure;
use slotdb::Db;

use crate::agent::Role;
use crate::bank::{Bank, Snapshot};
use crate::crew::{Agent, Said};

/// What came of all processes so far.
pub struct Ledger {
    bank: Bank,
    /// Each writer's, however many processes it took.
    writers: Vec<Account>,
    pub commits: u64,
    pub in_flight_kept: u64,
    pub snapshots: u64,
    pub gets: u64,
    pub faults: Vec<String>,
    /// The latest seq that a durable commit acknowledged.
    durable_seq: u64,
}

#[derive(Clone, Copy, Default)]
struct Account {
    /// The latest transfer that is known to be committed.
    latest: u64,
    /// The latest that a durable commit acknowledged.
    durable: u64,
    /// Kills since the store was last asked what it holds: each may have had one commit in flight.
    open_kills: u64,
}

/// What a power cut must not undo.
pub struct Promised {
    seq: u64,
    transfers: Vec<u64>,
}

impl Ledger {
    /// The books of a bank whose accounts were opened by the durable commit `seq`.
    pub fn new(bank: Bank, seq: u64) -> Ledger {
        Ledger {
            bank,
            writers: vec![Account::default(); bank.writers],
            commits: 0,
            in_flight_kept: 0,
            snapshots: 0,
            gets: 0,
            faults: Vec::new(),
            durable_seq: seq,
        }
    }

    /// Takes in all that a process said, which is gone now; `killed`: in the midst of its work.
    pub fn take_in(&mut self, role: Role, said: Said, killed: bool) {
        self.snapshots += said.snapshots;
        self.gets += said.gets;
        self.commits += said.commits;
        if let Some(line) = said.garbled {
            self.faults.push(format!("the {role} said {line:?} out of order"));
        }
        let Role::Writer(writer) = role else { return };
        if let Some(found) = said.resumed {
            self.settle(writer, found, "after a kill");
            self.writers[writer].latest = said.latest;
        }
        self.durable_seq = self.durable_seq.max(said.durable_seq);
        let account = &mut self.writers[writer];
        account.durable = account.durable.max(said.durable);
        account.open_kills += u64::from(killed);
    }

    /// The store holds this transfer of a writer as its latest, and nobody is at work on another.
    fn settle(&mut self, writer: usize, found: u64, when: &str) {
        let account = &mut self.writers[writer];
        let Account { latest, open_kills, .. } = *account;
        if (latest..=latest + open_kills).contains(&found) {
            self.in_flight_kept += found - latest;
        } else {
            let wrong = format!("{when} writer {writer} is at transfer {found}, {latest} was acknowledged");
            self.faults.push(wrong);
        }
        (account.latest, account.open_kills) = (found, 0);
    }

    /// With all agents gone, nothing is in flight: the store holds what was acknowledged.
    pub fn verify(&mut self, db: &Db, when: &str) {
        match self.bank.examine(db) {
            Ok(snapshot) => {
                for (writer, &found) in snapshot.counters.iter().enumerate() {
                    self.settle(writer, found, when);
                }
            }
            Err(error) => self.faults.push(format!("{when}: {error:#}")),
        }
    }

    /// What is acknowledged as durable at this moment, by those who are gone and those who are at work.
    pub fn promised(&self, agents: &[Agent]) -> Promised {
        let mut seq = self.durable_seq;
        let mut transfers: Vec<u64> = self.writers.iter().map(|account| account.durable).collect();
        for agent in agents {
            if let Role::Writer(writer) = agent.role {
                let said = agent.said();
                seq = seq.max(said.durable_seq);
                transfers[writer] = transfers[writer].max(said.durable);
            }
        }
        Promised { seq, transfers }
    }

    /// What a store holds that came out of a power cut: all that was promised, and nothing that nobody did.
    pub fn verify_cut(&self, promised: &Promised, found: &Snapshot) -> anyhow::Result<()> {
        ensure!(found.seq >= promised.seq, "commit {} is there, {} was durable", found.seq, promised.seq);
        for (writer, (&found, &durable)) in found.counters.iter().zip(&promised.transfers).enumerate() {
            let done = self.writers[writer].latest;
            ensure!(
                (durable..=done).contains(&found),
                "writer {writer} is at transfer {found}, {durable} was durable and {done} was done in the end"
            );
        }
        Ok(())
    }
}
