//! Progress bars for work that takes longer than a second, on a terminal.

use std::fmt::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// What is counted.
#[derive(Clone, Copy)]
pub enum Unit {
    Records,
    Bytes,
    Seconds,
    Rounds,
}

impl Unit {
    fn template(self, bounded: bool) -> &'static str {
        match (self, bounded) {
            (Unit::Records, true) => "{wide_bar} {human_pos}/{human_len} {rate}/s, {left} left",
            (Unit::Records, false) => "{spinner} {human_pos} {rate}/s",
            (Unit::Bytes, true) => "{wide_bar} {binary_bytes}/{binary_total_bytes} {rate}/s, {left} left",
            (Unit::Bytes, false) => "{spinner} {binary_bytes} {rate}/s",
            (Unit::Seconds, _) => "{wide_bar} {pos}/{len} s",
            (Unit::Rounds, _) => "{wide_bar} {pos}/{len} rounds, {left} left",
        }
    }

    fn rate(self, a_second: f64) -> String {
        match self {
            Unit::Bytes => BinaryBytes(a_second as u64).to_string(),
            Unit::Records | Unit::Seconds | Unit::Rounds => HumanCount(a_second as u64).to_string(),
        }
    }
}

/// The average since the start; the bar's own estimate does not know the time before it was shown.
fn a_second(state: &ProgressState) -> f64 {
    state.pos() as f64 / state.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
}

fn seconds_left(state: &ProgressState) -> f64 {
    let left = state.len().unwrap_or(0).saturating_sub(state.pos());
    left as f64 / a_second(state).max(f64::MIN_POSITIVE)
}

/// A bar that shows itself once the work has taken a second.
pub struct Progress {
    shown: bool,
    unit: Unit,
    total: Option<u64>,
    started: Instant,
    done: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(shown: bool, unit: Unit, total: Option<u64>) -> Progress {
        Progress { shown, unit, total, started: Instant::now(), done: 0, bar: None }
    }

    pub fn add(&mut self, more: u64) {
        self.reach(self.done + more);
    }

    /// Now so much in all is known of.
    pub fn expect(&mut self, total: u64) {
        self.total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    pub fn reach(&mut self, done: u64) {
        self.done = done;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.shown && self.started.elapsed() >= PATIENCE => {
                let bar = new_bar(self.style(), self.total).with_elapsed(self.started.elapsed());
                bar.set_position(self.done);
                self.bar = Some(bar);
            }
            None => {}
        }
    }

    fn style(&self) -> ProgressStyle {
        let unit = self.unit;
        style(unit.template(self.total.is_some()))
            .with_key("rate", move |state: &ProgressState, text: &mut dyn Write| {
                // A bar that cannot be drawn must not stop the work.
                let _ = text.write_str(&unit.rate(a_second(state)));
            })
            .with_key("left", |state: &ProgressState, text: &mut dyn Write| {
                let _ = write!(text, "{:.0} s", seconds_left(state));
            })
    }

    /// Takes the bar off the screen, before anything else is written there.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.shown = false;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The templates are constants of this file; if one were wrong, the default style would do.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn new_bar(style: ProgressStyle, total: Option<u64>) -> ProgressBar {
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style)
}

/// Does work that cannot say how far it is; a spinner shows that it goes on.
pub fn while_spinning<T>(shown: bool, what: &'static str, work: impl FnOnce() -> T) -> T {
    if !shown {
        return work();
    }
    thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        scope.spawn(move || {
            if waiting.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = new_bar(style("{spinner} {msg} {elapsed}"), None);
            bar.set_message(what);
            bar.enable_steady_tick(TICK);
            // Ends when the work is done and drops its end of the channel.
            let _ = waiting.recv();
            bar.finish_and_clear();
        });
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_templates_are_right() {
        for unit in [Unit::Records, Unit::Bytes, Unit::Seconds, Unit::Rounds] {
            for bounded in [true, false] {
                assert!(ProgressStyle::with_template(unit.template(bounded)).is_ok());
            }
        }
    }
}
