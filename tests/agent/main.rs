//! A process that obeys orders, for tests: one order a line on stdin, one answer a line on stdout.
//!
//! `serve` lists the orders of an open store. A transaction, named snapshots and a borrowed value stay open from
//! order to order; `arm N` makes the process kill itself before the N-th step from then on.

#[path = "../common/mod.rs"]
mod common;
mod data;
mod fork;
mod limit;
mod options;
mod pester;
mod session;
mod storm;
mod work;

use std::io::{BufRead, Write};
use std::process::ExitCode;

use session::{End, Session};

/// The other end of the pipe.
pub struct Talk {
    orders: std::io::StdinLock<'static>,
}

impl Talk {
    /// The next order; none when the test is gone.
    pub fn order(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.orders.read_line(&mut line);
        matches!(read, Ok(n) if n > 0).then_some(line)
    }

    /// Answers the order in hand.
    pub fn answer(&mut self, answer: &str) {
        say(answer);
    }
}

/// Writes a line at once, since this process may be killed at any moment.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the next order will not come.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// An answer that tells of an error: its kind, then its text.
pub fn error(e: &slotdb::Error) -> String {
    let debug = format!("{e:?}");
    let kind = debug.split([' ', '{']).next().unwrap_or_default();
    format!("error {kind}: {e}")
}

/// Orders that need no open store.
pub fn anywhere(words: &[&str]) -> Option<String> {
    match *words {
        ["arm", steps] => slotdb::fault::arm(options::number(steps)),
        ["stop", "before", steps] => slotdb::fault::arm_with(options::number(steps), Box::new(limit::stop)),
        ["limit", "none"] => limit::lift(),
        ["limit", spare] => limit::limit(options::number(spare)),
        ["pester", microseconds] => pester::pester(options::number(microseconds)),
        ["spawn"] => return Some(fork::spawn()),
        ["steps", armed] => return Some(slotdb::fault::disarm(options::number(armed)).to_string()),
        _ => return None,
    }
    Some("ok".to_string())
}

fn main() -> ExitCode {
    let mut talk = Talk { orders: std::io::stdin().lock() };
    while let Some(order) = talk.order() {
        let words: Vec<&str> = order.split_whitespace().collect();
        match words[..] {
            ["exit"] => break,
            ["open", path, ref options @ ..] => match options::parse(options).open(path) {
                Ok(db) => {
                    talk.answer("ok");
                    let end = Session::new(&db).serve(&mut talk);
                    match end {
                        End::Close => talk.answer(&db.close().map_or_else(|e| error(&e), |()| "ok".to_string())),
                        End::Gone => break,
                        End::Child(parent) => return fork::leave(db, parent),
                    }
                }
                Err(e) => talk.answer(&error(&e)),
            },
            _ => talk.answer(&anywhere(&words).unwrap_or_else(|| format!("what? {order}"))),
        }
    }
    ExitCode::SUCCESS
}
