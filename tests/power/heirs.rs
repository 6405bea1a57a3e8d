//! Two processes on one disk: one dies, the other goes on with what it finds, and later the power fails.

use slotdb::Durability::{self, Eventual, Immediate};
use slotdb::sim::Call;

use super::base::{Base, delete, put};
use super::judge::Cuts;
use super::run::{Death, Run, Step};
use super::{random_steps, seed};
use crate::common::{Rng, number};

/// What a process does when it dies.
#[derive(Clone)]
struct Scene {
    name: &'static str,
    base: Base,
    /// What the other one has done before.
    before: Vec<Step>,
    step: Step,
}

fn scenes() -> Vec<Scene> {
    let commit = |durability: Durability, writes: Vec<_>| Step::Commit(durability, writes);
    let one = |durability, name: &str, len| commit(durability, vec![put(name, len)]);
    let batch = |durability| commit(durability, vec![put("k1", 30), put("new", 900), delete("k2"), put("other", 1)]);
    let some = Base::filled(20, 100, false);
    let page_full = Base::filled(249, 20, true);
    let segment_full = Base::filled(12, 5_000, false);
    let log_dead = Base::emptied(14, 50_000, 7);
    let split = || commit(Eventual, (0..9).map(|n| put(&format!("split{n}"), 10)).collect());
    let scene = |name, base: &Base, before, step| Scene { name, base: base.clone(), before, step };
    vec![
        scene("commit", &some, vec![one(Eventual, "a", 10)], batch(Immediate)),
        scene("eventual commit", &some, vec![one(Immediate, "a", 10)], batch(Eventual)),
        scene("split", &page_full, vec![one(Eventual, "a", 10)], split()),
        scene("segment", &segment_full, vec![one(Eventual, "a", 3_000)], commit(Immediate, vec![put("b", 5_000)])),
        scene("growth", &some, vec![one(Eventual, "a", 9)], one(Immediate, "b", 400_000)),
        scene("cleaning", &log_dead, vec![one(Eventual, "a", 9)], one(Immediate, "b", 9_000)),
        scene("flush", &segment_full, vec![one(Eventual, "a", 9_000), batch(Eventual)], Step::Sync),
        scene("checkpoint", &some, vec![batch(Immediate), one(Eventual, "a", 10)], Step::Checkpoint),
        scene("checkpoint after a split", &page_full, vec![split()], Step::Checkpoint),
        scene("second checkpoint", &some, vec![split(), Step::Checkpoint, batch(Eventual)], Step::Checkpoint),
    ]
}

/// What the other one does then.
fn afterlives() -> Vec<Vec<Step>> {
    let later = |durability, len| Step::Commit(durability, vec![put("k3", len), put("later", len), delete("k4")]);
    vec![
        vec![later(Immediate, 10), later(Immediate, 700)],
        vec![later(Eventual, 10), Step::Sync, later(Eventual, 700), Step::Checkpoint],
        vec![Step::Checkpoint, later(Immediate, 10), Step::Checkpoint],
        vec![Step::Sync, Step::Relay, later(Immediate, 10), Step::Checkpoint, later(Eventual, 9)],
        vec![Step::Reopen, later(Immediate, 10), Step::Checkpoint, Step::Reopen],
    ]
}

impl Scene {
    /// Plays it with the power cut at one in so many calls from the death on. Whether the process has died.
    fn play(&self, death: Death, afterlife: &[Step], one_in: u64, cuts: &mut Cuts, rng: &mut Rng) -> bool {
        let mut run = Run::start(&self.base, 0, rng.next());
        run.play(&self.before);
        let died = run.dies(&self.step, death);
        run.keep_one_in(one_in, rng.next());
        run.play(afterlife);
        cuts.every_moment(&format!("{}, death {death:?}, then {afterlife:?}", self.name), &mut run);
        died
    }
}

#[test]
fn the_power_fails_after_a_process_has_died_before_any_step() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let rounds = number("SLOTDB_ROUNDS", 1);
    let (mut cuts, mut deaths) = (Cuts::tearing(rng.next(), 1), 0);
    // All steps, if there are rounds enough.
    let stride = 8 / rounds.min(8);
    for scene in scenes() {
        for n in (rng.below(stride)..).step_by(stride as usize) {
            let afterlife = rng.pick(&afterlives()).clone();
            if !scene.play(Death::Before(n), &afterlife, 4, &mut cuts, &mut rng) {
                break;
            }
            deaths += 1;
        }
    }
    eprintln!("{deaths} deaths, {} power cuts", cuts.tried);
}

#[test]
fn the_power_fails_after_a_writer_has_died_in_a_call_that_failed() {
    die_in_calls(|step| !matches!(step, Step::Checkpoint), 6);
}

