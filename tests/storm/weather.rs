//! Processes at work, and what befalls them.

use std::time::Duration;

use crate::history::{Heard, History};
use crate::support::common::Rng;
use crate::support::common::raw::{Image, MOVED};
use crate::support::{Agent, Place, rounds, seed};

/// Small extents and many checkpoints, so that rare paths are common.
const OPTIONS: &str = "extent=65536 checkpoint=100000";
/// And a cleaner that has always something to do.
const CLEANING: &str = "extent=65536 checkpoint=100000 dead=0.1";
/// Operations of each process in a round.
const LENGTH: u64 = 6000;
/// Kills in a round, besides the one of everybody.
const KILLS: u64 = 40;
/// Steps that one takes before it kills itself, at most.
const STEPS: u64 = 200_000;
/// So many are stopped at a time.
const STOPPED: usize = 3;
/// Longest time between two blows, in microseconds.
const CALM: u64 = 2000;

/// Who is in the storm.
#[derive(Clone, Copy)]
pub struct Kind {
    /// At work at a time.
    pub processes: usize,
    /// Those of them that have the store open to read only.
    pub readers: usize,
    /// Somebody else has the store open all along.
    pub anchor: bool,
    /// Every second process is in a PID namespace of its own.
    pub own_namespaces: bool,
    /// Commits clean as much as they can, and some processes compact.
    pub cleaning: bool,
}

impl Kind {
    fn options(&self) -> &'static str {
        if self.cleaning { CLEANING } else { OPTIONS }
    }
}

/// A place that one process after the other works at.
struct Seat {
    agent: Agent,
    /// Who it is in the history.
    who: usize,
    stopped: bool,
    done: bool,
}

pub struct Storm {
    kind: Kind,
    place: Place,
    random: Rng,
    anchor: Option<Agent>,
    history: History,
    people: usize,
    kills: u64,
    stops: u64,
}

impl Storm {
    pub fn over(kind: Kind) -> Storm {
        let place = Place::in_memory();
        let mut anchor = Agent::open("anchor", &place.store(), &format!("create {}", kind.options()));
        anchor.well("endow");
        let anchor = kind.anchor.then_some(anchor);
        let (random, history) = (Rng::new(seed()), History::default());
        Storm { kind, place, random, anchor, history, people: 0, kills: 0, stops: 0 }
    }

    /// So many rounds, or SLOTDB_ROUNDS.
    pub fn rage(mut self, default: u64) {
        let (mut keys, mut operations, mut unknown, mut moved) = (0, 0, 0, 0);
        for round in 0..rounds(default) {
            self.round(&format!("r{round}"), round % 2 == 1);
            let history = std::mem::take(&mut self.history);
            keys += history.check().unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
            operations += history.operations;
            unknown += history.unknown;
            moved += if self.kind.cleaning { self.count_moved() } else { 0 };
            let (kills, stops) = (self.kills, self.stops);
            eprintln!(
                "storms={} kills={kills} stops={stops} operations={operations} unknown={unknown} histories={keys} \
                 moved={moved}",
                round + 1
            );
        }
        assert!(!self.kind.cleaning || moved > 0, "the cleaner had nothing to do");
    }

    /// Everybody works until all are done, or until all are killed; then the store must hold what it should.
    fn round(&mut self, prefix: &str, nobody_survives: bool) {
        let mut seats: Vec<Seat> = (0..self.kind.processes).map(|n| self.seat(n, 0, prefix)).collect();
        let mut kills = KILLS;
        let mut blows = if nobody_survives { self.random.below(300) } else { u64::MAX };
        let mut furthest = 0;
        while seats.iter().any(|seat| !seat.done) && blows > 0 {
            blows -= 1;
            std::thread::sleep(Duration::from_micros(self.random.below(CALM)));
            furthest = seats.iter_mut().map(|seat| self.listen(seat, false)).fold(furthest, u64::max);
            for (n, seat) in seats.iter_mut().enumerate().filter(|(_, seat)| !seat.done) {
                if seat.agent.is_dead() {
                    self.kill(seat);
                    *seat = self.seat(n, furthest, prefix);
                }
            }
            let n = self.random.below(seats.len() as u64) as usize;
            let stopped = seats.iter().filter(|seat| seat.stopped).count();
            match self.random.below(8) {
                0..=2 if kills > 0 && !seats[n].done => {
                    kills -= 1;
                    self.kill(&mut seats[n]);
                    seats[n] = self.seat(n, furthest, prefix);
                }
                3..=5 if stopped < STOPPED && !seats[n].stopped => {
                    seats[n].agent.stop();
                    seats[n].stopped = true;
                    self.stops += 1;
                }
                _ if seats[n].stopped => {
                    seats[n].agent.go_on();
                    seats[n].stopped = false;
                }
                _ => {}
            }
        }
        if nobody_survives {
            self.anchor = None;
            seats.iter_mut().for_each(|seat| self.kill(seat));
        }
        self.judge(seats);
    }