#[test]
fn the_power_fails_after_a_checkpointer_has_died_in_a_call_that_failed() {
    die_in_calls(|step| matches!(step, Step::Checkpoint), 3);
}

/// Each call of these scenes is one that a process dies in. One in so many moments is a cut, or more.
fn die_in_calls(is_of_these: fn(&Step) -> bool, one_in: u64) {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let rounds = number("SLOTDB_ROUNDS", 1);
    let (mut cuts, mut deaths) = (Cuts::tearing(rng.next(), rounds), 0);
    for scene in scenes().into_iter().filter(|scene| is_of_these(&scene.step)) {
        for call in [Call::Write, Call::Sync, Call::Allocate] {
            for n in 0.. {
                let died = afterlives()
                    .iter()
                    .filter(|afterlife| {
                        scene.play(Death::In(call, n), afterlife, one_in.div_ceil(rounds), &mut cuts, &mut rng)
                    })
                    .count();
                if died == 0 {
                    break;
                }
                deaths += died;
            }
        }
    }
    eprintln!("{deaths} deaths, {} power cuts", cuts.tried);
}

/// A sync has failed, who made it has died before it could tell, and what that left clean has left memory. The system
/// tells whoever was there.
#[test]
fn what_the_dead_could_not_tell_is_told_by_the_system() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut deaths = 0;
    for _ in 0..4 * number("SLOTDB_ROUNDS", 1) {
        for scene in scenes() {
            for n in 0.. {
                let mut run = Run::start(&scene.base, 0, rng.next());
                run.tell_all();
                run.play(&scene.before);
                if !run.dies(&scene.step, Death::In(Call::Sync, n)) {
                    break;
                }
                run.evict(rng.next());
                let name = format!("{}, death in sync {n}", scene.name);
                run.is_told(&name);
                run.survives(&name, &mut rng);
                deaths += 1;
            }
        }
    }
    eprintln!("{deaths} deaths");
}

/// As before, but the system does not tell who goes on, since he opened the store only then, or as the other one was
/// about to die: he must find out by himself.
#[test]
fn what_the_system_does_not_tell_is_found_out() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let (mut deaths, mut found) = (0, [0, 0]);
    // Seldom does all of a page come back as it was.
    let again = page_used_again();
    for _ in 0..4 * number("SLOTDB_ROUNDS", 1) {
        for scene in scenes().into_iter().chain(std::iter::repeat_n(again.clone(), 8)) {
            for n in 0.. {
                // Or nobody does anything but close the store.
                let newcomer = rng.pick(&[Some(true), Some(false), None]).to_owned();
                let mut run = Run::start(&scene.base, 0, rng.next());
                run.play(&scene.before);
                if !run.dies(&scene.step, Death::In(Call::Sync, n)) {
                    break;
                }
                run.evict(rng.next());
                let name = format!("{}, death in sync {n}, newcomer: {newcomer:?}", scene.name);
                if let Some(newcomer) = newcomer {
                    found[usize::from(newcomer)] += usize::from(run.finds_out(newcomer, &name));
                }
                run.survives(&name, &mut rng);
                deaths += 1;
            }
        }
    }
    assert!(found[0] > 0 && found[1] > 0, "nothing was lost");
    eprintln!("{deaths} deaths, {found:?} found out");
}

/// An index page takes a place again where it was some checkpoints ago.
fn page_used_again() -> Scene {
    let put = |n| Step::Commit(Eventual, vec![put("k1", n)]);
    let mut before: Vec<Step> = (1..20).flat_map(|n| [put(n), Step::Checkpoint]).collect();
    before.push(put(20));
    Scene { name: "page used again", base: Base::filled(20, 100, false), before, step: Step::Checkpoint }
}

#[test]
fn random_cuts_of_histories_with_deaths() {
    let seed = seed();
    let base = Base::empty();
    let mut cuts = Cuts::tearing(seed, 2);
    for round in 0..2 * number("SLOTDB_ROUNDS", 1) {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let steps = random_steps(&mut rng, 100).into_iter().map(|step| perhaps_dying(step, &mut rng));
        let steps: Vec<Step> = steps.collect();
        let mut run = Run::start(&base, 12, rng.next());
        run.play(&steps);
        cuts.every_moment(&format!("history {round}"), &mut run);
    }
    eprintln!("{} power cuts", cuts.tried);
}

/// Some steps are done by another process, which dies in many of them.
fn perhaps_dying(step: Step, rng: &mut Rng) -> Step {
    let may_die = matches!(step, Step::Commit(..) | Step::Sync | Step::Checkpoint) && rng.one_in(4);
    let death = match rng.below(4) {
        0 => Death::In(*rng.pick(&[Call::Write, Call::Sync, Call::Allocate]), rng.below(6)),
        _ => Death::Before(rng.below(150)),
    };
    if may_die { Step::Dying(Box::new(step), death) } else { step }
}