    /// Starts a process at work.
    fn seat(&mut self, n: usize, from: u64, prefix: &str) -> Seat {
        self.people += 1;
        let reads = n < self.kind.readers;
        let name = format!("process {}", self.people);
        let own_namespace = self.kind.own_namespaces && n.is_multiple_of(2);
        let mut agent = match own_namespace.then(|| Agent::in_own_namespace(&name)).flatten() {
            Some(agent) => agent,
            None => Agent::new(&name),
        };
        agent.send(&format!(
            "open {} {}",
            self.place.store().display(),
            if reads { "ro" } else { self.kind.options() }
        ));
        // Half of them kill themselves in mid-protocol, which blows from outside seldom hit.
        if self.random.one_in(2) {
            agent.send(&format!("arm {}", self.random.below(STEPS)));
        }
        let role = match n {
            _ if reads => "reader",
            n if self.kind.cleaning && n % 4 == 3 => "compactor",
            _ => "writer",
        };
        let seed = self.random.next();
        agent.send(&format!("storm {role} {} {seed} {from} {} {prefix}", self.people, from.max(LENGTH)));
        Seat { agent, who: self.people, stopped: false, done: false }
    }

    /// Takes in what was said; the furthest operation of which it was.
    fn listen(&mut self, seat: &mut Seat, is_dead: bool) -> u64 {
        let heard: Vec<String> = if is_dead { seat.agent.last_words().collect() } else { seat.agent.heard().collect() };
        let mut furthest = 0;
        for line in heard {
            match self.history.take(seat.who, line) {
                Heard::Began(n) => furthest = n,
                Heard::Ended => {}
                Heard::Doubts => {
                    self.people += 1;
                    seat.who = self.people;
                }
                Heard::Else(line) => match line.as_str() {
                    "ok" => {}
                    "done" => seat.done = true,
                    wrong => panic!("{:?} {wrong}", seat.agent),
                },
            }
        }
        furthest
    }

    fn kill(&mut self, seat: &mut Seat) {
        seat.agent.kill();
        self.kills += 1;
        self.listen(seat, true);
        self.history.lose(seat.who);
        // Whatever its last words were.
        (seat.done, seat.stopped) = (false, false);
    }

    /// What is there in the end is part of the history: for those who were there, for one who comes, and after
    /// recovery.
    fn judge(&mut self, mut seats: Vec<Seat>) {
        let keys: Vec<String> = self.history.keys().cloned().collect();
        for seat in seats.iter_mut().filter(|seat| seat.done && seat.stopped) {
            seat.agent.go_on();
        }
        let mut newcomer = Agent::open("newcomer", &self.place.store(), self.kind.options());
        // The next commit decides what becomes of the batch of one that died last.
        newcomer.ok("put decided yes");
        let left = seats.iter_mut().filter(|seat| seat.done).map(|seat| &mut seat.agent);
        let mut witnesses: Vec<&mut Agent> = left.filter_map(|agent| agent.attempt("steps 0").map(|_| agent)).collect();
        witnesses.truncate(2);
        witnesses.push(&mut newcomer);
        let digest = witnesses[0].well("scan");
        for agent in witnesses {
            self.people += 1;
            agent.says("scan", &digest);
            agent.is_clean();
            self.read_all(agent, &keys);
        }
        if self.random.one_in(2) {
            newcomer.ok("close");
        }
        if !self.kind.anchor || self.random.one_in(2) {
            self.anchor = None;
            drop((seats, newcomer));
            let mut next = Agent::open("next", &self.place.store(), self.kind.options());
            next.says("scan", &digest);
            next.is_clean();
            self.people += 1;
            self.read_all(&mut next, &keys);
            self.anchor = self.kind.anchor.then_some(next);
        } else if self.anchor.is_none() {
            self.anchor = Some(Agent::open("anchor", &self.place.store(), self.kind.options()));
        }
    }

    /// How many of the records that the checkpoint names were moved by the cleaner.
    fn count_moved(&self) -> u64 {
        let image = Image::read(&self.place.store());
        let pages = image.blob(&image.header()).pages;
        let slots = pages.iter().flat_map(|page| image.page(page)).flatten();
        slots.filter(|slot| image.record(slot.position()).is_some_and(|record| record.flags & MOVED != 0)).count()
            as u64
    }

    fn read_all(&mut self, agent: &mut Agent, keys: &[String]) {
        agent.send(&format!("recall {}", keys.join(" ")));
        while let Some(line) = agent.answer() {
            match self.history.take(self.people, line) {
                Heard::Else(done) => return assert_eq!(done, "done"),
                _ => continue,
            }
        }
        panic!("{agent:?} died of reading");
    }
}
